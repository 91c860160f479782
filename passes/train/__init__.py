"""Passes that train: the graph that they are given, against the model as it was loaded, or against labels."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt import training
from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.pipeline import Context, Kind, Pass, PassResult, option

_MINUTES = 10.0  # where no budget is given


@dataclass(frozen=True)
class Distill(Pass):
    """Train the model to answer as the model that was loaded does; needs images, but no labels.

    What prune removed and quantize rounded is made up for by the weights that are left: they follow the loaded model's
    logits and the outputs of its blocks on augmented images (Hinton et al., 2015; Romero et al., 2015). Through
    QuantizeLinear and DequantizeLinear it trains what they round, and their scales (Esser et al., 2020). Only the
    values of initializers change. Needs PyTorch: pip install "graphopt[train]".
    """

    name = "distill"
    kind = Kind.LOSSY

    minutes: float | None = option(
        None, "Budget in minutes, 10 where no budget is given; steps= repeats what it did", min=0.01
    )
    steps: int | tuple[int, ...] | None = option(
        None, "Budget in steps, which gives the same bytes again; a list: of each part of the schedule", min=1
    )
    stop: int | None = option(None, "End after so many steps, on the schedule of steps", min=1)
    rate: float = option(0.0, "Highest learning rate; 0: the less the deeper the model, 1e-3 at most", min=0.0)
    batch: int = option(128, "Images a step", min=2)
    optimizer: str = option("adamw", "How steps are taken", choices=("adamw", "sgd"))
    weight_decay: float = option(1e-4, "Decoupled decay of weight matrices", min=0.0)
    warmup: int = option(100, "Steps until the learning rate is at its highest", min=0)
    temperature: float = option(2.0, "By which logits are divided before they are compared", min=0.1)
    blocks: float = option(1.0, "Weight of the squared error of block outputs", min=0.0)
    labels: float = option(0.0, "Weight of the labels; 0 leaves them unused", min=0.0)
    shift: float = option(0.125, "How far images move at random, in parts of their size", min=0.0, max=0.5)
    flip: bool = option(True, "Mirror half of the images left to right")
    mirror: bool = option(
        True, "With flip: the loaded model answers as the mean of an image's answer and its mirror image's"
    )
    mixup: float = option(0.0, "Blend pairs of images, by Beta(mixup, mixup); 0 for none", min=0.0)
    scales: bool = option(True, "Learn the scales of quantized tensors too")
    norms: str = option("fixed", "Statistics of batch norms that are left", choices=("fixed", "live"))
    patience: int = option(0, "End after so many of the 20 evaluations without a better one; 0 goes on", min=0)
    precision: str = option(
        "auto",
        "Of convolutions and products; auto: bfloat16 where the processor has units for it",
        choices=("auto", "float32", "bfloat16"),
    )
    threads: int = option(0, "Threads on a processor; 0: all of its cores", min=0)

    teacher = 1.0  # weight of the loaded model's answers; an option of finetune

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is not None and self.steps is not None:
            raise UsageError(f"{self.name} has two budgets, minutes and steps", "give one of them")
        if self.stop is not None and self.steps is None:
            raise UsageError(f"{self.name}: stop= needs the schedule that it ends: give steps= too")
        if self.minutes == _MINUTES:  # the same as saying nothing, and written the same
            object.__setattr__(self, "minutes", None)

    @property
    def needs_held_out(self) -> bool:
        return True

    @property
    def needs_training(self) -> bool:
        return True

    def run(self, model: Model, ctx: Context) -> PassResult:
        training.require(self.name)
        from graphopt.passes.train.run import train

        return train(self, model, ctx, _MINUTES)


@dataclass(frozen=True)
class FineTune(Distill):
    """Train the model on labels, of the images in class folders that calibrate.

    The same machine as distill with another loss: cross-entropy, to which the loaded model's answers can be added. The
    state with the best top-1 on held-out images is kept.
    """

    name = "finetune"

    blocks: float = option(0.0, "Weight of the squared error of block outputs", min=0.0)
    labels: float = option(1.0, "Weight of the labels", min=0.0)
    teacher: float = option(0.0, "Weight of the loaded model's answers", min=0.0)


__all__ = ["Distill", "FineTune"]
