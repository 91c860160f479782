"""Small models written as ONNX text, with weights given by shape alone."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Model


def build(
    body: str,
    weights: dict[str, tuple[int, ...]],
    x: str = "float[N,3,8,8] x",
    y: str = "float[N,5] y",
    ints: dict[str, list[int]] | None = None,
    opset: int = 17,
) -> Model:
    """A model in ONNX text whose weights are given by shape alone and filled with noise."""
    names = {**weights, **{k: (len(v),) for k, v in (ints or {}).items()}}
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y})\n'
    declared = ", ".join(
        f"{'int64' if ints and k in ints else 'float'}[{','.join(map(str, s))}] {k} = "
        + "{"
        + ",".join(_fill(k, s, ints))
        + "}"
        for k, s in names.items()
    )
    return Model.from_text(text + f"<{declared}>\n" + "{\n" + body + "\n}")


def _fill(name: str, shape: tuple[int, ...], ints: dict[str, list[int]] | None) -> list[str]:
    if ints and name in ints:
        return [str(v) for v in ints[name]]
    rng = np.random.default_rng(sum(name.encode()))
    values = rng.standard_normal(int(np.prod(shape)))
    if name.startswith("var"):
        values = np.abs(values) + 0.5
    return [f"{v:.5f}" for v in values]


HEAD = "p = GlobalAveragePool(z)\n f = Flatten(p)\n y = Gemm<transB=1>(f, wf, bf)"


def shapes(model: Model) -> dict[str, list[int]]:
    return {k: list(t.shape) for k, t in model.graph.tensors().items() if isinstance(t, gs.Constant)}
