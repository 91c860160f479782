"""Exports torchvision's classifiers with random weights, by both of PyTorch's exporters, to measure passes on.

    python -m venv ENV && ENV/bin/pip install torch torchvision onnx onnxscript
    ENV/bin/python benchmarks/export_torchvision.py --out DIR [--only NAME ... | --all] [--exporter NAME] [--shared]

One of each family of architectures, or with --all all of torchvision's. One file per model and exporter,
NAME.script.onnx (TorchScript, opset 17) and NAME.dynamo.onnx (opset 18), with a symbolic batch. Both exporters optimize
what they write; script-raw and dynamo-raw are what they write without that.
Weights are drawn from a seed, so nothing is downloaded; every parameter and every statistic of a batch norm differs
from all others, as in a trained model. Fresh models share their ones and zeros, which tools that merge equal
initializers would remove from the benchmark only; --shared leaves those as they are (NAME.script-shared.onnx), for
tools that must cope with one initializer in many roles. A file that is there is not made again.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

# One of each family, or two where they differ by more than their size.
MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
    *("efficientnet_v2_s", "densenet121", "shufflenet_v2_x1_0", "regnet_y_400mf", "convnext_tiny", "vit_b_16"),
    *("swin_t", "swin_v2_t", "googlenet", "inception_v3", "squeezenet1_1", "mnasnet1_0"),
)
# Sides of the input that these need at least, or are built for; 64 does for all others, as sizes change no node.
SMALLEST = {"alexnet": 224, "vgg": 224, "vit_": 224, "swin_": 224, "maxvit_": 224, "inception_": 128}
# Their weights exceed the 2 GB that one ONNX file can hold.
TOO_LARGE = ("regnet_y_128gf", "vit_h_14")
EXPORTERS = ("script", "dynamo", "script-raw", "dynamo-raw")
OPSETS = {"script": 17, "dynamo": 18}


def everything(side: int = 64) -> dict[str, int]:
    """All classifiers that fit into a file, and their input sizes: ``side``, or what they need at least."""
    names = [n for n in torchvision.models.list_models(module=torchvision.models) if n not in TOO_LARGE]
    least = {n: next((size for prefix, size in SMALLEST.items() if n.startswith(prefix)), 0) for n in names}
    return {n: max(side, size) if size != 224 else 224 for n, size in least.items()}


def build(name: str, shared: bool = False) -> nn.Module:
    """The classifier in evaluation mode, with weights of its own."""
    torch.manual_seed(0)
    known = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **known).eval()
    with torch.no_grad():
        for module in model.modules():
            randomize(module, shared)
    return model


def randomize(module: nn.Module, shared: bool) -> None:
    """Draw the module's own parameters, at a scale that keeps activations near one, and batch-norm statistics.

    ``shared``: only what is not a vector; gains stay ones and biases zeros.
    """
    gain = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)
    for key, parameter in module.named_parameters(recurse=False):
        if shared and parameter.dim() < 2:
            parameter.fill_(1.0 if gain and key == "weight" else 0.0)
            continue
        if gain and key == "weight":
            parameter.uniform_(0.8, 1.2)
        elif parameter.dim() >= 2:
            parameter.normal_(0.0, (1.5 / max(parameter[0].numel(), 1)) ** 0.5)
        else:
            parameter.uniform_(-0.1, 0.1)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and not shared:
        assert module.running_mean is not None and module.running_var is not None
        module.running_mean.uniform_(-0.2, 0.2)
        module.running_var.uniform_(0.6, 1.4)


def export(model: nn.Module, size: int, exporter: str, path: Path) -> None:
    """Write the model with the input ``input`` [batch,3,size,size] and the output ``output``, whole or not at all."""
    images = torch.randn(2, 3, size, size)
    draft = path.with_suffix(".tmp")
    kind, _, raw = exporter.partition("-")
    common = {"input_names": ["input"], "output_names": ["output"], "opset_version": OPSETS[kind]}
    if kind == "script":
        axes = {"input": {0: "batch"}, "output": {0: "batch"}}
        if raw:  # evaluation mode would fold batch norms
            common |= {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
        torch.onnx.export(model, (images,), draft, dynamo=False, dynamic_axes=axes, **common)
    else:
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        common |= {"external_data": False, "verbose": False, "optimize": not raw}
        torch.onnx.export(model, (images,), draft, dynamo=True, dynamic_shapes=shapes, **common)
    draft.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=MODELS, choices=list(everything()), metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all classifiers; takes 40 minutes and 13 GB per exporter")
    parser.add_argument("--side", type=int, default=64, help="of the images, where the architecture allows it")
    parser.add_argument("--shared", action="store_true", help="equal parameters stay equal, as in a fresh model")
    parser.add_argument("--exporter", choices=EXPORTERS, default=None, help="default: all four")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    failed = []
    sizes = everything(options.side)
    for name in sizes if options.all else options.only:
        for exporter in EXPORTERS if options.exporter is None else (options.exporter,):
            path = options.out / f"{name}.{exporter}{'-shared' if options.shared else ''}.onnx"
            if path.exists():
                continue
            began = time.perf_counter()
            try:
                export(build(name, options.shared), sizes[name], exporter, path)
            except Exception as error:  # one exporter's failure must not keep the other models from being written
                failed.append(path.name)
                print(f"{path.name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            else:
                print(
                    f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - began:.1f} s", flush=True
                )
    if failed:
        raise SystemExit(f"{len(failed)} of the exports failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
