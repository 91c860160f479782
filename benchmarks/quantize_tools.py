"""One quantizer on one model, in the environment that this is run in; and OpenVINO as a runtime.

    ENV/bin/python quantize_tools.py TOOL SOURCE TARGET --images IMAGES.npy

SOURCE is a float ONNX file, IMAGES float32 [n,...] as the model takes them. Tools quantize with their defaults for
convolutional classifiers, to int8 with QuantizeLinear and DequantizeLinear. The tool ``openvino-run`` writes what
OpenVINO's CPU plugin predicts to TARGET (.npy). Prints a line of JSON: seconds and version, or the error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def ort(source: Path, target: Path, images: np.ndarray) -> str:
    """uint8 activations, int8 weights per channel, MinMax, after its own pre-processing."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.split(images, len(images)))
            self.name = input_name(source)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {self.name: batch}

    prepared = target.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(target), Reader(), per_channel=True, **types)
    return version("onnxruntime")


def nncf(source: Path, target: Path, images: np.ndarray) -> str:
    import nncf as tool
    import onnx

    name = input_name(source)
    data = tool.Dataset([{name: batch} for batch in np.split(images, len(images))])
    # Its default for transformers and for other models differ; its documentation has one call for each.
    kind = tool.ModelType.TRANSFORMER if "vit" in source.name else None
    onnx.save(tool.quantize(onnx.load(source), data, subset_size=len(images), model_type=kind), target)
    return version("nncf")


def aimet(source: Path, target: Path, images: np.ndarray) -> str:
    import onnx
    from aimet_onnx.quantsim import QuantizationSimModel

    name = input_name(source)
    sim = QuantizationSimModel(onnx.load(source), param_type="int8", activation_type="int8")
    sim.compute_encodings([{name: batch} for batch in np.split(images, len(images))])
    onnx.save(sim.to_onnx_qdq(), target)
    return version("aimet-onnx")


def openvino_run(source: Path, target: Path, images: np.ndarray) -> str:
    import openvino as ov

    model = ov.Core().compile_model(str(source), "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    np.save(target, np.concatenate([model([x])[0].argmax(1) for x in np.split(images, len(images))]))
    return version("openvino")


def input_name(source: Path) -> str:
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    held = {t.name for t in graph.initializer}
    return next(i.name for i in graph.input if i.name not in held)


TOOLS: dict[str, Callable[[Path, Path, np.ndarray], str]] = {
    "onnxruntime": ort,
    "nncf": nncf,
    "aimet": aimet,
    "openvino-run": openvino_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    found: dict[str, Any]
    with contextlib.redirect_stdout(sys.stderr):  # tools talk
        began = time.perf_counter()
        try:
            used = TOOLS[options.tool](options.source, options.target, np.load(options.images))
            found = {"seconds": time.perf_counter() - began, "version": used}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
