"""Initializers with the same values, kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model, Pass, PassResult
from graphopt.ir.values import is_plain, is_sparse, nbytes, onnx_dtype, peek
from graphopt.ir.view import is_standard, reads


@dataclass(frozen=True)
class Deduplicate(Pass):
    """Keep initializers of the same type, shape and values once, and let every node read that one.

    Those that custom operators read, that are outputs of the graph, or that have no plain values stay.
    """

    name = "dedupe"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        twins = dict(_twins(model, _bound(model)))
        if not twins:
            return PassResult(False)
        removed: dict[str, int] = {}
        with model.edit():
            for graph in model.graphs():
                for node in graph.nodes:
                    for k, tensor in enumerate(node.inputs):
                        keep = twins.get(id(tensor))
                        if keep is not None:
                            if tensor.name != keep.name:  # else a subgraph's view of the same one
                                removed[tensor.name] = nbytes(tensor)
                            node.inputs[k] = keep
        return PassResult(True, {"initializers": len(removed), "bytes": sum(removed.values())})


def _bound(model: Model) -> set[str]:
    """Names of initializers that must stay as they are."""
    names = {t.name for g in model.graphs() for t in (*g.outputs, *g.inputs)} | set(model.header.inner_initializers)
    for graph in model.graphs():
        for node in graph.nodes:
            if not is_standard(node):
                names.update(reads(node))
    return names


def _twins(model: Model, bound: set[str]) -> Iterator[tuple[int, gs.Constant]]:
    """By the id of an initializer: the first one like it. Only what shares type and shape with another is hashed."""
    alike: dict[tuple[object, ...], list[gs.Constant]] = {}
    for constant in model.constants():
        if constant.name not in bound and is_plain(constant) and not is_sparse(constant):
            alike.setdefault((onnx_dtype(constant), tuple(constant.shape)), []).append(constant)
    for group in alike.values():
        if len(group) == 1:
            continue
        first: dict[bytes, gs.Constant] = {}
        for constant in group:
            keep = first.setdefault(_digest(constant), constant)
            if keep is not constant:
                yield id(constant), keep


def _digest(constant: gs.Constant) -> bytes:
    array = np.ascontiguousarray(peek(constant))
    return hashlib.blake2b(array.reshape(-1).view(np.uint8), digest_size=16).digest()
