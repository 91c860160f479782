"""Changes that a library makes to a model's proto, with the weights left where they are."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from graphopt.ir.model import Model
from graphopt.ir.shapes import VALUES_BELOW
from graphopt.ir.values import nbytes


def rebuild(model: Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Replace a model by what ``change`` makes of its proto, whose large initializers then carry no values.

    ``change`` must keep their names. What it raises is passed on, and the model is as it was. Raises ModelError for a
    result that cannot be read.
    """
    large = {c.name: c for c in model.constants() if nbytes(c) > VALUES_BELOW}
    names = [c.name for c in model.constants() if nbytes(c) > VALUES_BELOW]
    if len(set(names)) < len(names):  # two branches use one name for two initializers
        large = {}
    proto = change(model.to_proto(VALUES_BELOW if large else None))
    new = Model.from_proto(proto, model.source)
    for constant in new.constants():
        old = large.get(constant.name)
        if old is not None:
            constant._values, constant._export_dtype = old._values, old._export_dtype
            constant.data_location = old.data_location
    model.replace_with(new)
