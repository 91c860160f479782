"""The IR as a differentiable program.

The graph is compiled once into a list of steps over numbered slots: what depends on nothing that trains is computed at
once, a tensor is let go after its last reader, a quantize-dequantize pair is one step. Only what PyTorch keeps for the
backward pass stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
import torch.nn.functional as F

from graphopt.errors import PassError
from graphopt.ir.model import Model
from graphopt.ir.values import peek
from graphopt.ir.view import is_standard, subgraphs
from graphopt.training.fusing import Folded, fold_norms, pairs
from graphopt.training.ops import OPERATORS, NodeInfo, Unsupported
from graphopt.training.ops.quantization import LIMITS, fake_quantize, kind_of
from graphopt.training.state import State, to_tensor

_OVERWRITES = frozenset(("Conv", "Gemm", "Add", "BatchNormalization"))  # none of these needs its result for gradients
_IN_PLACE: dict[str, Callable[..., torch.Tensor]] = {"Relu": torch.relu_}


@dataclass(frozen=True)
class _Step:
    run: Callable[..., Any]
    inputs: tuple[int, ...]  # -1: omitted
    outputs: tuple[int, ...]
    done: tuple[int, ...]  # read here for the last time
    name: str


class Executor:
    """Runs a model in PyTorch, with gradients to its initializers where ``train`` is set.

    ``taps`` are further tensors that a run gives. ``live_norms`` makes batch norms use the statistics of each batch
    while ``training`` is set, and follow them with their own. Floats are computed in ``dtype`` whatever type the file
    keeps them in. Raises PassError for operators that it lacks, naming the nodes.
    """

    def __init__(
        self,
        model: Model,
        *,
        taps: Sequence[str] = (),
        train: bool = False,
        live_norms: bool = False,
        learn_scales: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.live_norms, self.training = live_norms and train, False
        self.inputs = [t.name for t in model.inputs]
        self.outputs = [t.name for t in model.outputs]
        self.results = list(dict.fromkeys([*self.outputs, *taps]))
        self.state = State(model, dtype, self.device, learn_scales) if train else None
        self._slots: dict[str, int] = {}
        self._known: dict[str, torch.Tensor] = {}
        self._trained = set(self.state.present()) if self.state is not None else set()
        self._compile(model)

    # --- compiling ----------------------------------------------------------------------------------------------

    def _compile(self, model: Model) -> None:
        nodes = list(model.graph.nodes)
        _check(nodes)
        for node in nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name not in self._trained:
                    self._known.setdefault(tensor.name, self._place(peek(tensor)))
        for tensor in model.outputs:
            if isinstance(tensor, gs.Constant):
                self._known.setdefault(tensor.name, self._place(peek(tensor)))
        folded = Folded() if self.state is not None else fold_norms(nodes, self._known, set(self.results))
        fused = pairs(nodes, self._known | dict.fromkeys(self._trained), set(self.results))
        steps: list[tuple[Callable[..., Any], list[str], list[str], str]] = []
        for node in nodes:
            if id(node) in folded.norms or id(node) in fused.second:
                continue
            names, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
            try:
                if id(node) in fused.first:
                    run, names, outputs = self._pair(node, model.opset), names[:2], [fused.first[id(node)]]
                else:
                    run = self._builder(node, model)
                if id(node) in folded.convolutions:
                    weight, bias, outputs[0] = folded.convolutions[id(node)]
                    names = [names[0], weight, bias]
                if all(n in self._known or not n for n in names) and not self._trained.intersection(names):
                    self._evaluate(run, names, outputs)
                else:
                    steps.append((run, names, outputs, node.name))
            except Unsupported as error:
                raise PassError(f"cannot train through node {node.name!r} ({node.op}): {error}") from None
        self._finish(steps)

    def _place(self, array: np.ndarray) -> torch.Tensor:
        tensor = to_tensor(array, self.dtype)
        if tensor.dim() == 4 and tensor.is_floating_point():
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return self._move(tensor)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floats to the device and the float type; integers steer operators, from main memory."""
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor

    def _builder(self, node: gs.Node, model: Model) -> Callable[..., Any]:
        info = NodeInfo(node, model.opset, self.dtype)
        if node.op == "BatchNormalization" and self.live_norms:
            return self._live_norm(info)
        x = node.inputs[0] if node.inputs else None
        if node.op == "Cast" and x is not None and self.state is not None and x.name in self.state.roles.integers:
            return lambda value: value  # integers in a float type, which gradients go through
        alone = x is not None and len(x.outputs) == 1 and x.inputs and x.name not in self.results
        if node.op in _IN_PLACE and x is not None and alone and x.inputs[0].op in _OVERWRITES:
            return _IN_PLACE[node.op]
        return OPERATORS[node.op](info)

    def _live_norm(self, info: NodeInfo) -> Callable[..., Any]:
        assert self.state is not None
        epsilon, momentum = info.attr("epsilon", 1e-5), 1 - info.attr("momentum", 0.9)
        for tensor in info.node.inputs[3:5]:
            self.state.buffers.setdefault(tensor.name, self._known.pop(tensor.name).clone())
            self._trained.add(tensor.name)

        def run(x: torch.Tensor, scale: Any, bias: Any, mean: Any, var: Any) -> torch.Tensor:
            return F.batch_norm(x, mean, var, scale, bias, self.training, momentum, epsilon)

        return run

    def _pair(self, node: gs.Node, opset: int) -> Callable[..., Any]:
        low, high = LIMITS[kind_of(NodeInfo(node, opset, self.dtype))]
        given = len(node.inputs) > 2 and bool(node.inputs[2].name)
        zero = float(self._known[node.inputs[2].name].reshape(())) if given else 0.0
        return lambda x, scale: fake_quantize(x, scale.reshape(()), zero, low, high)

    def _evaluate(self, run: Callable[..., Any], names: list[str], outputs: list[str]) -> None:
        with torch.no_grad():
            found = run(*[self._known[n] if n else None for n in names])
        for name, value in zip(outputs, found if isinstance(found, tuple) else (found,), strict=False):
            if name:
                self._known[name] = self._move(value)

    def _finish(self, steps: list[tuple[Callable[..., Any], list[str], list[str], str]]) -> None:
        last: dict[str, int] = {}
        for k, (_, names, outputs, _) in enumerate(steps):
            last.update(dict.fromkeys([*names, *outputs], k))
        keep = {*self.results, *self._known, *self._trained, ""}
        done = defaultdict(list)
        for name, k in last.items():
            if name not in keep:
                done[k].append(self._slot(name))
        self._steps = [
            _Step(
                run, tuple(self._slot(n) for n in names), tuple(self._slot(n) for n in outputs), tuple(done[k]), title
            )
            for k, (run, names, outputs, title) in enumerate(steps)
        ]
        for name in (*self.inputs, *self.results, *self._trained):
            self._slot(name)
        self._fixed = [(s, self._known[n]) for n, s in self._slots.items() if n in self._known]
        self._given = [(n, s) for n, s in self._slots.items() if n in self._trained]
        made = {s for step in self._steps for s in step.outputs}
        made |= {self._slots[n] for n in self.inputs} | {s for s, _ in self._fixed} | {s for _, s in self._given}
        missing = [n for n in self.results if self._slots[n] not in made]
        if missing:
            raise PassError(f"the graph does not compute {', '.join(missing)}")

    def _slot(self, name: str) -> int:
        return self._slots.setdefault(name, len(self._slots)) if name else -1

    # --- running --------------------------------------------------------------------------------------------------

    def run(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The graph's outputs and the taps by name, for inputs in the graph's order."""
        slots: list[Any] = [None] * (len(self._slots) + 1)  # the last one is for omitted inputs
        for slot, value in self._fixed:
            slots[slot] = value
        if self.state is not None:
            now = self.state.present()
            for name, slot in self._given:
                slots[slot] = now[name]
        for name, value in zip(self.inputs, inputs, strict=True):
            if value.is_floating_point():
                value = value.to(self.dtype)
                if value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
                value = value.to(self.device)
            slots[self._slots[name]] = value
        for step in self._steps:
            try:
                found = step.run(*[slots[i] for i in step.inputs])
            except (Unsupported, RuntimeError, IndexError, TypeError) as error:
                raise PassError(f"cannot run node {step.name!r} in PyTorch: {error}") from error
            if type(found) is tuple:
                for slot, value in zip(step.outputs, found, strict=False):
                    slots[slot] = value
            else:
                slots[step.outputs[0]] = found
            for slot in step.done:
                slots[slot] = None
        return {name: slots[self._slots[name]] for name in self.results}


def _check(nodes: list[gs.Node]) -> None:
    """Raise PassError for operators that the table lacks."""
    lacking = [n for n in nodes if not is_standard(n) or n.op not in OPERATORS or subgraphs(n)]
    if lacking:
        shown = ", ".join(f"{n.name or n.outputs[0].name!r} ({n.op})" for n in lacking[:5])
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise PassError(
            f"cannot train through these nodes: {shown}{more}",
            "docs/training.md lists the operators that train",
        )
