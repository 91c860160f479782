"""graphopt's simplify against its peers: what each does to micro-models and real ones, and in what time.

    python benchmarks/simplify_peers.py --work DIR table [--cases]
    python benchmarks/simplify_peers.py --work DIR nodes MODEL ... [--differences] [--repeat N] [--json FILE]
    python benchmarks/simplify_peers.py --work DIR times MODEL ... [--rounds N] [--repeat N]
    python benchmarks/simplify_peers.py --work DIR large [--rounds N] [--repeat N]

DIR caches one virtual environment a peer, with the newest version that the package index had when it was made.
``table``: the micro-models of ``simplify_cases.py``. ``nodes``: nodes left in a model, in subgraphs too, Constant nodes
not counted; "!" marks outputs that differ from the model's in ONNX Runtime without optimizations, and times are of
loading, simplifying and saving in one process, without imports. ``times``: the same in milliseconds of processor time,
the tools in turns: the median over the rounds of the least of each round's repetitions but the first. ``large``: that
on 12,000 nodes, and how graphopt's grows from 10,000 to 40,000.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from simplify_cases import CASES, Case, operators
from simplify_large import large_model

from graphopt.errors import ModelError
from graphopt.runtime.equivalence import compare_outputs, random_feeds

OURS = "graphopt"
# What to install for each tool. Some compute constants with ONNX Runtime, and leave them where they do not find it.
PEERS = {
    "onnxsim": ("onnxsim[onnxruntime,symbolic]", "onnx"),
    "onnxslim": ("onnxslim", "onnx", "onnxruntime"),
    "onnxoptimizer": ("onnxoptimizer", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
    "graphsurgeon": ("onnx-graphsurgeon", "onnx", "onnxruntime"),
    "onnxruntime": ("onnxruntime", "onnx"),
}
Found = dict[str, Any]


def python_of(tool: str, work: Path) -> Path:
    """The interpreter that has a tool; its environment is made on first use."""
    if tool == OURS:
        return Path(sys.executable)
    folder = work / "environments" / tool
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *PEERS[tool]], check=True)
        ready.touch()
    return python


def version(tool: str, work: Path) -> str:
    package = PEERS[tool][0].partition("[")[0] if tool in PEERS else OURS
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python_of(tool, work)), "-c", code], check=True, capture_output=True, text=True)
    return f"{tool} {done.stdout.strip()}"


def simplified(tool: str, models: Sequence[Path], out: Path, work: Path, *arguments: str) -> dict[str, Found]:
    """Run a tool on every model, in one process as long as that lives: what it said, by file name."""
    results = out / "results.jsonl"
    command = [str(python_of(tool, work)), str(Path(__file__).with_name("simplify_tools.py")), tool, *arguments]
    left = list(models)
    found: dict[str, Found] = {}
    while left:
        done = subprocess.run([*command, "--out", out, "--results", results, *left], capture_output=True, text=True)
        lines = results.read_text().splitlines() if results.exists() else []
        found.update({entry["model"]: entry for entry in map(json.loads, lines)})
        left = [m for m in left if m.name not in found]
        if left:
            if done.returncode > 0:  # an error of the script itself; a signal is the tool's
                raise SystemExit(f"{tool}: {done.stderr.strip()}")
            found[left[0].name] = {"model": left[0].name, "error": f"the process ended by signal {-done.returncode}"}
            left = left[1:]
    return found


def why_unequal(before: Path, after: Path) -> str:
    """How a model's outputs differ from those of the original, in words; empty if they do not."""
    try:
        return compare_outputs(before, after, random_feeds(before, (1, 2))).reason
    except ModelError as error:
        return f"it does not run: {error.message}"


def judge(case: Case, source: Path, target: Path, entry: Found) -> str:
    """yes, no, wrong or fails."""
    if "error" in entry:
        return "fails"
    if case.runs and why_unequal(source, target):
        return "wrong"
    return "yes" if case.holds(onnx.load(target)) else "wrong" if case.required else "no"


def case_table(tools: Sequence[str], work: Path, single: bool) -> None:
    rows: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [folder / f"{k}.onnx" for k in range(len(CASES))]
        for case, source in zip(CASES, sources, strict=True):
            onnx.save(case.model, source)
        for tool in tools:
            out = folder / tool
            out.mkdir()
            entries: dict[str, Found] = {}
            for passes in dict.fromkeys(c.passes for c in CASES) if tool == OURS else ("",):
                mine = [s for c, s in zip(CASES, sources, strict=True) if passes in ("", c.passes)]
                extra = ("--passes", passes) if passes else ()
                entries.update(simplified(tool, mine, out, work, *extra))
            for case, source in zip(CASES, sources, strict=True):
                verdict = judge(case, source, out / source.name, entries[source.name])
                row = f"{case.row}: {case.name}" if single else case.row
                rows.setdefault(row, {}).setdefault(tool, []).append(verdict)
    line("case", *tools)
    line("---", *("---" for _ in tools))
    for row, cells in rows.items():
        line(row, *(together(cells[t]) for t in tools))


def together(verdicts: list[str]) -> str:
    """One word for all cases of a row: what is wrong outweighs the rest, and some of it done is a part."""
    kinds = set(verdicts)
    return "wrong" if "wrong" in kinds else kinds.pop() if len(kinds) == 1 else "part"


def node_table(models: Sequence[Path], tools: Sequence[str], options: argparse.Namespace) -> None:
    line("model", "before", *tools, *(f"s {t}" for t in tools), "s graphopt, checked")
    line("---", *("---:" for _ in range(2 * len(tools) + 2)))
    notes: list[str] = []
    everything: dict[str, dict[str, Found]] = {}
    for model in models:
        found = {t: one_model(model, t, options) for t in tools}
        everything[str(model)] = found
        before = operators(onnx.load(model, load_external_data=False))
        ours = found.get(OURS, {})
        check = f"{ours['seconds'] + ours['check']:.2f}" if "check" in ours else "-"
        seconds = (f"{f['seconds']:.2f}" if "seconds" in f else "-" for f in found.values())
        line(model.stem, before.total(), *map(cell, found.values()), *seconds, check)
        notes.extend(differences(model.stem, found))
        if options.json:
            options.json.write_text(json.dumps(everything, indent=1))
    if options.differences and notes:
        print("\n" + "\n".join(notes))


def one_model(model: Path, tool: str, options: argparse.Namespace) -> Found:
    """What a tool said of a model, the operators that it left, and how outputs differ."""
    with tempfile.TemporaryDirectory(dir=options.work) as out:
        entry = simplified(tool, [model], Path(out), options.work, "--repeat", str(options.repeat))[model.name]
        written = Path(out) / model.name
        if "error" not in entry:
            entry["operators"] = dict(operators(onnx.load(written, load_external_data=False)))
            entry["bytes"] = written.stat().st_size
            entry["unequal"] = why_unequal(model, written)
    return entry


def cell(entry: Found) -> str:
    return "fails" if "error" in entry else f"{sum(entry['operators'].values())}{'!' if entry['unequal'] else ''}"


def differences(name: str, found: dict[str, Found]) -> list[str]:
    """Errors and unequal outputs, and by how many of which operators ours is above the best equal peer's."""
    notes = [f"- {name}, {t}: {why}" for t, f in found.items() if (why := f.get("error") or f.get("unequal"))]
    sound: dict[str, Counter[str]] = {
        t: Counter(f["operators"]) for t, f in found.items() if "error" not in f and not f["unequal"]
    }
    ours = sound.pop(OURS, None)
    best = min(sound, key=lambda t: sound[t].total(), default=None)
    if ours is not None and best is not None and ours.total() > sound[best].total():
        delta = {op: ours[op] - sound[best][op] for op in sorted(ours | sound[best])}
        shown = ", ".join(f"{op} {d:+d}" for op, d in delta.items() if d)
        notes.append(f"- {name}: {ours.total()} against {sound[best].total()} of {best}: {shown}")
    return notes


def time_table(
    models: Sequence[Path], tools: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Print and return the milliseconds of processor time that tools take for models, by the models' names."""
    rounds: dict[str, dict[str, list[float]]] = {m.stem: {t: [] for t in tools} for m in models}
    for _ in range(options.rounds):
        for model, tool in itertools.product(models, tools):
            with tempfile.TemporaryDirectory(dir=options.work) as out:
                found = simplified(tool, [model], Path(out), options.work, "--repeat", str(options.repeat))
            if "cpu" in (entry := found[model.name]):
                rounds[model.stem][tool].append(1000 * entry["cpu"])
    times = {m: {t: statistics.median(v) for t, v in row.items() if v} for m, row in rounds.items()}
    line("model", *(f"ms {t}" for t in tools), "graphopt to the best other")
    line("---", *("---:" for _ in range(len(tools) + 1)))
    for name, row in times.items():
        others = [v for t, v in row.items() if t != OURS]
        ratio = f"{row[OURS] / min(others):.2f}" if OURS in row and others else "-"
        line(name, *(f"{row[t]:.1f}" if t in row else "fails" for t in tools), ratio)
    return times


def large_table(tools: Sequence[str], options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        models = {size: Path(name) / f"large-{size}.onnx" for size in (10_000, 12_000, 40_000)}
        for size, model in models.items():
            onnx.save(large_model(size), model)
        time_table([models[12_000]], tools, options)
        print()
        times = time_table([models[10_000], models[40_000]], [OURS], options)
        growth = times["large-40000"][OURS] / times["large-10000"][OURS]
        print(f"\ngraphopt takes {growth:.1f} times as long for 40,000 nodes as for 10,000")


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--tools", default=",".join((OURS, *PEERS)), help="those to run, by comma")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("--cases", action="store_true", help="one line a micro-model, not a row")
    nodes = commands.add_parser("nodes")
    nodes.add_argument("models", nargs="+", type=Path)
    times = commands.add_parser("times")
    times.add_argument("models", nargs="+", type=Path)
    large = commands.add_parser("large")
    for command, repeat in ((nodes, 3), (times, 8), (large, 4)):
        command.add_argument("--repeat", type=int, default=repeat)
    for command in (times, large):
        command.add_argument("--rounds", type=int, default=3)
    nodes.add_argument("--differences", action="store_true", help="where others leave fewer nodes, which")
    nodes.add_argument("--json", type=Path, help="write everything here as well")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.tools = options.tools.split(",")
    if unknown := set(options.tools) - {OURS, *PEERS}:
        parser.error(f"unknown tools: {', '.join(sorted(unknown))}")
    print(", ".join(version(t, options.work) for t in options.tools) + "\n")
    if options.command == "table":
        case_table(options.tools, options.work, options.cases)
    elif options.command == "nodes":
        node_table(options.models, options.tools, options)
    elif options.command == "times":
        time_table(options.models, options.tools, options)
    else:
        large_table(options.tools, options)


if __name__ == "__main__":
    main()
