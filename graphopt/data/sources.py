"""Opening a dataset by its path: an image folder, a .npz file, or a CSV/TSV manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphopt.data.dataset import Dataset, FileDataset, is_image_file, read_classes
from graphopt.errors import DataError

_KINDS = "a folder of class folders, a folder of images, a .npz file, or a .csv/.tsv manifest"


def open_dataset(path: str | Path) -> Dataset:
    """Open the images at ``path``; nothing is decoded yet.

    - a folder ``class/xxx.jpg``: labels follow ``classes.txt`` in that folder, or else the sorted folder
      names;
    - a folder of images alone: no labels;
    - ``.npz``: array ``x`` and optionally ``y`` (see ``arrays``);
    - ``.csv`` / ``.tsv``: rows ``path,label`` (see ``manifest``).

    Raises DataError that names the file and says what would be right.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no dataset at {path}: there is no such file or folder", f"give {_KINDS}")
    if path.is_dir():
        return open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from graphopt.data.arrays import ArrayDataset

        return ArrayDataset(path)
    if suffix in (".csv", ".tsv"):
        from graphopt.data.manifest import open_manifest

        return open_manifest(path)
    raise DataError(f"{path} is not a dataset that graphopt knows", f"give {_KINDS}")


def open_folder(path: Path) -> FileDataset:
    """Open an image folder, with or without class folders. Raises DataError."""
    try:
        entries = sorted(path.iterdir(), key=lambda p: p.name)
    except OSError as error:
        raise DataError(f"cannot read folder {path}: {error}") from None
    folders = [p for p in entries if p.is_dir() and not p.name.startswith(".")]
    loose = [p for p in entries if is_image_file(p)]
    listed = path / "classes.txt"
    names = read_classes(listed) if listed.is_file() else None
    if not folders:
        if not loose:
            raise DataError(f"{path} holds no images", f"give {_KINDS}")
        return FileDataset(path, loose, None, names)
    return _class_folders(path, folders, loose, names)


def _class_folders(path: Path, folders: list[Path], loose: list[Path], names: list[str] | None) -> FileDataset:
    notes = []
    classes = [p.name for p in folders] if names is None else names
    number = {name: i for i, name in enumerate(classes)}
    files: list[Path] = []
    labels: list[int] = []
    empty = []
    for folder in folders:
        if folder.name not in number:
            raise DataError(
                f"class folder {folder} is not in {path / 'classes.txt'}",
                "add its name as a line at the place of its label, or remove the folder",
            )
        images = sorted((p for p in folder.iterdir() if is_image_file(p)), key=lambda p: p.name)
        if not images:
            empty.append(folder)
        files += images
        labels += [number[folder.name]] * len(images)
    if not files:
        nested = next((f for f in folders if any(p.is_dir() for p in f.iterdir())), None)
        if nested is not None:
            raise DataError(
                f"{path} holds no images in its folders, only folders",
                f"did you mean {nested} (or one beside it)?",
            )
        raise DataError(f"{path} holds no images", f"give {_KINDS}")
    if empty and names is None:
        shown = ", ".join(repr(f.name) for f in empty[:3]) + (", ..." if len(empty) > 3 else "")
        notes.append(f"{path}: class folders without images still count as classes: {shown}")
    if loose:
        notes.append(f"{path}: {len(loose)} images outside the class folders are ignored")
    return FileDataset(path, files, np.asarray(labels, dtype=np.int64), classes, notes)
