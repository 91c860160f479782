"""Imports go one way, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Each package may import itself and those to its right.
ORDER = ["cli", "driver", "report", "rewrite", "pipeline", "analysis", "training", "runtime", "data", "ir"]
BASE = {"errors", "spec", "progress", "atomic", "garbage", "extension"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "graphopt"}


def type_checking_only(path: Path) -> set[str]:
    """Imports under ``if TYPE_CHECKING``: they are not there at run time."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    found.add(inner.module)
                    found.update(f"{inner.module}.{alias.name}" for alias in inner.names)
    return found


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_only_what_is_below_them(root: Path, package: str) -> None:
    allowed = {*ORDER[ORDER.index(package) :], *BASE}
    for path in sorted((root / "graphopt" / package).rglob("*.py")):
        for name in imports(path) - type_checking_only(path):
            parts = name.split(".")
            known = len(parts) > 1 and parts[1] in {*ORDER, *BASE, "passes"}
            assert not known or parts[1] in allowed, f"{path.relative_to(root)} imports {name}"


def test_nothing_below_the_passes_imports_a_pass(root: Path) -> None:
    for path in sorted((root / "graphopt").rglob("*.py")):
        assert not any(name.startswith("graphopt.passes") for name in imports(path)), path


def test_base_modules_import_nothing_above_them(root: Path) -> None:
    for name in BASE:
        parts = {p.split(".")[1] for p in imports(root / "graphopt" / f"{name}.py") if "." in p}
        assert parts <= BASE


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, graphopt.cli; graphopt.cli.run(['--help']); "
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'rich', 'PIL', 'scipy', 'networkx', 'torch'} & set(sys.modules); "
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_packages_in_pyproject_is_complete(root: Path) -> None:
    import tomllib

    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"graphopt.passes"}
    for top, prefix in ((root / "graphopt", "graphopt"), (root / "passes", "graphopt.passes")):
        found.update(".".join([prefix, *init.parent.relative_to(top).parts]) for init in top.rglob("__init__.py"))
    assert listed == found
