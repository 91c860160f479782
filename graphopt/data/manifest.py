"""CSV and TSV manifests: one image a row, ``path,label`` or ``path`` alone."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.data.dataset import FileDataset, read_classes, read_text
from graphopt.errors import DataError

_PATH_HEADERS = ("path", "file", "filename", "image")
_LABEL_HEADERS = ("label", "class", "target")


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str | None


def open_manifest(path: Path) -> FileDataset:
    """Open a manifest; paths in it are relative to its folder.

    A first row that names a ``path`` column is a header. Labels are all numbers, or all class names; the
    numbers of class names are the lines of a ``classes.txt`` beside the manifest, or else their sorted order.
    Raises DataError with the line number.
    """
    rows = _read_rows(path)
    files = []
    for row in rows:
        file = path.parent / row.path
        if not file.is_file():
            raise DataError(
                f"{path}, line {row.line}: no such image: {row.path}",
                f"paths are relative to the folder of the manifest, {path.parent}",
            )
        files.append(file)
    if all(row.label is None for row in rows):
        return FileDataset(path, files, None, None)
    labels, names = _number(path, rows)
    return FileDataset(path, files, labels, names)


def _read_rows(path: Path) -> list[_Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(read_text(path).splitlines(), delimiter=delimiter, strict=True)
    path_at, label_at, first = 0, 1, True
    rows: list[_Row] = []
    try:
        for cells in reader:
            cells = [c.strip() for c in cells]
            if not any(cells):
                continue
            if first:
                first = False
                lower = [c.lower() for c in cells]
                found = [lower.index(h) for h in _PATH_HEADERS if h in lower]
                if found:
                    path_at = found[0]
                    label_at = next((lower.index(h) for h in _LABEL_HEADERS if h in lower), len(cells))
                    continue
            rows.append(_row(path, reader.line_num, cells, path_at, label_at))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path} lists no images", "write one image a row: path,label")
    unlabeled = next((r for r in rows if r.label is None), None)
    labeled = next((r for r in rows if r.label is not None), None)
    if unlabeled and labeled:
        raise DataError(
            f"{path}, line {unlabeled.line}: no label, but line {labeled.line} has one",
            "label every image or none",
        )
    return rows


def _row(path: Path, line: int, cells: Sequence[str], path_at: int, label_at: int) -> _Row:
    if len(cells) <= path_at or not cells[path_at]:
        raise DataError(f"{path}, line {line}: no image path", "write one image a row: path,label")
    if len(cells) > 2 and label_at == 1 and path_at == 0 and any(cells[2:]):
        # Without a header there is no telling what a third column means; with one it is just ignored.
        raise DataError(
            f"{path}, line {line}: {len(cells)} columns where path,label are expected",
            "add a header row that names the path and label columns, or quote the commas",
        )
    label = cells[label_at] if label_at < len(cells) else ""
    return _Row(line, cells[path_at], label or None)


def _number(path: Path, rows: list[_Row]) -> tuple[np.ndarray, list[str] | None]:
    """Labels int64 [N], and the class names when the labels are names."""
    listed = path.parent / "classes.txt"
    names = read_classes(listed) if listed.is_file() else None
    texts = [row.label or "" for row in rows]
    numeric = [_is_integer(t) for t in texts]
    if all(numeric):
        values = np.array([int(t) for t in texts], dtype=np.int64)
        if values.min() < 0:
            bad = rows[int(values.argmin())]
            raise DataError(f"{path}, line {bad.line}: label {bad.label} is negative", "labels count from 0")
        return values, names
    if any(numeric) and names is None:
        bad = rows[numeric.index(not numeric[0])]
        raise DataError(
            f"{path}, line {bad.line}: label {bad.label!r} after labels such as {texts[0]!r}",
            "use numbers for all labels, or class names for all",
        )
    classes = sorted(set(texts)) if names is None else names
    order = {name: i for i, name in enumerate(classes)}
    for row, text in zip(rows, texts, strict=True):
        if text not in order:
            raise DataError(f"{path}, line {row.line}: class {text!r} is not in {listed}")
    return np.array([order[t] for t in texts], dtype=np.int64), classes


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
