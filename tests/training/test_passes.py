"""``distill`` and ``finetune``: what they change, what they leave alone, and how a run ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from graphopt import Context, Model, Pass, PassResult
from graphopt.data.loader import Batches
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.driver.inputs import model_input
from graphopt.errors import PassError, UsageError
from graphopt.ir import load
from graphopt.ir.values import peek
from graphopt.passes.quantize import Quantize
from graphopt.passes.train import Distill, FineTune
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.session import open_session, run_session
from graphopt.runtime.target import get_target
from graphopt.training import loop
from graphopt.training.loop import Training
from graphopt.training.losses import distillation
from graphopt.training.roles import depth

SHORT = {"steps": 40, "batch": 16, "rate": 2e-3, "threads": 1, "precision": "float32", "warmup": 4, "flip": False}


@pytest.fixture
def ctx(classifier: Path, images: Path) -> Context:
    """Sixty images to train on and 36 held out, of the small classifier as its own teacher."""
    model = load(classifier)
    data = open_dataset(images)

    def part(start: int, stop: int) -> Batches:
        return Batches(data, np.arange(start, stop), Preprocess.parse("unit"), model_input(model))

    return Context(get_target("ort-cpu"), part(0, 24), model, seed=3, held_out=part(60, 96), training=part(0, 60))


def damaged(model: Model) -> Model:
    """With the weights of its second convolution rounded to a few values: something that training can mend."""
    twin = model.copy()
    with twin.edit() as graph:
        for node in graph.nodes:
            if node.name in ("conv2", "conv3"):
                weight = node.inputs[1]
                weight.values = (np.round(weight.values * 6) / 6 * 0.8).astype(np.float32)
    return twin


def apply(step: Pass, model: Model, ctx: Context) -> PassResult:
    manager = PassManager([step])
    (record,) = manager.run(model, ctx)
    assert record.changed == (record.metrics["initializers_changed"] > 0)
    return PassResult(record.changed, record.metrics, record.skipped, record.again)


def skeleton(model: Model) -> list[object]:
    nodes = [
        (n.op, n.name, [t.name for t in n.inputs], [t.name for t in n.outputs], str(n.attrs)) for n in model.graph.nodes
    ]
    return [*nodes, [t.name for t in model.inputs], [(t.name, t.shape) for t in model.outputs]]


def test_distill_mends_what_was_damaged_and_changes_initializers_alone(ctx: Context) -> None:
    model = damaged(ctx.reference)
    before, values = skeleton(model), {c.name: peek(c) for c in model.constants()}
    result = apply(Distill(**SHORT), model, ctx)
    assert skeleton(model) == before
    after = {c.name: peek(c) for c in model.constants()}
    assert all(after[n].dtype == v.dtype and after[n].shape == v.shape for n, v in values.items())
    changed = {n for n in values if not np.array_equal(values[n], after[n])}
    assert {"w2", "w3"} <= changed and not changed & {"m1", "v1"}, "statistics of a fixed batch norm"
    assert result.metrics["held_out_agreement_after"] > result.metrics["held_out_agreement_before"]
    assert result.metrics["steps"] == 40 and result.metrics["blocks_compared"] >= 2


def test_same_seed_same_bytes_and_another_seed_others(ctx: Context) -> None:
    written = []
    for seed in (3, 3, 4):
        model = damaged(ctx.reference)
        ctx.seed = seed
        apply(Distill(**SHORT), model, ctx)
        written.append(model.to_bytes())
    assert written[0] == written[1] != written[2]


def test_threads_share_a_batch_and_get_what_one_gets(ctx: Context) -> None:
    written = []
    for threads in (1, 3, 3):
        model = damaged(ctx.reference)
        # Block errors are relative to the size of what each part of a batch gives.
        apply(Distill(**SHORT | {"threads": threads, "steps": 5, "blocks": 0.0, "optimizer": "sgd"}), model, ctx)
        written.append(model)
    assert written[1].to_bytes() == written[2].to_bytes()
    one, three = ({c.name: peek(c) for c in m.constants()} for m in written[:2])
    start = {c.name: peek(c) for c in damaged(ctx.reference).constants()}
    for name, values in one.items():
        moved = float(np.abs(values - start[name]).max())
        assert np.abs(values - three[name]).max() <= 1e-3 * moved


def test_the_mean_of_an_image_and_its_mirror_image_teaches(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctx.held_out is not None
    session = open_session(ctx.reference.to_bytes())
    (x,) = ctx.held_out.batches(64)
    alone, mirrored = (run_session(session, images)[0] for images in (x, np.ascontiguousarray(x[..., ::-1])))
    assert np.abs(alone - mirrored).max() > 1e-2 * np.abs(alone).max(), "else the case shows nothing"
    taught: list[np.ndarray] = []

    def seen(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
        taught.append(theirs.numpy())
        return distillation(ours, theirs, temperature)

    monkeypatch.setattr(loop, "distillation", seen)
    mean = (alone + mirrored) / 2
    for options, expected in (({"flip": True}, mean), ({"flip": True, "mirror": False}, alone), ({}, alone)):
        taught.clear()
        apply(Distill(**SHORT | {"steps": 1} | options), ctx.reference.copy(), ctx)
        np.testing.assert_allclose(taught[0], expected, rtol=1e-3, atol=1e-4)


def test_the_rate_follows_the_depth(ctx: Context) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {%s}> { %s }'
    layers = [f"a{k} = MatMul({'x' if k == 0 else f'a{k - 1}'}, w)" for k in range(24)]
    deep = Model.from_text(text % (",".join(["1"] * 16), " ".join(layers) + " b = MatMul(a0, w) y = Add(a23, b)"))
    assert depth(deep) == 24
    assert depth(Model.from_text(text % (",".join(["1"] * 16), "a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)"))) == 1
    result = apply(Distill(**SHORT | {"rate": 0.0, "steps": 1}), damaged(ctx.reference), ctx)
    assert result.metrics["rate"] == 1e-3 and result.again is not None and "rate" not in result.again


def test_minutes_say_which_steps_give_the_same_bytes(ctx: Context) -> None:
    options = {k: v for k, v in SHORT.items() if k != "steps"}
    first, second = damaged(ctx.reference), damaged(ctx.reference)
    result = apply(Distill(**options, minutes=0.02), first, ctx)
    assert result.again is not None and "steps=" in result.again and "minutes" not in result.again
    (again,) = Registry().build(result.again)
    assert isinstance(again, Distill)
    repeated = apply(again, second, ctx)
    assert first.to_bytes() == second.to_bytes() and repeated.again == result.again


def test_live_batch_norms_follow_the_images(ctx: Context) -> None:
    model = damaged(ctx.reference)
    before = {c.name: peek(c) for c in model.constants()}
    apply(Distill(**SHORT, norms="live"), model, ctx)
    after = {c.name: peek(c) for c in model.constants()}
    assert not np.array_equal(before["m1"], after["m1"]) and not np.array_equal(before["v1"], after["v1"])


def test_finetune_learns_labels(ctx: Context) -> None:
    model = damaged(ctx.reference)
    result = apply(FineTune(**SHORT), model, ctx)
    assert result.metrics["held_out_top1_after"] > result.metrics["held_out_top1_before"]


def test_finetune_without_labels_is_one_clear_error(ctx: Context) -> None:
    assert ctx.training is not None
    ctx.training.dataset.labels = None
    with pytest.raises(PassError, match="the training images have none"):
        FineTune(**SHORT).run(damaged(ctx.reference), ctx)


def test_quantized_models_train_through_their_integers(ctx: Context) -> None:
    model = ctx.reference.copy()
    for step in Registry().build("simplify"):
        PassManager([step]).run(model, ctx)
    Quantize(place="smaller").run(model, ctx)
    before, kinds = skeleton(model), {c.name: peek(c).dtype for c in model.constants()}
    result = apply(Distill(**SHORT), model, ctx)
    assert skeleton(model) == before and kinds == {c.name: peek(c).dtype for c in model.constants()}
    assert result.metrics["initializers_changed"] > 0 or result.metrics["best_step"] == 0
    onnx.checker.check_model(onnx.load_from_string(model.to_bytes()), full_check=True)


def test_an_interrupt_keeps_the_best_so_far(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Training.step, iter(range(1000))

    def interrupted(self: Training) -> float:
        if next(calls) == 25:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Training, "step", interrupted)
    model = damaged(ctx.reference)
    result = apply(Distill(**SHORT), model, ctx)
    assert result.metrics["ended"] == "interrupted" and result.metrics["steps"] == 25
    assert result.metrics["held_out_agreement_after"] >= result.metrics["held_out_agreement_before"]
    assert result.again is not None and "stop=25" in result.again


def test_a_rate_that_breaks_everything_leaves_the_weights_alone(ctx: Context) -> None:
    model = damaged(ctx.reference)
    before = model.to_bytes()
    result = apply(Distill(**{**SHORT, "rate": 1e9}), model, ctx)
    assert not result.changed and model.to_bytes() == before


def test_operators_that_do_not_train_are_named(ctx: Context) -> None:
    model = Model.from_text(
        """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,12,12] input) => (float[N,4] logits)
{
    k = Constant <value_ints = [1]> ()
    v, i = TopK (input, k)
    logits = GlobalAveragePool (v)
}
"""
    )
    with pytest.raises(PassError, match=r"\(TopK\)"):
        Distill(**SHORT).run(model, ctx)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1.0, "steps": 5}, "two budgets"),
        ({"stop": 5}, "give steps= too"),
        ({"precision": "float16"}, "precision"),
        ({"rate": -1.0}, "rate"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Distill(**options)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_too_few_images(ctx: Context) -> None:
    assert ctx.training is not None
    ctx.training = ctx.training.part(np.arange(8))
    with pytest.raises(PassError, match="8 images to train on"):
        Distill(**SHORT).run(damaged(ctx.reference), ctx)


def test_a_whole_command(classifier: Path, images: Path, tmp_path: Path) -> None:
    from graphopt.cli import run

    code = run(
        [
            "run",
            str(classifier),
            "--data",
            str(images),
            "-q",
            "--passes",
            "prune{macs=0.7,min_keep=0.5},distill{steps=30,batch=8,threads=1},quantize",
            "-o",
            str(tmp_path / "out.onnx"),
        ]
    )
    assert code == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["dataset"]["training"] > report["dataset"]["calibration"] and report["dataset"]["held_out"] > 0
    parts = report["dataset"]["evaluation"] + report["dataset"]["training"] + report["dataset"]["held_out"]
    assert parts == 96
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert "distill{steps=30" in metadata["graphopt.pipeline"]


def test_large_sets_of_images_are_kept_in_a_file(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from graphopt.progress import Silent
    from graphopt.training import images as module

    for k in range(6):
        (tmp_path / "all").mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 40 * k, np.uint8)).save(tmp_path / "all" / f"{k}.png")
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    batches = Batches(open_dataset(tmp_path / "all"), None, Preprocess.parse("unit"), model_input(ctx.reference))
    import torch

    store = module.ImageStore(batches, Silent(), torch.device("cpu"))
    assert isinstance(store.pixels, np.memmap)
    whole = np.concatenate(list(_batches(batches)))
    np.testing.assert_allclose(store.plain(0, 6).numpy(), whole, rtol=1e-6)


def _batches(batches: Batches) -> Iterator[np.ndarray]:
    yield from batches.batches(4)
