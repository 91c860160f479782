"""What may listen to the pass manager: dumps of the IR, and a reproducer when a pass crashes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from graphopt.ir import Model, save
from graphopt.pipeline.base import Pass, PassResult


class Hook(Protocol):
    """Called around each pass. ``index`` counts passes from 0.

    ``wants_verified``: whether the model that ``after`` sees must have been verified, each time.
    """

    wants_verified: bool

    def before(self, index: int, step: Pass, model: Model) -> None: ...

    def after(self, index: int, step: Pass, model: Model, result: PassResult) -> None: ...

    def failed(self, index: int, step: Pass, start: Model, error: BaseException) -> str | None:
        """``start`` is the model before the pass. May return a sentence to add to the error."""
        ...


class DumpIR:
    """Saves the model after every pass that changed it, as ``NN-name.onnx``."""

    wants_verified = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def before(self, index: int, step: Pass, model: Model) -> None:
        pass

    def after(self, index: int, step: Pass, model: Model, result: PassResult) -> None:
        if result.changed:
            save(model, self.folder / f"{index + 1:02d}-{step.name}.onnx")

    def failed(self, index: int, step: Pass, start: Model, error: BaseException) -> str | None:
        return None


class Reproducer:
    """When a pass crashes or breaks its promise, writes its input model and the command to rerun it.

    ``arguments`` are the command-line arguments, after ``--passes``, that lead to the same context.
    """

    wants_verified = False

    def __init__(self, folder: Path, arguments: Sequence[str], format_error: Callable[[BaseException], str]) -> None:
        self.folder, self.arguments, self.format_error = folder, list(arguments), format_error

    def before(self, index: int, step: Pass, model: Model) -> None:
        pass

    def after(self, index: int, step: Pass, model: Model, result: PassResult) -> None:
        pass

    def failed(self, index: int, step: Pass, start: Model, error: BaseException) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "input.onnx"
        save(start, path)
        command = ["graphopt", "run", str(path), "--passes", step.spec, *self.arguments]
        (self.folder / "command.sh").write_text(shlex.join(command) + "\n")
        (self.folder / "traceback.txt").write_text(self.format_error(error))
        return f"its input model and the command to rerun it are in {self.folder}"
