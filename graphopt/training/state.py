"""What trains: float weights, the float weights behind integers, scales; and how they go back into initializers."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import torch

from graphopt.ir.model import Model
from graphopt.ir.values import peek
from graphopt.training.ops.quantization import LIMITS, along, quantize
from graphopt.training.roles import Roles, find_roles


def to_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """An initializer as the executor holds it: floats in its one float type, packed and 16-bit integers as int32."""
    if array.dtype.kind == "f" or str(array.dtype) in ("bfloat16", "float16"):
        return torch.from_numpy(np.array(array, np.float64 if dtype == torch.float64 else np.float32))
    if str(array.dtype) in ("int8", "uint8", "int32", "int64", "bool"):
        return torch.from_numpy(np.array(array))
    return torch.from_numpy(np.array(array).astype(np.int32 if array.dtype.itemsize < 4 else np.int64))


class State:
    """The parameters of a model by initializer name.

    ``weights`` holds float initializers as they are, and for integer ones the real numbers that they are rounded from.
    ``scales`` holds the logarithm of each scale's ratio to what it was: a step changes all scales by like percentages,
    and none becomes negative. ``buffers`` holds the statistics of live batch norms.
    """

    def __init__(self, model: Model, dtype: torch.dtype, device: torch.device, learn_scales: bool = True) -> None:
        self.roles: Roles = find_roles(model)
        self.dtype, self.device = dtype, device
        self.weights: dict[str, torch.nn.Parameter] = {}
        self.scales: dict[str, torch.nn.Parameter] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self._first: dict[str, torch.Tensor] = {}  # scales at the beginning
        self._zeros: dict[str, torch.Tensor | None] = {}
        self._kinds: dict[str, str] = {}
        found: dict[str, np.ndarray] = {}
        for node in model.graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and tensor.name not in found:
                    found[tensor.name] = peek(tensor)
        for name in self.roles.weights:
            self._kinds[name] = str(found[name].dtype)
            self._add(name, to_tensor(found[name], dtype))
        for name, root in self.roles.scales.items():
            self._kinds[name] = str(found[name].dtype)
            self._first[name] = to_tensor(found[name], dtype).to(device)
            if learn_scales and root == name:
                self.scales[name] = torch.nn.Parameter(torch.zeros_like(self._first[name]))
        for name, reader in self.roles.integers.items():
            self._kinds[name] = str(found[name].dtype)
            scale = to_tensor(found[reader.inputs[1].name], dtype) if reader.inputs[1].name in found else None
            if scale is None:
                continue
            self._first.setdefault(reader.inputs[1].name, scale.to(device))
            values = to_tensor(found[name], dtype).to(dtype)
            axis, block = reader.attrs.get("axis", 1), reader.attrs.get("block_size", 0)
            zero = reader.inputs[2] if len(reader.inputs) > 2 and reader.inputs[2].name in found else None
            shift = None if zero is None else to_tensor(found[zero.name], dtype).to(dtype)
            self._zeros[name] = None if shift is None else along(shift, values, axis, block).to(device)
            real = values - (along(shift, values, axis, block) if shift is not None else 0)
            self._add(name, real * along(scale, values, axis, block))
        for bias in self.roles.biases.values():
            self._kinds[bias.scale] = "float32"

    def _add(self, name: str, values: torch.Tensor) -> None:
        values = values.to(self.device)
        if values.dim() == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        self.weights[name] = torch.nn.Parameter(values)

    # --- what a forward pass starts with ----------------------------------------------------------------------

    def present(self) -> dict[str, torch.Tensor]:
        """Initializers as the graph reads them now, with gradients to the parameters."""
        now: dict[str, torch.Tensor] = {n: p for n, p in self.weights.items() if n not in self.roles.integers}
        for name in self._first:
            now[name] = self._scale(name)
        for bias in self.roles.biases.values():
            product = now[bias.input].detach() * now[bias.weight].detach()
            now[bias.scale] = (
                product.reshape(-1).expand(self._first[bias.scale].numel()).reshape(self._first[bias.scale].shape)
            )
        for name in self.roles.integers:
            if name in self.weights:
                now[name] = self._integers(name, now)
        now.update(self.buffers)
        return now

    def _scale(self, name: str) -> torch.Tensor:
        root = self.roles.scales.get(name)
        ratio = self.scales.get(root) if root is not None else None
        return self._first[name] if ratio is None else self._first[name] * torch.exp(ratio)

    def _integers(self, name: str, now: dict[str, torch.Tensor]) -> torch.Tensor:
        reader = self.roles.integers[name]
        low, high = LIMITS[self._kinds[name]]
        x, zero = self.weights[name], self._zeros[name]
        scale = along(now[reader.inputs[1].name], x, reader.attrs.get("axis", 1), reader.attrs.get("block_size", 0))
        return quantize(x, scale, 0.0 if zero is None else zero, low, high)

    # --- snapshots and the way back ---------------------------------------------------------------------------

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.weights.values(), *self.scales.values()]

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of everything that trains."""
        return {name: tensor.detach().clone() for name, tensor in self._everything().items()}

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        """Back to a snapshot."""
        with torch.no_grad():
            for name, tensor in self._everything().items():
                tensor.copy_(saved[name])

    def _everything(self) -> dict[str, torch.Tensor]:
        return {**self.weights, **self.scales, **self.buffers}

    def write(self, model: Model) -> int:
        """Put the values into the initializers of ``model``, in their own types; how many have changed."""
        with torch.no_grad():
            now = self.present()
        changed = 0
        with model.edit() as graph:
            seen: set[str] = set()
            for node in graph.nodes:
                for tensor in node.inputs:
                    if not isinstance(tensor, gs.Constant) or tensor.name in seen or tensor.name not in now:
                        continue
                    seen.add(tensor.name)
                    old = peek(tensor)
                    new = now[tensor.name].detach().cpu().contiguous().numpy()
                    if tensor.name in self.roles.integers:  # through float64: float32 does not hold all of int32
                        low, high = LIMITS[self._kinds[tensor.name]]
                        new = np.clip(np.rint(new.astype(np.float64)), low, high)
                    new = np.ascontiguousarray(new.astype(old.dtype)).reshape(old.shape)
                    if not np.array_equal(new, old):
                        tensor.values = new
                        changed += 1
        return changed
