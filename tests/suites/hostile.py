"""For tests of hostile files: running the command within bounds, checking what must hold, ways to spoil a model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A harmless run takes 260 MB of address space; one that folds as much as it may, 256 MB more at a time.
MEMORY = 3 << 30
SECONDS = 60
NODE = helper.make_node

# Imports once, then forks for each job: a run of the command then takes a tenth of a second, and dies alone.
SERVER = """
import json, os, resource, signal, sys, tempfile
import onnxruntime
import graphopt.driver.run, graphopt.report.console
from graphopt.cli import run
from graphopt.ir import load, save
from graphopt.passes.fold import Fold

def fold(source, target):
    model = load(source)
    result = Fold().run(model, None)
    save(model, target)
    print(json.dumps([n.op for n in model.graph.nodes]), *(s.reason for s in result.skipped), sep=chr(10))
    return 0

for line in sys.stdin:
    job = json.loads(line)
    texts = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, file in enumerate(texts, 1):
                os.dup2(file.fileno(), number)
            resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(job["seconds"])
            code = fold(*job["args"][1:]) if job["args"][0] == "fold" else run(job["args"])
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status, usage = os.wait4(child, 0)[1:]
    for file in texts:
        file.seek(0)
    out, err = (file.read(1 << 20).decode("utf-8", "backslashreplace") for file in texts)
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"code": code, "peak": usage.ru_maxrss * 1024, "out": out, "err": err}), flush=True)
"""


@dataclass
class Done:
    """How a run ended."""

    code: int  # negative: the signal that ended it
    peak: int  # bytes
    out: str
    err: str


@dataclass
class Place:
    """A folder with the model's folder, the output's, and one that nobody may touch."""

    root: Path
    run: Callable[..., Done]

    @property
    def model(self) -> Path:
        return self.root / "in" / "m.onnx"

    @property
    def output(self) -> Path:
        return self.root / "out" / "m.onnx"

    def state(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            mark = None if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            found[str(path.relative_to(self.root))] = (status.st_mode, status.st_size if mark else 0, mark)
        return found

    def check(self, model: onnx.ModelProto | bytes, *codes: int, words: str = "", **limits: int) -> Done:
        """Run the command on a file, and check all that must hold whatever is in it."""
        self.model.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        before = self.state()
        done = self.run("run", self.model, "--passes", "simplify", "--no-eval", "-o", self.output, **limits)
        after = self.state()
        changed = {path for path in before | after if before.get(path) != after.get(path)}
        assert done.code in (codes or (0, 2)), done
        assert "Traceback" not in done.err and "internal error" not in done.err, done.err
        assert words in done.err, done.err
        if done.code == 2:
            assert not changed and done.out == ""
            assert self.output.read_bytes() == b"what was there before"
            lines = done.err.splitlines()
            assert sum(line.startswith("graphopt: error: ") for line in lines) == 1
            assert len(lines) <= 3 and len(done.err) < 6000
        else:
            assert changed == {"out/m.onnx", "out/m.report.json"}
        ours = re.sub(r"\x1b\[(1;31)?m", "", done.err)  # the colours of what ONNX Runtime logs itself
        assert all(c.isprintable() or c == "\n" for c in ours)
        assert done.peak < 1 << 30
        return done


@contextlib.contextmanager
def serve() -> Iterator[Callable[..., Done]]:
    """A function that runs ``graphopt`` with arguments, in a fork that has ``memory`` bytes and ``seconds``."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None

    def run(*args: object, memory: int = MEMORY, seconds: int = SECONDS) -> Done:
        job = {"args": [str(a) for a in args], "memory": memory, "seconds": seconds}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return Done(**json.loads(process.stdout.readline()))

    with process:
        yield run
        process.stdin.close()


def furnished(root: Path, run: Callable[..., Done]) -> Place:
    """A place with its folders, and an output from before."""
    for name in ("in", "out", "beside"):
        (root / name).mkdir()
    (root / "beside" / "secret.bin").write_bytes(bytes(4096))
    (root / "out" / "m.onnx").write_bytes(b"what was there before")
    return Place(root, run)


def weight(proto: onnx.ModelProto, name: str = "s1") -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def end_in(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], output: str, last: int | None = None) -> None:
    """Append nodes that go on from ``logits``, and make one of their outputs the model's; ``last``: its last dim."""
    proto.graph.node.extend(nodes)
    proto.graph.output[0].name = output
    if last is not None:
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = last


def outside(proto: onnx.ModelProto, *entries: tuple[str, str], dims: tuple[int, ...] = (16,), kind: int = 1) -> None:
    tensor = weight(proto)
    tensor.ClearField("raw_data")
    tensor.data_location, tensor.data_type = TensorProto.EXTERNAL, kind
    tensor.dims[:] = dims
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def furnish(folder: Path, beside: Path) -> None:
    """Everything that a location can name."""
    (folder / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
    (folder / "link.bin").symlink_to(beside / "secret.bin")
    (folder / "links").symlink_to(beside)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "self").symlink_to(folder)
    os.link(beside / "secret.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    (folder / "sub").mkdir()
    with contextlib.suppress(PermissionError):
        os.mknod(folder / "zero", 0o020666, os.makedev(1, 5))


def field(number: int, data: bytes) -> bytes:
    """A protobuf field of bytes. By hand: protobuf itself refuses to write what is nested too deep."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    return varint(number << 3 | 2) + varint(len(data)) + data


def nested(proto: onnx.ModelProto, depth: int) -> bytes:
    """``depth`` Ifs, each in the then-branch of the one before."""

    def other(k: int) -> bytes:
        value = helper.make_empty_tensor_value_info(f"e{k}")
        body = helper.make_graph([NODE("Abs", ["logits"], [f"e{k}"])], f"h{k}", [], [value])
        return field(1, b"else_branch") + field(6, body.SerializeToString()) + b"\xa0\x01\x05"

    value = helper.make_empty_tensor_value_info(f"o{depth}")
    leaf = helper.make_graph([NODE("Neg", ["logits"], [f"o{depth}"])], "leaf", [], [value])
    graph, node = leaf.SerializeToString(), b""
    for k in range(depth - 1, -1, -1):
        then = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        node = field(1, b"c") + field(2, f"o{k}".encode()) + field(4, b"If") + field(5, then) + field(5, other(k))
        value = helper.make_empty_tensor_value_info(f"o{k}")
        graph = field(1, node) + field(2, f"g{k}".encode()) + field(12, value.SerializeToString())
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    end_in(proto, [], "o0")
    graph = proto.graph.SerializeToString() + field(1, node)
    proto.ClearField("graph")
    return proto.SerializeToString() + field(7, graph)


def with_functions(proto: onnx.ModelProto, bodies: dict[str, list[onnx.NodeProto]], call: str = "f0") -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    proto.opset_import.add(domain="d", version=1)
    for name, nodes in bodies.items():
        proto.functions.append(helper.make_function("d", name, ["a"], ["b"], nodes, imports))
    end_in(proto, [NODE(call, ["logits"], ["more"], domain="d")], "more")


def call(name: str, source: str = "a", target: str = "b") -> onnx.NodeProto:
    return NODE(name, [source], [target], domain="d")


def twice(depth: int) -> dict[str, list[onnx.NodeProto]]:
    bodies = {f"f{k}": [call(f"f{k + 1}", "a", "t"), call(f"f{k + 1}", "t", "b")] for k in range(depth)}
    return {**bodies, f"f{depth}": [NODE("Neg", ["a"], ["b"])]}


NAMES = {
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "nul": "a\0b",
    "newline": "a\ngraphopt: error: forged",
    "slashes": "../../etc/x",
    "long": "n" * 10**6,
    "right to left": "\u202eabc",
    "lookalike": "c\u043env2",
    "empty": "",
    "not text": "MARKER",
}


def rename(proto: onnx.ModelProto, where: str, name: str) -> None:
    graph = proto.graph
    node = graph.node[3]
    match where:
        case "node":
            node.name = name
        case "tensor":
            node.output[0] = graph.node[4].input[0] = name
        case "weight":
            weight(proto, "w2").name = node.input[1] = name
        case "damaged weight":
            tensor = weight(proto, "w2")
            tensor.name = node.input[1] = name
            tensor.raw_data = b"1"
        case "input":
            graph.input[0].name = graph.node[0].input[0] = name
        case "output":
            graph.output[0].name = graph.node[-1].output[0] = name
        case "graph":
            graph.name = name
        case "dimension":
            for value in (graph.input[0], graph.output[0]):
                value.type.tensor_type.shape.dim[0].dim_param = name
        case "operator":
            node.op_type = name
        case "domain":
            node.domain = name
        case "attribute":
            node.attribute.add(name=name, type=onnx.AttributeProto.INT, i=1)
        case "metadata":
            proto.metadata_props.add(key=name, value=name)
        case "import":
            proto.opset_import.add(domain=name, version=1)
        case "dangling":
            node.input[0] = name
