"""Activations and normalisations that an exporter took apart, as the standard operators that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt import Context, Kind, Model
from graphopt.passes.recognize.activations import ACTIVATIONS
from graphopt.passes.recognize.clips import CLIPS
from graphopt.passes.recognize.norms import NORMS
from graphopt.rewrite import RewritePass, Rule


@dataclass(frozen=True)
class Recognize(RewritePass):
    """Make one standard operator of what an exporter took apart: Gelu, HardSigmoid, HardSwish, Mish, Swish,
    LayerNormalization, RMSNormalization and Clip.

    Only operators of the model's own opset that the installed ONNX Runtime runs are written; for the others the report
    names the opset that has them.
    """

    name = "recognize"
    kind = Kind.EXACT
    resumes = True
    requires = ("fold",)  # the constants of a pattern must be initializers

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (*NORMS, *ACTIVATIONS, *CLIPS)
