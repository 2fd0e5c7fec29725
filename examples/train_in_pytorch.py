"""A small detector learns with a loss of one's own in PyTorch, and goes back into its ONNX file.

It looks for one bright square in noise, on a grid of 4 by 4 cells: each cell says whether the square's centre is in it, and
where. What is learned is what the file answers afterwards: same graph, same names.
"""

from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import numpy_helper

import agmc_onnx

NET = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[1, 1, 32, 32] image) => (float[1, 16, 3] found) {
    a = Conv<kernel_shape=[5, 5], strides=[2, 2], pads=[2, 2, 2, 2]> (image, body_first_weight, body_first_bias)
    b = Relu (a)
    c = Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]> (b, body_second_weight, body_second_bias)
    d = Relu (c)
    e = Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]> (d, head_weight, head_bias)
    f = Reshape (e, shape)
    found = Transpose<perm=[0, 2, 1]> (f)
}
"""
WEIGHTS = {"body.first": (8, 1, 5, 5), "body.second": (16, 8, 3, 3), "head": (3, 16, 3, 3)}


def make_detector() -> onnx.ModelProto:
    """Return the net with random weights, whose names are as PyTorch writes them: the text above knows no dots."""
    model, rng = onnx.parser.parse_model(NET), np.random.default_rng(0)
    for node in model.graph.node:
        node.input[:] = [name.replace("_", ".") for name in node.input]
    arrays = {"shape": np.array([1, 3, 16])}
    for name, shape in WEIGHTS.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        arrays[f"{name}.weight"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        arrays[f"{name}.bias"] = np.zeros(shape[0], np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def draw(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (n, 1, 32, 32) images and the (n, 2) centres of their squares, x and y in pixels."""
    rng = np.random.default_rng(seed)
    images, centres = 0.3 * rng.standard_normal((n, 1, 32, 32)), rng.uniform(3, 29, (n, 2))
    for image, (x, y) in zip(images, centres, strict=True):
        image[0, int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] += 1.5
    return torch.tensor(images, dtype=torch.float32), torch.tensor(centres, dtype=torch.float32)


def my_loss(found: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the loss of (n, 16, 3) answers: which cell, and where in it."""
    cell = (centres // 8).long()
    index = cell[:, 1] * 4 + cell[:, 0]
    place = found[torch.arange(len(found)), index, 1:]
    return F.cross_entropy(found[..., 0], index) + F.mse_loss(place, centres % 8 / 8)


def pixels_off(found: np.ndarray, centres: np.ndarray) -> float:
    """Return the median distance of the best cell's answer from the truth."""
    best = found[..., 0].argmax(1)
    cell = np.stack([best % 4, best // 4], axis=1)
    return float(np.median(np.linalg.norm(8 * (cell + found[np.arange(len(found)), best, 1:]) - centres, axis=1)))


if __name__ == "__main__":
    onnx.save(make_detector(), "detector.onnx")
    network = agmc_onnx.to_torch("detector.onnx")
    print("parameters:", ", ".join(name for name, _ in network.named_parameters()))
    images, centres = draw(512, seed=1)
    tests, truth = draw(64, seed=2)
    with torch.no_grad():
        print(f"before: {pixels_off(network(tests).numpy(), truth.numpy()):.1f} pixels off")
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    for step in range(150):
        rows = torch.arange(32) + 32 * (step % 16)
        loss = my_loss(network(images[rows]), centres[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    agmc_onnx.from_torch(network, like="detector.onnx", output="tuned.onnx")
    session = onnxruntime.InferenceSession("tuned.onnx")
    answers = np.concatenate([session.run(None, {"image": image[None].numpy()})[0] for image in tests])
    with torch.no_grad():
        assert np.allclose(answers, network(tests).numpy(), atol=1e-4)  # the file answers as the network does
    off = pixels_off(answers, truth.numpy())
    print(f"after: {off:.1f} pixels off, {Path('tuned.onnx').stat().st_size:,} bytes")
    assert off < 2
