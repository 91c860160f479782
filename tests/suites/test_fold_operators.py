"""The operator tests of the ONNX standard, with the inputs as they are and as constants: equal outputs, no crash."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import GraphoptError, Model
from graphopt.ir import Snapshot, infer_shapes, verify
from graphopt.passes.fold import Fold
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.session import open_session, run_feeds

_STRIDE = 5  # every fifth of about 1,900 cases, with all operators among their variants


def _cases() -> list[object]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite divides by zero on purpose
        return [c for c in load_model_tests(kind="node") if c.model is not None and c.data_sets]


@pytest.mark.parametrize("constant", [False, True], ids=["inputs", "constants"])
def test_operators(constant: bool) -> None:
    compared = 0
    for case in _cases()[::_STRIDE]:
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        values = case.data_sets[0][0]
        if not all(isinstance(v, np.ndarray) for v in values) or len(values) != len(proto.graph.input):
            continue
        feeds = {i.name: v for i, v in zip(proto.graph.input, values, strict=True)}
        if constant:
            proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in feeds.items())
            del proto.graph.input[:]
            feeds = {}
        try:
            model = Model.from_proto(proto)
        except GraphoptError:
            continue  # sequences, maps: refused by name
        infer_shapes(model)
        before, snapshot = model.to_bytes(), Snapshot.of(model)
        changed = Fold().run(model, None).changed  # type: ignore[arg-type]
        verify(model, snapshot, case.name)
        after = model.to_bytes()
        assert changed == (before != after), case.name
        assert not Fold().run(model, None).changed, case.name  # type: ignore[arg-type]
        if not changed:
            continue
        try:
            run_feeds(open_session(before, optimize=False), feeds)
        except GraphoptError:
            continue  # ONNX Runtime does not have every operator for every type
        found = compare_outputs(before, after, [feeds], rtol=1e-5)
        assert found.equal, (case.name, found)
        compared += 1
    assert compared > (250 if constant else 30)
