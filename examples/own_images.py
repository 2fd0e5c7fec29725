"""Compress a model with a folder of image files and a data card, as one would with images of one's own.

The folder is made here from the digits that come with the project: first with a folder per class, then without labels.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import agmc_onnx
from agmc_onnx.data import card

MODEL = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
CARD = """
images = "photos"
color  = "L"
scale  = 16.0   # these pixels are 0..16

[roles]
calibration = "0:100"
reward      = "100:250"
test        = "250:450"
"""


def write_photos(folder: Path, n: int = 450) -> None:
    """Write the images of the digits' own roles as PNG files, a folder for each class."""
    digits = np.load(Path(card.__file__).parent / "digits" / "digits.npz")
    for i, (pixels, label) in enumerate(zip(digits["x"][:n], digits["y"][:n], strict=True)):
        place = folder / f"{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(place / f"{i:04}.png")


if __name__ == "__main__":
    write_photos(Path("photos"))
    Path("card.toml").write_text(CARD, encoding="utf-8")
    known = agmc_onnx.measure(MODEL, data="card.toml", seconds=0.2)["models"][0]["metric"]
    print(f"the card is right if this is the accuracy you know: {known['value']:.2f} %")
    options = {"policy": "greedy", "latency_seconds": 0.2}
    made = agmc_onnx.compress(MODEL, flops=0.4, data="card.toml", output="small.onnx", **options).report
    print(f"with labels: {made['compressed']['metric']['value']:.2f} % right")

    unlabelled = Path("unlabelled")
    unlabelled.mkdir()
    for path in Path("photos").glob("*/*.png"):
        path.rename(unlabelled / path.name)
    Path("plain.toml").write_text('images = "unlabelled"\ncolor = "L"\nscale = 16.0\n', encoding="utf-8")
    made = agmc_onnx.compress(MODEL, flops=0.4, data="plain.toml", output="small2.onnx", **options).report
    print(f"without labels: {made['compressed']['metric']['value']:.2f} % as the original answers")
