"""The part of ``graphopt inspect`` on quantized models, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_quantization(out: Console, found: dict[str, Any], most: int, table: Callable[..., Table]) -> None:
    """``found`` is the ``quantization`` entry; ``most`` limits the rows of each table."""
    runtime = found["runtime"]
    out.print()
    if runtime["error"]:
        out.print(f"quantized; ONNX Runtime does not load it: {escape(runtime['error'])}")
    else:
        for kind in ("int8", "float"):
            ops = ", ".join(f"{count} {op}" for op, count in runtime[kind].items()) or "nothing"
            out.print(f"ONNX Runtime runs in {kind}: {ops}", soft_wrap=True)
        if runtime["moving"]:
            out.print("and moves by: " + ", ".join(f"{count} {op}" for op, count in runtime["moving"].items()))
        out.print(f"and converts between the two {runtime['conversions']} times")
        if runtime["layers_in_float"]:
            names = ", ".join(runtime["layers_in_float"][:5]) + ", ..." * (len(runtime["layers_in_float"]) > 5)
            out.print(f"layers in float: {escape(names)}", soft_wrap=True)
    rows = found["activations"]
    if rows and most:
        seen = f"on {found['images']} images" if found["images"] else "without images (--data)"
        out.print(f"{len(rows)} quantized activations, {seen}:")
        listing = table("tensor", "type", "scale", "zero", "range", "observed", "below", "above")
        ranked = sorted(rows, key=lambda r: -(r["saturated"][1] if r["saturated"] else 0.0))
        for r in ranked[:most]:
            observed = _span(r["observed"]) if r["observed"] else "-"
            below, above = (f"{100 * s:.3f} %" for s in r["saturated"]) if r["saturated"] else ("-", "-")
            cells = (r["tensor"], r["dtype"], f"{r['scale']:.4g}", str(r["zero_point"]), _span(r["range"]))
            listing.add_row(*map(escape, cells), escape(observed), below, above)
        out.print(listing)
        _more(out, rows, most)
    rows = found["weights"]
    if rows and most:
        out.print(f"{len(rows)} quantized constants:")
        listing = table("tensor", "type", "shape", "scales", "from", "to", "read by")
        for r in rows[:most]:
            ends = [f"{s:.4g}" for s in r["scale"]] if r["scale"] else ["-", "-"]
            shape = "x".join(map(str, r["shape"]))
            listing.add_row(
                escape(r["tensor"]), r["dtype"], shape or "1", str(r["scales"]), *ends, ", ".join(r["read_by"])
            )
        out.print(listing)
        _more(out, rows, most)


def _span(ends: list[float]) -> str:
    return f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _more(out: Console, rows: list[Any], most: int) -> None:
    if len(rows) > most:
        out.print(f"... and {len(rows) - most} more (--layers N)")
