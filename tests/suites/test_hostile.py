"""Files made to break what reads them: one clear line and exit code 2, or a model where the file is legal.

Never a traceback, a crash, memory or time out of proportion, a file touched outside the output's folder, or bytes of
the file that reach the terminal as they are.
"""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hostile import (
    MEMORY,
    NAMES,
    NODE,
    SECONDS,
    Place,
    end_in,
    furnish,
    nested,
    outside,
    rename,
    twice,
    weight,
    with_functions,
)
from onnx import TensorProto, helper, numpy_helper


def test_a_harmless_model_passes(place: Place, proto: onnx.ModelProto) -> None:
    done = place.check(proto, 0, memory=1 << 30)
    assert done.peak < 256 << 20


# --- external data ----------------------------------------------------------------------------------------------


LOCATIONS = [
    *("../beside/secret.bin", "/etc/passwd", "sub/../../beside/secret.bin", "//etc/passwd", "..", "C:\\w.bin"),
    *("", ".", "sub", "\0", "w.bin\0", "x" * 5000, "x/" * 3000 + "w", "w.bin/", "w.bin/x", "file:///etc/passwd"),
    *("\x1b[31m", "\n", "..%2fbeside%2fsecret.bin", "~", "link.bin", "links/secret.bin", "loop", "self/w.bin"),
    *("hard.bin", "pipe", "zero"),
]


@pytest.mark.parametrize("location", LOCATIONS, ids=[ascii(x)[1:20] for x in LOCATIONS])
def test_places_of_external_data(place: Place, proto: onnx.ModelProto, location: str) -> None:
    furnish(place.root / "in", place.root / "beside")
    outside(proto, ("location", location))
    place.check(proto, 2, words="s1", seconds=10)


ENTRIES: dict[str, list[tuple[str, str]]] = {
    "past the end": [("offset", "64")],
    "over the end": [("offset", "4")],
    "negative offset": [("offset", "-4")],
    "negative length": [("length", "-64")],
    "short": [("length", "60")],
    "long": [("length", "68")],
    "offset beyond int64": [("offset", str(2**63))],
    "length beyond uint64": [("length", str(2**64 + 64))],
    "endless number": [("offset", "9" * 5000)],
    "spaces": [("offset", " 0 ")],
    "another script": [("offset", "\u0660")],
    "underscore": [("offset", "0_0")],
    "offset twice": [("offset", "0"), ("offset", "4")],
    "location twice": [("location", "../beside/secret.bin")],
}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_regions_of_external_data(place: Place, proto: onnx.ModelProto, entries: list[tuple[str, str]]) -> None:
    furnish(place.root / "in", place.root / "beside")
    outside(proto, ("location", "w.bin"), *entries)
    place.check(proto, 2, words="s1")


@pytest.mark.parametrize("dims", [(-16,), (-4, -4), (2**40,), (2**62, 4), (2**63 - 1,) * 8, (0, 2**62), (1,) * 1000])
def test_shapes_of_external_data(place: Place, proto: onnx.ModelProto, dims: tuple[int, ...]) -> None:
    furnish(place.root / "in", place.root / "beside")
    outside(proto, ("location", "w.bin"), dims=dims)
    place.check(proto, 2, words="s1")


@pytest.mark.parametrize("kind", [0, TensorProto.STRING, 77, -1])
def test_types_of_external_data(place: Place, proto: onnx.ModelProto, kind: int) -> None:
    furnish(place.root / "in", place.root / "beside")
    outside(proto, ("location", "w.bin"), kind=kind)
    place.check(proto, 2, words="s1")


def test_external_data_that_is_legal(place: Place, proto: onnx.ModelProto) -> None:
    """Overlapping regions, and keys that mean nothing to graphopt."""
    furnish(place.root / "in", place.root / "beside")
    outside(proto, ("location", "./w.bin"), ("offset", "0"), ("checksum", "none"))
    weight(proto, "b1").CopyFrom(weight(proto))
    proto.graph.initializer[2].name = "b1"
    place.check(proto, 0)


def test_the_output_is_not_written_over_external_data(place: Place, proto: onnx.ModelProto) -> None:
    data = place.root / "in" / "w.bin"
    data.write_bytes(np.ones(16, np.float32).tobytes())
    outside(proto, ("location", "w.bin"))
    place.model.write_bytes(proto.SerializeToString())
    before = place.state()
    done = place.run("run", place.model, "--passes", "simplify", "--no-eval", "-o", data)
    assert done.code == 2 and "overwrite the input" in done.err
    assert place.state() == before


@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_a_model_that_is_no_ordinary_file(place: Place, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else place.model
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.touch()
        os.truncate(path, 1 << 40)
    done = place.run("run", path, "--passes", "simplify", "--no-eval", "-o", place.output, seconds=10)
    assert done.code == 2 and done.err.startswith("graphopt: error: ") and done.peak < 256 << 20


# --- tensors ----------------------------------------------------------------------------------------------------


def with_shape(*dims: int, raw: bytes | None = None) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        tensor.dims[:] = dims
        if raw is not None:
            tensor.raw_data = raw

    return change


def with_values(kind: int, raw: bytes | None = None, **fields: list[Any]) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        tensor.data_type = kind
        tensor.ClearField("raw_data")
        if raw is not None:
            tensor.raw_data = raw
        for name, values in fields.items():
            getattr(tensor, name).extend(values)

    return change


TENSORS: dict[str, Callable[[TensorProto], None]] = {
    "negative": with_shape(-16),
    "two negatives": with_shape(-4, -4),
    "huge": with_shape(2**40),
    "huge and empty": with_shape(2**40, raw=b""),
    "overflow": with_shape(2**32, 2**32),
    "overflow to fit": with_shape(2**62, 64, raw=b""),
    "endless": with_shape(*[2**63 - 1] * 8),
    "zero and huge": with_shape(0, 2**62, raw=b""),
    "many dimensions": with_shape(16, *[1] * 1000),
    "raw data missing": with_values(1),
    "raw data short": with_shape(16, raw=bytes(63)),
    "raw data long": with_shape(16, raw=bytes(65)),
    "raw data one too many": with_shape(16, raw=bytes(68)),
    "floats short": with_values(1, float_data=[1.0] * 15),
    "floats long": with_values(1, float_data=[1.0] * 17),
    "field of another type": with_values(1, int64_data=[1] * 16),
    "two fields": with_values(1, float_data=[1.0] * 16, int32_data=[1] * 16),
    "raw data and a field": with_values(1, bytes(64), float_data=[1.0] * 16),
    "no type": with_values(0, bytes(64)),
    "type 77": with_values(77, bytes(64)),
    "type -1": with_values(-1, bytes(64)),
    "text": with_values(TensorProto.STRING, string_data=[b"\xff\0\x1b[31m"] * 16),
    "text short": with_values(TensorProto.STRING, string_data=[b"a"] * 3),
    "text as raw data": with_values(TensorProto.STRING, bytes(64)),
    "segment": lambda tensor: setattr(tensor.segment, "end", 2),
}


@pytest.mark.parametrize("where", ["weight", "unused", "attribute"])
@pytest.mark.parametrize("name", TENSORS)
def test_tensors(place: Place, proto: onnx.ModelProto, name: str, where: str) -> None:
    """As a weight, as an initializer that nothing reads, and in a Constant."""
    if where == "weight":
        TENSORS[name](weight(proto))
        place.check(proto, 2)
        return
    tensor = TensorProto(name="strange", data_type=1, dims=[16], raw_data=bytes(64))
    TENSORS[name](tensor)
    if where == "unused":
        proto.graph.initializer.append(tensor)
    else:
        end_in(proto, [NODE("Constant", [], ["k"], value=tensor), NODE("Shape", ["k"], ["s"])], "logits")
    place.check(proto, *((0, 2) if name == "text" else (2,)))


SPARSE: dict[str, tuple[list[float], list[int] | list[list[int]], list[int]]] = {
    "index past the end": ([1, 2], [0, 9], [4]),
    "negative index": ([1, 2], [-1, 0], [4]),
    "huge": ([1], [0], [2**40]),
    "8 GB": ([1], [2**30], [2**31]),
    "overflow": ([1], [0], [2**62, 4]),
    "negative": ([1], [0], [-4]),
    "index past a row": ([1], [[0, 9]], [1, 4]),
    "more indices than values": ([1], [0, 1], [4]),
    "many dimensions": ([1], [0], [1] * 1000),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_tensors(place: Place, proto: onnx.ModelProto, name: str) -> None:
    values, indices, dims = SPARSE[name]
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "sp"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "i"))
    end_in(proto, [NODE("Add", ["logits", "sp"], ["more"])], "more")
    place.check(proto, 2)


DESCRIPTIONS = [[-1] * 4, [2**62] * 4, [1], [""] * 4, ["\x1b[31m"] * 4, [1] * 5000, ["n" * 10**6] * 4]


@pytest.mark.parametrize("shape", DESCRIPTIONS, ids=[str(k) for k in range(len(DESCRIPTIONS))])
def test_descriptions_of_tensors(place: Place, proto: onnx.ModelProto, shape: list[Any]) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info("c1", 1, shape))
    place.check(proto)


@pytest.mark.parametrize("where", ["input", "output", "value_info"])
def test_descriptions_of_no_known_type(place: Place, proto: onnx.ModelProto, where: str) -> None:
    proto.graph.value_info.append(helper.make_tensor_value_info("c1", 1, [1, 16, 12, 12]))
    getattr(proto.graph, where)[0].type.tensor_type.elem_type = 77
    place.check(proto, 2, words="77")


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real(root: Path) -> bytes:
    return (root / "models" / "fashion-resnet.onnx").read_bytes()


def structure(data: bytes) -> np.ndarray:
    """Positions of the bytes that are not values of large weights."""
    mask = np.ones(len(data), bool)
    for tensor in onnx.load_from_string(data).graph.initializer:
        start = data.find(tensor.raw_data) if len(tensor.raw_data) > 64 else -1
        if start >= 0:
            mask[start : start + len(tensor.raw_data)] = False
    return np.flatnonzero(mask)


def flips(data: bytes, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    inner = structure(data)
    for k in range(count):
        position = int(rng.choice(inner)) if k % 2 else int(rng.integers(len(data)))
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        yield bytes(broken)


def damage(place: Place, files: Iterator[bytes], *codes: int) -> None:
    for data in files:
        place.output.write_bytes(b"what was there before")
        place.output.with_suffix(".report.json").unlink(missing_ok=True)
        place.check(data, *codes)


def cuts(data: bytes, count: int) -> Iterator[bytes]:
    return (data[: len(data) * k // count + k] for k in range(count))


def test_truncated_files(place: Place, real: bytes) -> None:
    damage(place, cuts(real, 20), 2)


def test_flipped_bits(place: Place, real: bytes) -> None:
    damage(place, flips(real, 12))


@pytest.mark.suite
def test_truncated_at_200_places(place: Place, real: bytes) -> None:
    damage(place, cuts(real, 200), 2)


@pytest.mark.suite
def test_200_flipped_bits(place: Place, real: bytes) -> None:
    damage(place, flips(real, 200))


def test_trailing_bytes(place: Place, real: bytes) -> None:
    damage(place, iter([real + b"\0" * 10, real + b"hello", real + real]), 2)


# --- the command itself, on a terminal --------------------------------------------------------------------------


def on_a_terminal(place: Place) -> tuple[int, bytes]:
    """Exit code, and what a terminal is sent: there, click does not strip escape sequences."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from graphopt.cli import main; main()", "run", str(place.model)]
    process = subprocess.Popen(
        [*command, "--passes", "simplify", "--no-eval", "-o", str(place.output)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal that nobody writes to any more ends
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    return process.wait(timeout=SECONDS), shown


def _case(group: str, proto: onnx.ModelProto, place: Place) -> onnx.ModelProto | bytes:
    match group:
        case "external data":
            furnish(place.root / "in", place.root / "beside")
            outside(proto, ("location", "links/secret.bin\x1b]0;title\x07"))
        case "tensors":
            weight(proto).name = proto.graph.node[1].input[1] = NAMES["escape"]
            weight(proto, NAMES["escape"]).raw_data = b"1"
        case "nesting":
            return nested(proto, 1000)
        case "functions":
            with_functions(proto, twice(40))
        case "operator":
            rename(proto, "operator", NAMES["escape"])
        case "node":
            rename(proto, "node", NAMES["escape"])
            proto.graph.node[3].op_type = "Relu"  # with three inputs
        case "opset":
            proto.opset_import.add(domain="", version=9999)
        case "truncated":
            return proto.SerializeToString()[:-100]
    return proto


@pytest.mark.parametrize(
    "group", ["external data", "tensors", "nesting", "functions", "operator", "node", "opset", "truncated"]
)
def test_as_a_command_on_a_terminal(place: Place, proto: onnx.ModelProto, group: str) -> None:
    data = _case(group, proto, place)
    place.model.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    before = place.state()
    code, shown = on_a_terminal(place)
    assert code == 2, shown
    assert shown.startswith(b"graphopt: error: ") and shown.count(b"\n") <= 3
    assert b"\x1b" not in shown and b"\x07" not in shown and b"Traceback" not in shown
    assert place.state() == before
