"""Rewriting the nodes of a part, so that they work on tensors in the other form."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.passes.layout.cut import Link, Part
from graphopt.passes.layout.forms import Axes, Form
from graphopt.passes.layout.region import transposition
from graphopt.rewrite import Workbench
from graphopt.rewrite.bypass import bypass
from graphopt.rewrite.driver import remove_dead


def move(bench: Workbench, part: Part) -> None:
    """Apply the choice of a part: nodes first to last, then the readers that want their tensors as they were."""
    Mover(bench, part).run()


class Mover:
    """The tensors made so far, in the part's form, by the name of the original."""

    def __init__(self, bench: Workbench, part: Part) -> None:
        self.bench, self.part, self.region = bench, part, part.region
        self.made: dict[str, gs.Tensor] = {}
        self.constants: dict[tuple[str, Form], gs.Constant] = {}

    def run(self) -> None:
        bench, region = self.bench, self.region
        nodes = [region.nodes[key] for key in self.part.moved if key in region.nodes]
        nodes.sort(key=bench.position)
        written: list[gs.Tensor] = []
        for node in nodes:
            plan = region.plans[id(node)]
            for index, form in enumerate(plan.ins):
                if form is not None and node.inputs[index].name:
                    bench.set_input(node, index, self._kept(node.inputs[index], form, node))
            for index, form in enumerate(plan.outs):
                tensor = node.outputs[index]
                if form is not None and tensor.name:
                    new = gs.Variable(bench.model.fresh_name(_stem(tensor)), dtype=tensor.dtype)
                    if tensor.shape is not None:
                        new.shape = form.shape(tensor.shape)
                    bench.set_output(node, index, new)
                    self.made[tensor.name] = new
                    written.append(tensor)
                    self._restore(tensor, form, node, new)
            if plan.change is not None:
                plan.change(bench, node)
        for link in self.part.links:
            self._meet(link)
        for link in self.part.links:
            # Left where they are, they would count as Transposes that another move could save.
            producer = bench.producer(link.kept.tensor)
            if transposition(bench, producer) is not None and producer is not None:
                remove_dead(bench, producer)

    def _kept(self, tensor: gs.Tensor, form: Form, before: gs.Node) -> gs.Tensor:
        """``tensor`` in the other form, for a node that now reads it so."""
        bench = self.bench
        if isinstance(tensor, gs.Constant):
            return self._constant(tensor, form)
        if tensor.name in self.made:
            return self.made[tensor.name]
        assert isinstance(form, Axes), "the cut makes no conversions of other forms"
        producer = bench.producer(tensor)
        perm = transposition(bench, producer)
        if producer is not None and perm is not None:
            joined = perm.then(form.perm)
            source = producer.inputs[0]
            new = source if joined.trivial else bench.emit("Transpose", [source], producer, perm=list(joined.perm))
        else:
            new = self._transposed(tensor, form, before)
        self.made[tensor.name] = new
        return new

    def _transposed(self, tensor: gs.Tensor, form: Axes, before: gs.Node) -> gs.Tensor:
        """The output of the Transpose that is there, if it comes early enough, or of a new one."""
        bench = self.bench
        for node in bench.readers(tensor):
            if transposition(bench, node) == form and bench.position(node) < bench.position(before):
                return node.outputs[0]
        return bench.emit("Transpose", [tensor], before, perm=list(form.perm))

    def _constant(self, constant: gs.Constant, form: Form) -> gs.Constant:
        key = (constant.name, form)
        if key not in self.constants:
            array = self.bench.array(constant)
            assert array is not None, "the plan was checked"
            self.constants[key] = self.bench.new_values(constant, form.array(array), _stem(constant))
        return self.constants[key]

    def _restore(self, tensor: gs.Tensor, form: Form, producer: gs.Node, new: gs.Tensor) -> None:
        """Let a Transpose write a tensor as it was, under its name, where something still needs it so."""
        bench = self.bench
        if not (
            bench.is_output(tensor)
            or bench.is_captured(tensor)
            or any(self._stays(tensor, n) for n in bench.readers(tensor))
        ):
            return
        assert isinstance(form, Axes), "the cut makes no conversions of other forms"
        name = bench.model.fresh_name(f"{producer.name}_transpose")
        node = gs.Node("Transpose", name, {"perm": list(form.inverse().perm)})
        list.append(node.inputs, new)
        list.append(node.outputs, tensor)
        bench.insert_after(node, producer)

    def _stays(self, tensor: gs.Tensor, reader: gs.Node) -> bool:
        """Whether a node goes on reading ``tensor`` as it was."""
        if id(reader) not in self.part.moved:
            return transposition(self.bench, reader) is None
        plan = self.region.plans[id(reader)]
        return any(f is None and t.name == tensor.name for t, f in zip(reader.inputs, plan.ins, strict=True))

    def _meet(self, link: Link) -> None:
        """Let the Transposes that read a tensor read it in the other form, where they gain by that."""
        bench, tensor, form = self.bench, link.kept.tensor, link.kept.form
        new = self.made.get(tensor.name)
        if new is None or not isinstance(form, Axes):
            return
        for node in bench.readers(tensor):
            perm, target = transposition(bench, node), node.outputs[0]
            if perm is None or target is new:
                continue
            joined = form.inverse().then(perm.perm)
            if not joined.trivial:
                if link.producer in self.part.moved:
                    bench.become(node, "Transpose", [new], perm=list(joined.perm))
            elif bypass(bench, node, new):
                bench.become(node, "Identity", [new])
            elif bench.is_output(target):  # the producer now writes the output itself
                new = self.made[tensor.name] = target


def _stem(tensor: gs.Tensor) -> str:
    return f"{tensor.name.removesuffix('_moved')}_moved"
