"""The description of what a model runs on."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from graphopt import UsageError
from graphopt.runtime import target as module
from graphopt.runtime.target import Costs, OpCost, get_target, has_vnni
from graphopt.runtime.targets import TARGETS


@pytest.fixture
def cpu_with(monkeypatch):
    """A CPU with the given flags; None: a system that does not tell."""

    def pretend(flags: str | None) -> bool:
        def read(*_: object, **__: object) -> str:
            if flags is None:
                raise FileNotFoundError
            return f"flags\t\t: {flags}\n"

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", read)
            return has_vnni.__wrapped__()

    return pretend


@pytest.mark.parametrize("flags", ["fpu avx512_vnni", "avx2 avx_vnni sse", "avx_vnni"])
def test_cpus_that_need_no_narrow_weights(cpu_with, flags):
    assert cpu_with(flags)


@pytest.mark.parametrize("flags", ["fpu avx2 avx512f", "", None])
def test_cpus_that_need_narrow_weights(cpu_with, flags):
    assert not cpu_with(flags)


@pytest.mark.parametrize("vnni", [True, False])
def test_the_range_follows_the_cpu(monkeypatch, vnni):
    monkeypatch.setattr(module, "has_vnni", lambda: vnni)
    assert get_target("ort-cpu").reduce_range is not vnni


def test_vnni_can_be_chosen(monkeypatch):
    """And times of this machine are asked for only where it is the target."""
    for vnni in (True, False):
        monkeypatch.setattr(module, "has_vnni", lambda vnni=vnni: vnni)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        found = {name: get_target(name) for name in TARGETS}
        assert (found["ort-cpu-vnni"].reduce_range, found["ort-cpu-novnni"].reduce_range) == (False, True)
        assert [n for n, t in found.items() if t.measurable] == [
            "ort-cpu",
            "ort-cpu-vnni" if vnni else "ort-cpu-novnni",
        ]


def test_on_arm_the_cpu_is_arm(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(module, "has_vnni", lambda: False)
    assert not get_target("ort-cpu").reduce_range and get_target("ort-cpu").measurable
    assert get_target("ort-cpu-arm").measurable and not get_target("ort-cpu-novnni").measurable


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UsageError) as error:
        get_target("ort-cpuu")
    assert "ort-cpuu" in str(error.value) and "ort-cpu" in (error.value.hint or "")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_sets_do_not_contradict_each_other(name):
    target = get_target(name)
    assert target.name == name
    assert not target.int8_ops & target.passthrough_ops
    assert not target.int8_ops & target.absorbed_ops
    assert not target.passthrough_ops & target.integer_ops
    assert target.float_output_ops <= target.int8_ops


@pytest.mark.parametrize(
    ("op", "names"),
    [("Conv", ("QLinearConv",)), ("Add", ("QLinearAdd",)), ("Gemm", ("QGemm",)), ("Softmax", ("QLinearSoftmax",))],
)
def test_names_of_fused_operators(op, names):
    assert get_target("ort-cpu").fused(op) == names


def test_unlisted_operators_cost_the_default():
    costs = Costs(ops=(("Conv", OpCost(2.0, 1.0)),), default=OpCost(5.0, 6.0))
    assert costs.of("Conv") == OpCost(2.0, 1.0) and costs.of("Tile") == OpCost(5.0, 6.0)


def test_all_costs_are_positive():
    costs = get_target("ort-cpu").costs
    assert all(c.float_ns > 0 and c.int8_ns > 0 for _, c in (*costs.ops, ("", costs.default)))
    assert costs.convert_ns > 0 and costs.node_ns > 0


def test_it_is_a_value():
    target = get_target("ort-cpu")
    assert pickle.loads(pickle.dumps(target)) == target == get_target("ort-cpu")
    assert hash(target) == hash(get_target("ort-cpu"))
