"""``eval``, ``compare`` and ``bench``: measurements as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphopt.analysis.cost import CostAnalysis
from graphopt.data.checks import near_chance
from graphopt.driver.config import Settings
from graphopt.driver.inputs import evaluation_only
from graphopt.ir import Model, load
from graphopt.progress import Progress
from graphopt.report.build import environment
from graphopt.runtime.compare import compare_models
from graphopt.runtime.evaluate import Evaluation, evaluate
from graphopt.runtime.latency import Latency, measure, speedup


def evaluate_model(path: Path, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Accuracy and throughput of one model."""
    model = load(path)
    batches, notes = evaluation_only(model, settings)
    threads = settings.threads or 1
    found = evaluate(path, batches, threads=threads, progress=progress)
    if found.top1 is not None:
        notes.extend(filter(None, [near_chance(found.top1, found.classes, found.n)]))
    if not found.labels:
        notes.append("the images have no labels: there is no accuracy to report")
    if found.non_finite:
        notes.append(f"{found.non_finite} images give NaN or infinity")
    for note in notes:
        progress.warn(note)
    return {
        "schema": "graphopt.eval/1",
        "model": _model(path, model),
        "dataset": {
            "source": batches.description,
            "images": len(batches),
            "preprocess": batches.preprocess.spec,
        },
        **_evaluation(found),
        "notes": notes,
        "environment": environment(threads, settings.seed or 0),
    }


def compare(a: Path, b: Path, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Two models on the same images, or on random inputs when there are none."""
    models = [load(path) for path in (a, b)]
    threads, seed = settings.threads or 1, settings.seed or 0
    batches, notes = None, list[str]()
    if settings.data is not None:
        batches, notes = evaluation_only(models[0], settings)
    else:
        notes.append("no images were given: outputs are compared on random inputs, accuracy is not measured")
    for note in notes:
        progress.warn(note)
    found = compare_models(a, b, batches, threads=threads, seed=seed, progress=progress)
    first, second = measure([a, b], threads=threads, seed=seed, progress=progress)
    paired = found.paired
    return {
        "schema": "graphopt.compare/1",
        "a": {**_model(a, models[0]), **_evaluation(found.a), "latency_ms": first.median_ms},
        "b": {**_model(b, models[1]), **_evaluation(found.b), "latency_ms": second.median_ms},
        "delta": {
            "top1_points": paired.delta if paired else None,
            "ci95": list(paired.ci95) if paired else None,
            "mcnemar_p": paired.mcnemar_p if paired else None,
            "agreement": found.agreement,
            "speedup": speedup(first, second),
        },
        "outputs": {**vars(found.outputs), "random_inputs": found.random_inputs},
        "dataset": None if batches is None else {"source": batches.description, "images": len(batches)},
        "notes": notes,
        "environment": environment(threads, seed),
    }


def bench(
    paths: list[Path],
    *,
    batch: int,
    seconds: float,
    size: int | None,
    threads: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Interleaved latencies of some models."""
    found = measure(
        paths,
        threads=threads,
        batch=batch,
        height=size,
        width=size,
        seconds=seconds,
        seed=seed,
        progress=progress,
    )
    return {
        "schema": "graphopt.bench/1",
        "models": [
            {"path": str(path), **_latency(latency), "speedup": speedup(found[0], latency)}
            for path, latency in zip(paths, found, strict=True)
        ],
        "environment": environment(threads, seed),
    }


def _latency(found: Latency) -> dict[str, Any]:
    return {
        "latency_ms": found.median_ms,
        "q1_ms": found.q1_ms,
        "q3_ms": found.q3_ms,
        "rounds": found.rounds,
        "runs": found.runs,
        "batch": found.batch,
    }


def _model(path: Path, model: Model) -> dict[str, Any]:
    cost = CostAnalysis().compute(model, None)
    return {
        "path": str(path),
        "sha256": model.source.sha256 if model.source else None,
        "params": cost.params,
        "macs": cost.macs,
        "bytes": path.stat().st_size,
    }


def _evaluation(found: Evaluation | None) -> dict[str, Any]:
    if found is None:
        return {"top1": None, "top1_ci95": None, "top5": None}
    return {
        "top1": found.top1,
        "top1_ci95": list(found.ci95) if found.ci95 else None,
        "top5": found.top5,
        "images_per_second": found.images_per_second,
        "non_finite": found.non_finite,
    }
