"""Blocks of random graphs: what exporters write, with variants that an exact pass must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from graphs import BATCH, Builder, Misfit, Tensor
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

Block = Callable[[Builder], None]
_LOWEST = float(np.finfo(np.float32).min)


# --- layers -------------------------------------------------------------------------------------------------------


def conv(b: Builder) -> None:
    b.add(_conv(b, b.image()))


def _conv(b: Builder, x: Tensor) -> Tensor:
    channels = x.shape[1]
    kernel = b.choice((1, 3)) if min(x.shape[2:]) >= 3 else 1
    group = b.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
    wide = b.choice((1, 2)) * channels if channels <= 4 else channels
    weights = [b.floats(wide, channels // group, kernel, kernel)]
    if b.flip():
        weights.append(b.floats(wide))
    attrs: dict[str, object] = {"pads": [kernel // 2] * 4} if b.flip() else {}
    if b.number(0, 7) == 0:
        attrs = {"auto_pad": b.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    if b.number(0, 5) == 0:
        attrs["strides"] = [2, 2]
    return b.node("Conv", x, *weights, group=group, **attrs)


def conv_norm(b: Builder) -> None:
    """A Conv, a BatchNormalization, often a Relu, all of it as it should be or with an outside reader."""
    x = _conv(b, b.image())
    if b.number(0, 4) == 0:
        b.add(x)
    y = _norm(b, x)
    b.add(b.node("Relu", y) if b.flip() else y)


def norm(b: Builder) -> None:
    b.add(_norm(b, b.pick(lambda t: t.rank >= 2 and bool(t.shape[1] % BATCH))))


def _norm(b: Builder, x: Tensor) -> Tensor:
    c = x.shape[1]
    scale, shift, mean, var = b.floats(c, low=0.5, high=1.5), b.floats(c), b.floats(c), b.floats(c, low=0.5, high=2)
    return b.node("BatchNormalization", x, scale, shift, mean, var, epsilon=b.choice((1e-5, 1e-3)))


def conv_transpose(b: Builder) -> None:
    x = b.image()
    group = b.choice((1, 2)) if x.shape[1] % 2 == 0 else 1
    kernel = b.choice((1, 2))
    y = b.node("ConvTranspose", x, b.floats(x.shape[1], 2, kernel, kernel), group=group)
    b.add(_norm(b, y) if b.flip() else y)


def gemm(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 2 and bool(np.prod(t.shape[1:]) % BATCH))
    x = x if x.rank == 2 and b.flip() else b.node("Flatten", x)
    features = x.shape[1]
    if features > 256:
        raise Misfit
    classes = b.choice((3, 4))
    attrs: dict[str, object] = {}
    weight = b.floats(features, classes)
    if b.flip():
        attrs["transB"], weight = 1, b.floats(classes, features)
    if b.number(0, 5) == 0:
        attrs["transA"], x = 1, b.node("Transpose", x, perm=[1, 0])
    if b.number(0, 3) == 0:
        attrs |= {"alpha": 0.5, "beta": b.choice((0.0, 2.0))}
    bias = b.choice((None, (classes,), (1,), (), (1, classes)))
    y = b.node("Gemm", x, weight, *([] if bias is None else [b.floats(*bias)]), **attrs)
    if b.number(0, 2) == 0:
        y = _norm(b, y) if b.flip() else b.node("Add", y, b.floats(*b.choice(((classes,), (1, classes), (1,)))))
    b.add(y)


def matmul_add(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 2 and t.shape[-1] % BATCH != 0 and t.shape[-1] <= 256)
    y = b.node("MatMul", x, b.floats(x.shape[-1], 4))
    shape = b.choice(((4,), (1,), (1, 4), (), (1,) * (y.rank - 1) + (4,)))
    b.add(_swapped(b, "Add", y, b.floats(*shape)))


# --- padding and pooling --------------------------------------------------------------------------------------


def pad(b: Builder) -> None:
    """A Pad, and often the Conv or pooling after it."""
    x = b.image(2)
    amounts = [b.choice((0, 1, 1)) for _ in range(4)]
    mode = b.choice(("constant", "constant", "constant", "constant", "edge", "reflect"))
    value = b.choice((None, 0.0, 0.5, 1.0, _LOWEST, -np.inf)) if mode == "constant" else None
    lowest = value is not None and value < -1
    channel = 0 if lowest else b.choice((0, 0, 0, 0, 1))
    pads = b.ints(0, channel, *amounts[:2], 0, 0, *amounts[2:])
    y = b.node("Pad", x, pads, *([] if value is None else [b.scalar(value)]), mode=mode)
    if lowest:  # no window may see padding alone: kernels of ONNX Runtime differ on the maximum of infinities
        b.add(_pool(b, y, "MaxPool", padded=False))
        return
    if b.number(0, 3) == 0:
        b.add(y, x.exact)
    kind = b.choice(("Conv", "Conv", "MaxPool", "AveragePool", ""))
    b.add(_conv(b, y) if kind == "Conv" else _pool(b, y, kind) if kind else y)


def pool(b: Builder) -> None:
    b.add(_pool(b, b.image(2), b.choice(("MaxPool", "AveragePool"))))


def _pool(b: Builder, x: Tensor, op: str, padded: bool = True) -> Tensor:
    kernel = b.choice([k for k in (2, 3) if k <= min(x.shape[2:])] or [1])
    attrs: dict[str, object] = {"kernel_shape": [kernel] * 2}
    if padded and b.flip() and kernel > 1:
        attrs["pads"] = b.choice(([1, 1, 1, 1], [0, 0, 1, 1]))
    if op == "AveragePool" and b.flip():
        attrs["count_include_pad"] = 1
    if b.number(0, 4) == 0:
        attrs["strides"] = [2, 2]
    return b.node(op, x, outputs=2 if op == "MaxPool" and b.number(0, 5) == 0 else 1, **attrs)


def global_pool(b: Builder) -> None:
    x = b.image()
    if b.flip():
        y = b.node("GlobalAveragePool", x)
        b.add(b.choice((lambda: y, lambda: b.node("Flatten", y), lambda: b.axes("Squeeze", y, (2, 3))))())
        return
    axes = b.choice(((2, 3), (-2, -1), (-1, 2), (3,), (1,), (0, 2)))
    op = b.choice(("ReduceMean", "ReduceMean", "ReduceMax"))
    b.add(b.axes(op, x, axes, since=18, keepdims=b.choice((0, 1))))


def excite(b: Builder) -> None:
    """Squeeze and excitation."""
    x = b.image()
    c = x.shape[1]
    y = b.node("GlobalAveragePool", x)
    y = b.node("Relu", b.node("Conv", y, b.floats(2, c, 1, 1), b.floats(2)))
    y = b.node(b.choice(("Sigmoid", "HardSigmoid")), b.node("Conv", y, b.floats(c, 2, 1, 1)))
    b.add(_swapped(b, "Mul", x, y))


# --- joining and splitting -----------------------------------------------------------------------------------


def residual(b: Builder) -> None:
    x = b.pick()
    y = b.pick(lambda t: t.shape == x.shape)
    op = b.choice(("Add", "Add", "Max", "Mul"))
    if op == "Mul":
        y = b.node("Sigmoid", y)  # products of products would leave the range of float32
    b.add(b.node(op, x, y))


def concat(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 1)
    axis = b.number(0, x.rank - 1)
    parts = [t for t in b.data if t.rank == x.rank and t.shape[:axis] == x.shape[:axis]]
    parts = [t for t in parts if t.shape[axis + 1 :] == x.shape[axis + 1 :]]
    chosen = [b.choice(parts) for _ in range(b.number(0, 2))]
    b.add(b.node("Concat", x, *chosen, axis=axis - x.rank if b.flip() else axis), all(t.exact for t in (x, *chosen)))


def split(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 1 and any(d % BATCH and d > 1 for d in t.shape))
    axis = b.choice([k for k, d in enumerate(x.shape) if d % BATCH and d > 1])
    first = b.number(1, x.shape[axis] - 1)
    sizes = b.choice(([first, x.shape[axis] - first], [x.shape[axis]]))
    if b.opset >= 13:
        parts = b.split("Split", x, b.ints(*sizes), outputs=len(sizes), axis=axis)
    else:
        parts = b.split("Split", x, outputs=len(sizes), axis=axis, split=sizes)
    for part in parts:
        if b.flip():
            b.add(part, x.exact)


def duplicate(b: Builder) -> None:
    """A node once more, of the same inputs, as exporters write for each use of a value."""
    made = [n for n in b.nodes if n.input and len(n.output) == 1 and n.op_type not in ("If", "Identity")]
    if not made:
        raise Misfit
    copy = type(made[0])()
    copy.CopyFrom(b.choice(made))
    old = b.tensors[copy.output[0]]
    new = Tensor(b.name("t"), old.shape, old.dtype)
    copy.output[0], copy.name = new.name, b.name("copy")
    b.nodes.append(copy)
    b.tensors[new.name] = new
    if old.dtype != TensorProto.FLOAT:
        return
    b.add(new)
    if b.flip():
        b.add(b.node("Add", new, old))


# --- arithmetic and activations --------------------------------------------------------------------------------


def arithmetic(b: Builder) -> None:
    """A constant of any shape that broadcasts, neutral values among them; at times behind a layer."""
    x = _conv(b, b.image()) if b.number(0, 2) == 0 else b.pick()
    for _ in range(b.number(1, 2)):
        op = b.choice(("Add", "Mul", "Sub", "Div", "Pow"))
        shape = [d if d % BATCH and b.flip() else 1 for d in x.shape]
        shape = [1] * b.choice((0, 0, 0, 0, 1)) + shape[b.number(0, x.rank) :]
        neutral = float(op in ("Mul", "Div", "Pow"))
        values = np.full(shape, neutral, np.float32)
        kind = b.choice(("random", "random", "neutral", "zeros", "zeros", "nearly"))
        if op != "Pow":
            if kind == "random":
                values = b.rng.uniform(0.5, 1.5, shape).astype(np.float32)
            elif kind == "zeros" and op != "Div":
                values = np.zeros(shape, np.float32)
            elif kind == "nearly":
                values.reshape(-1)[:1] = 0.5
        pair = [x, b.constant(np.asarray(values))]
        if b.number(0, 2) == 0 and op in ("Add", "Mul", "Sub"):
            pair.reverse()
        x = b.node(op, *pair)
    b.add(x)


def _swapped(b: Builder, op: str, x: Tensor, y: Tensor) -> Tensor:
    return b.node(op, x, y) if b.flip() else b.node(op, y, x)


def activation(b: Builder) -> None:
    x = b.pick()
    op = b.choice(("Relu", "Sigmoid", "LeakyRelu", "Clip", "Neg", "Abs", "Tanh", "HardSwish"))
    if op == "Clip":
        y = b.node("Clip", x, b.scalar(0), b.scalar(b.choice((1, 6))))
    elif op == "HardSwish" and b.opset < 14:
        raise Misfit
    else:
        y = b.node(op, x)
        if op in ("Relu", "Neg", "Abs") and b.flip():
            y = b.node(op, y)
    b.add(y, x.exact and op in ("Relu", "Neg", "Abs"))


def _about(b: Builder, value: float) -> Tensor:
    """A constant of a formula, as a scalar or in another form, and at times another number."""
    shape = b.choice(((), (), (), (1,), (1, 1, 1, 1)))
    if b.number(0, 11) == 0:
        value *= b.choice((1.01, 0.5))
    return b.scalar(value, shape)


def formula(b: Builder) -> None:
    """An activation that an exporter took apart, right or slightly wrong, its inner tensors private or not."""
    x = b.pick()
    kind = b.choice(("gelu", "tanh gelu", "hard swish", "hard sigmoid", "silu"))
    inner: list[Tensor] = []
    if kind == "gelu":
        e = b.node(
            "Erf", b.node("Div", x, _about(b, 2**0.5)) if b.flip() else _swapped(b, "Mul", x, _about(b, 0.5**0.5))
        )
        inner = [e, _swapped(b, "Add", e, _about(b, 1))]
        y = _product(b, [x, inner[1], _about(b, 0.5)])
    elif kind == "tanh gelu":
        cube = b.node("Pow", b.node("Tanh", x), b.scalar(b.choice((3, 3, 2))))
        inner = [b.node("Add", x, b.node("Mul", cube, _about(b, 0.044715)))]
        t = b.node("Tanh", _swapped(b, "Mul", inner[0], _about(b, 0.7978845608)))
        y = _product(b, [x, _swapped(b, "Add", t, _about(b, 1)), _about(b, 0.5)])
    elif kind in ("hard swish", "hard sigmoid"):
        clip = b.node("Clip", _swapped(b, "Add", x, _about(b, 3)), b.scalar(0), b.scalar(b.choice((6, 6, 6, 5))))
        inner = [clip]
        if kind == "hard sigmoid":
            y = b.node("Div", clip, _about(b, 6))
        else:
            y = b.node("Div", _swapped(b, "Mul", x, clip), _about(b, 6))
    else:
        inner = [b.node("Sigmoid", x)]
        y = _swapped(b, "Mul", x, inner[0])
    b.add(y)
    if b.number(0, 5) == 0:
        b.add(b.choice(inner))


def _product(b: Builder, factors: list[Tensor]) -> Tensor:
    first, second, third = b.draw(st.permutations(factors))
    return _swapped(b, "Mul", _swapped(b, "Mul", first, second), third)


def layer_norm(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 2 and t.shape[-1] % BATCH != 0 and t.shape[-1] > 1)
    if not x.exact:  # rows of one value would leave nothing but float noise, made large by the division
        x = b.node("Add", x, b.floats(x.shape[-1]))
    axes = b.choice(((-1,), (-1,), (x.rank - 1,), (-2, -1)))
    centred = b.node("Sub", x, b.axes("ReduceMean", x, axes, since=18, keepdims=1))
    power = b.node("Pow", centred, b.scalar(2)) if b.flip() else b.node("Mul", centred, centred)
    again = axes if b.number(0, 5) else (-2,)
    var = b.node("Add", b.axes("ReduceMean", power, again, since=18, keepdims=1), b.scalar(b.choice((1e-5, 1e-3))))
    y = b.node("Div", centred, b.node("Sqrt", var))
    for op in ("Mul", "Add"):
        if b.number(0, 3):
            y = _swapped(b, op, y, b.floats(*x.shape[-1 if b.number(0, 3) else -2 :]))
    b.add(y)


# --- movement -----------------------------------------------------------------------------------------------------


def transposes(b: Builder) -> None:
    x = b.pick(lambda t: t.rank >= 2)
    for _ in range(b.number(1, 3)):
        if b.number(0, 6) == 0:
            b.add(x, x.exact)
        perm = b.draw(st.permutations(range(x.rank)))
        y = b.node("Transpose", x, **({} if b.number(0, 5) == 0 else {"perm": list(perm)}))
        x = Tensor(y.name, y.shape, y.dtype, x.exact)
    b.add(x, x.exact)


def channels_last(b: Builder) -> None:
    """From NCHW to NHWC and back around something, as converted models have it."""
    x = b.image()
    y = b.node("Transpose", x, perm=[0, 2, 3, 1])
    kind = b.choice(("Relu", "Add", "Mul", "residual", "Concat", "ReduceMean", "Softmax", "Pad", "Slice"))
    if kind in ("Add", "Mul"):
        y = _swapped(b, kind, y, b.floats(*y.shape[-b.number(1, 3) :] if b.flip() else (y.shape[-1],)))
    elif kind == "residual":
        y = b.node("Add", y, b.node("Transpose", b.pick(lambda t: t.shape == x.shape), perm=[0, 2, 3, 1]))
    elif kind == "Concat":
        y = b.node("Concat", y, y, axis=b.choice((3, -1, 2)))
    elif kind == "ReduceMean":
        y = b.axes("ReduceMean", y, b.choice(((1, 2), (-1,), (2,))), since=18, keepdims=1)
    elif kind == "Softmax":
        y = b.node("Softmax", y, axis=b.choice((-1, 3))) if b.opset >= 13 else b.node("Relu", y)
    elif kind == "Pad":
        y = b.node("Pad", y, b.ints(0, 1, 0, 0, 0, 1, 1, 0))
    elif kind == "Slice":
        y = b.node("Slice", y, b.ints(0), b.ints(2), b.ints(b.choice((3, -1, 1))))
    else:
        y = b.node("Relu", y)
    if b.number(0, 5) == 0:
        b.add(y)
    z = b.node("Transpose", y, perm=b.choice(([0, 3, 1, 2], [0, 3, 1, 2], [0, 3, 1, 2], [0, 2, 3, 1])))
    b.add(_conv(b, z) if b.flip() else z)


def reshapes(b: Builder) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze in a row."""
    x = b.pick()
    for _ in range(b.number(1, 3)):
        y = b.choice((_reshape, _reshape, _flatten, _squeeze, _unsqueeze))(b, x)
        x = Tensor(y.name, y.shape, y.dtype, x.exact)
    b.add(x, x.exact)


def _reshape(b: Builder, x: Tensor) -> Tensor:
    """Zeros copy a size, and -1 takes what is left."""
    sizes = [0 if b.number(0, 2) or not d % BATCH else d for d in x.shape]
    cut = b.number(0, x.rank)
    target = b.choice(([*sizes[:cut], -1], [-1], [*sizes], [-1, *x.shape[1:]], [*sizes[:1], -1, 2]))
    if any(d % BATCH == 0 and d for d in target):
        raise Misfit
    return b.node("Reshape", x, b.ints(*target))


def _flatten(b: Builder, x: Tensor) -> Tensor:
    return b.node("Flatten", x, axis=b.number(0, x.rank))


def _squeeze(b: Builder, x: Tensor) -> Tensor:
    ones = [k for k, d in enumerate(x.shape) if d == 1]
    if not ones:
        raise Misfit
    axis = b.choice(ones)
    return b.axes("Squeeze", x, [axis - x.rank if b.flip() else axis])


def _unsqueeze(b: Builder, x: Tensor) -> Tensor:
    if x.rank > 5:
        raise Misfit
    return b.axes("Unsqueeze", x, [b.number(-x.rank - 1, x.rank)])


def slices(b: Builder) -> None:
    x = b.pick(lambda t: any(d % BATCH and d > 1 for d in t.shape))
    for _ in range(b.number(1, 2)):
        axes = [k for k, d in enumerate(x.shape) if d % BATCH and d > 1]
        if not axes:
            break
        axis = b.choice(axes)
        size, step = x.shape[axis], b.choice((1, 1, 1, 2, -1))
        start, end = b.number(-1, size - 1), b.choice((size, 2**31 - 1, 2**63 - 1, -1, b.number(1, size)))
        if step < 0:
            start, end = -1, b.choice((-(2**31), -size - 1, 0))
        bounds = [b.ints(v) for v in (start, end, axis - x.rank if b.flip() else axis, step)]
        if step == 1 and b.flip():
            bounds.pop()
        y = b.node("Slice", x, *bounds)
        x = Tensor(y.name, y.shape, y.dtype, x.exact)
    b.add(x, x.exact)


def casts(b: Builder) -> None:
    """Casts in a row; to integers only of what no rewrite can move across the next integer."""
    x = b.pick()
    wide = [TensorProto.DOUBLE, TensorProto.FLOAT]
    kinds = [*wide, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL] if x.exact else wide
    exact = x.exact
    y = x
    for _ in range(b.number(0, 2)):
        y = b.node("Cast", y, to=b.choice(kinds))
    if y.dtype == TensorProto.DOUBLE and b.flip():
        y = b.node(b.choice(("Add", "Mul")), y, b.constant(np.array(b.choice((0.0, 1.0, 1.5)))))
        exact = False
    b.add(b.node("Cast", y, to=TensorProto.FLOAT), exact)


def nothing(b: Builder) -> None:
    """An operator that does nothing, or nearly so."""
    x = b.pick()
    kind = b.choice(("Identity", "Dropout", "Concat", "Expand", "Tile", "Resize", "Pad", "Sum"))
    if kind == "Dropout":
        y = b.node("Dropout", x, outputs=b.choice((1, 2)))
    elif kind == "Concat":
        y = b.node("Concat", x, axis=0)
    elif kind == "Expand":
        y = b.node("Expand", x, b.ints(*[1] * b.number(1, x.rank + 1)))
    elif kind == "Tile":
        y = b.node("Tile", x, b.ints(*([1] * (x.rank - 1) + [b.choice((1, 1, 2))])))
    elif kind == "Resize":
        scales = b.constant(np.ones(x.rank, np.float32))
        roi = None if b.opset >= 13 else b.constant(np.zeros(0, np.float32))
        y = b.node("Resize", x, roi, scales, mode=b.choice(("nearest", "linear") if x.rank == 4 else ("nearest",)))
    elif kind == "Pad":
        y = b.node("Pad", x, b.ints(*[0] * (2 * x.rank)))
    else:
        y = b.node(kind, x)
    b.add(y, x.exact)


# --- shapes that are computed ---------------------------------------------------------------------------------


def shape_reshape(b: Builder) -> None:
    """Reshape to a target put together from the shape of a tensor, as view() and flatten() are exported."""
    x = b.pick(lambda t: t.rank >= 2 and all(d % BATCH for d in t.shape[1:]))
    source = b.pick(lambda t: t.rank >= 1 and t.shape[0] == x.shape[0])
    batch = _dimension(b, source, 0)
    rest = b.choice(([-1], list(x.shape[1:]), [x.shape[1], -1], [1, *x.shape[1:]]))
    parts = [batch, b.ints(*rest)]
    if b.number(0, 3) == 0 and rest != [-1]:
        parts = [batch, *(b.ints(v) for v in rest)]
    known = -int(np.prod(rest))
    left = int(np.prod(x.shape[1:]))
    shape = (x.shape[0], *[left // known if v == -1 else v for v in rest])
    b.add(b.reshaped(x, b.node("Concat", *parts, axis=0), shape), x.exact)


def _dimension(b: Builder, x: Tensor, axis: int) -> Tensor:
    """One size of a tensor, as a vector of one element."""
    shape = b.node("Shape", x)
    kind = b.choice(("scalar", "vector", "slice"))
    if kind == "slice":
        return b.node("Slice", shape, b.ints(axis), b.ints(axis + 1), b.ints(0))
    if kind == "vector":
        return b.node("Gather", shape, b.ints(axis))
    size = b.node("Gather", shape, b.constant(np.array(axis)), axis=0)
    if b.flip():
        size = b.node("Mul", b.node("Add", size, b.constant(np.array(0))), b.constant(np.array(1)))
    return b.axes("Unsqueeze", size, [0])


def shape_scale(b: Builder) -> None:
    """Multiply by a number computed from a size, as in attention."""
    x = b.pick()
    axes = [k for k, d in enumerate(x.shape) if d % BATCH] if b.flip() else list(range(x.rank))
    if not axes:
        raise Misfit
    size = b.node("Cast", _dimension(b, x, b.choice(axes)), to=TensorProto.FLOAT)
    b.add(b.node("Div", x, b.node("Sqrt", size)))


def shape_expand(b: Builder) -> None:
    """Add zeros of a shape that another tensor has."""
    x = b.pick()
    fill = numpy_helper.from_array(np.array([b.choice((0, 0.5))], np.float32))
    filled = Tensor(b.name("t"), x.shape)
    shape = b.node("Shape", x)
    b.nodes.append(helper.make_node("ConstantOfShape", [shape.name], [filled.name], b.name("fill"), value=fill))
    b.tensors[filled.name] = filled
    b.add(_swapped(b, "Add", x, filled))


# --- subgraphs --------------------------------------------------------------------------------------------------


def branch(b: Builder) -> None:
    """An If whose branches read tensors from outside, some that a pass would like to remove."""
    x = b.pick()
    y = b.pick(lambda t: t.shape == x.shape)
    if b.number(0, 2) == 0:
        condition = b.constant(np.array(b.flip()))
    else:
        exact = b.pick(lambda t: t.exact)
        axes = list(range(exact.rank))
        total = b.axes("ReduceSum", exact, axes, keepdims=0)
        condition = b.node("Greater", total, b.scalar(0))
    output = Tensor(b.name("t"), x.shape)
    branches = [_branch(b, x, y), _branch(b, x, y)]
    node = helper.make_node("If", [condition.name], [output.name], b.name("if"))
    for key, graph in zip(("then_branch", "else_branch"), branches, strict=True):
        node.attribute.append(AttributeProto(name=key, type=AttributeProto.GRAPH, g=graph))
    b.nodes.append(node)
    b.tensors[output.name] = output
    b.add(output)


def _branch(b: Builder, x: Tensor, y: Tensor) -> GraphProto:
    weight = numpy_helper.from_array(np.float32(b.choice((1, 0, 2))), b.name("v") if b.flip() else "v")
    result = b.name("r") if b.flip() else "r"
    steps = [
        helper.make_node("Mul", [x.name, weight.name], ["i"], b.name("inner")),
        helper.make_node("Identity", ["i"], ["j"], b.name("inner")),
        helper.make_node(b.choice(("Add", "Max")), ["j", y.name], [result], b.name("inner")),
    ]
    dims = [None if d % BATCH == 0 else d for d in x.shape]
    output = helper.make_tensor_value_info(result, TensorProto.FLOAT, dims)
    if b.number(0, 4) == 0:
        return helper.make_graph(
            [helper.make_node("Identity", [y.name], [result], b.name("inner"))], b.name("g"), [], [output]
        )
    return helper.make_graph(steps, b.name("g"), [], [output], [weight])


BLOCKS: tuple[Block, ...] = (
    *(conv, conv_norm, conv_norm, norm, conv_transpose, gemm, matmul_add),
    *(pad, pad, pool, global_pool, excite),
    *(residual, concat, split, duplicate),
    *(arithmetic, arithmetic, activation, formula, formula, formula, layer_norm),
    *(transposes, transposes, channels_last, reshapes, reshapes, slices, slices, casts, casts, nothing, nothing),
    *(shape_reshape, shape_scale, shape_expand, branch),
)
