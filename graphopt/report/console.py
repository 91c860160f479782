"""The reports as a person reads them, on stdout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphopt.report.quantization import print_quantization
from graphopt.spec import format_value

_WIDTH = 110
_REASONS = 6


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH, no_color=True)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def number(value: float | None, unit: str = "") -> str:
    """A count with a metric prefix: 40.8 M."""
    if value is None:
        return "-"
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def percent(value: float | None) -> str:
    """A fraction in percent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ms"


def print_run(report: dict[str, Any], report_path: Path) -> None:
    """What ``graphopt run`` found."""
    out = _console()
    before, after, delta = report["before"], report["after"], report["delta"]
    out.print(f"pipeline  {escape(report['pipeline'])}")
    out.print(f"target    {report['target']}")
    data = report["dataset"]
    out.print(f"images    calibration: {data['calibration_source']}; evaluation: {data['evaluation_source'] or 'none'}")
    out.print()
    table = _table("", "before", "after", "change")
    points = delta["top1_points"]
    low_high = f" [{delta['ci95'][0]:+.2f}, {delta['ci95'][1]:+.2f}]" if delta["ci95"] else ""
    rows = [
        (
            "top-1",
            percent(before["top1"]),
            percent(after["top1"]),
            "-" if points is None else f"{points:+.2f} points{escape(low_high)}",
        ),
        ("top-5", percent(before["top5"]), percent(after["top5"]), ""),
        ("agreement", "", percent(delta["agreement"]), ""),
        ("MACs", number(before["macs"]), number(after["macs"]), _ratio(before["macs"], after["macs"])),
        (
            "parameters",
            number(before["params"]),
            number(after["params"]),
            _ratio(before["params"], after["params"]),
        ),
        (
            "file",
            number(before["bytes"], "B"),
            number(after["bytes"], "B"),
            _ratio(before["bytes"], after["bytes"]),
        ),
        (
            "latency",
            milliseconds(before["latency_ms"]),
            milliseconds(after["latency_ms"]),
            "-"
            if delta["speedup"] is None
            else f"{delta['speedup']:.2f}x faster"
            if delta["speedup"] >= 1
            else f"{1 / delta['speedup']:.2f}x slower",
        ),
    ]
    for row in rows:
        if row[1] != "-" or row[2] != "-":
            table.add_row(*row)
    out.print(table)
    out.print()
    _print_records(out, report["passes"])
    for gate in report["gates"]:
        verdict = "holds" if gate["passed"] else "FAILED"
        note = f" ({gate['note']})" if gate["note"] else ""
        out.print(f"gate {gate['name']}: {gate['value']:.4g} {gate['unit']}, limit {gate['limit']:g}: {verdict}{note}")
    if not report["validated"]:
        out.print("NOT VALIDATED: no images were evaluated, so nothing is known about the accuracy of the result")
    if report["output"]["written"]:
        out.print(f"written   {report['output']['path']}", soft_wrap=True)
    else:
        out.print(f"not written, because a gate failed: {report['output']['path']}", soft_wrap=True)
    out.print(f"report    {report_path}", soft_wrap=True)


def _ratio(before: float | None, after: float | None) -> str:
    return "-" if not before or after is None else f"{100 * after / before:.1f} %"


def _print_records(out: Console, records: list[dict[str, Any]]) -> None:
    busy = [r for r in records if r["changed"] or r["metrics"] or r["skipped"]]
    idle = [escape(r["spec"]) for r in records if r not in busy]
    for entry in busy:
        delta = entry["delta"]
        changes = ", ".join(f"{key} {value:+d}" for key, value in delta.items() if value) or "no change"
        out.print(f"{escape(entry['spec'])}  ({entry['kind']}, {entry['seconds']:.1f} s): {changes}")
        facts = [
            f"{key} {_fact(value)}" for key, value in entry["metrics"].items() if not isinstance(value, dict | list)
        ]
        if facts:
            out.print(f"    {escape(', '.join(facts))}")
        check = entry.get("exactness")
        if check:
            said = (
                f"outputs equal, relative error {check['max_relative_error']:.1e}"
                if check["checked"]
                else f"outputs not compared: {check['reason']}"
            )
            out.print(f"    {escape(said)}")
        _print_reasons(out, entry["skipped"], "left alone", "more reasons, in the report")
    if idle:
        out.print(f"nothing to do: {', '.join(idle)}")
    if records:
        out.print()


def _print_reasons(out: Console, entries: list[dict[str, Any]], what: str, more: str) -> None:
    reasons = _by_reason(entries)
    for (op, reason), count, macs in reasons[:_REASONS]:
        held = "" if macs is None else f" (holds back {number(macs)} multiply-accumulates)"
        out.print(f"    {what}: {count} {op}: {escape(reason)}{held}")
    if len(reasons) > _REASONS:
        out.print(f"    ... and {len(reasons) - _REASONS} {more}")


def _by_reason(entries: list[dict[str, Any]]) -> list[tuple[tuple[str, str], int, int | None]]:
    """Operator and reason, how many entries share them, and the most MACs that one of these holds back: those that hold
    back most come first, then those that are most frequent."""
    count = Counter((e["op"], e["reason"]) for e in entries)
    most: dict[tuple[str, str], int] = {}
    for entry in entries:
        if entry.get("macs_held_back") is not None:
            key = (entry["op"], entry["reason"])
            most[key] = max(most.get(key, 0), entry["macs_held_back"])
    found = [(key, times, most.get(key)) for key, times in count.most_common()]
    return sorted(found, key=lambda item: -(item[2] or 0))


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def print_eval(found: dict[str, Any]) -> None:
    """What ``graphopt eval`` found."""
    out = _console()
    out.print(f"{found['dataset']['source']}, preprocess {escape(found['dataset']['preprocess'])}", soft_wrap=True)
    interval = found["top1_ci95"]
    where = f"  95 % interval {100 * interval[0]:.2f} .. {100 * interval[1]:.2f}" if interval else ""
    out.print(f"top-1       {percent(found['top1'])}{where}")
    out.print(f"top-5       {percent(found['top5'])}")
    threads = found["environment"]["threads"]
    out.print(
        f"throughput  {found['images_per_second']:.0f} images/s in batches, {threads} thread{'s' * (threads > 1)}"
    )


def print_compare(found: dict[str, Any]) -> None:
    """What ``graphopt compare`` found."""
    out = _console()
    a, b, delta = found["a"], found["b"], found["delta"]
    out.print(f"a  {a['path']}\nb  {b['path']}", soft_wrap=True)
    if found["dataset"]:
        out.print(f"on {found['dataset']['source']}", soft_wrap=True)
    out.print()
    table = _table("", "a", "b", "b against a")
    points = delta["top1_points"]
    change = "-" if points is None else f"{points:+.2f} points {escape(str([round(v, 2) for v in delta['ci95']]))}"
    for row in (
        ("top-1", percent(a["top1"]), percent(b["top1"]), change),
        ("top-5", percent(a["top5"]), percent(b["top5"]), ""),
        ("MACs", number(a["macs"]), number(b["macs"]), _ratio(a["macs"], b["macs"])),
        ("parameters", number(a["params"]), number(b["params"]), _ratio(a["params"], b["params"])),
        ("file", number(a["bytes"], "B"), number(b["bytes"], "B"), _ratio(a["bytes"], b["bytes"])),
        ("latency", milliseconds(a["latency_ms"]), milliseconds(b["latency_ms"]), f"{delta['speedup']:.2f}x"),
    ):
        if row[1] != "-" or row[2] != "-":
            table.add_row(*row)
    out.print(table)
    out.print()
    if delta["mcnemar_p"] is not None:
        out.print(f"McNemar's test: p = {delta['mcnemar_p']:.3g}")
    if delta["agreement"] is not None:
        out.print(f"same prediction on {percent(delta['agreement'])} of the images")
    gap = found["outputs"]
    where = "random inputs" if gap["random_inputs"] else f"{gap['n']} images"
    out.print(
        f"outputs on {where} differ by at most {gap['max_abs']:.3g} ({gap['relative']:.2g} of the largest), "
        f"on average {gap['mean_abs']:.3g}"
    )


def print_bench(found: dict[str, Any]) -> None:
    """What ``graphopt bench`` found."""
    out = _console()
    table = _table("model", "median", "quartiles", "speedup", "runs")
    for model in found["models"]:
        table.add_row(
            escape(model["path"]),
            milliseconds(model["latency_ms"]),
            f"{model['q1_ms']:.3f} .. {model['q3_ms']:.3f}",
            f"{model['speedup']:.2f}x",
            str(model["runs"]),
        )
    out.print(table)
    first = found["models"][0]
    out.print(f"batch {first['batch']}, {found['environment']['threads']} thread(s), {found['environment']['cpu']}")


def print_passes(found: list[dict[str, Any]], pipelines: list[dict[str, Any]]) -> None:
    """The lists of pipelines and passes."""
    out = _console()
    if pipelines:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("pipeline")
        table.add_column("repeats until nothing changes")
        for entry in pipelines:
            table.add_row(entry["name"], ", ".join(entry["passes"]))
        out.print(table)
    if pipelines and found:
        out.print()
    if found:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("pass", "kind", "what it does"):
            table.add_column(column)
        for entry in found:
            table.add_row(entry["name"], entry["kind"], escape(entry["summary"]))
        out.print(table)


def print_pass(entry: dict[str, Any]) -> None:
    """One pass with its options."""
    out = _console()
    out.print(f"{entry['name']}  ({entry['kind']})")
    if entry["requires"]:
        out.print(f"runs after: {', '.join(entry['requires'])}")
    out.print()
    out.print(escape(entry["help"]))
    out.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("option", "default", "allowed", ""):
        table.add_column(column, overflow="fold")
    for option in entry["options"]:
        shown = "-" if option["default"] is None else format_value(option["default"])
        table.add_row(option["name"], escape(shown), escape(option["allowed"]), escape(option["help"]))
    out.print(table if entry["options"] else "no options")


def print_inspect(found: dict[str, Any], layers: int) -> None:
    """What ``graphopt inspect`` found."""
    out = _console()
    model = found["model"]
    out.print(f"{model['path']}  opset {model['opset']}, {number(model['bytes'], 'B')}", soft_wrap=True)
    for kind in ("inputs", "outputs"):
        for port in model[kind]:
            shape = ", ".join("?" if d is None else str(d) for d in port["shape"] or [])
            layout = f" ({model['layout']})" if kind == "inputs" else ""
            out.print(f"{kind[:-1]:<7} {escape(port['name'])} {escape(f'[{shape}]')} {port['dtype']}{layout}")
    out.print(f"nodes   {found['nodes']}: " + ", ".join(f"{count} {op}" for op, count in found["ops"].items()))
    out.print(f"cost    {number(found['macs'])} multiply-accumulates, {number(found['params'])} parameters")
    if found["unknown_shapes"]:
        out.print(f"shapes  {found['unknown_shapes']} tensors have no known shape: passes leave their nodes alone")
    if layers and found["layers"]:
        out.print()
        table = _table("layer", "op", "MACs", "share", "parameters")
        for layer in found["layers"][:layers]:
            share = percent((layer["macs"] or 0) / found["macs"]) if found["macs"] else "-"
            table.add_row(escape(layer["node"]), layer["op"], number(layer["macs"]), share, number(layer["params"]))
        out.print(table)
        if len(found["layers"]) > layers:
            out.print(f"... and {len(found['layers']) - layers} more (--layers N)")
    if found["quantization"]:
        print_quantization(out, found["quantization"], layers, _table)
    _print_channels(out, found["channels"], layers)
    out.print()
    for entry in found["passes"]:
        out.print(f"{escape(entry['pipeline'])} would:")
        _print_records(out, entry["passes"])
        if entry["error"]:
            out.print(f"    fail: {escape(entry['error']['message'])}")


def _print_channels(out: Console, channels: dict[str, Any], most: int) -> None:
    families = channels["families"]
    out.print()
    out.print(f"{len(families)} families of channels can be pruned, each with everything that depends on it:")
    if families and most:
        table = _table("made by", "channels", "read by")
        for family in families[:most]:
            makers, readers = (
                ", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in (family["producers"], family["used_by"])
            )
            table.add_row(escape(makers), str(family["channels"]), escape(readers))
        out.print(table)
    if len(families) > most:
        out.print(f"... and {len(families) - most} more (--layers N)")
    if channels["locked"]:
        held, all_ = number(channels["macs_held_back"]), number(channels["macs"])
        out.print(f"{held} of {all_} multiply-accumulates involve channels that must stay:")
    _print_reasons(out, channels["locked"], "cannot be pruned", "more reasons (--format json)")
