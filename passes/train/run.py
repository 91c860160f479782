"""From a pass's options to a trained model. Imports PyTorch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from graphopt.data.loader import Batches
from graphopt.errors import PassError
from graphopt.ir import Model
from graphopt.pipeline import Context, PassResult, Skipped
from graphopt.training.executor import Executor
from graphopt.training.images import Augmentation, ImageStore
from graphopt.training.loop import Progressed, Recipe, Training
from graphopt.training.matching import common, logits
from graphopt.training.memory import kept_memory
from graphopt.training.roles import depth
from graphopt.training.schedule import Budget

if TYPE_CHECKING:
    from graphopt.passes.train import Distill

_FEWEST = 16  # images, of which some are held out
# Changes of layers that lie behind one another add up, at random by the root of their number.
_RATE, _SHALLOW = 1e-3, 6


def train(options: Distill, model: Model, ctx: Context, minutes: float) -> PassResult:
    """Train ``model`` in place. Raises PassError without images, or for operators that do not train."""
    images, held_out = _images(options, ctx)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True
    # Batch norms that follow the batches must see each as a whole, and a GPU takes all of it.
    whole = device.type == "cuda" or options.norms == "live"
    with _threads(options.threads, whole) as threads, kept_memory():
        taps = common(model, ctx.reference) if options.blocks else []
        names = logits(model), logits(ctx.reference)
        teacher = Executor(ctx.reference, taps=[names[1], *taps], device=device)
        student = Executor(
            model,
            taps=[names[0], *taps],
            train=True,
            live_norms=options.norms == "live",
            learn_scales=options.scales,
            device=device,
        )
        store = ImageStore(images, ctx.progress, device)
        held = ImageStore(held_out, ctx.progress, device)
        taps, unlike = _alike(student, teacher, taps, store)
        recipe = _recipe(options, model, student, device)
        torch.manual_seed(ctx.seed)
        rng = ctx.rng(f"{options.name}.images")
        training = Training(
            student, teacher, names, taps, store, held, recipe, rng, ctx.progress, 1 if whole else threads
        )
        given = options.steps is not None
        budget = Budget(None if given else options.minutes or minutes, options.steps, options.stop)
        result = training.fit(budget)
        assert student.state is not None
        changed = student.state.write(model)
    _say(options, recipe, result, ctx)
    metrics = _metrics(options, result, training.by_labels) | {
        "initializers_changed": changed,
        "parameters": sum(p.numel() for p in student.state.parameters()),
        "blocks_compared": len(taps) if options.blocks else 0,
        "images": len(store),
        "rate": float(f"{recipe.rate:.3g}"),
        "epochs": round(result.samples / len(store), 2),
        "precision": "bfloat16" if recipe.bfloat16 else "float32",
        "device": device.type,
        "threads": threads,
        "synthetic_images": bool(images.synthetic),
    }
    again = _again(options, result, threads, metrics)
    return PassResult(changed > 0, metrics | {"again": again}, unlike, again)


def _images(options: Distill, ctx: Context) -> tuple[Batches, Batches]:
    """What trains, and what judges it."""
    images = ctx.training if ctx.training is not None else ctx.calibration
    if images.synthetic:
        ctx.progress.warn(
            f"{options.name}: no images were given; it trains on synthetic ones, and what "
            "that does to accuracy was not measured"
        )
    if len(images) < _FEWEST:
        raise PassError(
            f"{options.name} has {len(images)} images to train on, fewer than {_FEWEST}",
            "give more of them as --calibration-data",
        )
    if ctx.held_out is not None and len(ctx.held_out):
        return images, ctx.held_out
    count = len(images)
    drawn = np.sort(ctx.rng("train.held out").permutation(count)[: max(1, count // 10)])
    return images.part(np.setdiff1d(np.arange(count), drawn)), images.part(drawn)


def _recipe(options: Distill, model: Model, student: Executor, device: torch.device) -> Recipe:
    assert student.state is not None
    narrow = options.precision == "bfloat16"
    if options.precision == "auto":
        narrow = _has_bfloat16(device) and not student.state.roles.scales
    return Recipe(
        teacher=options.teacher,
        blocks=options.blocks,
        labels=options.labels,
        temperature=options.temperature,
        optimizer=options.optimizer,
        rate=options.rate or _RATE * min(1.0, _SHALLOW / max(1, depth(model))) ** 0.5,
        weight_decay=options.weight_decay,
        batch=options.batch,
        warmup=options.warmup,
        patience=options.patience,
        bfloat16=narrow,
        mirror=options.mirror and options.flip,
        augmentation=Augmentation(options.shift, options.flip, options.mixup),
    )


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster: with AMX's tiles it takes half of the time, without them it takes more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(tiles is not None and tiles())


@contextmanager
def _threads(wanted: int, inside: bool) -> Iterator[int]:
    """How many threads compute; ``inside``: of each operator, which else takes one."""
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = wanted or cores
    torch.set_num_threads(count if inside else 1)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def _alike(student: Executor, teacher: Executor, taps: list[str], store: ImageStore) -> tuple[list[str], list[Skipped]]:
    """Taps of which both have as many channels; the others, which pruning has narrowed, are left out."""
    if not taps:
        return [], []
    x = store.plain(0, 2)
    with torch.no_grad():
        ours, theirs = student.run(x), teacher.run(x)
    good = [n for n in taps if ours[n].shape == theirs[n].shape and ours[n].dim() > 1]
    skipped = [
        Skipped(
            n,
            "-",
            f"not compared with the loaded model: its shape is {list(ours[n].shape)}, there {list(theirs[n].shape)}",
        )
        for n in taps
        if n not in good
    ]
    return good, skipped


def _say(options: Distill, recipe: Recipe, result: Progressed, ctx: Context) -> None:
    if result.ended == "interrupted":
        ctx.progress.warn(f"{options.name}: interrupted after {result.steps} steps; the best state so far is kept")
    if result.ended == "diverged":
        ctx.progress.warn(
            f"{options.name}: the loss became infinite at step {result.steps}; give a smaller rate than {recipe.rate:g}"
        )
    if not result.best_step:
        ctx.progress.warn(f"{options.name}: no step made it better on held-out images; the weights are as they were")


def _metrics(options: Distill, result: Progressed, by_labels: bool) -> dict[str, object]:
    measure = "held_out_top1" if by_labels else "held_out_agreement"
    return {
        "steps": result.steps,
        "best_step": result.best_step,
        "ended": result.ended,
        f"{measure}_before": round(result.before, 3),
        f"{measure}_after": round(result.after, 3),
        "loss": round(result.loss, 6),
    }


def _again(options: Distill, result: Progressed, threads: int, metrics: dict[str, object]) -> str:
    """The options that give these bytes again, on another machine of the kind and whatever the budget was."""
    steps = result.planned
    total = steps if isinstance(steps, int) else sum(steps)
    stop = result.steps if 0 < result.steps < total else None
    return dataclasses.replace(
        options, minutes=None, steps=steps, stop=stop, threads=threads, precision=metrics["precision"]
    ).spec
