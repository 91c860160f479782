"""The backward pass of every operator of the table, by finite differences in float64 on small graphs."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from graphopt import Model
from graphopt.training.executor import Executor
from graphopt.training.ops import OPERATORS

# Operators whose outputs are steps, masks, indices or shapes: they have no gradient. Those of quantization are replaced
# by ones that pass through rounding: test_quantized.py checks them against the formulas.
FLAT = frozenset(
    "And Or Xor Not Equal Greater GreaterOrEqual Less LessOrEqual IsNaN Shape Size ArgMax ArgMin Constant Floor Ceil "
    "Round Sign ConstantOfShape Range QuantizeLinear DequantizeLinear Upsample".split()
)
ONE = "x:2,3"
IMAGE = "x:2,4,5,5"
GRAPHS: dict[str, list[tuple[str, str]]] = {
    **{
        op: [(ONE, f"y = {op} (x)")]
        for op in """Neg Abs Reciprocal Exp Erf Sin Cos Tan Sinh Cosh Asinh Tanh Sigmoid
        Softsign Mish HardSwish Softplus LeakyRelu Elu Selu Celu Relu HardSigmoid Softmax LogSoftmax Identity Dropout
        Flatten Transpose Sum""".split()
    },
    **{op: [("p:2,3", f"y = {op} (p)")] for op in "Sqrt Log Asin Acos Atan Atanh".split()},
    "Acosh": [("p:2,3", "one = Constant <value_float = 1.0> () q = Add (p, one) y = Acosh (q)")],
    **{op: [("x:2,3 z:3", f"y = {op} (x, z)")] for op in "Add Sub Mul Mean Max Min PRelu".split()},
    "Div": [("x:2,3 p:3", "y = Div (x, p)")],
    "Mod": [("x:2,3", "m = Constant <value_float = 0.7> () y = Mod <fmod = 1> (x, m)")],
    "Pow": [
        ("x:2,3", "e = Constant <value_float = 3.0> () y = Pow (x, e)"),
        ("p:2,3 z:3", "y = Pow (p, z)"),
    ],
    "Where": [("x:2,3 z:2,3", "c = Less (x, z) y = Where (c, x, z)")],
    "Clip": [("x:4,5", "a = Constant <value_float = -0.4> () b = Constant <value_float = 0.6> () y = Clip (x, a, b)")],
    "Cast": [(ONE, "y = Cast <to = 1> (x)")],
    "CastLike": [("x:2,3 z:1", "y = CastLike (x, z)")],
    "ThresholdedRelu": [(ONE, "y = ThresholdedRelu <alpha = 0.2> (x)")],
    "Shrink": [("x:4,5", "y = Shrink <lambd = 0.3, bias = 0.1> (x)")],
    "Gelu": [(ONE, "y = Gelu (x)"), (ONE, 'y = Gelu <approximate = "tanh"> (x)')],
    "Swish": [(ONE, "y = Swish <alpha = 1.2> (x)")],
    "Conv": [
        (IMAGE + " w:3,4,3,3 b:3", "y = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w, b)"),
        (IMAGE + " w:4,1,3,3", 'y = Conv <group = 4, auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)'),
        (IMAGE + " w:4,2,2,2", "y = Conv <group = 2, pads = [0,1,1,0], dilations = [2,2]> (x, w)"),
    ],
    "ConvTranspose": [
        (
            "x:1,2,3,3 w:2,3,3,3 b:3",
            "y = ConvTranspose <strides = [2,2], pads = [1,1,1,1], output_padding = [1,1]> (x, w, b)",
        ),
    ],
    "Gemm": [
        ("x:2,3 w:4,3 b:4", "y = Gemm <transB = 1> (x, w, b)"),
        ("x:3,2 w:3,4", "y = Gemm <transA = 1, alpha = 0.5> (x, w)"),
    ],
    "MatMul": [("x:2,3,4 w:4,2", "y = MatMul (x, w)"), ("x:2,2,3 w:2,3,2", "y = MatMul (x, w)")],
    "Einsum": [("x:2,3 w:3,2", 'y = Einsum <equation = "ij, jk -> ik"> (x, w)')],
    "MaxPool": [
        (IMAGE, "y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x)"),
        (IMAGE, "y = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [0,1,1,0], ceil_mode = 1> (x)"),
    ],
    "AveragePool": [
        (IMAGE, "y = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]> (x)"),
        (IMAGE, "y = AveragePool <kernel_shape = [2,3], pads = [1,0,0,1], count_include_pad = 1, ceil_mode = 1> (x)"),
    ],
    "LpPool": [(IMAGE, "y = LpPool <kernel_shape = [2,2], p = 2> (x)")],
    **{op: [(IMAGE, f"y = {op} (x)")] for op in "GlobalAveragePool GlobalMaxPool GlobalLpPool".split()},
    "BatchNormalization": [(IMAGE + " s:4 b:4 m:4 q:4", "y = BatchNormalization (x, s, b, m, q)")],
    "LayerNormalization": [
        ("x:2,3,4 s:4 b:4", "y = LayerNormalization (x, s, b)"),
        ("x:2,3,4 s:3,4", "y = LayerNormalization <axis = 1> (x, s)"),
    ],
    "RMSNormalization": [("x:2,3,4 s:4", "y = RMSNormalization (x, s)")],
    "InstanceNormalization": [(IMAGE + " s:4 b:4", "y = InstanceNormalization (x, s, b)")],
    "GroupNormalization": [(IMAGE + " s:4 b:4", "y = GroupNormalization <num_groups = 2> (x, s, b)")],
    "LRN": [(IMAGE, "y = LRN <size = 3> (x)")],
    "LpNormalization": [("x:3,4", "y = LpNormalization (x)"), ("x:3,4", "y = LpNormalization <p = 1> (x)")],
    "MeanVarianceNormalization": [(IMAGE, "y = MeanVarianceNormalization (x)")],
    **{
        op: [
            ("x:2,3,4", f"a = Constant <value_ints = [1,2]> () y = {op} (x, a)"),
            ("x:2,3", f"y = {op} <keepdims = 0> (x)"),
        ]
        for op in "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
        "ReduceLogSumExp".split()
    },
    "ReduceLogSum": [("p:2,3", "y = ReduceLogSum (p)")],
    "CumSum": [("x:2,3", "a = Constant <value_int = 1> () y = CumSum <reverse = 1, exclusive = 1> (x, a)")],
    "Reshape": [("x:2,6", "a = Constant <value_ints = [0,2,-1]> () y = Reshape (x, a)")],
    "Squeeze": [("x:2,1,3", "a = Constant <value_ints = [1]> () y = Squeeze (x, a)")],
    "Unsqueeze": [("x:2,3", "a = Constant <value_ints = [0,-1]> () y = Unsqueeze (x, a)")],
    "Concat": [("x:2,3 z:2,2", "y = Concat <axis = 1> (x, z)")],
    "Split": [("x:2,5", "a = Constant <value_ints = [2,3]> () y, z = Split <axis = 1> (x, a)")],
    "Expand": [("x:3,1", "a = Constant <value_ints = [2,1,4]> () y = Expand (x, a)")],
    "Tile": [("x:2,2", "a = Constant <value_ints = [1,3]> () y = Tile (x, a)")],
    "DepthToSpace": [
        ("x:1,4,2,2", f'y = DepthToSpace <blocksize = 2, mode = "{mode}"> (x)') for mode in ("DCR", "CRD")
    ],
    "SpaceToDepth": [("x:1,2,4,4", "y = SpaceToDepth <blocksize = 2> (x)")],
    "Gather": [("x:3,4", "a = Constant <value_ints = [1,-1]> () y = Gather <axis = 1> (x, a)")],
    "GatherElements": [
        (
            "x:2,3",
            "a = Constant <value_ints = [0,2]> () s = Constant <value_ints = [2,1]> () i = Reshape (a, s) "
            "y = GatherElements <axis = 1> (x, i)",
        ),
    ],
    "Slice": [
        (
            "x:4,5",
            "b = Constant <value_ints = [0,3]> () e = Constant <value_ints = [9,0]> () "
            "a = Constant <value_ints = [0,1]> () s = Constant <value_ints = [2,-1]> () y = Slice (x, b, e, a, s)",
        ),
    ],
    "Pad": [
        ("x:3,4", f'p = Constant <value_ints = [1,0,2,1]> () y = Pad <mode = "{mode}"> (x, p)')
        for mode in ("constant", "reflect", "edge")
    ],
    "Resize": [
        ("x:1,2,3,3", f'f = Constant <value_floats = [1.0,1.0,1.6,2.0]> () y = Resize <mode = "{mode}"> (x, , f)')
        for mode in ("nearest", "linear", "cubic")
    ],
}


def test_the_table_is_complete() -> None:
    assert set(GRAPHS) | FLAT == set(OPERATORS)
    assert not set(GRAPHS) & FLAT


def _model(inputs: str, body: str) -> tuple[Model, list[tuple[str, list[int]]]]:
    shapes = [(i.split(":")[0], [int(d) for d in i.split(":")[1].split(",")]) for i in inputs.split()]
    declared = ", ".join(f"float{dims} {name}" for name, dims in shapes)
    opset = 24 if "Swish <" in body else 23 if "RMSN" in body else 21
    outputs = "float y, float z" if "y, z =" in body else "float y"
    statements = re.sub(r"\) (?=[a-z]+(?:, z)? = )", ")\n", body)
    text = f'<ir_version: 10, opset_import: ["" : {opset}]>\ng ({declared}) => ({outputs})\n{{\n{statements}\n}}'
    return Model.from_text(text), shapes


@pytest.mark.parametrize("op", sorted(GRAPHS))
def test_gradients_equal_finite_differences(op: str) -> None:
    for inputs, body in GRAPHS[op]:
        model, shapes = _model(inputs, body)
        rng = np.random.default_rng(len(body))
        program = Executor(model, dtype=torch.float64)

        def function(*xs: torch.Tensor, program: Executor = program) -> tuple[torch.Tensor, ...]:
            return tuple(program.run(*xs)[name] for name in program.outputs)

        # "p" and "q" are positive and below one; the others, of all signs, keep off zero, where
        # many have a kink. "m" and "q" are statistics.
        xs = []
        for name, dims in shapes:
            low = rng.uniform(0.1, 0.9, dims)
            values = low if name in "pq" else low * rng.choice([-1, 1], dims)
            xs.append(torch.from_numpy(values).requires_grad_(name not in "mq"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.autograd.gradcheck(function, xs, eps=1e-6, atol=1e-5, rtol=1e-4), body
