"""Time of a training step on resnet56: the executor against the same network written by hand in PyTorch.

    python benchmarks/training_step.py --models MODELS [--batch 128] [--rounds 15] [--threads 2] [--bfloat16]

MODELS holds resnet56-cifar10.onnx. Two forms of it: as ``simplify`` leaves it, convolutions with biases, and as
exported, with batch norms that follow the batches. Both sides hold their weights channels last, activate in place, and
take the same steps of AdamW on the same images. Steps alternate; a ratio is the median of those of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from graphopt import Context, Model, load
from graphopt.data.preprocess import Preprocess
from graphopt.data.synthetic import synthetic_batches
from graphopt.driver.inputs import model_input
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.target import get_target
from graphopt.training.executor import Executor
from graphopt.training.memory import kept_memory


class Block(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al., 2016, option A)."""

    def __init__(self, width: int, wider: int, norms: bool) -> None:
        super().__init__()
        self.stride, self.pad = wider // width, (wider - width) // 2
        self.first = nn.Conv2d(width, wider, 3, self.stride, 1, bias=not norms)
        self.second = nn.Conv2d(wider, wider, 3, 1, 1, bias=not norms)
        self.norms = nn.ModuleList([nn.BatchNorm2d(wider) if norms else nn.Identity() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """Of 6n+2 layers for images of 32 pixels."""

    def __init__(self, n: int, norms: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 1, 1, bias=not norms)
        self.norm = nn.BatchNorm2d(16) if norms else nn.Identity()
        widths = [16] * n + [32] * n + [64] * n
        self.blocks = nn.Sequential(*[Block(a, b, norms) for a, b in zip([16, *widths], widths, strict=False)])
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.last(self.blocks(x).mean((2, 3)))


def step(run: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, narrow: bool) -> float:
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext():
        loss = run().float().square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began


def simplified(model: Model) -> Model:
    images = synthetic_batches(model_input(model), Preprocess.parse("imagenet"), 4)
    PassManager(Registry().build("simplify")).run(model, Context(get_target("ort-cpu"), images, model.copy()))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    print("| form | by hand ms | executor ms | ratio |\n|---|---|---|---|")
    with kept_memory():
        for norms in (False, True):
            model = load(options.models / "resnet56-cifar10.onnx")
            program = Executor(model if norms else simplified(model), train=True, live_norms=norms)
            assert program.state is not None
            program.training = True
            network = ResNet(9, norms).to(memory_format=torch.channels_last).train()
            runs = (lambda network=network: network(x), lambda program=program: program.run(x)[program.outputs[0]])
            weights = (network.parameters(), program.state.parameters())
            sides = [(run, torch.optim.AdamW(w, 1e-4)) for run, w in zip(runs, weights, strict=True)]
            times: list[list[float]] = [[], []]
            for k in range(options.rounds + 2):
                for side in (0, 1) if k % 2 else (1, 0):
                    took = step(*sides[side], options.bfloat16)
                    if k >= 2:
                        times[side].append(took)
            hand, ours = (1000 * statistics.median(t) for t in times)
            ratios = statistics.median(b / a for a, b in zip(*times, strict=True))
            form = "live batch norms" if norms else "convolutions with biases"
            print(f"| {form} | {hand:.0f} | {ours:.0f} | {ratios:.3f} |", flush=True)


if __name__ == "__main__":
    main()
