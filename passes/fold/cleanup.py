"""Nodes that pass a tensor on unchanged, and nodes whose results nobody reads."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.passes.fold.index import plain_dtype
from graphopt.passes.fold.workbench import Workbench
from graphopt.pipeline.exactness import RANDOM_OPS


def remove_dead(bench: Workbench, node: gs.Node) -> None:
    """Remove a node none of whose outputs is read, captured by a subgraph, or an output of the graph.

    Random ones stay: each draws from one stream of numbers, and without it the others would draw differently.
    """
    for tensor in node.outputs:
        if tensor.name and (bench.readers(tensor) or bench.is_output(tensor) or bench.is_captured(tensor)):
            return
    if not _known_and_repeatable(bench, node):
        bench.skip(node, "nothing reads its outputs, but it is a custom or random operator")
        return
    bench.counts["dead_nodes_removed"] += 1
    bench.remove(node)


def _known_and_repeatable(bench: Workbench, node: gs.Node) -> bool:
    inner = [n for sub in node.subgraphs(recursive=True) for n in sub.nodes]
    return all(bench.is_standard(n) and n.op not in RANDOM_OPS for n in (node, *inner))


def remove_cast(bench: Workbench, node: gs.Node) -> None:
    """Remove a Cast or CastLike to the type that its input already has."""
    source, target = node.inputs[0], node.outputs[0]
    if source.dtype is not None and source.dtype == target.dtype:
        bypass(bench, node)


def remove_dropout(bench: Workbench, node: gs.Node) -> None:
    """Remove a Dropout that is known to be in inference mode (before opset 12 there is no other)."""
    if len(node.inputs) > 2 and node.inputs[2].name:
        mode = bench.array(node.inputs[2])
        if mode is None or mode.any():
            bench.skip(node, "it is in training mode, or may be: its training_mode input is not constant")
            return
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and mask.name and (bench.readers(mask) or bench.why_bound(mask)):
        bench.skip(node, f"its mask output {mask.name!r} is used")
        return
    bypass(bench, node)


def bypass(bench: Workbench, node: gs.Node) -> None:
    """Remove a node whose first output equals its first input, keeping the names of graph inputs and outputs."""
    source, target = node.inputs[0], node.outputs[0]
    if bench.is_output(target):
        _rename_producer(bench, node)
        return
    reason = bench.why_bound(target)
    if reason:
        bench.skip(node, reason)
        return
    if isinstance(source, gs.Variable) and not bench.is_graph_input(source) and not bench.is_output(source):
        # What is known of one is known of the other; the interface keeps what it says.
        if source.dtype is None:
            source.dtype = target.dtype
        if source.shape is None:
            source.shape = target.shape
    bench.replace_reads(target, source)
    bench.counts["no_ops_removed"] += 1
    bench.remove(node)


def _rename_producer(bench: Workbench, node: gs.Node) -> None:
    """Let the producer of a no-op's input write the graph output itself."""
    source, target = node.inputs[0], node.outputs[0]
    producer = bench.producer(source)
    if producer is None:
        kind = "an initializer" if isinstance(source, gs.Constant) else "an input of the graph"
        bench.skip(node, f"it connects {kind} to the graph output {target.name!r}, and both names must stay")
        return
    reason = bench.why_bound(source)
    if not reason and not bench.is_standard(producer):
        reason = f"a custom operator writes {source.name!r}"
    if reason:
        bench.skip(node, f"it writes a graph output, and its input keeps its name too: {reason}")
        return
    index = next(i for i, t in enumerate(producer.outputs) if t is source)
    bench.remove(node)
    bench.set_output(producer, index, target)
    bench.replace_reads(source, target)
    bench.counts["no_ops_removed"] += 1


def constant_to_initializer(bench: Workbench, node: gs.Node) -> None:
    """Turn a Constant node into an initializer of the same name."""
    tensor = node.outputs[0]
    if bench.is_output(tensor) or bench.is_foreign(tensor):
        bench.skip(node, bench.why_bound(tensor))
        return
    for key, value in node.attrs.items():
        if key == "value" and isinstance(value, gs.Constant):
            if plain_dtype(value) is None and not isinstance(value._values, LazyValues):
                break
            bench.to_initializer(node, value._values, value._export_dtype)
            bench.counts["constants_folded"] += 1
            return
        dtype = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}
        if key in dtype:
            bench.to_initializer(node, np.array(value, dtype[key]), None)
            bench.counts["constants_folded"] += 1
            return
    bench.skip(node, "its value is of a type that is not folded (text, or none that numpy has)")
