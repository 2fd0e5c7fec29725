"""The verb `card`: which preprocessing a model wants, found by trying."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image

from agmc_onnx.cli import main
from agmc_onnx.data.card import load_card
from agmc_onnx.data.images import resize
from agmc_onnx.data.samples import open_data
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.verbs.card import _sure, _Tried, card
from tests import nets

TEXT = """
f (float[n, 3, 12, 12] x) => (float[n, 4] y) {
    d = Sub (x, m)
    s = Div (d, s0)
    p = GlobalAveragePool (s)
    q = Flatten (p)
    y = Gemm (q, w, b)
}
"""


def colours() -> onnx.ModelProto:
    """Sure which of red, green and blue is there, if it gets -1..1 in the order BGR; else of nothing, or always of one."""
    w = 10 * np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    weights = {"m": np.zeros((1, 1, 1, 1), np.float32), "s0": np.ones((1, 1, 1, 1), np.float32), "w": w}
    return nets.model(TEXT, weights | {"b": np.array([0, 0, 0, -6], np.float32)}, 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 30 images in three classes, and a file that is none."""
    rng = np.random.default_rng(0)
    for name, channel in (("0", 0), ("1", 1), ("2", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(40, 90, (16, 20, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "notes.txt").write_text("none")
    onnx.save(colours(), tmp_path / "net.onnx")
    return tmp_path / "photos"


def test_with_labels_the_most_accurate_card_is_kept(photos: Path, capsys) -> None:
    output = photos.parent / "card.toml"
    assert main(["card", str(photos.parent / "net.onnx"), str(photos), "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "30 images found, 1 other files skipped; 30 tried" in printed
    assert "by accuracy: 1.000" in printed and "answer: class" in printed
    made = load_card(output)
    assert made.color == "BGR" and made.images.resolve() == photos.resolve()
    found = open_data(made, model_inputs(colours()))
    assert found.metric == "top1"


def test_without_labels_the_one_that_says_most(photos: Path) -> None:
    flat = photos.parent / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        path.rename(flat / f"{path.parent.name}_{path.name}")
    made = card(photos.parent / "net.onnx", flat)
    assert made.report.judged == "sureness" and made.report.sure is not None
    scores = [one["score"] for one in made.report.tried]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1] + 0.05
    assert {"scale", "mean", "std"} & set(made.report.tried[0]["card"])  # 0..1 says less


def test_a_choice_is_sure_where_others_do_the_same_in_effect() -> None:
    def one(scores: np.ndarray) -> _Tried:
        rows = SimpleNamespace(n=100)
        return _Tried({}, rows, lambda drawn: float(scores[drawn].mean()), float(scores.mean()), False)  # type: ignore[arg-type]

    scores = np.random.default_rng(0).uniform(1.0, 2.0, 100)
    noise = 0.01 * np.random.default_rng(1).standard_normal(100)
    best = one(scores)
    assert _sure(best, [best, one(scores + noise - noise.mean())]) == 1.0
    assert _sure(best, [best, one(np.random.default_rng(2).permutation(scores))]) < 0.8


def test_models_without_pictures_are_refused(photos: Path, capsys) -> None:
    net = nets.model("f (float[n, 4] x) => (float[n, 2] y) { y = MatMul (x, w) }", {"w": (4, 2)}, 0)
    onnx.save(net, photos.parent / "table.onnx")
    assert main(["card", str(photos.parent / "table.onnx"), str(photos)]) == 2
    assert "takes no pictures alone, got inputs x; expected one of four dims" in capsys.readouterr().err


def test_letterboxes() -> None:
    image = np.full((10, 20, 3), 7, np.uint8)
    found = resize(image, (20, 20), 114)
    assert found.shape == (20, 20, 3)
    assert (found[:10] == 7).all() and (found[10:] == 114).all()
    assert (resize(image, (20, 40), 114) == 7).all()
