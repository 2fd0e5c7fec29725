"""Boxes of detectors: from grids, queries and lists to corners and scores, and how many of them two models share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from agmc_onnx.arrays import FloatArray

SCORE, OVERLAP, SAME = (
    0.4,
    0.45,
    0.5,
)  # least score of a box; IoU of which the lesser goes; IoU of boxes that are the same one
STRIDES = ((8, 16, 32), (16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32, 64), (32,), (16,), (8,))
ANCHORS = (1, 3, 2, 9, 6)  # boxes of a place
LEAST_WEIGHT = 0.01  # of positions that the original finds nothing at
SURE = 0.1  # score of the original from which on its boxes count
CANDIDATES = 1000  # of a sample, by score, that overlaps are looked for among
FORMS = ("raw", "objectness", "classes", "pair", "list")  # see `decoded` and `listed`


def levels(n: int, height: int, width: int) -> tuple[tuple[int, int, int], ...] | None:
    """Return (rows, columns, stride) of the levels whose cells, taken together, are so many positions; None: there are none."""
    for strides, anchors in itertools.product(STRIDES, ANCHORS):
        found = [(-(-height // s), -(-width // s), s) for s in strides]
        if n == anchors * sum(rows * columns for rows, columns, _ in found):
            return tuple(found) * anchors
    return None


def form_of(form: str, values: Sequence[np.ndarray], axis: int) -> dict[str, Any]:
    """Return what numbers tell of detections: how scores are to be read, and which class stands for nothing.

    Args:
        form: As the graph tells it: "objectness", "classes" or "pair".
        values: Of some samples.
        axis: Dim of the numbers of a position.
    """
    if form == "objectness" and axis == 2 and np.nanmax(np.abs(values[0][..., :4]), initial=0) < 32:
        return {"form": "raw"}
    if form != "pair":
        return {}
    scores = values[1]
    often = np.bincount(np.argmax(scores, axis=2).ravel(), minlength=scores.shape[2])
    nothing = int(np.argmax(often))
    ends = nothing in (0, scores.shape[2] - 1) and often[nothing] > 0.5 * often.sum()
    is_shares = scores.min() >= 0 and scores.max() <= 1 + 1e-3
    sums_to_1 = is_shares and np.allclose(scores.sum(axis=2), 1, atol=1e-2)
    form = "pair" if is_shares else "pair of logits"
    background = nothing if ends and (sums_to_1 or not is_shares) else None
    first, last = values[0][..., :2], values[0][..., 2:]
    are_corners = np.mean(last >= first) > 0.99
    return {"form": form if are_corners else f"{form}, centres", "background": background}


def decoded(
    values: Sequence[np.ndarray],
    form: str,
    axis: int,
    grid: Sequence[tuple[int, int, int]],
    background: int | None,
) -> tuple[FloatArray, FloatArray]:
    """Return corners (n, positions, 4) and scores (n, positions, classes) of detections.

    Args:
        values: "raw": x, y in cells from the cell, log of the sizes in cells, objectness, classes (YOLOX); "objectness":
            centre and size, objectness, classes (YOLOv5, YOLOX decoded); "classes": centre and size, classes (YOLOv8, 11);
            "pair": boxes (n, positions, 4) and scores, which are logits if it says so, corners unless it says "centres"
            (SSD, DETR).
        form: One of these.
        axis: Dim of the numbers of a position.
        grid: Levels of "raw".
        background: Class that is left out.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if form.startswith("pair"):
            place, scores = values[0].astype(np.float32), values[1].astype(np.float32)
            if "logits" in form and background is None:
                scores = (1 / (1 + np.exp(-scores))).astype(np.float32)
            elif "logits" in form:
                scores = np.exp(scores - scores.max(axis=2, keepdims=True))
                scores /= scores.sum(axis=2, keepdims=True)
            scores = scores if background is None else np.delete(scores, background, axis=2)
            return (_corners(place) if "centres" in form else place), scores
        rows = np.moveaxis(values[0], axis, 2).astype(np.float32)
        place, scores = rows[..., :4], rows[..., 4:]
        if form in ("raw", "objectness"):
            scores = scores[..., :1] * scores[..., 1:] if scores.shape[2] > 1 else scores
        if form == "raw":
            cells, stride = _cells(grid)
            place = np.concatenate([(place[..., :2] + cells) * stride, np.exp(place[..., 2:]) * stride], axis=2)
        return _corners(place), scores


def _cells(grid: Sequence[tuple[int, int, int]]) -> tuple[FloatArray, FloatArray]:
    """Return (positions, 2) the column and row of every cell, and (positions, 1) its stride."""
    cells, strides = [], []
    for rows, columns, stride in grid:
        y, x = np.mgrid[:rows, :columns]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _corners(place: FloatArray) -> FloatArray:
    """Return corners of centres and sizes."""
    half = place[..., 2:] / 2
    return np.concatenate([place[..., :2] - half, place[..., :2] + half], axis=-1)


def best(corners: FloatArray, scores: FloatArray, most: int) -> FloatArray:
    """Return the boxes above `SCORE` that no better one of their class overlaps.

    Returns:
        (n, most, 6): score, class, corners, by falling score; rows without a box are 0.
    """
    found = np.zeros((len(corners), most, 6), np.float32)
    for sample, (place, all_scores) in enumerate(zip(corners, np.nan_to_num(scores), strict=True)):
        top, own = all_scores.max(axis=1), all_scores.argmax(axis=1)
        left = np.flatnonzero((top > SCORE) & np.isfinite(place).all(axis=1))
        left = left[np.argsort(-top[left], kind="stable")][:CANDIDATES]
        n = 0
        while left.size and n < most:
            i, rest = left[0], left[1:]
            found[sample, n] = (top[i], own[i], *place[i])
            n += 1
            left = rest[~((overlaps(place[i], place[rest]) > OVERLAP) & (own[rest] == own[i]))]
    return found


def listed(values: Sequence[np.ndarray], most: int) -> FloatArray:
    """Return boxes of a model that ends with a list of them, as `best` does.

    Args:
        values: One array (n, boxes, 6): corners, score, class (YOLOv10), or (boxes, 7) with the number of the sample first; or
            corners (n, boxes, 4) or (boxes, 4), scores and classes.
        most: Boxes of a sample.
    """
    if len(values) == 3:
        place, score, own = (v if v.ndim == d else v[None] for v, d in zip(values, (3, 2, 2), strict=True))
        rows = np.concatenate([place, score[..., None], own[..., None].astype(np.float32)], axis=2)
    else:
        rows = values[0] if values[0].ndim == 3 else values[0][None, :, -6:]
    rows = np.nan_to_num(rows[..., :6].astype(np.float32))
    found = np.zeros((len(rows), most, 6), np.float32)
    for sample, all_rows in enumerate(rows):
        good = all_rows[all_rows[:, 4] > SCORE]
        good = good[np.argsort(-good[:, 4], kind="stable")][:most]
        found[sample, : len(good)] = good[:, [4, 5, 0, 1, 2, 3]]
    return found


def overlaps(one: FloatArray, others: FloatArray) -> FloatArray:
    """Return the intersection over union of a box (4,) with others (k, 4)."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return np.asarray(common / np.maximum(np.prod(one[2:] - one[:2]) + areas - common, 1e-12))


def matches(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Return (n, 3): boxes of both, boxes that only we have, boxes that only they have; sample by sample.

    The same are boxes of one class of an IoU above `SAME`; each counts once, those of the highest score first.

    Args:
        ours, theirs: As `best` gives them.
    """
    found = np.zeros((len(theirs), 3))
    for sample, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        mine, other = mine[mine[:, 0] > 0], other[other[:, 0] > 0]
        free = np.ones(len(other), bool)
        both = 0
        for box in mine:
            fits = np.flatnonzero(free & (other[:, 1] == box[1]) & (overlaps(box[2:], other[:, 2:]) > SAME))
            if fits.size:
                free[fits[0]] = False
                both += 1
        found[sample] = both, len(mine) - both, len(other) - both
    return found
