"""Peak memory and time of ``simplify`` on a model of several GB, whose weights are external data.

    python benchmarks/simplify_memory.py [--gigabytes 3] [--work DIR]

The model is a row of Gemms of 64 MiB each, with batch norms to fold, Identities and a Reshape of computed shape between
them. Its run is a process of its own, with the comparison before and after.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 4096  # 4096 x 4096 float32 values: 64 MiB


def write_model(path: Path, layers: int) -> int:
    """Write the model and its data file layer by layer; the bytes of both."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], []
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        last = "x"
        for k in range(layers):
            block = (rng.standard_normal((_WIDTH, _WIDTH), np.float32) / np.float32(_WIDTH) ** 0.5).tobytes()
            weight = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", str(file.tell())), ("length", str(len(block)))):
                weight.external_data.add(key=key, value=value)
            file.write(block)
            initializers.append(weight)
            nodes.append(helper.make_node("Gemm", [last, f"w{k}"], [f"g{k}"], f"gemm{k}"))
            last = f"g{k}"
            if k % 8 == 0:  # one layer in eight has its weights rewritten
                for name, low, high in (("s", 0.5, 1.5), ("b", -0.1, 0.1), ("m", -0.1, 0.1), ("v", 0.5, 1.5)):
                    array = rng.uniform(low, high, _WIDTH).astype(np.float32)
                    initializers.append(numpy_helper.from_array(array, f"{name}{k}"))
                inputs = [last, *(f"{n}{k}" for n in "sbmv")]
                nodes.append(helper.make_node("BatchNormalization", inputs, [f"n{k}"], f"norm{k}"))
                last = f"n{k}"
            nodes.append(helper.make_node("Relu", [last], [f"r{k}"], f"relu{k}"))
            nodes.append(helper.make_node("Identity", [f"r{k}"], [f"i{k}"], f"identity{k}"))
            last = f"i{k}"
    nodes.append(helper.make_node("Shape", [last], ["shape"], "shape"))
    nodes.append(helper.make_node("Reshape", [last, "shape"], ["y"], "reshape"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", _WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.stat().st_size + data.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--work", type=Path, help="folder for the model, with room for three of it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        path = Path(folder) / "large.onnx"
        size = write_model(path, round(options.gigabytes * 1e9 / (4 * _WIDTH**2)))
        code = (
            "import sys; from pathlib import Path; from graphopt.driver.config import Settings; "
            "from graphopt.ir import load, save; from graphopt.pipeline import Context, Registry; "
            "from graphopt.pipeline.manager import PassManager; from graphopt.runtime.target import get_target; "
            "from graphopt.data.synthetic import synthetic_batches; "
            "model = load(sys.argv[1]); images = type('Images', (), {'synthetic': True, "
            "'batches': lambda self, n, limit=None: iter(())})(); "
            "ctx = Context(get_target('ort-cpu'), images, model.copy()); "
            "PassManager(Registry().build('simplify')).run(model, ctx); "
            "save(model, Path(sys.argv[1]).with_suffix('.opt.onnx')); print(len(model.graph.nodes), 'nodes left')"
        )
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("the run failed")
        peak = usage.ru_maxrss * 1024
        print(f"model {size / 1e9:.2f} GB, peak memory {peak / 1e9:.2f} GB: {peak / size:.2f}x")
        print(f"{time.perf_counter() - began:.1f} s, of which all but the passes is reading, comparing and writing")


if __name__ == "__main__":
    main()
