"""Computing constant subgraphs: ONNX Runtime sessions over many of them at once, with optimizations off.

The kernels are those that would have run at inference time, so folding does not change a result's bits. Nor does it
where the few operators whose bits are the same everywhere are computed without a session.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir.exporter import write_node
from graphopt.ir.values import peek
from graphopt.passes.fold.budget import Allowance, Plan, plan
from graphopt.passes.fold.exact import compute_exactly
from graphopt.rewrite import Workbench
from graphopt.runtime.session import open_session, run_feeds

# Nodes of a session: the time to open and run one grows faster than their number, where most have an input or output.
_BATCH = 128


class Evaluator:
    """Folds constant subgraphs within a byte budget, and remembers which nodes cannot be computed."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self._refused: dict[int, str] = {}

    def fold(self, bench: Workbench) -> None:
        """Replace the constant subgraphs that fit the budget by their values."""
        while True:
            chosen = plan(bench, self.allowance, self._refused)
            if not chosen.nodes:
                return
            try:
                values = compute(bench.model.opset, chosen.nodes, chosen.kept)
            except ModelError as error:
                self._refuse(bench.model.opset, chosen.nodes, error)
                continue
            if sum(v.nbytes for v in values.values()) <= chosen.stored:
                break
            # The shapes recorded in the file were wrong, so the plan was too.
            for node in chosen.nodes:
                self._refused[id(node)] = "its result is larger than its recorded shape says"
        _replace(bench, chosen, values)

    def _refuse(self, opset: int, nodes: list[gs.Node], error: ModelError) -> None:
        """Find the first node that cannot be computed, by bisection, and leave it and its like out from now on."""
        low, high = 0, len(nodes) - 1
        while low < high:
            middle = (low + high) // 2
            try:
                compute(opset, nodes[: middle + 1], _ends(nodes[: middle + 1]))
                low = middle + 1
            except ModelError as found:
                high, error = middle, found
        reason = f"ONNX Runtime cannot compute it: {error.message}"
        alike = [nodes[low]]
        if "NOT_IMPLEMENTED" in error.message:
            alike = [n for n in nodes if _kind(n) == _kind(nodes[low])]
        for node in alike:
            self._refused[id(node)] = reason


def compute(opset: int, nodes: list[gs.Node], wanted: list[gs.Tensor]) -> dict[str, np.ndarray]:
    """Values of the tensors ``wanted``, from nodes in topological order whose other inputs are initializers.

    Initializers are fed as inputs, so that they are neither copied into the proto nor bound by its size limit.
    Raises ModelError with ONNX Runtime's words.
    """
    known, left = compute_exactly(nodes)
    values = {t.name: known[t.name] for t in wanted if t.name in known}
    names = {t.name for t in wanted}
    for batch in _batches(left):
        found = [t.name for n in batch for t in n.outputs if t.name in names]
        if batch:
            values.update(_compute(opset, batch, found, known))
    return values


def _batches(nodes: list[gs.Node]) -> list[list[gs.Node]]:
    """The nodes in parts that need nothing of each other, of about ``_BATCH`` nodes where they come apart so."""
    groups = nx.utils.UnionFind(range(len(nodes)))
    writer: dict[str, int] = {}
    for k, node in enumerate(nodes):
        above = {writer[t.name] for t in node.inputs if t.name in writer}
        groups.union(k, *above)
        writer.update((t.name, k) for t in node.outputs if t.name)
    connected: dict[int, list[gs.Node]] = {}
    for k, node in enumerate(nodes):
        connected.setdefault(groups[k], []).append(node)
    batches: list[list[gs.Node]] = [[]]
    for group in connected.values():
        if batches[-1] and len(batches[-1]) + len(group) > _BATCH:
            batches.append([])
        batches[-1].extend(group)
    return batches


def _compute(
    opset: int, nodes: list[gs.Node], wanted: list[str], known: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run nodes that read initializers, tensors that are ``known``, and each other."""
    read = [t for n in nodes for t in n.inputs]
    weights = {t.name: peek(t) for t in read if isinstance(t, gs.Constant)}
    weights.update((t.name, known[t.name]) for t in read if t.name in known)
    imports = [onnx.helper.make_opsetid("", opset)]
    version = onnx.helper.find_min_ir_version_for(imports)
    model = onnx.ModelProto(ir_version=max(version, 4), opset_import=imports)
    model.graph.name = "constants"
    for node in nodes:
        write_node(model.graph.node.add(), node)
    for name, array in weights.items():
        target = model.graph.input.add()
        target.name = name
        kind = target.type.tensor_type
        kind.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        dims = kind.shape.dim
        dims.extend(())  # a scalar has a shape too
        for size in array.shape:
            dims.add().dim_value = size
    for name in wanted:
        model.graph.output.add().name = name
    session = open_session(model.SerializeToString(), optimize=False)
    values = run_feeds(session, {k: np.asarray(v, order="C") for k, v in weights.items()})
    return dict(zip(wanted, values, strict=True))


def _replace(bench: Workbench, chosen: Plan, values: dict[str, np.ndarray]) -> None:
    # Readers before producers, so that no node is seen reading what is already gone.
    for node in reversed(chosen.nodes):
        mine = {t.name: values[t.name] for t in node.outputs if t.name in values}
        if mine:
            bench.make_constant(node, mine)
        else:
            bench.remove(node)
        bench.counts["constants"] += 1


def _ends(nodes: list[gs.Node]) -> list[gs.Tensor]:
    """Outputs that none of the nodes reads: asking for them runs everything."""
    read = {t.name for n in nodes for t in n.inputs}
    return [t for n in nodes for t in n.outputs if t.name and t.name not in read]


def _kind(node: gs.Node) -> tuple[object, ...]:
    return (node.op, *(str(t.dtype) for t in node.inputs))
