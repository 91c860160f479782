"""The models of ``onnx.backend.test``, with their inputs and the outputs that the standard expects of them.

Run as a script, it simplifies every model and prints what became of it: ``python tests/suites/backend.py``.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from differential import Broken, Feeds, Outputs, check
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import DATA_DIR, load_model_tests
from onnx.backend.test.runner import Runner

from graphopt import GraphoptError, Model
from graphopt.errors import ModelError
from graphopt.ir import infer_shapes
from graphopt.pipeline.exactness import RANDOM_OPS
from graphopt.runtime.session import open_session, shorten

_PACKED = {getattr(TensorProto, k) for k in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2") if hasattr(TensorProto, k)}
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
FORMS = ("inputs", "constants")
OUTCOMES = ("changed", "unchanged", "cannot run", "refused", "random", "not as expected", *Broken.KINDS)


@dataclass(frozen=True)
class Case:
    """One model, with sets of inputs and expected outputs; ``load`` reads those from the disk where they are there."""

    name: str
    test: TestCase

    def load(self) -> tuple[onnx.ModelProto, list[tuple[Outputs, Outputs]]]:
        if self.test.model is not None:
            return self.test.model, [([*map(_value, i)], [*map(_value, o)]) for i, o in self.test.data_sets]
        if self.test.model_dir is None:
            return _light(Path(DATA_DIR).parents[3] / self.test.url)
        folder = Path(self.test.model_dir)
        proto = onnx.load(folder / "model.onnx")
        sets = []
        for inside in sorted(folder.glob("test_data_set_*")):
            sets.append(
                (
                    [_read(inside / f"input_{k}.pb") for k in range(len(list(inside.glob("input_*.pb"))))],
                    [_read(inside / f"output_{k}.pb") for k in range(len(list(inside.glob("output_*.pb"))))],
                )
            )
        return proto, sets


@dataclass
class Tally:
    """What became of the models."""

    counts: Counter[str] = field(default_factory=Counter)
    notes: list[tuple[str, str, str]] = field(default_factory=list)  # outcome, model, reason

    def add(self, outcome: str, name: str, reason: str = "") -> None:
        self.counts[outcome] += 1
        if reason:
            self.notes.append((outcome, name, reason))

    @property
    def harm(self) -> list[tuple[str, str, str]]:
        return [n for n in self.notes if n[0] in Broken.KINDS]

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[o]} {o}" for o in OUTCOMES if self.counts[o])


@cache
def cases(*kinds: str) -> tuple[Case, ...]:
    """All models of the kinds, in a fixed order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite divides by zero on purpose
        return tuple(
            Case(f"{kind}/{t.name}", t) for kind in kinds for t in sorted(load_model_tests(kind=kind), key=_name)
        )


def _name(test: TestCase) -> str:
    return str(test.name)


def _value(value: object) -> np.ndarray | None:
    """A tensor as an array; None for a sequence, a map or a missing value."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def _read(path: Path) -> np.ndarray | None:
    tensor = TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError):
        return None


def _light(path: Path) -> tuple[onnx.ModelProto, list[tuple[Outputs, Outputs]]]:
    """A real architecture with made-up weights, for which the suite counts from 0 to 1 as its input."""
    proto = onnx.load(path)
    weights = {t.name for t in proto.graph.initializer}
    inputs = []
    for value in proto.graph.input:
        if value.name not in weights:
            shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    return proto, [(list(inputs), [_read(path.with_name(f"{path.stem}_output_0.pb"))])]


def freeze(proto: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """The model with its inputs as initializers."""
    frozen = onnx.ModelProto()
    frozen.CopyFrom(proto)
    del frozen.graph.input[:]
    frozen.graph.input.extend(i for i in proto.graph.input if i.name not in feeds)
    frozen.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in feeds.items())
    return frozen


def execute(form: bytes, feeds: Sequence[Feeds]) -> list[Outputs]:
    """Like ``differential.execute``, also for types that ONNX Runtime does not exchange with numpy."""
    session = open_session(form, optimize=False)
    names = [o.name for o in session.get_outputs()]
    results = []
    for feed in feeds:
        try:
            found = session.run_with_ort_values(names, {k: _to_runtime(v) for k, v in feed.items()})
            results.append([_from_runtime(v) for v in found])
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise ModelError(f"ONNX Runtime fails to run the model: {shorten(error)}") from error
    return results


def _to_runtime(array: np.ndarray) -> ort.OrtValue:
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(array)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if kind in _PACKED:
        raise TypeError(f"several values of type {array.dtype} share a byte there")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(f"uint{8 * array.itemsize}"), kind)


def _from_runtime(value: ort.OrtValue) -> np.ndarray:
    kind, shape = value.element_type(), value.shape()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.isbuiltin == 1:
        return np.asarray(value.numpy())
    tensor = TensorProto(data_type=kind, dims=shape)
    tensor.raw_data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return numpy_helper.to_array(tensor)


def examine(case: Case, form: str, tally: Tally) -> None:
    """Simplify a model, with its inputs as they are or as constants; compare with itself and with the standard."""
    proto, sets = case.load()
    if any(v is None for i, o in sets for v in (*i, *o)):
        tally.add("refused", case.name, "its data are sequences, maps or optional values")
        return
    names = [i.name for i in proto.graph.input]
    if len(names) > len(sets[0][0]):  # a node may have optional inputs; old files list their weights
        weights = {t.name for t in proto.graph.initializer}
        names = [n for n in names if n not in weights]
    feeds = [dict(zip(names, i, strict=False)) for i, _ in sets]
    expected = [o for _, o in sets]
    if form == "constants":
        proto, feeds, expected = freeze(proto, feeds[0]), [{}], expected[:1]
    try:
        model = Model.from_proto(proto)
        infer_shapes(model)
    except GraphoptError as error:
        tally.add("refused", case.name, error.message)
        return
    try:
        own = execute(model.to_bytes(), feeds)
    except GraphoptError as error:
        tally.add("cannot run", case.name, error.message)
        return
    random = any(_is_random(n) for g in model.graphs() for n in g.nodes)
    unlike = "" if random else differ(case.test, expected, own)
    if random or unlike:
        # A kernel of the runtime that disagrees with the standard: its own outputs are all there is to go by.
        tally.add("random" if random else "not as expected", case.name, unlike or "only types and shapes are compared")

    def compare(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> str:
        if random:
            kinds = [[[(x.shape, x.dtype) for x in one] for one in some] for some in (wanted, found)]
            return "" if kinds[0] == kinds[1] else f"{kinds[0]} became {kinds[1]}"
        return differ(case.test, wanted, found) or ("" if unlike else differ(case.test, expected, found))

    try:
        done = check(model, feeds, run=execute, compare=compare, wanted=own, strict=_is_strict(proto))
        tally.add("changed" if done.changed_by else "unchanged", case.name)
    except Broken as broken:
        tally.add(broken.kind, case.name, str(broken))


def _is_random(node: gs.Node) -> bool:
    return node.op in RANDOM_OPS or (node.op == "Dropout" and len(node.inputs) > 2)


def _is_strict(proto: onnx.ModelProto) -> bool:
    """Whether ``onnx.checker`` accepts the original with shapes inferred strictly."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception:
        return False
    return True


def differ(test: TestCase, wanted: Sequence[Outputs], found: Sequence[Outputs]) -> str:
    """Compare as the suite does; how the outputs differ in words, or an empty text."""
    for a, b in zip(wanted, found, strict=True):
        kinds = [[x.dtype for x in some] for some in (a, b)]
        if kinds[0] != kinds[1]:
            return f"types {kinds[0]} became {kinds[1]}"
        try:
            Runner.assert_similar_outputs([*map(_plain, a)], [*map(_plain, b)], test.rtol, test.atol)
        except (AssertionError, TypeError) as error:
            return " ".join(str(error).split())[:300]
    return ""


def _plain(array: np.ndarray) -> np.ndarray:
    """Types that numpy alone lacks, as float32, which holds all of their values."""
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def survey(chosen: Iterable[Case], form: str) -> Tally:
    """Examine models one after the other."""
    tally = Tally()
    for case in chosen:
        examine(case, form, tally)
    return tally


def main() -> int:
    """Print what became of every model: a line for each that was not run as it is, and the counts."""
    harmed = False
    for form in FORMS:
        tally = survey(cases(*KINDS, "real"), form)
        harmed |= bool(tally.harm)
        for outcome, name, reason in sorted(tally.notes):
            print(f"{form:9}  {outcome:15}  {name}  {reason}")
        print(f"{form:9}  {tally}")
    return int(harmed)


if __name__ == "__main__":
    sys.exit(main())
