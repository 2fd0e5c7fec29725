"""Train the example network: python -m models.digits.train

Rewrites `agmc_onnx/data/digits/digits.npz` (the images) and `agmc_onnx/data/digits/digits_resnet.onnx` (the network), and prints
what it measured. The same seed, machine and PyTorch version give the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.counting import count_macs, count_params
from models.export import to_onnx
from models.resnet import BasicBlock, BasicResNet

IMAGES = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits.npz"
MODEL = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
INPUT_SHAPE = (1, 1, 8, 8)

REWARD = slice(150, 450)  # as in agmc_onnx/data/digits/digits.toml; 0:150 is for calibration
TEST = slice(450, 800)
TRAIN = slice(800, 1797)

EPOCHS = 40
BATCH = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3
DROPPED = 0.1  # share of the channels inside each block that a training step does without


def write_images(path: Path, seed: int = 0) -> None:
    """Write scikit-learn's digits in a shuffled order: arrays x, uint8 (1797, 8, 8, 1) in 0..16, and y, uint8 (1797,).

    The held-out images come first and the training images last; see the slices above.
    """
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = digits.images[order].astype(np.uint8)[..., None]
    y = digits.target[order].astype(np.uint8)
    np.savez_compressed(path, x=x, y=y)


def read_images(path: Path, rows: slice) -> tuple[Tensor, Tensor]:
    """Return images, float32 (n, 1, 8, 8) in [0, 1], and labels, int64 (n,)."""
    with np.load(path) as arrays:
        x = arrays["x"][rows].transpose(0, 3, 1, 2).astype(np.float32) / 16
        y = arrays["y"][rows].astype(np.int64)
    return torch.from_numpy(x), torch.from_numpy(y)


def build_network() -> BasicResNet:
    """Return the untrained network: five basic blocks, 1x1 convolutions as shortcuts, one input channel."""
    return BasicResNet((2, 2, 1), (16, 32, 64), (1, 1, 2), shortcut="B", n_classes=10, n_input_channels=1)


def shift_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (n, C, H, W), each moved by -1, 0 or 1 pixel in both directions, with zeros moved in."""
    n_images, n_channels, height, width = images.shape
    dy, dx = torch.randint(0, 3, (2, n_images, 1), generator=generator)
    rows = (dy + torch.arange(height))[:, None, :, None]
    columns = (dx + torch.arange(width))[:, None, None, :]
    padded = F.pad(images, (1, 1, 1, 1))
    return padded[torch.arange(n_images)[:, None, None, None], torch.arange(n_channels)[:, None, None], rows, columns]


def drop_channels(maps: Tensor, generator: torch.Generator) -> Tensor:
    """Return maps (n, channels, H, W) with whole channels zeroed at random and the rest scaled up to make up for it."""
    keep = torch.rand(*maps.shape[:2], 1, 1, generator=generator) >= DROPPED
    return maps * keep / (1 - DROPPED)


def train(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, epochs: int = EPOCHS) -> None:
    """Fit the network in place: SGD with momentum, one learning-rate cycle, cross-entropy.

    Channels inside the blocks are dropped at random (Tompson et al. 2015, arXiv:1411.4280, section 3.2). Without that
    the accuracy is the same, but falls to chance once a quarter of them is pruned, and every plan looks equally bad.
    """
    hooks = [
        block.bn1.register_forward_hook(lambda _layer, _inputs, maps: drop_channels(maps, generator))
        for block in network.modules()
        if isinstance(block, BasicBlock)
    ]
    n_steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=n_steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(len(images) // BATCH):
            batch_index = order[step * BATCH : (step + 1) * BATCH]
            logits = network(shift_images(images[batch_index], generator))
            loss = F.cross_entropy(logits, labels[batch_index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for hook in hooks:
        hook.remove()
    network.eval()


def measure_accuracy(model_path: Path, images: Tensor, labels: Tensor) -> float:
    """Return the share of images, in [0, 1], whose largest output in onnxruntime is the label."""
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return float(np.mean(np.argmax(logits, axis=1) == labels.numpy()))


def main() -> None:
    """Write the images, train, export, measure."""
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images")
    parser.add_argument("--output", type=Path, default=MODEL, help="the ONNX file to write")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_images(IMAGES)
    torch.manual_seed(options.seed)  # the layers' constructors draw from the global generator
    network = build_network()
    train(network, *read_images(IMAGES, TRAIN), torch.Generator().manual_seed(options.seed))
    to_onnx(network, INPUT_SHAPE, options.output)

    print(f"macs {count_macs(network, INPUT_SHAPE)}, trained parameters {count_params(network)}")
    print(f"{options.output}: {options.output.stat().st_size} bytes")
    for role, rows in {"train": TRAIN, "reward": REWARD, "test": TEST}.items():
        accuracy = measure_accuracy(options.output, *read_images(IMAGES, rows))
        print(f"top-1, {rows.stop - rows.start} {role} images: {100 * accuracy:.2f} %")


if __name__ == "__main__":
    main()
