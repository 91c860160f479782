"""Each group of channels of a model zeroed and removed: both must give the same outputs.

    python tests/suites/every_group.py MODEL.onnx ... [--together]

Zeroing takes one session for all groups: the mask is an input of the model. ``--together`` takes one group of each
family at a time, which is faster where there are many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Model, load
from graphopt.analysis.labels import Labels, propagate
from graphopt.driver.config import Settings
from graphopt.driver.inputs import prepare
from graphopt.passes.prune import Prune  # noqa: F401  (registers what removal rewrites)
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import open_session, run_feeds
from graphopt.runtime.target import get_target

RTOL = 1e-4
MASK = "every_group_mask"


@dataclass
class Tally:
    """Groups that were removed, in how many removals, those that change the outputs, the largest error, mismatches."""

    groups: int = 0
    removals: int = 0
    felt: int = 0
    error: float = 0.0
    mismatches: tuple[str, ...] = ()


def simplified(path: Path) -> Model:
    """The model as ``prune`` gets it."""
    model = load(path)
    images = prepare(model, Settings(calibration_images=2)).calibration
    PassManager(Registry().build("simplify")).run(model, Context(get_target("ort-cpu"), images, model.copy()))
    return model


def with_mask(model: Model, labels: Labels) -> Model:
    """A copy that multiplies what is summed over by a mask [groups], which is one more input."""
    twin = model.copy()
    with twin.edit() as graph:
        mask = gs.Variable(MASK, dtype=np.float32, shape=[labels.count])
        graph.inputs.append(mask)
        nodes = list(graph.nodes)
        before: dict[int, list[gs.Node]] = {}
        for contraction in labels.contractions:
            node = nodes[contraction.node]
            for slot, axis, groups in contraction.inputs:
                tensor = node.inputs[slot]
                rank = len(labels.tensors[tensor.name]) if tensor.name in labels.tensors else len(tensor.shape)
                shape = np.array([-1] + [1] * (rank - 1 - axis))
                steps = [("Gather", [mask, groups]), ("Reshape", [None, shape]), ("Mul", [tensor, None])]
                made = None
                for op, inputs in steps:
                    result = gs.Variable(twin.fresh_name(op.lower()))
                    given = [
                        made if i is None else twin.constant("every", i) if isinstance(i, np.ndarray) else i
                        for i in inputs
                    ]
                    before.setdefault(contraction.node, []).append(
                        gs.Node(op, twin.fresh_name(f"every_{op}"), {}, given, [result])
                    )
                    made = result
                node.inputs[slot] = made
        graph.nodes = [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]
    return twin


def removals(labels: Labels, together: bool) -> Iterator[list[int]]:
    """The groups to remove at a time. The last of a family stays, or a tensor would be left empty."""
    families = [[int(g) for g in f.groups] for f in labels.families]
    if together:
        for row in zip_longest(*families):
            yield [g for f, g in zip(families, row, strict=True) if g is not None and len(f) > 1]
    else:
        yield from ([g] for f in families if len(f) > 1 for g in f)


def compared(model: Model, part: int = 0, parts: int = 1, together: bool = False) -> Tally:
    """Remove and zero the groups number ``part``, ``part + parts``, and so on, of a model."""
    labels = propagate(model)
    feed = random_feeds(model.to_bytes(), (1,))[0]
    session = open_session(with_mask(model, labels).to_bytes(), optimize=False)
    whole = run_feeds(session, {**feed, MASK: labels.everything().astype(np.float32)})
    tally = Tally()
    for number, gone in enumerate(removals(labels, together)):
        if number % parts != part:
            continue
        keep = labels.everything()
        keep[gone] = False
        zeroed = run_feeds(session, {**feed, MASK: keep.astype(np.float32)})
        pruned = model.copy()
        remove(pruned, labels, keep)
        found = run_feeds(open_session(pruned.to_bytes(), optimize=False), feed)
        error = _error(zeroed, found)
        tally.groups += len(gone)
        tally.removals += 1
        tally.felt += _error(whole, zeroed) > 0
        tally.error = max(tally.error, error)
        if not error < RTOL:
            tally.mismatches += (f"{gone}: {error:.2g}",)
    return tally


def _error(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The largest difference relative to the largest value."""
    gaps = [np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-6) for a, b in zip(before, after, strict=True)]
    return float(max(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--together", action="store_true")
    options = parser.parse_args()
    for path in options.models:
        found = compared(simplified(path), together=options.together)
        print(
            f"{path.name}: {found.groups} groups in {found.removals} removals, {found.felt} of which are felt; "
            f"largest error {found.error:.1e}, {len(found.mismatches)} mismatches",
            *found.mismatches[:3],
            flush=True,
        )


if __name__ == "__main__":
    main()
