"""Constant nodes, which are initializers in another form."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.rewrite import Workbench
from graphopt.rewrite.index import plain_dtype

_TYPES = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}


def constant_to_initializer(bench: Workbench, node: gs.Node) -> str | None:
    """Turn a Constant node into an initializer of the same name."""
    tensor = node.outputs[0]
    if bench.is_output(tensor) or bench.is_foreign(tensor):
        return bench.why_bound(tensor)
    for key, value in node.attrs.items():
        if key == "value" and isinstance(value, gs.Constant):
            if plain_dtype(value) is None and not isinstance(value._values, LazyValues):
                break
            bench.to_initializer(node, value._values, value._export_dtype)
            return None
        if key in _TYPES:
            bench.to_initializer(node, np.array(value, _TYPES[key]), None)
            return None
    return "its value is of a type that is not folded (text, or none that numpy has)"
