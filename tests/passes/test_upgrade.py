"""A newer opset: the same outputs, the weights untouched, clear refusals."""

from __future__ import annotations

import pytest

from graphopt import Model, ModelError, UsageError, load
from graphopt.passes.upgrade import Upgrade


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 24])
def test_axes_that_became_an_input(rewritten, net, opset):
    text = net("y = ReduceSum<axes = [1], keepdims = 1>(x)", y="float[N,1] y", opset=12)
    out = rewritten(Upgrade(opset=opset), text)
    assert out.model.opset == opset and out.result.metrics == {"opset_before": 12, "opset_after": opset}
    assert out.node("ReduceSum").inputs[1].name


@pytest.mark.parametrize("name", ["resnet20-cifar10", "vit-cifar10", "seed-cnn-cifar10"])
def test_real_models(rewritten, shared, name):
    model = load(shared / "models" / f"{name}.onnx")
    out = rewritten(Upgrade(opset=22), model)
    assert out.model.opset == 22
    assert sum(c.values.nbytes for c in out.model.constants()) == sum(c.values.nbytes for c in model.constants())


def test_the_same_opset_changes_nothing(rewritten, net):
    assert not rewritten(Upgrade(opset=17), net("y = Relu(x)")).result.changed


def test_going_back_is_refused(net):
    with pytest.raises(ModelError, match="does not go back"):
        Upgrade(opset=13).run(Model.from_text(net("y = Relu(x)")), None)


def test_subgraphs_are_refused(net):
    body = """y = If (c) <then_branch = t () => (float[N,4] p) { p = Exp(x) },
                          else_branch = e () => (float[N,4] q) { q = Neg(x) }>"""
    with pytest.raises(ModelError, match="has subgraphs"):
        Upgrade().run(Model.from_text(net(body, x="bool c, float[N,4] x")), None)


def test_an_opset_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="opset"):
        Upgrade(opset=99)
