"""Removing a node that passes a tensor on unchanged, with the names of graph inputs and outputs kept."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.rewrite.workbench import Workbench


def bypass(bench: Workbench, node: gs.Node, source: gs.Tensor | None = None) -> str | None:
    """Remove a node whose first output equals ``source`` (its first input, unless said), or say why not.

    The other outputs of the node must be unread.
    """
    source, target = node.inputs[0] if source is None else source, node.outputs[0]
    if bench.is_output(target):
        return _rename_producer(bench, node, source)
    reason = bench.why_bound(target)
    if reason:
        return reason
    if isinstance(source, gs.Variable) and bench.producer(source) is not None and not bench.is_output(source):
        # What is known of one is known of the other; the interface keeps what it says.
        if source.dtype is None:
            source.dtype = target.dtype
        if source.shape is None:
            source.shape = target.shape
    bench.replace_reads(target, source)
    bench.remove(node)
    return None


def _rename_producer(bench: Workbench, node: gs.Node, source: gs.Tensor) -> str | None:
    """Let the producer of a no-op's input write the graph output itself."""
    target = node.outputs[0]
    producer = bench.producer(source)
    if producer is None:
        kind = "an initializer" if isinstance(source, gs.Constant) else "an input of the graph"
        return f"it connects {kind} to the graph output {target.name!r}, and both names must stay"
    reason = bench.why_bound(source)
    if not reason and not bench.is_standard(producer):
        reason = f"a custom operator writes {source.name!r}"
    if reason:
        return f"it writes a graph output, and its input keeps its name too: {reason}"
    index = next(i for i, t in enumerate(producer.outputs) if t is source)
    bench.remove(node)
    bench.set_output(producer, index, target)
    bench.replace_reads(source, target)
    return None
