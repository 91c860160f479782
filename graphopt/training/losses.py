"""What training makes smaller."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def scores(output: torch.Tensor) -> torch.Tensor:
    """A classifier's output as float [N, classes], without axes of size 1."""
    return output.float().reshape(output.shape[0], -1)


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of softened predictions, times temperature squared so that gradients keep their size.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).
    """
    ours = F.log_softmax(student / temperature, 1)
    theirs = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def block_error(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared error of block outputs, relative to the teacher's mean square, averaged over blocks.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015).
    """
    parts = [
        F.mse_loss(a.float(), b.float()) / b.float().square().mean().clamp_min(1e-12)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).mean()
