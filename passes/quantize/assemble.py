"""From a plan and calibrated ranges to a quantized model, as often as is needed to choose one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.running import IMAGES, Images, load_images
from graphopt.ir import Model
from graphopt.passes.quantize.biases import IMAGES as MEAN_IMAGES
from graphopt.passes.quantize.biases import correct_biases
from graphopt.passes.quantize.compensate import IMAGES as ROUNDING_IMAGES
from graphopt.passes.quantize.compensate import Rounded, compensate
from graphopt.passes.quantize.operators import data_inputs, has_weights
from graphopt.passes.quantize.pack import pack
from graphopt.passes.quantize.placement import Plan
from graphopt.passes.quantize.ranges import QuantParams
from graphopt.passes.quantize.reconstruct import reconstruct
from graphopt.passes.quantize.rewrite import Rewriter
from graphopt.passes.quantize.weights_only import hold
from graphopt.pipeline import Context, Skipped
from graphopt.runtime.session import PROVIDER
from graphopt.runtime.target import Target


@dataclass(frozen=True)
class Recipe:
    """How weights and biases become integers.

    ``layers``: names of those whose weights may be quantized without their activations; ``four_bits``: of those whose
    weights get 4 bits. ``refit_weights``, ``refit_biases``: see ``reconstruct``; ``compensated``: see ``compensate``.
    """

    layers: frozenset[str] = frozenset()
    four_bits: frozenset[str] = frozenset()
    per_channel: bool = True
    refit_weights: bool = False
    refit_biases: bool = False
    compensated: bool = False
    images: int | None = None


@dataclass
class Built:
    """A quantized model, the names of the nodes planned in int8 by operator, and what the report says of it."""

    model: Model
    planned: dict[str, list[str]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass
class Assembler:
    """Makes quantized models of ``original``, the float model as it was lowered.

    ``plan`` says what runs in int8 (empty: weights alone are quantized), ``params`` and ``means`` are by tensor name.
    """

    original: Model
    ctx: Context
    plan: Plan
    recipe: Recipe
    params: Mapping[str, QuantParams] = field(default_factory=dict)
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    _images: Images | None = None
    _rounded: dict[str, Rounded] = field(default_factory=dict)

    @property
    def candidates(self) -> list[str]:
        """Names of the layers that can be given back some of their precision, in graph order: those of 4 bits if there
        are any, else all whose weights are quantized."""
        nodes = self.original.graph.nodes
        if self.recipe.four_bits:
            return [n.name for n in nodes if n.name in self.recipe.four_bits]
        held = self._held(self.recipe)
        return [n.name for i, n in enumerate(nodes) if has_weights(n) and (i in self.plan.int8 or n.name in held)]

    def build(
        self, restored: frozenset[str] = frozenset(), refit: bool = True, in_float: frozenset[str] = frozenset()
    ) -> Built:
        """Quantize all but the ``restored`` layers. Those of 4 bits get 8, others stay in float.

        The nodes ``in_float`` compute in float, though weights of 4 bits stay stored so.
        """
        recipe = replace(self.recipe, four_bits=self.recipe.four_bits - restored)
        out = in_float
        if not self.recipe.four_bits:
            recipe, out = replace(recipe, layers=recipe.layers - restored), in_float | restored
        places = {i for i, n in enumerate(self.original.graph.nodes) if n.name in out}
        return self._make(restrict(self.original, self.ctx.target, self.plan, places), recipe, refit)

    def alone(self, name: str) -> Model:
        """The float model with one layer quantized, not refitted."""
        nodes = self.original.graph.nodes
        others = {i for i, n in enumerate(nodes) if has_weights(n) and n.name != name}
        one = frozenset({name})
        recipe = replace(self.recipe, layers=self.recipe.layers & one, four_bits=self.recipe.four_bits & one)
        plan = restrict(self.original, self.ctx.target, self.plan, others)
        return self._make(plan, recipe, refit=False).model

    def _held(self, recipe: Recipe) -> frozenset[str]:
        return recipe.layers if not self.plan.int8 else recipe.four_bits

    def _make(self, plan: Plan, recipe: Recipe, refit: bool) -> Built:
        model, target = self.original.copy(), self.ctx.target
        nodes = list(model.graph.nodes)
        rewriter = Rewriter(model, target, plan, self.params, self.means, recipe.per_channel, recipe.four_bits)
        held = self._held(recipe)
        alone = [n for i, n in enumerate(nodes) if n.name in held and i not in plan.int8]
        if plan.int8:
            rewriter.apply()
        limits = {**rewriter.limits, **hold(model, alone, recipe.four_bits, recipe.per_channel)}
        built = Built(model, rewriter.planned)
        if rewriter.widened:
            built.metrics["channels_widened_for_bias"] = rewriter.widened
        if alone:
            built.metrics["weights_only"] = len(alone)
        if refit and recipe.compensated:
            some, biases = self._load().first(ROUNDING_IMAGES), bool(self.means)
            found = compensate(self.original, model, limits, some, self.ctx, self._rounded, biases=biases)
            built.metrics["rounding"], built.skipped = found.metrics(), found.skipped
        if refit and recipe.refit_weights:
            found = reconstruct(self.original, model, limits, self._load(), self.ctx, biases=recipe.refit_biases)
            built.metrics["reconstruction"], built.skipped = found.metrics(), found.skipped
        elif refit and recipe.refit_biases:
            found = correct_biases(self.original, model, limits, self._load().first(MEAN_IMAGES), self.ctx)
            built.metrics["bias_correction"], built.skipped = found.metrics(), found.skipped
        if recipe.four_bits:
            built.metrics["int4_weights"] = pack(model, recipe.four_bits, target.provider == PROVIDER)
        return built

    def _load(self) -> Images:
        if self._images is None:
            limit = min(IMAGES, self.recipe.images or IMAGES)
            self._images = load_images(self.original, self.ctx, limit, "quantize.images")
        return self._images


def restrict(model: Model, target: Target, plan: Plan, out: set[int]) -> Plan:
    """The plan without the operators at these positions, and without those that nothing with weights in int8 is
    connected to any more."""
    if not out:
        return plan
    kept = plan.int8 - out
    graph = nx.Graph()
    graph.add_nodes_from(sorted(kept))
    position = {id(n): i for i, n in enumerate(model.graph.nodes)}
    for i in sorted(kept):
        for tensor in data_inputs(model.graph.nodes[i], target):
            for producer in tensor.inputs:
                root = position.get(id(producer), -1)
                root = plan.absorbed.get(root, root)
                if root in kept:
                    graph.add_edge(root, i)
    nodes: list[gs.Node] = list(model.graph.nodes)
    parts = [part for part in nx.connected_components(graph) if any(has_weights(nodes[i]) for i in part)]
    int8 = set().union(*parts)
    absorbed = {i: root for i, root in plan.absorbed.items() if root in int8}
    return Plan(int8, absorbed, list(plan.skipped))
