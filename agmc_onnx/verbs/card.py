"""The verb `card`: a data card for a model and a folder of images, tried out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.card import IMAGE_SUFFIXES, InputSpec
from agmc_onnx.data.samples import Samples, load_card, open_data
from agmc_onnx.errors import DataError, ModelError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.files import read_model, write_atomically
from agmc_onnx.graph.outputs import check_output
from agmc_onnx.measuring.closeness import class_scores
from agmc_onnx.measuring.outputs import Answer, answers_of
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.schema import Record
from agmc_onnx.verbs.given import Given, on_files, path_of

PIXELS: Mapping[str, dict[str, Any]] = {
    "0..1": {},
    "0..255": {"scale": 1.0},
    "-1..1": {"scale": 127.5, "mean": [1.0], "std": [1.0]},
    "ImageNet's mean and std": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "(x - 127) / 128": {"scale": 1.0, "mean": [127.0], "std": [128.0]},
    "less ImageNet's mean of 0..255": {"scale": 1.0, "mean": [123.675, 116.28, 103.53], "std": [1.0]},
}
USUAL = 224  # pixels, where the model leaves them open
DRAWS = 500  # of the samples, that say how sure a choice is
LEVEL = 0.01  # of the score: choices that are closer do the same in effect: a border of nothing, 127 for 127.5
SURE = 0.95  # share of them, from which on it is called sure
GREY = 114  # of letterboxes
Choice = dict[str, Any]


@dataclass(frozen=True, eq=False)
class CardReport(Record):
    """What a card was chosen by.

    `files` images were found and `skipped` other files; `judged` says by what: "accuracy", "sureness", or "nothing"; `sure` is
    the share of 0..1 of draws of the images in which no choice is better by over a hundredth; `tried` lists all choices with
    their scores, best first; `answers` are those to some images.
    """

    files: int
    skipped: int
    images: int
    judged: str
    sure: float | None
    tried: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    output: str | None


@dataclass(frozen=True)
class Carded:
    """A card and what it was chosen by.

    Attributes:
        text: The card, TOML.
        report: Of what was tried.
    """

    text: str
    report: CardReport


@on_files
def card(
    model: Given,
    folder: str | Path,
    *,
    output: str | Path | None = None,
    images: int = 48,
    threads: int = 1,
    force: bool = False,
) -> Carded:
    """Return a data card for a model and a folder of images: usual preprocessings are tried, and one is kept.

    With labels it is the most accurate one. Without, the one that the model is surest with: of class scores sure of each image
    and not of the same class for all (their mutual information), of detections the scores of its boxes.

    Args:
        model: Of one input of pictures.
        folder: Of images, as a data card may name it.
        output: Where to write the card; None writes nothing.
        images: Samples that are tried, at most.
        threads: Of onnxruntime.
        force: Write over a file at the output.

    Raises:
        ModelError: If it takes no pictures.
        DataError: If there are no images, or none of what was tried fits.
        UsageError: If the output cannot be written.
    """
    path, folder = path_of(model), Path(folder)
    if output is not None:
        settle(output)
        check_output(output, inputs_of(path, folder), force, alone=True)
    proto = read_model(path).proto
    inputs = model_inputs(proto)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ModelError(
            f"{path}: takes no pictures alone, got inputs {', '.join(one.name for one in inputs)}; expected one of four dims."
            " Write the card by hand, or give an .npz with arrays of these names."
        )
    answers = answers_of(proto)
    session = make_session(proto, threads)

    def run(samples: Samples) -> list[np.ndarray]:
        size = samples.batch_size(8)
        batches = [run_model(session, feed) for feed in samples.feeds(8)]
        rows = samples.valid_rows(size)
        return [
            np.concatenate([np.asarray(one)[:n] for one, n in zip(parts, rows, strict=True)])
            for parts in zip(*batches, strict=True)
        ]

    tried = _tried(folder, inputs, answers, run, images)
    best = max(tried, key=lambda one: one.total)  # the first of equals: the most usual
    judged = "accuracy" if best.labelled else "sureness" if any(one.total for one in tried) else "nothing"
    base = folder if output is None else Path(os.path.relpath(folder.resolve(), Path(output).resolve().parent))
    text = _toml(best.choice, base, folder)
    if output is not None:
        write_atomically(Path(output), text.encode())
    n_files = sum(one.is_file() for one in folder.rglob("*"))
    n_images = sum(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in folder.rglob("*"))
    ordered = sorted(tried, key=lambda one: -one.total)
    report = CardReport(
        n_images,
        n_files - n_images,
        best.samples.n,
        judged,
        None if judged == "nothing" else _sure(best, tried),
        [{"card": one.choice, "score": one.total} for one in ordered],
        _shown(run(best.samples.take(4)), answers),
        None if output is None else str(output),
    )
    return Carded(text, report)


@dataclass(frozen=True)
class _Tried:
    """A preprocessing, and what it came to: a function of drawn samples, and its value for all."""

    choice: Choice
    samples: Samples
    score: Callable[[np.ndarray], float]
    total: float
    labelled: bool


def _tried(
    folder: Path,
    inputs: Sequence[InputSpec],
    answers: Sequence[Answer],
    run: Callable[[Samples], list[np.ndarray]],
    n: int,
) -> list[_Tried]:
    """Return what was tried: first every order of colours and range of pixels, then with the best of them every size."""
    first = next(_sizes(inputs[0]))
    found = [_try(folder, {**look, **first}, inputs, answers, run, n) for look in _looks(inputs[0])]
    known = [one for one in found if isinstance(one, _Tried)]
    if not known:
        raise next(one for one in found if isinstance(one, DataError))
    best = max(known, key=lambda one: one.total)
    look = {key: value for key, value in best.choice.items() if key not in first}
    more = [_try(folder, {**look, **size}, inputs, answers, run, n) for size in _sizes(inputs[0]) if size != first]
    return known + [one for one in more if isinstance(one, _Tried)]


def _try(
    folder: Path,
    choice: Choice,
    inputs: Sequence[InputSpec],
    answers: Sequence[Answer],
    run: Callable[[Samples], list[np.ndarray]],
    n: int,
) -> _Tried | DataError:
    try:
        data = open_data(load_card(folder, **choice), inputs)
        whole = data.with_all(n)
        outputs = run(whole)
    except DataError as error:
        return error
    score = _score(outputs, answers, whole.labels)
    return _Tried(choice, whole, score, score(np.arange(whole.n)), whole.labels is not None)


def _looks(spec: InputSpec) -> Iterator[Choice]:
    """Yield orders of colours and ranges of pixels that a model may want, the most usual first."""
    shape = spec.shape
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels = shape[3] if last else shape[1]
    layout = {"layout": "NHWC"} if last else {}
    colors = ("L",) if channels == 1 else ("RGB", "BGR")
    for pixels, color in itertools.product(PIXELS.values(), colors):
        per_channel = len(pixels.get("mean", ())) == 3
        if color == "L" and per_channel:
            continue
        turned = {
            key: value[::-1] if per_channel and isinstance(value, list) else value for key, value in pixels.items()
        }
        yield {**layout, **({"color": color} if color != "RGB" else {}), **(turned if color == "BGR" else pixels)}


def _sizes(spec: InputSpec) -> Iterator[Choice]:
    """Yield ways to the size that a model wants: all of the picture, its centre, all of it with a border."""
    last = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
    height, width = spec.shape[1:3] if last else spec.shape[2:4]
    size = [height or USUAL, width or USUAL]
    yield {"resize": size}
    yield {"resize": max(size) * 8 // 7, "crop": size}
    yield {"resize": size, "pad": GREY}


def _score(
    outputs: Sequence[np.ndarray], answers: Sequence[Answer], labels: np.ndarray | None
) -> Callable[[np.ndarray], float]:
    """Return what says of drawn samples how well they were answered: accuracy, or how much the answers say."""
    answer = next((one for one in answers if one.kind in ("classes", "positions", "mask", "detections")), None)
    if answer is None:
        return lambda rows: 0.0
    answer = answer.settled(outputs)
    scores = class_scores(outputs[answer.at[0]])
    if scores is not None and labels is not None and labels.ndim == 1:
        hits = (scores.argmax(axis=1) == labels).astype(float)
        return lambda rows: float(hits[rows].mean())
    if answer.kind == "detections":
        sure = answer.seen(outputs).said[..., 0].sum(axis=1)
        return lambda rows: float(sure[rows].mean())
    shares = _shares(outputs[answer.at[0]] if scores is None else scores, answer.axis if scores is None else 1)
    per_sample = shares.mean(axis=1)
    doubt = _entropy(shares).mean(axis=1)
    return lambda rows: float(_entropy(per_sample[rows].mean(axis=0)) - doubt[rows].mean())


def _shares(values: np.ndarray, axis: int) -> FloatArray:
    """Return scores as probabilities (n, positions, classes)."""
    rows = np.moveaxis(values, axis, -1).astype(np.float64)
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    if rows.min() < 0 or not np.allclose(rows.sum(axis=-1), 1, atol=1e-2):
        rows = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(rows / rows.sum(axis=-1, keepdims=True))


def _entropy(shares: FloatArray) -> FloatArray:
    return np.asarray(-(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=-1))


def _sure(best: _Tried, tried: Sequence[_Tried]) -> float:
    """Return the share of draws of the samples in which no other choice is better by more than `LEVEL`."""
    rng, n = np.random.default_rng(0), best.samples.n
    rivals = [one for one in tried if one is not best and one.samples.n == n]
    wins = 0
    for _ in range(DRAWS):
        rows = rng.integers(0, n, n)
        reached = best.score(rows) + LEVEL * abs(best.total)
        wins += all(reached >= one.score(rows) for one in rivals)
    return wins / DRAWS


def _shown(outputs: Sequence[np.ndarray], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return what the model answers to some images: its first classes with their shares, or its boxes."""
    answer = next((one for one in answers if one.kind in ("classes", "detections")), None)
    if answer is None:
        return []
    answer = answer.settled(outputs)
    if answer.kind == "detections":
        return [
            {"boxes": [[round(float(v), 2) for v in box] for box in one[one[:, 0] > 0][:3]]}
            for one in answer.seen(outputs).said
        ]
    scores = class_scores(outputs[answer.at[0]])
    if scores is None:
        return []
    found = []
    for row in _shares(scores, 1)[:, 0]:
        top = np.argsort(-row)[:3]
        found.append({"classes": top.tolist(), "shares": [round(float(row[i]), 3) for i in top]})
    return found


def _toml(choice: Choice, images: Path, folder: Path) -> str:
    """Return the card."""
    lines = [f'images = "{images.as_posix()}"']
    if (folder / "labels.csv").is_file():
        lines.append(f'labels = "{(images / "labels.csv").as_posix()}"')
    for key, value in choice.items():
        lines.append(f"{key} = {value!r}" if not isinstance(value, str) else f'{key} = "{value}"')
    return "\n".join(lines) + "\n"
