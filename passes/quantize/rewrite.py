"""Put QuantizeLinear and DequantizeLinear where the plan says.

A tensor written by an int8 operator keeps its name and its readers: the operator writes a new tensor, and the old one
becomes what DequantizeLinear makes of it. A tensor written in float is quantized beside itself, once, for its int8
readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import sort
from graphopt.passes.quantize.operators import (
    channel_axis,
    constant_input,
    data_inputs,
    has_weights,
    is_activation,
    sole_consumer,
    takes_offset,
)
from graphopt.passes.quantize.placement import Plan, outputs_in_int8
from graphopt.passes.quantize.ranges import Limits, QuantParams, activation_params, quantize_weights
from graphopt.runtime.target import Target


@dataclass
class Rewriter:
    """One application of a plan; ``params`` and ``means`` by tensor name, see ``calibrate.Calibrated``.

    Biases are corrected where ``means`` has the input's. ``four_bits``: names of nodes whose weights get 4 bits.
    """

    model: Model
    target: Target
    plan: Plan
    params: Mapping[str, QuantParams]
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_channel: bool = True
    four_bits: frozenset[str] = frozenset()
    widened: int = 0
    limits: dict[str, Limits] = field(default_factory=dict)
    _offsets: dict[str, float] = field(default_factory=dict)
    planned: dict[str, list[str]] = field(default_factory=dict)
    _chosen: list[gs.Node] = field(default_factory=list)
    _integers: dict[str, gs.Variable] = field(default_factory=dict)
    _saturated: set[str] = field(default_factory=set)
    _read: dict[str, QuantParams] = field(default_factory=dict)
    _means: dict[str, np.ndarray] = field(default_factory=dict)
    _shared_zeros: dict[tuple[int | str, ...], gs.Constant] = field(default_factory=dict)
    _scales: dict[QuantParams, tuple[gs.Constant, gs.Constant]] = field(default_factory=dict)

    def apply(self) -> None:
        """Rewrite the model.

        ``planned`` then has the names of the nodes that must run in int8, by operator, ``widened`` the number of
        channels whose weight scale was enlarged for their bias, ``limits`` how the weights of each node are stored.
        """
        with self.model.edit() as graph:
            nodes = list(graph.nodes)
            self._chosen = [nodes[i] for i in sorted(self.plan.int8)]
            tensors = outputs_in_int8(self.model, self.target, self.plan)
            self._absorb(nodes, tensors)
            written = self._hard_sigmoids()
            ours = {id(n) for n in self._chosen}
            for node in self._chosen:
                for tensor in list(node.outputs):
                    if tensor.name in tensors:
                        self._after(node, tensor, written.get(tensor.name, self.params[tensor.name]))
            for tensor in [t for t in graph.tensors().values() if is_activation(t) and t.name in self.params]:
                if tensor.name in self._integers:
                    continue
                readers = [n for n in tensor.outputs if id(n) in ours]
                readers = [n for n in readers if any(t is tensor for t in data_inputs(n, self.target))]
                if readers:
                    self._beside(tensor, readers)
            for node in self._chosen:
                if node.op in self.target.integer_ops:
                    self._on_integers(node)
                elif has_weights(node):
                    self._weights(node)
                elif node.op not in self.target.passthrough_ops:
                    self._operands(node)
                if node.op in self.target.int8_ops:
                    self.planned.setdefault(node.op, []).append(node.name)
            graph.cleanup(remove_unused_graph_inputs=False)
            sort(graph)

    def _absorb(self, nodes: list[gs.Node], tensors: set[str]) -> None:
        """Drop the activations whose tensor gets a QuantizeLinear: saturation does their work."""
        for i, root in self.plan.absorbed.items():
            result = nodes[i].outputs[0]
            if root in self.plan.int8 and result.name in tensors:
                producer = nodes[i].inputs[0].inputs[0]
                nodes[i].outputs.clear()
                nodes[i].inputs.clear()
                producer.outputs = [result]
                self._saturated.add(result.name)

    def _hard_sigmoids(self) -> dict[str, QuantParams]:
        """HardSigmoid(x) = clip(a x + b, 0, 1): a sum that saturates at the ends of uint8.

        The sum x + b/a is quantized to [0, 1/a] and read back as [0, 1]: the clip and the factor cost nothing. Nor
        does the addition when a Conv or Gemm with a bias writes x for it alone. Returns what each such tensor is
        written with (it is read with ``params``).
        """
        written: dict[str, QuantParams] = {}
        for node in [n for n in self._chosen if n.op == "HardSigmoid"]:
            alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
            x, y = node.inputs[0], node.outputs[0]
            lowest = int(np.iinfo(self.target.activation).min)
            written[y.name] = QuantParams(float(np.float32(1 / (255 * alpha))), lowest, self.target.activation)
            producer = x.inputs[0] if x.inputs else None
            alone = sole_consumer(self.model, x) is node and any(producer is n for n in self._chosen)
            raw = x.name not in self._saturated and x.name not in written
            if alone and raw and producer is not None and takes_offset(producer):
                self._shift_bias(producer, beta / alpha)
                node.inputs.clear()
                node.outputs.clear()
                producer.outputs = [y]
                self._chosen = [n for n in self._chosen if n is not node]
            else:
                offset = self.model.constant(f"{node.name}_offset", np.array(beta / alpha, np.float32))
                node.op, node.attrs, node.inputs = "Add", {}, [x, offset]
        return written

    def _shift_bias(self, node: gs.Node, offset: float) -> None:
        bias = constant_input(node, 2)
        channels = node.inputs[1].values.shape[channel_axis(node)]
        old = np.zeros(channels, np.float32) if bias is None else np.broadcast_to(bias.reshape(-1), channels)
        self._offsets[node.name] = offset
        constant = self.model.constant(f"{node.name}_shifted_bias", (old + offset).astype(np.float32))
        node.inputs = [*node.inputs[:2], constant]

    def _after(self, node: gs.Node, tensor: gs.Variable, params: QuantParams) -> None:
        integer = self._variable(f"{tensor.name}_quantized", params.dtype, tensor)
        index = next(k for k, t in enumerate(node.outputs) if t is tensor)
        if node.op in self.target.integer_ops:
            node.outputs[index] = integer
        else:
            raw = self._variable(f"{tensor.name}_raw", "float32", tensor)
            node.outputs[index] = raw
            self._node("QuantizeLinear", tensor.name, [raw, *self._scale(params)], integer)
        self._dequantize(integer, self.params[tensor.name], tensor, tensor.name)

    def _beside(self, tensor: gs.Variable, readers: list[gs.Node]) -> None:
        params = self.params[tensor.name]
        integer = self._variable(f"{tensor.name}_quantized", params.dtype, tensor)
        back = self._variable(f"{tensor.name}_dequantized", "float32", tensor)
        self._node("QuantizeLinear", tensor.name, [self._guarded(tensor), *self._scale(params)], integer)
        self._dequantize(integer, params, back, tensor.name)
        self._integers[tensor.name] = integer
        for node in readers:
            data = data_inputs(node, self.target)
            for k, t in enumerate(list(node.inputs)):
                if t is tensor and any(t is d for d in data):
                    node.inputs[k] = back

    def _guarded(self, tensor: gs.Variable) -> gs.Variable:
        """Keep the runtime from quantizing a float operator by itself, which it does between DequantizeLinear and
        QuantizeLinear, and some before any QuantizeLinear: a Sum of one term stands between, which costs a copy."""
        producer = tensor.inputs[0] if tensor.inputs else None
        while producer is not None and producer.op in self.target.absorbed_ops and producer.inputs[0].inputs:
            producer = producer.inputs[0].inputs[0]
        if producer is None or not (self._quantizes_itself(producer) or producer.op in self.target.int8_followers):
            return tensor
        copy = self._variable(f"{tensor.name}_float", "float32", tensor)
        self._node("Sum", tensor.name, [tensor], copy)
        return copy

    def _quantizes_itself(self, producer: gs.Node) -> bool:
        return producer.op in self.target.self_quantizing and producer.inputs[0].name in self._read

    def _dequantize(self, integer: gs.Tensor, params: QuantParams, result: gs.Variable, stem: str) -> None:
        self._node("DequantizeLinear", stem, [integer, *self._scale(params)], result)
        self._integers[result.name] = integer
        self._read[result.name] = params
        if stem in self.means:
            self._means[result.name] = self.means[stem]

    def _on_integers(self, node: gs.Node) -> None:
        x = node.inputs[0]
        zero = self._scale(self._read[x.name])[1]
        node.inputs[0] = self._integers[x.name]
        if node.attrs.get("mode", "constant") in ("constant", b"constant"):
            node.inputs = [*node.inputs[:2], zero, *node.inputs[3:]]

    def _weights(self, node: gs.Node) -> None:
        axis = channel_axis(node)
        weight, bias = node.inputs[1], constant_input(node, 2)
        channels = weight.values.shape[axis]
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(-1), channels)
        most = 7 if node.name in self.four_bits else 127
        offset = self._offsets.get(node.name, 0.0)
        narrow = self.target.reduce_range
        self.limits[node.name] = Limits(most, narrow, self.per_channel, offset, self.target.float_bias)
        result = quantize_weights(
            weight.values,
            axis,
            bias,
            self._read[node.inputs[0].name].scale,
            per_channel=self.per_channel,
            reduce_range=self.target.reduce_range,
            input_means=self._means.get(node.inputs[0].name) if node.op != "MatMul" else None,
            group=int(node.attrs.get("group", 1)),
            most=most,
        )
        self.widened += result.widened
        node.inputs[1] = self._dequantized(weight.name, result.values, result.scales, axis)
        if result.bias is not None and result.bias_scales is not None:
            name = f"{node.name}_bias" if bias is None else node.inputs[2].name
            if self.target.float_bias:
                real = result.bias * result.bias_scales.astype(np.float64)
                node.inputs = [*node.inputs[:2], self.model.constant(name, real.astype(np.float32))]
                return
            node.inputs = [*node.inputs[:2], self._dequantized(name, result.bias, result.bias_scales, 0)]

    def _operands(self, node: gs.Node) -> None:
        """Quantize constant operands of Add, Mul, Concat."""
        for k, tensor in enumerate(list(node.inputs)):
            if not isinstance(tensor, gs.Constant) or not tensor.name:
                continue
            values = tensor.values
            params = activation_params(
                float(values.min(initial=0)),
                float(values.max(initial=0)),
                self.target.activation,
                self.target.symmetric_activations,
            )
            constant = self.model.constant(f"{tensor.name}_quantized", params.quantize(values))
            node.inputs[k] = out = self._variable(f"{tensor.name}_dequantized", "float32", tensor)
            self._node("DequantizeLinear", out.name, [constant, *self._scale(params)], out)

    def _dequantized(self, name: str, values: np.ndarray, scales: np.ndarray, axis: int) -> gs.Variable:
        single = scales.size == 1 and not self.per_channel
        shown = scales.reshape(()) if single else scales
        inputs = [
            self.model.constant(f"{name}_quantized", values),
            self.model.constant(f"{name}_scale", shown),
            self._zeros(shown.shape, values.dtype),
        ]
        out = gs.Variable(self.model.fresh_name(f"{name}_dequantized"), np.float32, values.shape)
        self._node("DequantizeLinear", name, inputs, out, {} if single else {"axis": axis})
        return out

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> gs.Constant:
        key = (*shape, dtype.name)
        if key not in self._shared_zeros:
            self._shared_zeros[key] = self.model.constant("zero_points", np.zeros(shape, dtype))
        return self._shared_zeros[key]

    def _scale(self, params: QuantParams) -> tuple[gs.Constant, gs.Constant]:
        if params not in self._scales:
            scale, zero = np.array(params.scale, np.float32), np.array(params.zero_point, params.dtype)
            self._scales[params] = (self.model.constant("scale", scale), self.model.constant("zero_point", zero))
        return self._scales[params]

    def _variable(self, stem: str, dtype: str, like: gs.Tensor) -> gs.Variable:
        shape = None if like.shape is None else list(like.shape)
        return gs.Variable(self.model.fresh_name(stem), np.dtype(dtype), shape)

    def _node(
        self, op: str, stem: str, inputs: list[gs.Tensor], output: gs.Tensor, attrs: dict[str, int] | None = None
    ) -> None:
        name = self.model.fresh_name(f"{stem}_{op}")
        self.model.graph.nodes.append(gs.Node(op, name, attrs or {}, inputs, [output]))
