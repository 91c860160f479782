"""Random graphs: simplified, they compute what they did, and the check names a pass that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from differential import Broken, check, passes
from graphs import models
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from onnx import TensorProto

import graphopt.passes.cancel as cancel
import graphopt.passes.eliminate as eliminate
import graphopt.passes.fuse_affine as fuse_affine
import graphopt.passes.fuse_pad as fuse_pad
from graphopt import Model
from graphopt.errors import ModelError
from graphopt.runtime.feeds import random_feeds

_PARTS, _GRAPHS = 20, 250  # 5,000 graphs
_FEW = 150
_ENOUGH = 600  # a broken pass is found within so many


def _compare(model: Model) -> bool:
    """Whether simplifying changes the model; raises Broken if that does harm."""
    form = model.to_bytes()
    feeds = [dict(f) for f in random_feeds(form, (1, 3))]
    rng = np.random.default_rng(0)
    proto = model.to_proto()
    inputs = {i.name for i in proto.graph.input}
    for weight in proto.graph.initializer:  # those that are inputs too, a caller may feed
        if weight.name in inputs and weight.data_type == TensorProto.FLOAT:
            feeds[-1][weight.name] = rng.uniform(0.5, 1.5, tuple(weight.dims)).astype(np.float32)
    return bool(check(model, feeds).changed_by)


def _run(graphs: int, part: int, *phases: Phase) -> None:
    changed: list[bool] = []
    unfit = 0

    @seed(part)
    @settings(
        max_examples=graphs,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=phases or tuple(Phase),
    )
    @given(models())
    def run(model: Model) -> None:
        nonlocal unfit
        try:
            changed.append(_compare(model))
        except ModelError:  # ONNX Runtime has a limit that the generator does not know of
            unfit += 1
            reject()

    run()
    assert len(changed) >= graphs and sum(changed) > 0.6 * graphs and unfit < 0.02 * graphs, (len(changed), unfit)


def test_few() -> None:
    _run(_FEW, 0)


@pytest.mark.suite
@pytest.mark.parametrize("part", range(1, _PARTS + 1))
def test_many(part: int) -> None:
    _run(_GRAPHS, part)


# --- passes broken on purpose --------------------------------------------------------------------------------------


class _Careless:
    """A bench that never sees more than one reader of a tensor, nor that a tensor is an output or captured."""

    def __init__(self, bench: object) -> None:
        self._bench = bench

    def __getattr__(self, name: str) -> object:
        return getattr(self._bench, name)

    def readers(self, tensor: object) -> list[object]:
        return self._bench.readers(tensor)[:1]  # type: ignore[attr-defined]

    def why_bound(self, tensor: object) -> str:
        return ""

    def why_shared(self, tensor: object) -> str:
        return ""

    def is_output(self, tensor: object) -> bool:
        return False


def _careless(rule: Callable[..., object]) -> Callable[..., object]:
    return lambda bench, *rest: rule(_Careless(bench), *rest)


def _other_sign(bias: np.ndarray | None, norm: object) -> np.ndarray:
    return -_right_bias(bias, norm)  # type: ignore[arg-type]


def _other_order(bench: object, node: object) -> str | None:
    """Transposes joined as if the second came first."""
    before = bench.standard_producer(node.inputs[0], "Transpose")  # type: ignore[attr-defined]
    if before is None:
        return None
    first, second = cancel.permutation(before), cancel.permutation(node)  # type: ignore[arg-type]
    if first is None or second is None:
        return None
    bench.become(node, "Transpose", [before.inputs[0]], perm=[second[p] for p in first])  # type: ignore[attr-defined]
    return None


_right_bias = fuse_affine._bias

_MUTATIONS = {
    "bypass forgets that a tensor is an output": ("eliminate", eliminate, "bypass", _careless(eliminate.bypass)),
    "a layer takes in what others read as well": (
        "fuse-affine",
        fuse_affine,
        "_fold_into_layer",
        _careless(fuse_affine._fold_into_layer),
    ),
    "the bias has the wrong sign": ("fuse-affine", fuse_affine, "_bias", _other_sign),
    "permutations in the wrong order": ("cancel", cancel, "join_transposes", _other_order),
    "x * 0 is taken for x": ("eliminate", eliminate, "_NEUTRAL", {**eliminate._NEUTRAL, "Mul": 0}),
    "any fill is padding": ("fuse-pad", fuse_pad, "_fill", lambda bench, pad: 0.0),
    "a reshape is undone by any other": ("cancel", cancel, "equal_shapes", lambda a, b: True),
}


_SLOW = ("a layer takes in what others read as well", "x * 0 is taken for x", "a reshape is undone by any other")


@pytest.mark.parametrize("fault", [pytest.param(k, marks=[pytest.mark.suite] * (k in _SLOW)) for k in _MUTATIONS])
def test_broken_pass_is_found_and_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guilty, module, name, mutant = _MUTATIONS[fault]
    assert guilty in {p.name for p in passes()}
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(Broken) as found:
        _run(_ENOUGH, 0, Phase.generate)
    assert found.value.guilty == guilty, found.value
