"""Whether two models compute the same thing, but for float noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import ModelSource, open_session, run_feeds, session_io

__all__ = ["Difference", "compare_arrays", "compare_outputs", "random_feeds"]

# float16 keeps 11 bits: the same reordering of sums costs about a thousand times more than in float32.
_RTOL_FLOAT16 = 5e-3
# Below this magnitude a tensor is as good as zero, and relative differences say nothing.
_TINY = 1e-6


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs are apart, over all outputs and feeds.

    ``max_abs`` is the largest absolute difference; ``max_rel`` the largest one relative to the largest
    magnitude in the first model's tensor. ``reason`` says in words why they are not ``equal``; ``output``
    names the worst output.
    """

    equal: bool
    max_abs: float
    max_rel: float
    output: str = ""
    reason: str = ""


def compare_outputs(
    a: ModelSource,
    b: ModelSource,
    feeds: Sequence[Mapping[str, np.ndarray]],
    *,
    rtol: float = 1e-4,
    optimize: bool = False,
) -> Difference:
    """Run both models on every feed and compare all outputs; names, types and shapes must match too.

    An exact rewrite still reorders float32 sums (folding a normalization into weights, for one), and each of
    some hundred layers then rounds differently. On real classifiers that adds up to 1e-6 .. 1e-5 of an
    output's largest magnitude, while a real mistake moves outputs by percents: 1e-4 lies between. The scale
    is the whole tensor's, because one logit near zero carries the absolute error of all. Integer outputs must
    be equal. NaN and infinities must be at the same places. ``optimize=False`` keeps ONNX Runtime's own
    rewrites out of it.

    Raises ModelError if a model does not load or run, or takes other inputs.
    """
    names, expected = _run_all(a, feeds, optimize)
    others, found = _run_all(b, feeds, optimize)
    if names != others:
        reason = f"outputs are {', '.join(names)} in one and {', '.join(others)} in the other"
        return Difference(False, float("inf"), float("inf"), "", reason)
    worst = Difference(True, 0.0, 0.0)
    for left, right in zip(expected, found, strict=True):
        for name, x, y in zip(names, left, right, strict=True):
            worst = _worse(worst, compare_arrays(x, y, name, rtol=rtol))
    return worst


def _run_all(
    model: ModelSource, feeds: Sequence[Mapping[str, np.ndarray]], optimize: bool
) -> tuple[list[str], list[list[np.ndarray]]]:
    """Names of the outputs, and their values for each feed. The session ends here: two would hold the weights twice."""
    session = open_session(model, optimize=optimize)
    return [p.name for p in session_io(session).outputs], [run_feeds(session, feed) for feed in feeds]


def compare_arrays(a: np.ndarray, b: np.ndarray, name: str = "", *, rtol: float = 1e-4) -> Difference:
    """Compare one tensor of two models; see ``compare_outputs`` for the tolerance."""
    infinite = float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        reason = f"{name} is {a.dtype} {list(a.shape)} in one and {b.dtype} {list(b.shape)} in the other"
        return Difference(False, infinite, infinite, name, reason)
    if not a.size:
        return Difference(True, 0.0, 0.0, name)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return Difference(False, infinite, infinite, name, f"{name} has NaN or infinities at different places")
    if not finite.any():
        return Difference(True, 0.0, 0.0, name)
    x, y = x[finite], y[finite]
    gap = float(np.abs(x - y).max())
    relative = gap / max(float(np.abs(x).max()), _TINY)
    limit = 0.0 if a.dtype.kind != "f" else max(rtol, _RTOL_FLOAT16) if a.dtype == np.float16 else rtol
    if relative <= limit:
        return Difference(True, gap, relative, name)
    reason = f"{name} differs by {gap:.3g}, {relative:.2g} of its largest magnitude (allowed: {limit:.2g})"
    return Difference(False, gap, relative, name, reason)


def _worse(one: Difference, other: Difference) -> Difference:
    """The largest figures of both, with the name and reason of the worse one."""
    key = (not other.equal, other.max_rel) > (not one.equal, one.max_rel)
    worst = other if key or not one.output else one
    return Difference(
        one.equal and other.equal,
        max(one.max_abs, other.max_abs),
        max(one.max_rel, other.max_rel),
        worst.output,
        worst.reason,
    )
