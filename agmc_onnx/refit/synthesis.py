"""Inputs made up where there are none: images with the spectrum of photographs, then shaped by the network's own statistics.

Power falls as 1 / f^2 in photographs (Field 1987). Where normalisation has stored the mean and variance of its inputs, images
are moved by gradients until they give the same (Yin et al. 2020, arXiv:1912.08795, eq. 4; Cai et al. 2020, arXiv:2001.00281).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.samples import Feed, Samples
from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.norm import is_stored
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.torch_view.module import TorchGraph

_SHARED = 0.8  # of the variance, that all colours have in common


def imagine(graph: Graph, samples: Samples, options: RecoverOptions | None = None) -> Samples:
    """Return made-up samples in place of random ones.

    Args:
        graph: The original.
        samples: Random samples that the model runs on: their number and shapes are kept. Inputs that are no images, and
            those of a model of a fixed batch, stay as they are.
        options: n_dream_steps, dream_rate, batch_size and seed count here.

    Raises:
        ModelError: If an op has no counterpart in torch.
    """
    options = options or RecoverOptions()
    feeds = samples.feeds(samples.n)
    names = [name for name, array in feeds[0].items() if array.ndim == 4 and np.issubdtype(array.dtype, np.floating)]
    if len(feeds) != 1 or samples.fixed_batch or not names:
        return samples
    feed: Feed = dict(feeds[0])
    generator = np.random.default_rng(options.seed)
    for name in names:
        feed[name] = natural(feed[name].shape, generator).astype(feed[name].dtype)
    norms = [node for node in graph.nodes if _has_statistics(graph, node)]
    if norms:
        size = min(options.batch_size, samples.n)
        parts = [
            _shaped(graph, norms, {name: array[at : at + size] for name, array in feed.items()}, names, options)
            for at in range(0, samples.n, size)
        ]
        feed = {name: np.concatenate([part[name] for part in parts]) for name in feed}
    return Samples(samples.name, lambda index: {n: a[index] for n, a in feed.items()}, np.arange(samples.n), None)


def can_imagine(graph: Graph) -> bool:
    """Return whether normalisation has stored what the network's images were like, and torch can run it."""
    if not any(_has_statistics(graph, node) for node in graph.nodes):
        return False
    try:
        TorchGraph(graph)
    except ModelError:
        return False
    return True


def natural(shape: tuple[int, ...], generator: np.random.Generator) -> FloatArray:
    """Return images of mean 0 and variance 1 whose amplitudes fall as 1 / f.

    Args:
        shape: (samples, channels, height, width), or (samples, height, width, channels) where only the last can be colours.
        generator: Draws them.
    """
    n, *rest = shape
    is_last = rest[0] not in (1, 3, 4) and rest[2] in (1, 3, 4)
    h, w, c = rest if is_last else (rest[1], rest[2], rest[0])
    distance = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :])
    amplitude = 1 / np.maximum(distance, 1 / max(h, w))
    noise = np.fft.rfft2(generator.standard_normal((n, c + 1, h, w)))
    planes = np.fft.irfft2(noise * amplitude, s=(h, w))
    planes /= planes.std(axis=(2, 3), keepdims=True) + 1e-12
    images = np.sqrt(_SHARED) * planes[:, :1] + np.sqrt(1 - _SHARED) * planes[:, 1:]
    return (images.transpose(0, 2, 3, 1) if is_last else images).astype(np.float32)


def _has_statistics(graph: Graph, node: Node) -> bool:
    return is_stored(node) and all(name in graph.tensors for name in node.inputs[3:5])


def _shaped(graph: Graph, norms: list[Node], feed: Feed, names: list[str], options: RecoverOptions) -> Feed:
    """Return one batch, moved until normalisation sees the statistics that it has stored."""
    module = TorchGraph(graph).eval().requires_grad_(False)
    values = {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}
    moved = [values[name].requires_grad_(True) for name in names]
    stored = [[torch.from_numpy(graph.array(name).astype(np.float32)) for name in node.inputs[3:5]] for node in norms]
    optimiser = torch.optim.Adam(moved, lr=options.dream_rate)
    wanted = list(dict.fromkeys(node.inputs[0] for node in norms))
    for _ in range(options.n_dream_steps):
        found = module.run(values, wanted)
        loss = torch.zeros(())
        for node, (mean, var) in zip(norms, stored, strict=True):
            loss = loss + _distance(found[node.inputs[0]], mean, var + node.attribute("epsilon", 1e-5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach().numpy() for name, value in values.items()}


def _distance(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Return how far a batch is from stored statistics: KL between normal distributions, averaged over the channels."""
    dims = [d for d in range(x.dim()) if d != 1]
    own_mean, own_var = x.mean(dims), x.var(dims, unbiased=False) + 1e-6 * var
    ratio = own_var / var
    return (0.5 * (ratio - 1 - ratio.log() + (own_mean - mean) ** 2 / var)).mean()
