"""Train small networks of kinds whose weights do not come with the project: a ViT, a segmenter, a keyword transformer.

    python -m tools.experiments.own_networks vit segmenter keyword --out runs/own

Each is written as NAME.onnx, NAME.npz (arrays named after the graph's input, and y) and NAME.toml (the card), in some minutes
on one core. The data are drawn from scikit-learn's digits, or made: a word is a sequence of three gliding tones in noise, seen
as 48 frames of 24 bands. One seed gives one network.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.export import INPUT, trace_torchscript

N_WORDS, FRAMES, BANDS = 12, 48, 24
SIDE = 32  # of the pictures that are segmented
OPSET = 17
CARD = 'images = "{name}.npz"\nmetric = "{metric}"\n'


class Tokens(nn.Module):
    """A transformer that normalises before its branches, over tokens of the input; scores of the mean token."""

    def __init__(
        self, n_in: int, n_tokens: int, n_classes: int, width: int = 64, depth: int = 6, heads: int = 4
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.places = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (n, classes) of tokens (n, tokens, numbers)."""
        x = self.embed(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (y.reshape(n, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        met = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(c // self.heads), -1) @ v
        x = x + self.out(met.transpose(1, 2).reshape(n, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Vit(nn.Module):
    """Patches of 4 x 4 of a picture of 32 x 32, in one plane."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = Tokens(16, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (n, 10) of pictures (n, 1, 32, 32)."""
        return self.tokens(F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2))


class Segmenter(nn.Module):
    """A small U-Net; scores (n, 11, 32, 32): ten digits and the ground."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c = _twice(1, width), _twice(width, 2 * width), _twice(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.d, self.e = _twice(4 * width, 2 * width), _twice(2 * width, width)
        self.head = nn.Conv2d(width, 11, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (n, 11, 32, 32) of pictures (n, 1, 32, 32)."""
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up2(c), b], 1))
        return self.head(self.e(torch.cat([self.up1(d), a], 1)))


def _twice(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)


def digits_in_a_picture(rng: np.random.Generator, n: int, n_each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (n, 1, 32, 32) of so many digits each, in noise, and the classes of their pixels.

    Ten is the ground. Of one digit alone the whole picture is filled.
    """
    data = load_digits()
    x, y = np.zeros((n, 1, SIDE, SIDE), np.float32), np.full((n, SIDE, SIDE), 10, np.int64)
    for i in range(n):
        for _ in range(n_each):
            at = rng.integers(len(data.target))
            size = int(rng.integers(12, 21))
            small = torch.from_numpy(data.images[at].astype(np.float32) / 16)[None, None]
            digit = F.interpolate(small, (size, size), mode="bilinear")[0, 0].numpy()
            top, left = rng.integers(0, SIDE - size + 1, 2)
            place = np.s_[top : top + size, left : left + size]
            is_ink = digit > 0.4
            x[i, 0][place] = np.maximum(x[i, 0][place], digit)
            y[i][place][is_ink] = data.target[at]
    return x + 0.15 * rng.standard_normal(x.shape).astype(np.float32), y


def words(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return spectrograms (n, 48, 24) of made-up words and which of twelve each is."""
    tones = np.random.default_rng(7).uniform(2, BANDS - 2, (N_WORDS, 3, 4))  # three voices through four bands
    x, y = np.zeros((n, FRAMES, BANDS), np.float32), rng.integers(N_WORDS, size=n)
    bands = np.arange(BANDS)
    for i in range(n):
        begin, length = rng.integers(0, 14), rng.integers(26, 35)
        at = np.linspace(0, 3, length) ** rng.uniform(0.8, 1.2)
        for voice in tones[y[i]]:
            centre = np.interp(at, range(4), voice + rng.normal(0, 1.0, 4)) + rng.normal(0, 0.7)
            x[i, begin : begin + length] += rng.uniform(0.6, 1.2) * np.exp(-((bands - centre[:, None]) ** 2) / 2)
    return x + 0.45 * rng.standard_normal(x.shape).astype(np.float32), y.astype(np.int64)


def vit_data(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of one digit each, and which it is."""
    x, y = digits_in_a_picture(rng, n, 1)
    return x, y.reshape(n, -1).min(1)


Data = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Data, str, int]] = {
    "vit": (Vit, vit_data, "top1", 40),
    "segmenter": (Segmenter, lambda rng, n: digits_in_a_picture(rng, n, 2), "miou", 6),
    "keyword": (lambda: Tokens(BANDS, FRAMES, N_WORDS), words, "top1", 6),
}


def train(name: str, out: Path, seed: int = 0) -> float:
    """Train a network, write its three files, and return its accuracy, 0 to 1, on samples that it did not learn from."""
    make, data, metric, epochs = NETWORKS[name]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = make()
    x, y = map(torch.from_numpy, data(rng, 6000))
    held_x, held_y = data(rng, 2500)
    steps, size = epochs * len(x) // 50, 50
    optimiser = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for step in range(steps):
        rows = torch.from_numpy(rng.permutation(len(x))[:size])
        loss = F.cross_entropy(module(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", file=sys.stderr)
    module.eval()
    with torch.no_grad():
        right = torch.cat([module(part).argmax(1) for part in torch.from_numpy(held_x).split(250)]).numpy() == held_y
    onnx.save(trace_torchscript(module, x[:2], OPSET, keep_batchnorm=False), out / f"{name}.onnx")
    np.savez_compressed(out / f"{name}.npz", **{INPUT: held_x, "y": held_y})
    (out / f"{name}.toml").write_text(CARD.format(name=name, metric=metric))
    return float(right.mean())


def main() -> None:
    """Train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("networks", nargs="+", choices=sorted(NETWORKS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.networks:
        print(f"{name}: {100 * train(name, given.out):.2f} % of what it did not learn from")


if __name__ == "__main__":
    main()
