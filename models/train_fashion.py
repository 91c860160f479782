"""Train the demo classifier: a small residual CNN for Fashion-MNIST.

How to rerun (about 10 minutes on two CPU cores):

    apt-get install dataset-fashion-mnist        # the data, MIT licence
    pip install torch==2.13.0 numpy onnx onnxruntime
    python models/train_fashion.py --out models

Without the Debian package, put the four original ``*-ubyte.gz`` files in a
folder and name it with ``--data``.  The script writes to ``--out``:

    fashion-resnet.onnx        the trained network, BatchNormalization not folded
    fashion-calibration.npz    512 random training images
    fashion-evaluation.npz     6,000 test images, 600 of each class

and then runs the ONNX file in ONNX Runtime on all 10,000 test images.  The test
images are read only at the end: nothing is chosen by looking at them.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

DEFAULT_DATA = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_IMAGES = 512
EVALUATION_PER_CLASS = 600


# --- the network ------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 where the shape changes)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """Stem at 28x28, then three stages of two blocks at 14x14, 7x7 and 4x4."""

    def __init__(self, stem=16, widths=(24, 48, 96), classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        blocks, channels = [], stem
        for width in widths:
            blocks += [Block(channels, width, stride=2), Block(width, width, stride=1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


# --- the data ---------------------------------------------------------------


def read_idx(path):
    """Read one gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">u4", dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load(folder, split):
    return (
        read_idx(folder / f"{split}-images-idx3-ubyte.gz"),
        read_idx(folder / f"{split}-labels-idx1-ubyte.gz"),
    )


def to_float(images):
    """The whole preprocessing: uint8 [N,28,28] -> float32 [N,1,28,28] in 0..1."""
    return images[:, None].astype(np.float32) / 255


def augment(x, pad=2):
    """Shift every image by up to `pad` pixels and mirror half of them."""
    n, _, height, width = x.shape
    dy = torch.randint(0, 2 * pad + 1, (n, 1))
    dx = torch.randint(0, 2 * pad + 1, (n, 1))
    rows = (torch.arange(height) + dy)[:, :, None]
    columns = torch.arange(width).expand(n, width)
    flip = torch.rand(n, 1) < 0.5
    columns = (torch.where(flip, width - 1 - columns, columns) + dx)[:, None, :]
    padded = F.pad(x, (pad,) * 4)[:, 0]
    return padded[torch.arange(n)[:, None, None], rows, columns][:, None]


def write_samples(args, train, test):
    """Write the calibration (training) and evaluation (test) images."""
    rng = np.random.default_rng(args.seed)
    calibration = np.sort(rng.choice(len(train[0]), CALIBRATION_IMAGES, replace=False))
    evaluation = np.sort(
        np.concatenate(
            [rng.choice(np.flatnonzero(test[1] == c), EVALUATION_PER_CLASS, replace=False) for c in range(10)]
        )
    )
    for name, (x, y), keep in (
        ("fashion-calibration.npz", train, calibration),
        ("fashion-evaluation.npz", test, evaluation),
    ):
        np.savez_compressed(args.out / name, x=x[keep], y=y[keep].astype(np.int64))
        print(f"{name}: {len(keep)} images, {(args.out / name).stat().st_size:,} bytes")


# --- training ---------------------------------------------------------------


def train_network(args, images, labels):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = FashionResNet().to(memory_format=torch.channels_last)
    x, y = torch.from_numpy(to_float(images)), torch.from_numpy(labels.astype(np.int64))
    steps = -(-len(x) // args.batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=args.epochs * steps, pct_start=0.2
    )
    # An L1 penalty on the inner BatchNorm scales ("network slimming") lets the
    # network switch off channels it does not need, for a pruner to find.
    inner_scales = [block.bn1.weight for block in model.blocks]

    for epoch in range(args.epochs):
        start, total = time.time(), 0.0
        model.train()
        for batch in torch.randperm(len(x)).split(args.batch):
            inputs = augment(x[batch]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), y[batch], label_smoothing=0.05)
            penalty = args.slimming * sum(scale.abs().sum() for scale in inner_scales)
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{args.epochs}: training loss {total / steps:.4f}, {time.time() - start:.0f} s",
            flush=True,
        )
    return model.eval().to(memory_format=torch.contiguous_format)


# --- export and evaluation --------------------------------------------------


def export(model, path):
    """Write ONNX with a free batch size and BatchNormalization left in place."""
    torch.onnx.export(
        model,
        torch.zeros(1, 1, 28, 28),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def top1(path, images, labels):
    """Percent of `images` that ONNX Runtime classifies correctly."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    correct = 0
    for i in range(0, len(images), 500):
        logits = session.run(["logits"], {"input": to_float(images[i : i + 500])})[0]
        correct += int((logits.argmax(1) == labels[i : i + 500]).sum())
    return 100 * correct / len(images)


def count(model):
    """Parameters, and multiply-accumulates for one image (Conv and Linear)."""
    macs, handles = 0, []

    def hook(layer, _, output):
        nonlocal macs
        macs += layer.weight.numel() * output[0, 0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    for handle in handles:
        handle.remove()
    return sum(p.numel() for p in model.parameters()), macs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of *-ubyte.gz")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slimming", type=float, default=5e-4, help="L1 on inner BN scales")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    train, test = load(args.data, "train"), load(args.data, "t10k")
    write_samples(args, train, test)
    model = train_network(args, *train)
    path = args.out / "fashion-resnet.onnx"
    export(model, path)

    parameters, macs = count(model)
    print(f"{path.name}: {parameters:,} parameters, {macs:,} MACs, {path.stat().st_size:,} bytes")
    with np.load(args.out / "fashion-evaluation.npz") as evaluation:
        print(f"evaluation npz: top-1 {top1(path, evaluation['x'], evaluation['y']):.2f} %")
    print(f"{len(test[0]):,} test images: top-1 {top1(path, *test):.2f} %")


if __name__ == "__main__":
    main()
