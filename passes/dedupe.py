"""Initializers with the same values, kept once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model, Pass, PassResult
from graphopt.ir.values import StoredValues, is_plain, nbytes, onnx_dtype, peek
from graphopt.ir.view import is_standard, reads
from graphopt.rewrite import Workbench

_SAMPLE, _PLACES = 64, 4  # bytes at each place; places in a tensor


@dataclass(frozen=True)
class Deduplicate(Pass):
    """Keep initializers of the same type, shape and values once, and let every node read that one.

    Those that custom operators read, that are outputs of the graph, or that have no plain values stay.
    """

    name = "dedupe"
    kind = Kind.EXACT
    counts_changes = True

    def run(self, model: Model, ctx: Context) -> PassResult:
        twins = dict(_twins(model, _bound(model)))
        if not twins:
            return PassResult(False)
        bench = Workbench.of(model, model.bare)
        rewire = _rewire_all if bench.has_subgraphs else _rewire
        removed = rewire(bench, twins)
        return PassResult(True, {"initializers": len(removed), "bytes": sum(removed.values())})


def _rewire(bench: Workbench, twins: Mapping[int, gs.Constant]) -> dict[str, int]:
    """Let what reads a twin read the one that is kept: the bytes of those that went, by name."""
    bench.begin(reach=0)
    removed: dict[str, int] = {}
    for tensor in [t for n in bench.nodes() for t in n.inputs if id(t) in twins]:
        if tensor.name not in removed:
            removed[tensor.name] = nbytes(tensor)
            bench.replace_reads(tensor, twins[id(tensor)])
    bench.finish()
    return removed


def _rewire_all(bench: Workbench, twins: Mapping[int, gs.Constant]) -> dict[str, int]:
    """The same in a graph and its subgraphs."""
    removed: dict[str, int] = {}
    with bench.model.edit():
        for graph in bench.model.graphs():
            for node in graph.nodes:
                for k, tensor in enumerate(node.inputs):
                    keep = twins.get(id(tensor))
                    if keep is not None:
                        if tensor.name != keep.name:  # else a subgraph's view of the same one
                            removed[tensor.name] = nbytes(tensor)
                        node.inputs[k] = keep
    return removed


def _bound(model: Model) -> set[str]:
    """Names of initializers that must stay as they are."""
    names = {t.name for g in model.bare_graphs() for t in (*g.outputs, *g.inputs)} | set(
        model.header.inner_initializers
    )
    for graph in model.bare_graphs():
        for node in graph.nodes:
            if node.domain and not is_standard(node):
                names.update(reads(node))
    return names


def _twins(model: Model, bound: set[str]) -> Iterator[tuple[int, gs.Constant]]:
    """By the id of an initializer: the first one like it.

    Only what shares type and shape with another is read, first a few bytes of it, and all of it where those are equal.
    """
    found = [[c for c in model.constants(model.bare_graphs()) if c.name not in bound and is_plain(c)]]
    for key in (lambda c: (onnx_dtype(c), tuple(c._values.shape)), _sample, _digest):
        found = [part for group in found for part in _groups(group, key)]
    for first, *others in found:
        yield from ((id(constant), first) for constant in others)


def _groups(constants: list[gs.Constant], key: Callable[[gs.Constant], Hashable]) -> list[list[gs.Constant]]:
    """Those with equal keys, where there are several, in their order."""
    alike: dict[Hashable, list[gs.Constant]] = {}
    for constant in constants:
        mark = key(constant)
        known = alike.get(mark)
        if known is None:
            alike[mark] = [constant]
        else:
            known.append(constant)
    return [group for group in alike.values() if len(group) > 1]


def _bytes(constant: gs.Constant) -> np.ndarray:
    return np.ascontiguousarray(peek(constant)).reshape(-1).view(np.uint8)


def _sample(constant: gs.Constant) -> bytes:
    values = constant._values
    if isinstance(values, np.ndarray) and values.nbytes <= _PLACES * _SAMPLE:
        return values.tobytes()
    data = (values.tensor.raw_data if isinstance(values, StoredValues) else b"") or _bytes(constant).data
    if len(data) <= _PLACES * _SAMPLE:
        return bytes(data)
    places = range(0, len(data), max(len(data) // _PLACES, _SAMPLE))
    return b"".join([data[p : p + _SAMPLE] for p in places])


def _digest(constant: gs.Constant) -> bytes:
    return hashlib.blake2b(_bytes(constant), digest_size=16).digest()
