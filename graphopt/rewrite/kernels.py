"""Whether an operator may be written into a model: by its opset, its types, and the ONNX Runtime that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.workbench import Workbench
from graphopt.runtime.session import open_session, run_feeds

Attribute = int | float | str


def why_not_written(
    bench: Workbench, op: str, like: gs.Tensor, shapes: Sequence[tuple[int, ...]] = ((2, 4),), **attrs: Attribute
) -> str | None:
    """Why a standard operator ``op`` of the type of ``like`` cannot stand in the model, in words; None if it can.

    ``shapes``: of a small example of each input, on which the installed ONNX Runtime is tried, once for all models.
    """
    dtype = plain_dtype(like)
    if dtype is None:
        return f"the type of {like.name!r} is unknown, or none that {op} is checked for"
    opset = bench.model.opset
    if not bench.has_op(op):
        since = first_version(op)
        if since is not None and since > opset:
            return f"{op} is standard from opset {since} on, and the model has {opset}: upgrade it first"
        return f"a function of the model is called {op}" if since is not None else f"{op} is no standard operator"
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    if (
        f"tensor({onnx.TensorProto.DataType.Name(kind).lower()})"
        not in onnx.defs.get_schema(op, opset, "").inputs[0].types
    ):
        return f"{op} takes no {dtype} in opset {opset}"
    if not _runs(op, opset, int(kind), tuple(tuple(s) for s in shapes), tuple(sorted(attrs.items()))):
        return f"the installed ONNX Runtime has no {op} of {dtype} for opset {opset}"
    return None


@cache
def first_version(op: str) -> int | None:
    """The opset that brought a standard operator; None if none has it."""
    found = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""]
    return min(found, default=None)


@cache
def _runs(
    op: str, opset: int, kind: int, shapes: tuple[tuple[int, ...], ...], attrs: tuple[tuple[str, Attribute], ...]
) -> bool:
    """Whether ONNX Runtime runs a model of this one node: by a kernel, or by the function that the standard gives."""
    helper = onnx.helper
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    feeds = {f"x{k}": np.full(shape, 0.5, dtype) for k, shape in enumerate(shapes)}
    inputs = [helper.make_tensor_value_info(n, kind, a.shape) for n, a in feeds.items()]
    output = helper.make_tensor_value_info("y", kind, None)
    node = helper.make_node(op, list(feeds), ["y"], name="node", **dict[str, Any](attrs))
    graph = helper.make_graph([node], "one", inputs, [output])
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))
    try:
        run_feeds(open_session(model.SerializeToString(), optimize=False), feeds)
    except ModelError:
        return False
    return True
