"""Micro-models, one for each thing that a tool that simplifies ONNX models is expected to do, or to leave alone.

``CASES`` lists them in the rows of the table that ``simplify_peers.py table`` prints. A case tells by the tool's output
alone whether the tool did its work; that the outputs stay equal is measured separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Check = Callable[[onnx.ModelProto], bool]


@dataclass(frozen=True)
class Case:
    """One micro-model and what must hold for the simplified one.

    ``row``: the row of the table. ``passes``: graphopt's passes where they are not the default. ``runs``: whether
    outputs can be compared. ``required``: breaking ``holds`` is a mistake, not a missed chance.
    """

    row: str
    name: str
    model: onnx.ModelProto
    holds: Check
    passes: str = "simplify"
    runs: bool = True
    required: bool = False


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph."""
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs)


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Nodes by operator, subgraphs included; without Constant, which is an initializer spelled otherwise."""
    return Counter(n.op_type for g in graphs(model) for n in g.node if n.op_type != "Constant")


def leaves(**counts: int) -> Check:
    """The simplified model has exactly these operators."""
    return lambda model: operators(model) == Counter(counts)


def at_most(count: int, *without: str) -> Check:
    """The simplified model has at most ``count`` nodes, and none of some operators."""
    return lambda model: operators(model).total() <= count and not set(without) & set(operators(model))


def keeps(**counts: int) -> Check:
    """The simplified model still has this many of each of these operators."""
    return lambda model: all(operators(model)[op] == n for op, n in counts.items())


def smaller(size: int) -> Check:
    """The simplified model has less than ``size`` bytes."""
    return lambda model: model.ByteSize() < size


def text(body: str, opset: int = 17, imports: str = "", **arrays: np.ndarray) -> onnx.ModelProto:
    """A model from the text of its graph, with more initializers (by name) than one would want to write out."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}{imports}]>\n'
    model = onnx.parser.parse_model(header + body)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    for graph in graphs(model):
        for k, node in enumerate(graph.node):  # exporters name nodes, and some tools mix up those that have no name
            node.name = f"{graph.name}_{node.op_type}_{k}"
    return model


def values(*shape: int, low: float = -1.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    """A float32 array of random values, the same for the same arguments."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def norm(channels: int) -> dict[str, Any]:
    """The initializers s, b, m, v of a BatchNormalization."""
    return {
        **{"s": values(channels, low=0.5, high=1.5, seed=1), "b": values(channels, seed=2)},
        **{"m": values(channels, seed=3), "v": values(channels, low=0.5, high=1.5, seed=4)},
    }


IMAGE = "g (float[N,3,8,8] x) => (float[N,4,M,M] y)"
WEIGHT = values(4, 3, 3, 3)


def constants() -> Iterator[Case]:
    row = "constant subgraph; static shape subgraph"
    body = """g (float[N,4] x) => (float[N,4] y) <float[4] a = {1, 2, 3, 4}> {
        two = Constant <value = float[1] {2}> ()
        b = Mul (a, two)
        c = Sqrt (b)
        y = Add (x, c)
    }"""
    yield Case(row, "constant subgraph", text(body), leaves(Add=1))
    body = """g (float[2,3,4] x) => (float[2,12] y) <int64[1] rest = {-1}, int64 zero = {0}, int64[1] axis = {0}> {
        s = Shape (x)
        n = Gather (s, zero)
        u = Unsqueeze (n, axis)
        t = Concat <axis = 0> (u, rest)
        y = Reshape (x, t)
    }"""
    yield Case(row, "static shape subgraph", text(body), at_most(1, "Shape", "Gather", "Concat"))


def symbolic() -> Iterator[Case]:
    body = """g (float[N,3,4] x) => (float[N,3,4] y) <int64 one = {1}> {
        s = Shape (x)
        c = Gather (s, one)
        f = Cast <to = 1> (c)
        y = Div (x, f)
    }"""
    yield Case("static dims of a tensor with a symbolic batch", "a dim by Gather", text(body), at_most(1, "Shape"))
    body = """g (float[N,3,4] x) => (float[N,12] y) <int64[1] rest = {-1}, int64 zero = {0}, int64[1] axis = {0}> {
        s = Shape (x)
        n = Gather (s, zero)
        u = Unsqueeze (n, axis)
        t = Concat <axis = 0> (u, rest)
        y = Reshape (x, t)
    }"""
    yield Case("`[N,-1]` Reshape from a Shape chain, N symbolic", "[N,-1]", text(body), at_most(1, "Shape", "Concat"))
    body = """g (float[N,3,4] x) => (float[N,3,4] y) <int64[1] axis = {0}, int64 zero = {0}, int64[1] twelve = {12}> {
        s = Shape (x)
        n = Gather (s, zero)
        u = Unsqueeze (n, axis)
        t = Concat <axis = 0> (u, twelve)
        r = Reshape (x, t)
        q = Sigmoid (r)
        y = Reshape (q, s)
    }"""
    yield Case(
        "`[N,-1]` Reshape from a Shape chain, N symbolic",
        "back to the shape of another tensor",
        text(body),
        at_most(3, "Shape", "Concat"),
    )


def nothing_done() -> Iterator[Case]:
    row = "Identity, no-op Cast, Dropout"
    for op, call in (("Identity", "Identity (a)"), ("Cast", "Cast <to = 1> (a)"), ("Dropout", "Dropout (a)")):
        body = f"g (float[N,4] x) => (float[N,4] y) {{ a = Relu (x) b = {call} y = Sigmoid (b) }}"
        yield Case(row, op, text(body), leaves(Relu=1, Sigmoid=1))
    row = "x*1, x+0, dead nodes"
    scalars = "<float one = {1}, float zero = {0}>"
    for op, call in (
        ("x*1", "Mul (a, one)"),
        ("x/1", "Div (a, one)"),
        ("x+0", "Add (zero, a)"),
        ("x-0", "Sub (a, zero)"),
    ):
        body = f"g (float[N,4] x) => (float[N,4] y) {scalars} {{ a = Relu (x) b = {call} y = Sigmoid (b) }}"
        yield Case(row, op, text(body), leaves(Relu=1, Sigmoid=1))
    body = "g (float[N,4] x) => (float[N,4] y) { a = Exp (x) b = Neg (a) y = Relu (x) }"
    yield Case(row, "dead nodes", text(body), leaves(Relu=1))


def repeated() -> Iterator[Case]:
    row = "common subexpressions"
    body = "g (float[N,4] x) => (float[N,4] y) { a = Exp (x) b = Exp (x) c = Neg (a) d = Neg (b) y = Mul (c, d) }"
    yield Case(row, "a chain of two, twice", text(body), leaves(Exp=1, Neg=1, Mul=1))
    body = """g (float[N,4] x) => (float[N,8] y) {
        a = Softmax <axis = 1> (x)
        b = Softmax <axis = 1> (x)
        y = Concat <axis = 1> (a, b)
    }"""
    yield Case(row, "with attributes", text(body), leaves(Softmax=1, Concat=1))
    big = values(1024, 1024)
    body = "g (float[N,1024] x) => (float[N,1024] y) { a = MatMul (x, w1) r = Relu (a) y = MatMul (r, w2) }"
    model = text(body, w1=big, w2=big.copy())
    yield Case("duplicate weights (4 MiB)", "two of the same", model, smaller(6 << 20))


def fused() -> Iterator[Case]:
    conv, bn = leaves(Conv=1), norm(4)
    body = f"{IMAGE} {{ c = Conv (x, w) y = BatchNormalization (c, s, b, m, v) }}"
    yield Case("Conv+BN", "without bias", text(body, w=WEIGHT, **bn), conv)
    body = f"{IMAGE} {{ c = Conv (x, w, k) y = BatchNormalization (c, s, b, m, v) }}"
    yield Case("Conv+BN", "with bias", text(body, w=WEIGHT, k=values(4), **bn), conv)
    body = f"{IMAGE} {{ c = ConvTranspose (x, w) y = BatchNormalization (c, s, b, m, v) }}"
    yield Case("Conv+BN", "transposed", text(body, w=values(3, 4, 3, 3), **bn), leaves(ConvTranspose=1))
    body = (
        "g (float[N,6] x) => (float[N,4] y) { c = Gemm <transB = 1> (x, w, k) y = BatchNormalization (c, s, b, m, v) }"
    )
    yield Case("Gemm+BN", "Gemm+BN", text(body, w=values(4, 6), k=values(4), **bn), leaves(Gemm=1))
    for op in ("Mul", "Add", "Sub", "Div"):
        body = f"{IMAGE} {{ c = Conv (x, w) y = {op} (c, z) }}"
        model = text(body, w=WEIGHT, z=values(4, 1, 1, low=0.5, high=2.0))
        yield Case("Conv+Mul, Conv+Add", f"Conv+{op}", model, conv)
    body = f"{IMAGE} <int64[8] p = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{ a = Pad (x, p) y = Conv (a, w) }}"
    yield Case("Pad+Conv", "Pad+Conv", text(body, w=WEIGHT), conv)
    body = "g (float[N,6] x) => (float[N,4] y) { c = MatMul (x, w) y = Add (c, k) }"
    for batch in ("N", "2"):
        model = text(body.replace("N,", f"{batch},"), w=values(6, 4), k=values(4))
        yield Case("MatMul+Add -> Gemm", f"batch {batch}", model, leaves(Gemm=1))


def cancelled() -> Iterator[Case]:
    row = "inverse Transposes, double Reshape"
    body = """g (float[N,3,4] x) => (float[N,3,4] y) {
        a = Transpose <perm = [0, 2, 1]> (x)
        b = Transpose <perm = [0, 2, 1]> (a)
        y = Relu (b)
    }"""
    yield Case(row, "inverse Transposes", text(body), leaves(Relu=1))
    body = """g (float[N,3,4] x) => (float[3,N,4] y) {
        a = Transpose <perm = [2, 0, 1]> (x)
        y = Transpose <perm = [2, 1, 0]> (a)
    }"""
    yield Case(row, "Transposes that make one", text(body), leaves(Transpose=1))
    body = """g (float[N,3,4] x) => (float[N,2,6] y) <int64[2] s = {-1, 12}, int64[3] t = {-1, 2, 6}> {
        a = Reshape (x, s)
        b = Reshape (a, t)
        y = Relu (b)
    }"""
    yield Case(row, "double Reshape", text(body), leaves(Reshape=1, Relu=1))


def nested() -> Iterator[Case]:
    row = "If with a constant condition; folding inside branches"
    branches = (
        """then_branch = t () => (float[N,4] p) { p = Exp (x) }, else_branch = e () => (float[N,4] q) { q = Neg (x) }"""
    )
    body = f"g (float[N,4] x) => (float[N,4] y) <bool c = {{1}}> {{ y = If (c) <{branches}> }}"
    yield Case(row, "If of a constant", text(body), leaves(Exp=1))
    body = f"""g (float[N,4] x) => (float[N,4] y) <int64 one = {{1}}, int64 five = {{5}}> {{
        s = Shape (x)
        d = Gather (s, one)
        c = Equal (d, five)
        y = If (c) <{branches}>
    }}"""
    yield Case(row, "If of a static shape", text(body), leaves(Neg=1))
    body = """g (float[N,4] x, bool c) => (float[N,4] y) <float[4] a = {1, 2, 3, 4}> {
        y = If (c) <
            then_branch = t () => (float[N,4] p) {
                two = Constant <value = float[1] {2}> ()
                k = Mul (a, two)
                p = Add (x, k)
            },
            else_branch = e () => (float[N,4] q) { q = Neg (x) }
        >
    }"""
    yield Case(row, "inside branches", text(body), leaves(If=1, Add=1, Neg=1))


def functions() -> Iterator[Case]:
    body = """g (float[N,4] x) => (float[N,4] y) { a = my.twice (x) y = Relu (a) }
    <domain: "my", opset_import: ["" : 17]> twice (p) => (q) { q = Add (p, p) }"""
    model = text(body, imports=', "my" : 1')
    yield Case("local functions inlined", "one call", model, leaves(Add=1, Relu=1), passes="inline,simplify")


def recognized() -> Iterator[Case]:
    body = """g (float[N,4] x) => (float[N,4] y)
    <float root = {1.4142135623730951}, float one = {1}, float half = {0.5}> {
        a = Div (x, root)
        b = Erf (a)
        c = Add (b, one)
        d = Mul (x, c)
        y = Mul (d, half)
    }"""
    yield Case("Erf -> Gelu; LayerNorm fusion", "Gelu (opset 20)", text(body, 20), leaves(Gelu=1))
    body = """g (float[N,5,8] x) => (float[N,5,8] y) <float two = {2}, float eps = {1e-5}> {
        m = ReduceMean <axes = [-1]> (x)
        d = Sub (x, m)
        p = Pow (d, two)
        v = ReduceMean <axes = [-1]> (p)
        e = Add (v, eps)
        r = Sqrt (e)
        n = Div (d, r)
        w = Mul (n, scale)
        y = Add (w, shift)
    }"""
    model = text(body, scale=values(8, seed=1), shift=values(8, seed=2))
    yield Case("Erf -> Gelu; LayerNorm fusion", "LayerNormalization", model, leaves(LayerNormalization=1))


def kept() -> Iterator[Case]:
    body = "g (float[N,4] x) => (float[N,4] y) { r = RandomNormal <shape = [1, 4]> () y = Add (x, r) }"
    yield Case("**RandomNormal kept**", "RandomNormal", text(body), keeps(RandomNormal=1), runs=False, required=True)
    row, head = "**ConstantOfShape/Expand/Tile, 150 B stays 150 B**", "g (float[N,1,1] x) => (float[N,2048,2048] y)"
    body = (
        f"{head} <int64[2] s = {{2048, 2048}}> {{ c = ConstantOfShape <value = float[1] {{0.5}}> (s) y = Add (x, c) }}"
    )
    yield Case(row, "ConstantOfShape", text(body), smaller(1024))
    body = f"{head} <int64[2] s = {{2048, 2048}}, float[1] v = {{0.5}}> {{ c = Expand (v, s) y = Add (x, c) }}"
    yield Case(row, "Expand", text(body), smaller(1024))
    body = f"{head} <int64[2] s = {{2048, 2048}}, float[1,1] v = {{0.5}}> {{ c = Tile (v, s) y = Add (x, c) }}"
    yield Case(row, "Tile", text(body), smaller(1024))
    body = "g (float[N,4] x) => (float[N,4] y) { a = Relu (x) b = acme.Blend (a) y = Relu (b) }"
    model = text(body, imports=', "acme" : 1')
    yield Case("**unknown domain kept**", "acme.Blend", model, keeps(Blend=1), runs=False, required=True)


def refused() -> Iterator[Case]:
    row, bn = "**left alone: a second reader, a graph output, a default value**", norm(4)
    body = f"{IMAGE} {{ c = Conv (x, w) n = BatchNormalization (c, s, b, m, v) y = Add (n, c) }}"
    yield Case(row, "Conv read twice", text(body, w=WEIGHT, **bn), keeps(Conv=1, Add=1), required=True)
    body = "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c) {"
    body += " c = Conv (x, w) y = BatchNormalization (c, s, b, m, v) }"
    yield Case(row, "Conv writes an output", text(body, w=WEIGHT, **bn), keeps(Conv=1), required=True)
    body = "g (float[N,4] x, float[4] a) => (float[N,4] y) <float[4] a = {1, 2, 3, 4}> { b = Exp (a) y = Add (x, b) }"
    yield Case(row, "default of an input", text(body), keeps(Exp=1, Add=1), required=True)


GROUPS = (constants, symbolic, nothing_done, repeated, fused, cancelled, nested, functions, recognized, kept, refused)
CASES = tuple(case for group in GROUPS for case in group())
