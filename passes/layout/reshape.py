"""Reshape and Flatten of a transposed tensor: axes that split move on as one, those that merge must be neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.layout.forms import Axes, Block, Form
from graphopt.passes.layout.plan import Anchor, Plan
from graphopt.passes.layout.structure import FIXED
from graphopt.rewrite import Workbench
from graphopt.rewrite.shapes import Dim, known, same


@dataclass
class Group:
    """Axes before and after a Reshape that hold the same elements."""

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def groups(a: Sequence[Dim], b: Sequence[Dim]) -> list[Group]:
    """The smallest groups of axes of two shapes of one tensor, first to last."""
    left, i, j = _pairs(a, b)
    right, m, n = _pairs(list(reversed(a[i:])), list(reversed(b[j:])))
    end_a, end_b = len(a) - m, len(b) - n
    middle = Group(list(range(i, end_a)), list(range(j, end_b)))
    # What was counted from the end, counted from the start.
    ends = [
        Group([len(a) - 1 - k for k in reversed(g.before)], [len(b) - 1 - k for k in reversed(g.after)])
        for g in reversed(right)
    ]
    found = [*left, *([middle] if middle.before or middle.after else []), *ends]
    # Axes of size one without a partner belong to the group before them, or after.
    joined: list[Group] = []
    for group in found:
        if joined and not (group.before and group.after and joined[-1].before and joined[-1].after):
            joined[-1] = Group(joined[-1].before + group.before, joined[-1].after + group.after)
        else:
            joined.append(group)
    return joined


def _pairs(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[list[Group], int, int]:
    """Groups from the start as far as sizes tell, and how many axes of each shape they hold."""
    found: list[Group] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if not (known(a[i]) and known(b[j])):
            if not same(a[i], b[j]):
                break
            found.append(Group([i], [j]))
            i, j = i + 1, j + 1
            continue
        m, n = i + 1, j + 1
        x, y = int(a[i] or 0), int(b[j] or 0)
        while x != y:
            shorter, at = (a, m) if x < y else (b, n)
            if at >= len(shorter) or not known(shorter[at]):
                return found, i, j
            if x < y:
                x, m = x * int(a[m] or 0), m + 1
            else:
                y, n = y * int(b[n] or 0), n + 1
        found.append(Group(list(range(i, m)), list(range(j, n))))
        i, j = m, n
    return found, i, j


def reshape(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Reshape or Flatten, with shapes known but for one side."""
    if anchor.is_input and anchor.index:
        return FIXED
    source, target = node.inputs[0].shape, node.outputs[0].shape
    if source is None or target is None:
        return "the shape before or after it is unknown"
    if isinstance(node.inputs[0], gs.Constant):
        return FIXED
    # A side of size zero would fit anything.
    if not all(known(d) or not isinstance(d, int) or d < 0 for d in (*source, *target)):
        return FIXED
    near, far = (source, target) if anchor.is_input else (target, source)
    if anchor.form.rank != len(near):
        return FIXED
    form = _follow(anchor.form, near, far)
    if isinstance(form, str):
        return form
    before, after = (anchor.form, form) if anchor.is_input else (form, anchor.form)
    kept_source, kept_target = before.shape(source), after.shape(target)
    numbers = target_shape(kept_source, kept_target)
    if numbers is None:
        return "several sides of its shape are unknown"

    def change(bench: Workbench, node: gs.Node) -> None:
        constant = bench.model.constant(f"{node.name}_shape", np.array(numbers, np.int64))
        bench.become(node, "Reshape", [node.inputs[0], constant])

    return Plan([before, *[None] * (len(node.inputs) - 1)], [after], change)


def target_shape(source: Sequence[Dim], target: Sequence[Dim]) -> list[int] | None:
    """The second input of a Reshape: a side is known, or copied from the same place, or the one that is left."""
    numbers: list[int] = []
    for axis, dim in enumerate(target):
        if known(dim):
            numbers.append(int(dim or 0))
        elif axis < len(source) and same(source[axis], dim):
            numbers.append(0)
        else:
            numbers.append(-1)
    return numbers if numbers.count(-1) <= 1 else None


def _follow(form: Form, near: Sequence[Dim], far: Sequence[Dim]) -> Form | str:
    """The form on the other side of a reshape from ``near`` to ``far``."""
    found = groups(near, far)
    if any(not g.before or not g.after for g in found):
        return "its shapes do not match"
    if isinstance(form, Block):
        return FIXED
    group_of = {axis: k for k, group in enumerate(found) for axis in group.before}
    wide = [a for a in form.perm if not (known(near[a]) and near[a] == 1)]
    runs = [k for i, k in enumerate(group_of[a] for a in wide) if i == 0 or k != group_of[wide[i - 1]]]
    if len(set(runs)) == len(runs) and _in_order(wide, group_of):
        order: list[int] = []
        for axis in form.perm:
            group = group_of[axis]
            # A group stands where its first axis of more than one element does.
            if group not in order and (axis in wide or group not in runs):
                order.append(group)
        return Axes(tuple(a for k in order for a in found[k].after))
    if len(far) == 2 and form.perm[0] == 0 and found[0].before == [0] and found[0].after == [0]:
        rest = [int(d or 0) if known(d) else 0 for d in near[1:]]
        if all(rest):
            return Block(2, 1, tuple(rest), tuple(p - 1 for p in form.perm[1:]))
        return "the sizes that it flattens are unknown"
    return "it joins axes that would not be neighbours"


def _in_order(wide: Sequence[int], group_of: dict[int, int]) -> bool:
    last: dict[int, int] = {}
    for axis in wide:
        if last.get(group_of[axis], -1) > axis:
            return False
        last[group_of[axis]] = axis
    return True
