"""Images of 256 levels reach the int8 layers without another rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.data.arrays import ArrayDataset
from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.passes.quantize import Quantize
from graphopt.passes.quantize.pixels import enter
from graphopt.passes.quantize.placement import decide
from tests.passes.quantize.conftest import eager, run_model

PADDED = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v)"
PLAIN = "a = Conv(x, w, b) r = Relu(a) y = Conv(r, v)"
SHAPES = {"w": (1, 8, 3, 3, 3), "b": (2, 8), "v": (3, 4, 8, 1, 1)}
MEANS = "imagenet{size=8}"  # other factors and offsets in each channel
CENTRED = "efficientnet-lite{size=8}"  # (pixel - 127) / 128
HALF = "inception{size=8}"  # 0 lies half way between two pixels


def images(folder: Path, spec: str, shape: tuple[int, ...] = (32, 8, 8, 3), fractions: bool = False) -> Batches:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    path = folder / f"x{fractions}.npz"
    np.savez(path, x=(x * np.float32(0.999)).astype(np.float32) if fractions else x)
    port = image_input("x", ("N", 3, 8, 8), np.dtype(np.float32))
    return Batches(ArrayDataset(path), None, Preprocess.parse(spec), port)


def entered(model: Model, batches: Batches, **options):
    ctx = Context(eager(), batches, model.copy())
    plan = decide(model, ctx.target)
    return plan, enter(model, ctx, plan, **options)


def read(model: Model, batches: Batches) -> np.ndarray:
    return run_model(model, np.concatenate(list(batches.batches(8))), optimize=False)


@pytest.mark.parametrize("spec", [MEANS, HALF, "imagenet{size=8,order=bgr}"])
@pytest.mark.parametrize("body", [PADDED, PLAIN])
def test_the_float_model_stays_the_same(graph, tmp_path, body, spec):
    size = 8 if body == PADDED else 6
    model = Model.from_text(graph(body, "[N,3,8,8]", f"[N,4,{size},{size}]", **SHAPES))
    batches = images(tmp_path, spec)
    before = read(model, batches)
    plan, entry = entered(model, batches)
    (name,) = entry.ranges
    added = model.graph.nodes[0]
    assert entry.ranges[name] == (0.0, 255.0) and added.op == "Conv" and added.outputs[0].name == name
    assert added.outputs[0].shape[1] == (4 if body == PADDED else 3)  # one marks where the image is, if it is padded
    assert entry.plan.int8 == {i + 1 for i in plan.int8}
    # Products of float32, differently grouped.
    np.testing.assert_allclose(read(model, batches), before, atol=1e-5 * np.abs(before).max())


def test_automatic_padding_is_padding(graph, tmp_path):
    body = 'a = Conv<auto_pad="SAME_UPPER">(x, w, b) y = Conv(a, v)'
    model = Model.from_text(graph(body, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    batches = images(tmp_path, MEANS)
    before = read(model, batches)
    entered(model, batches)
    assert model.graph.nodes[0].outputs[0].shape[1] == 4
    np.testing.assert_allclose(read(model, batches), before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("spec", [CENTRED, "unit{size=8}", "raw{size=8}"])
def test_one_scale_for_all_channels_needs_no_operator(graph, tmp_path, spec):
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    batches = images(tmp_path, spec)
    plan, entry = entered(model, batches)
    factor, offset = batches.preprocess.affine()
    (bounds,) = entry.ranges.values()
    assert entry.plan is plan and [n.op for n in model.graph.nodes] == ["Conv", "Relu", "Conv"]
    assert bounds == pytest.approx((offset[0], offset[0] + 255 * factor[0]))


@pytest.mark.parametrize("spec", [MEANS, CENTRED, HALF])
def test_no_level_is_rounded(graph, tmp_path, spec):
    """The integers that the first layer reads are the pixels."""
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    batches = images(tmp_path, spec)
    ctx = Context(eager(), batches, model.copy())
    result = Quantize(keep_float=("last",)).run(model, ctx)
    assert result.metrics["lossless_input"]
    first = next(n for n in model.graph.nodes if n.op == "QuantizeLinear")
    twin = model.copy()
    shown = next(n for n in twin.graph.nodes if n.name == first.name).outputs[0]
    twin.graph.outputs = [shown]
    integers = run_model(twin, np.concatenate(list(batches.batches(8))), optimize=False)
    pixels = np.stack([batches.picture(k) for k in range(len(batches))]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(integers[:, :3], pixels)
    assert integers.shape[1] == 3 or (integers[:, 3] == 255).all()


def test_images_of_more_levels_are_left_alone(graph, tmp_path):
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    plan, entry = entered(model, images(tmp_path, MEANS, fractions=True))
    assert entry.plan is plan and not entry.ranges and not entry.skipped and len(model.graph.nodes) == 3


def test_a_target_of_signed_activations_is_left_alone(graph, tmp_path):
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    target = dataclasses.replace(eager(), activation="int8")
    ctx = Context(target, images(tmp_path, MEANS), model.copy())
    plan = decide(model, target)
    assert enter(model, ctx, plan).plan is plan and len(model.graph.nodes) == 3


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        ("a = Conv<group=3>(x, w) y = Conv(a, v)", {"w": (1, 6, 1, 3, 3), "v": (3, 4, 6, 1, 1)}, "without groups"),
        ("a = Add(x, x) y = Conv(a, v)", {"v": (3, 4, 3, 1, 1)}, "only a Conv"),
    ],
)
def test_what_hinders_it_is_said(graph, tmp_path, body, shapes, reason):
    model = Model.from_text(graph(body, "[N,3,8,8]", "[N,4,H,W]", **shapes))
    _, entry = entered(model, images(tmp_path, MEANS))
    assert entry.skipped and not entry.ranges and len(model.graph.nodes) == 2
    assert reason in entry.skipped[0].reason and entry.skipped[0].node == model.graph.nodes[0].name


def test_where_int8_hardly_pays_no_operator_is_added(graph, tmp_path):
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    _, entry = entered(model, images(tmp_path, MEANS), spare=False)
    assert "gains too little" in entry.skipped[0].reason and len(model.graph.nodes) == 3


def test_a_model_made_float_again_is_not_converted_twice(graph, tmp_path):
    model = Model.from_text(graph(PADDED, "[N,3,8,8]", "[N,4,8,8]", **SHAPES))
    batches = images(tmp_path, MEANS)
    Quantize().run(model, Context(eager(), batches, model.copy()))
    convs = [n.name for n in model.graph.nodes if n.op == "Conv"]
    result = Quantize(requantize=True).run(model, Context(eager(), batches, model.copy()))
    assert result.metrics["lossless_input"] and [n.name for n in model.graph.nodes if n.op == "Conv"] == convs
    assert not next(n for n in model.graph.nodes if n.op == "Conv").inputs[0].inputs  # it reads the image in float
