"""``graphopt run``: load, run the passes, write beside the target, measure what was written, gate, rename, report."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import graphopt
from graphopt.analysis.cost import Cost, CostAnalysis
from graphopt.driver import gates
from graphopt.driver.config import DEFAULT_PASSES, Settings
from graphopt.driver.inputs import Inputs, classes, prepare
from graphopt.errors import GraphoptError, ModelError, PassError, UsageError
from graphopt.ir import Model, load
from graphopt.ir.interface import fix_shapes
from graphopt.ir.io import Staged, check_writable, stage
from graphopt.pipeline import Context, Pass, Registry, format_pipeline
from graphopt.pipeline.hooks import DumpIR, Hook, Reproducer
from graphopt.pipeline.manager import PassManager
from graphopt.progress import Progress
from graphopt.report import build, files
from graphopt.runtime.evaluate import Evaluation, evaluate
from graphopt.runtime.latency import Latency, measure, speedup
from graphopt.runtime.latency_table import LatencyTable
from graphopt.runtime.session import open_session, runnable
from graphopt.runtime.statistics import PairedDelta, paired_delta
from graphopt.runtime.target import get_target


@dataclass(frozen=True)
class Options:
    """What ``run`` can be told on the command line only."""

    report: Path | None = None
    dump_ir: Path | None = None
    verify_each: bool = False
    no_eval: bool = False
    load_passes: tuple[Path, ...] = ()


@dataclass
class Outcome:
    """The report, and the exit code that it stands for: 0 all gates hold, 1 a gate failed, 3 a pass failed."""

    report: dict[str, Any]
    exit_code: int
    report_path: Path
    error: GraphoptError | None = None


def optimize(path: Path, settings: Settings, options: Options, progress: Progress) -> Outcome:
    """Run the whole flow. Raises GraphoptError of exit code 2 for what the user must mend; then nothing is written."""
    target_path = settings.output or path.with_suffix(".opt.onnx")
    report_path = options.report or target_path.with_suffix(".report.json")
    check_writable(target_path, path)
    check_writable(report_path, path)
    registry = Registry()
    for file in options.load_passes:
        registry.load_file(file)
    passes = registry.build(settings.passes or DEFAULT_PASSES)
    target = get_target(settings.target or "ort-cpu")
    threads, seed = settings.threads or 1, settings.seed or 0

    table = LatencyTable(settings.latency_table, threads)
    table.load()

    progress.log(f"loading {path}")
    model = load(path)
    open_session(path, optimize=False)
    if model.source is not None and report_path.resolve() in {p.resolve() for p in model.source.data}:
        raise UsageError(f"{report_path} holds weights of the model", "write the report elsewhere")
    fixed = _fix_shapes(model, settings)
    judging = any(step.needs_held_out for step in passes if isinstance(step, Pass))
    training = any(step.needs_training for step in passes if isinstance(step, Pass))
    inputs = prepare(model, settings, evaluate=not options.no_eval, hold_out=judging, train=training)
    evaluation = inputs.evaluation
    gates.check_possible(settings, evaluation is not None, evaluation is not None and evaluation.labels is not None)
    for note in inputs.notes:
        progress.warn(note)

    reference = model.copy()
    ctx = Context(
        target,
        inputs.calibration,
        reference,
        seed,
        threads,
        progress,
        latency_table=table,
        held_out=inputs.held_out,
        training=inputs.training,
    )
    before = _Facts(path, path.stat().st_size, ctx.analysis(CostAnalysis(), reference))
    if evaluation is not None:
        before.evaluation = evaluate(path, evaluation, threads=threads, progress=progress)
        _warn_if_near_chance(before.evaluation, classes(model), progress)

    crash = target_path.with_suffix(".crash")
    hooks: list[Hook] = [Reproducer(crash, _arguments(settings, options, seed), _format)]
    if options.dump_ir is not None:
        hooks.append(DumpIR(options.dump_ir))
    manager = PassManager(passes, hooks, options.verify_each)
    story = build.Story(model, path, target_path, format_pipeline(passes), target.name, inputs.describe())
    story.records, story.environment = manager.records, build.environment(threads, seed)
    story.notes = [*fixed, *inputs.notes]
    try:
        manager.run(model, ctx)
        story.latency_table = table.describe() if table.used else None
    except GraphoptError as error:
        if error.exit_code != PassError.exit_code:
            raise
        return _failed(story, before, error, report_path)

    _stamp(model, ",".join(manager.again))
    try:
        with stage(model, target_path) as staged:
            after = _measure(staged, path, model, ctx, before, inputs, options, settings)
            measured = gates.Measured(
                _top1(before.evaluation),
                _top1(after.evaluation),
                after.evaluation.agreement if after.evaluation else None,
                after.speedup,
                staged.size(),
            )
            verdicts = gates.judge(settings, measured)
            passed = all(gate.passed for gate in verdicts)
            story.gates = [asdict(gate) for gate in verdicts]
            story.output_sha256 = files.sha256(staged.path)
            story.written = passed
            report = build.report(story, before.entry(), after.entry(), _delta(before, after))
            if passed:
                staged.commit()
    except PassError as error:
        return _failed(story, before, error, report_path)
    files.write_json(report_path, report)
    return Outcome(report, 0 if passed else 1, report_path)


def _fix_shapes(model: Model, settings: Settings) -> list[str]:
    """Fix the input shapes that were asked for; the notes say which."""
    changed = fix_shapes(model, settings.input_shapes or {}, settings.batch)
    if changed:
        with runnable(model) as form:
            try:
                open_session(form, optimize=False)
            except ModelError as error:
                raise ModelError(f"the model does not take inputs of this shape: {error.message}") from error
    return [f"the shape of input {name!r} is fixed to {dims}" for name, dims in changed.items()]


@dataclass
class _Facts:
    """What the report's ``before`` and ``after`` hold."""

    path: Path
    bytes: int
    cost: Cost
    evaluation: Evaluation | None = None
    latency: Latency | None = None
    speedup: float | None = None

    def entry(self) -> dict[str, Any]:
        found = self.evaluation
        return {
            "top1": found.top1 if found else None,
            "top1_ci95": list(found.ci95) if found and found.ci95 else None,
            "top5": found.top5 if found else None,
            "params": self.cost.params,
            "macs": self.cost.macs,
            "bytes": self.bytes,
            "latency_ms": self.latency.median_ms if self.latency else None,
        }


def _measure(
    staged: Staged,
    source: Path,
    model: Model,
    ctx: Context,
    before: _Facts,
    inputs: Inputs,
    options: Options,
    settings: Settings,
) -> _Facts:
    """Reload the written file and measure it: what is measured is what is shipped."""
    try:
        load(staged.path)
        open_session(staged.path, threads=ctx.threads)
    except GraphoptError as error:
        raise PassError(f"the optimized model cannot be loaded again: {error.message}", error.hint) from error
    after = _Facts(staged.path, staged.size(), ctx.analysis(CostAnalysis(), model))
    if inputs.evaluation is not None:
        after.evaluation = evaluate(
            staged.path,
            inputs.evaluation,
            threads=ctx.threads,
            progress=ctx.progress,
            reference=before.evaluation,
        )
        if after.evaluation.non_finite:
            raise PassError(f"the optimized model gives NaN or infinity on {after.evaluation.non_finite} images")
    if not options.no_eval or settings.min_speedup is not None:
        size = inputs.preprocess.target_size(inputs.input) or (None, None)
        fixed = model.inputs[0].shape[0] if len(model.inputs) == 1 and model.inputs[0].shape else None
        before.latency, after.latency = measure(
            [source, staged.path],
            threads=ctx.threads,
            batch=fixed if isinstance(fixed, int) else 1,
            height=size[0],
            width=size[1],
            seed=ctx.seed,
            progress=ctx.progress,
        )
        after.speedup = speedup(before.latency, after.latency)
    return after


def _delta(before: _Facts, after: _Facts) -> dict[str, Any]:
    paired: PairedDelta | None = None
    if before.evaluation and after.evaluation and before.evaluation.correct is not None:
        assert after.evaluation.correct is not None
        paired = paired_delta(before.evaluation.correct, after.evaluation.correct)
    macs = after.cost.macs / before.cost.macs if after.cost.macs and before.cost.macs else None
    return {
        "top1_points": paired.delta if paired else None,
        "ci95": list(paired.ci95) if paired else None,
        "mcnemar_p": paired.mcnemar_p if paired else None,
        "agreement": after.evaluation.agreement if after.evaluation else None,
        "speedup": after.speedup,
        "macs": macs,
        "bytes": after.bytes / before.bytes,
    }


def _failed(story: build.Story, before: _Facts, error: GraphoptError, report_path: Path) -> Outcome:
    story.error = {"message": error.message, "hint": error.hint}
    report = build.report(story, before.entry(), None, None)
    files.write_json(report_path, report)
    return Outcome(report, error.exit_code, report_path, error)


def _stamp(model: Model, pipeline: str) -> None:
    model.metadata["graphopt.version"] = graphopt.__version__
    model.metadata["graphopt.pipeline"] = pipeline
    if model.source is not None:
        model.metadata["graphopt.source_sha256"] = model.source.sha256
    model.touch()


def _top1(found: Evaluation | None) -> float | None:
    return found.top1 if found else None


def _warn_if_near_chance(found: Evaluation, count: int | None, progress: Progress) -> None:
    from graphopt.data.checks import near_chance

    if found.top1 is not None:
        warning = near_chance(found.top1, count or found.classes, found.n)
        if warning:
            progress.warn(warning)


def _arguments(settings: Settings, options: Options, seed: int) -> list[str]:
    """Command-line arguments that give another run the same context."""
    words = ["--no-eval", "--seed", str(seed)]
    for file in options.load_passes:
        words += ["--load-pass", str(file.resolve())]
    if settings.calibration_data or settings.data:
        words += ["--calibration-data", str((settings.calibration_data or settings.data).resolve())]  # type: ignore[union-attr]
    if settings.calibration_images:
        words += ["--calibration-images", str(settings.calibration_images)]
    if settings.preprocess:
        from graphopt.driver.inputs import read_preprocess

        words += ["--preprocess", read_preprocess(settings.preprocess).spec]
    return words


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
