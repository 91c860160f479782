"""Reading and writing model files. Reading trusts nothing; writing replaces the target in one step or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError

from graphopt import atomic, garbage
from graphopt.errors import ModelError, UsageError
from graphopt.ir import external, values
from graphopt.ir.contents import Contents
from graphopt.ir.convert import import_model
from graphopt.ir.limits import check_claims
from graphopt.ir.model import Digest, Model, Source
from graphopt.ir.shapes import VALUES_BELOW, infer_original, infer_shapes, light_copy, serialized
from graphopt.ir.verify import verify_input

OLDEST_OPSET = 7
EXTERNAL_THRESHOLD = 1_900_000_000  # bytes of weights; protobuf itself ends at 2 GiB
_INLINE_BELOW = 1024  # bytes; small constants stay in the file, where shape inference can read them
_ALIGNMENT = 4096
_HASHED_LATER = 1 << 25  # bytes of a file that may be kept in memory until somebody asks for its hash
_LARGEST = (1 << 31) - 1  # bytes of a file; protobuf reads no more


def load(path: str | Path) -> Model:
    """Read an ONNX file, with its external data mapped, its shapes inferred and its structure verified.

    Raises ModelError that says what is wrong with the file.
    """
    with garbage.paused(_size(Path(path))):
        return _load(Path(path))


def _size(path: Path) -> int:
    """Bytes of a file; 0 for what is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def _load(path: Path) -> Model:
    data = _read(path)
    digest = _digest(data)
    proto = parse(data, str(path))
    try:
        contents = Contents.of(proto)
        outside = external.check(contents, path.parent)
        largest = check_claims(proto, contents)
        source = Source(str(path), digest, outside)
        if outside:
            external.inline_small(proto, contents, path.parent)
        imported = import_model(proto, contents)
        model = Model(imported.graph, imported.header, source, imported.blueprint.linked)
        if outside:
            external.map_initializers(model.constants(model.bare_graphs()), path.parent)
        if not imported.sound:
            verify_input(model, str(path))  # before the checker: it says more about structure
        as_it_is = largest <= VALUES_BELOW and not contents.altered
        light = None if outside else data if as_it_is else light_copy(proto)
        del data
        _check(str(path) if light is None else serialized(light), path)
        original = None
        if light is None or proto.functions or imported.blueprint.proto is not proto:
            infer_shapes(model)
        else:
            original = infer_original(imported, light)
            model.touch()
        if len(contents.graphs) == 1 and not proto.functions:
            model.flat = model.revision
        model.mark_unchanged(original)
    except UnicodeDecodeError:
        raise ModelError(
            f"{path} is damaged: it has names that are not UTF-8 text", "export or copy it again"
        ) from None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from None
    return model


class _Unhashed:
    """The hash of bytes, which are kept until it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data
        self._hash = ""

    def result(self) -> str:
        data, self._data = self._data, None
        if data is not None:
            self._hash = hashlib.sha256(data).hexdigest()
        return self._hash


def _digest(data: bytes) -> Digest:
    """The hash of a file's content, of a large one while other things are done."""
    kept = _Unhashed(data)
    if len(data) <= _HASHED_LATER:
        return kept
    future: Future[str] = Future()
    worker = threading.Thread(target=lambda: future.set_result(hashlib.sha256(data).hexdigest()), daemon=True)
    try:
        worker.start()
    except RuntimeError:  # where there may be no more threads
        kept.result()
        return kept
    return future


def _read(path: Path) -> bytes:
    """The bytes of a model file. Only of an ordinary one: a pipe or a device may have no end, or never begin."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"{path} is a folder, not an ONNX file")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is not an ordinary file", "copy the model into one")
        if status.st_size > _LARGEST:
            hint = "larger models keep their weights as external data"
            raise ModelError(f"{path} has {status.st_size:,} bytes; an ONNX file has at most {_LARGEST:,}", hint)
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """Decode bytes as an ONNX model. Raises ModelError for what is not one, or of an unknown version."""
    if not data:
        raise ModelError(f"{name} is empty", "export or copy it again")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError, ValueError):
        hint = "it is truncated or damaged (export or copy it again), or not a model at all"
        raise ModelError(f"{name} is not a readable ONNX file", hint) from None
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{name} is not an ONNX model (it has no graph with outputs)", "is it another format?")
    newest = onnx.defs.onnx_opset_version()
    imports: dict[str, int] = {}
    for entry in proto.opset_import:
        if imports.setdefault(entry.domain or "ai.onnx", entry.version) != entry.version:
            raise ModelError(f"{name} imports two versions of the operators of {entry.domain or 'ai.onnx'!r}")
    opset = imports.get("ai.onnx")
    if opset is None or not OLDEST_OPSET <= opset <= newest:
        used = "no opset of ONNX's own operators" if opset is None else f"opset {opset}"
        raise ModelError(
            f"{name} uses {used}; graphopt reads opsets {OLDEST_OPSET} to {newest}",
            "convert it with onnx.version_converter, or export it again",
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{name} has IR version {proto.ir_version}; the installed onnx reads up to {onnx.IR_VERSION}",
            "upgrade onnx",
        )
    return proto


def _check(form: str | bytes, path: Path) -> None:
    try:
        onnx.checker.check_model(form)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass
class Staged:
    """A model written under a temporary name next to its final place."""

    path: Path
    target: Path
    data: Path | None = None
    committed: bool = False
    keep: frozenset[Path] = frozenset()  # data files of the input model

    def commit(self) -> None:
        """Put the file in its place, in one step."""
        try:
            atomic.replace(self.path, self.target)
        finally:
            self.committed = not self.path.exists()
        pattern = re.compile(re.escape(self.target.name) + r"\.[0-9a-f]{16}\.data")
        kept = {path.resolve() for path in self.keep}
        for old in self.target.parent.iterdir():
            if old != self.data and pattern.fullmatch(old.name) and old.resolve() not in kept:
                with contextlib.suppress(OSError):  # the new model is in place and does not need it
                    old.unlink()

    def size(self) -> int:
        """Bytes of the model, external data included."""
        return self.path.stat().st_size + (self.data.stat().st_size if self.data else 0)


def check_writable(target: Path, source: Path | None = None) -> None:
    """Fail before the work, not after it: raises UsageError if ``target`` could not be written."""
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"the output folder {folder} does not exist", "create it, or give another -o")
    if target.is_dir():
        raise UsageError(f"the output path {target} is a folder", "give a file name with -o")
    if source is not None and target.exists() and target.resolve() == source.resolve():
        raise UsageError("the output would overwrite the input model", "give another file name with -o")
    try:
        with atomic.temporary(target):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}", "give another -o") from None


@contextlib.contextmanager
def stage(model: Model, target: str | Path, external_above: int = EXTERNAL_THRESHOLD) -> Iterator[Staged]:
    """Write ``model`` beside ``target`` and yield it; without ``commit()``, nothing of it is left behind.

    Weights above ``external_above`` bytes in all go to a file of their own, named by the hash of its content, so
    that the old model file keeps its data until the new one replaces it.
    """
    target = Path(target)
    inputs = model.source.data if model.source is not None else frozenset()
    if any(target.resolve() == path.resolve() for path in inputs):
        raise UsageError("the output would overwrite the input model's external data", "give another file name with -o")
    try:
        staged: Staged | None = None
        with contextlib.ExitStack() as stack:
            weights = list(model.constants(model.bare_graphs()))
            data: Path | None = None
            if sum(map(values.nbytes, weights)) > external_above:
                data, existed, proto = _write_data(model, target)
                if not existed:
                    stack.callback(lambda: _discard(data, staged))
                pieces = iter((proto.SerializeToString(deterministic=True),))
                del proto
            else:
                pieces = model.pieces(weights)
            draft = stack.enter_context(atomic.temporary(target))
            with draft.open("wb") as file:
                file.writelines(pieces)
            staged = Staged(draft, target, data, keep=inputs)
            yield staged
    except (OSError, EncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free some space, or give another -o" if full else "give another -o"
        raise UsageError(f"cannot write {target}: {reason}", hint) from None


def _discard(data: Path, staged: Staged | None) -> None:
    if staged is None or not staged.committed:
        data.unlink(missing_ok=True)


def save(model: Model, target: str | Path, external_above: int = EXTERNAL_THRESHOLD) -> None:
    """Write ``model`` to ``target`` atomically. Raises UsageError when the place cannot be written."""
    with stage(model, target, external_above) as staged:
        staged.commit()


class _PlacedValues(values.StubValues):
    """An initializer exported as a reference into the data file."""

    def __init__(self, tensor: gs.Constant, offset: int, length: int) -> None:
        super().__init__(tensor)
        self.tensor.external_data.add(key="offset", value=str(offset))
        self.tensor.external_data.add(key="length", value=str(length))


def _write_data(model: Model, target: Path) -> tuple[Path, bool, onnx.ModelProto]:
    """Stream the weights to a data file, one array at a time.

    Returns the file, whether it was there before, and a proto of the model that refers to it.
    """
    placed: list[tuple[gs.Constant, object]] = []
    digest, offset = hashlib.sha256(), 0
    try:
        with atomic.temporary(target, ".data.tmp") as draft:
            with draft.open("wb") as file:
                for constant in model.constants():
                    length = values.nbytes(constant)
                    if length < _INLINE_BELOW or not values.is_plain(constant):
                        continue
                    padding = bytes(-offset % _ALIGNMENT)
                    for chunk in (
                        padding,
                        np.ascontiguousarray(values.peek(constant)).reshape(-1).view(np.uint8).data,
                    ):
                        file.write(chunk)
                        digest.update(chunk)
                    offset += len(padding)
                    placed.append((constant, constant._values))
                    constant._values = _PlacedValues(constant, offset, length)
                    offset += length
            final = target.parent / f"{target.name}.{digest.hexdigest()[:16]}.data"
            existed = final.exists()
            atomic.replace(draft, final)
        proto = model.to_proto()
    finally:
        for constant, earlier in placed:
            constant._values = earlier  # type: ignore[assignment]
    for tensor in external.external_tensors(Contents.of(proto)):
        tensor.external_data[0].value = final.name
    return final, existed, proto
