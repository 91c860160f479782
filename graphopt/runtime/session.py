"""ONNX Runtime sessions on the CPU: opening, what they take and give, running them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphopt.data.model_io import Dim, ImageInput, Layout, image_input
from graphopt.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from graphopt.ir import Model

ModelSource = bytes | str | Path
PROVIDER = "CPUExecutionProvider"
_IN_MEMORY = 1_000_000_000  # bytes of weights; above, a file costs less than another copy

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "uint8": "uint8",
    "int8": "int8",
    "uint16": "uint16",
    "int16": "int16",
    "uint32": "uint32",
    "int32": "int32",
    "uint64": "uint64",
    "int64": "int64",
    "bool": "bool",
}


@dataclass(frozen=True)
class Port:
    """One input or output of a model; a dynamic dimension of ``shape`` is a name or None."""

    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class SessionIO:
    """All inputs and outputs of a model, in its order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def open_session(
    model: ModelSource,
    *,
    threads: int = 1,
    optimize: bool = True,
    config: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> InferenceSession:
    """Load a model for the CPU: serialized bytes, or a path (needed above 2 GB or with external data).

    ``threads`` work inside one operator. ``optimize=False`` runs the graph as it is written. ``config`` holds
    further session entries of ONNX Runtime. ``profile`` makes it time every kernel: the session's ``end_profiling``
    returns the file, whose name begins so. Raises ModelError with ONNX Runtime's own words if it refuses.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)  # what goes wrong is raised; stderr is not its to write on
    name = describe_source(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ModelError(f"no model at {model}: there is no such file", "give the path of an .onnx file")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; warnings concern the runtime, not the user
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    if not optimize:
        # It keeps weights in a second, rearranged form, which only pays when a session runs many times.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[PROVIDER])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise ModelError(
            f"ONNX Runtime does not load {name}: {shorten(error)}",
            "check that it is a valid ONNX model with operators that ONNX Runtime has",
        ) from error


@contextmanager
def runnable(model: Model) -> Iterator[bytes | Path]:
    """A model in a form that ``open_session`` takes: bytes, its own unchanged file, or a temporary one if it is large.

    A session that was opened within the block can be used after it.
    """
    from graphopt.ir import save
    from graphopt.ir.values import nbytes, release_pages

    large = sum(nbytes(c) for c in model.constants(model.bare_graphs())) >= _IN_MEMORY
    if model.unchanged_file is not None and model.unchanged_file.is_file():
        if large:
            release_pages(model.constants())
        yield model.unchanged_file
    elif not large:
        yield model.to_bytes()
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save(model, path, external_above=_IN_MEMORY)
            release_pages(model.constants())
            yield path


def session_io(session: InferenceSession) -> SessionIO:
    """What a session takes and gives. Raises ModelError for a type that numpy has not."""
    return SessionIO(tuple(_port(p) for p in session.get_inputs()), tuple(_port(p) for p in session.get_outputs()))


def session_input(session: InferenceSession, layout: Layout | None = None) -> ImageInput:
    """The image input of a classifier, with its number of classes if the output states it.

    Raises ModelError if there is not exactly one input, or it is no batch of images.
    """
    io = session_io(session)
    if len(io.inputs) != 1:
        names = ", ".join(repr(p.name) for p in io.inputs) or "none"
        raise ModelError(
            f"the model has {len(io.inputs)} inputs ({names}); a classifier has one, the images",
            "turn the others into constants before optimizing",
        )
    port = io.inputs[0]
    last = [d for d in io.outputs[0].shape[1:] if d != 1]
    classes = last[0] if len(last) == 1 and isinstance(last[0], int) else None
    return image_input(port.name, port.shape, port.dtype, layout=layout, classes=classes)


def run_session(session: InferenceSession, x: np.ndarray, batch: int | None = None) -> list[np.ndarray]:
    """All outputs for a batch ``x`` [n,...] of a model with one input.

    ``batch`` is the batch size that the model fixes, if it does: ``x`` is then fed in pieces of that size,
    the last one padded by repeating its last image, and the padding is cut off the outputs. Raises
    ModelError.
    """
    if batch is None or len(x) == batch:
        return _run(session, x)
    pieces: list[list[np.ndarray]] = []
    for start in range(0, len(x), batch):
        piece = x[start : start + batch]
        missing = batch - len(piece)
        if missing:
            piece = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        outputs = _run(session, piece)
        for output in outputs:
            if output.ndim == 0 or len(output) != batch:
                raise ModelError(
                    f"the model takes batches of {batch} but gives an output of shape {list(output.shape)}",
                    "export it with a dynamic batch dimension",
                )
        pieces.append([output[: batch - missing] for output in outputs])
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def run_feeds(session: InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs for named inputs. Raises ModelError with ONNX Runtime's own words if the run fails."""
    try:
        return [np.asarray(o) for o in session.run(None, dict(feeds))]
    except Exception as error:
        shapes = ", ".join(f"{k} {list(v.shape)} {v.dtype}" for k, v in feeds.items())
        raise ModelError(f"ONNX Runtime fails to run the model on {shapes}: {shorten(error)}") from error


def describe_source(model: ModelSource) -> str:
    """A name for messages."""
    return f"the model ({len(model)} bytes in memory)" if isinstance(model, bytes) else str(model)


def shorten(error: BaseException, limit: int = 400) -> str:
    """The first ``limit`` characters of a message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _run(session: InferenceSession, x: np.ndarray) -> list[np.ndarray]:
    return run_feeds(session, {session.get_inputs()[0].name: x})


def _port(port: object) -> Port:
    name, kind, shape = (getattr(port, k) for k in ("name", "type", "shape"))
    element = str(kind).removeprefix("tensor(").removesuffix(")")
    if element not in _DTYPES:
        raise ModelError(f"{name!r} has type {kind}, which graphopt cannot feed or read")
    return Port(name, tuple(shape), np.dtype(_DTYPES[element]))
