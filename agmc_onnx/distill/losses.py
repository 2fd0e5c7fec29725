"""What distillation learns of every kind of answer: a loss of the student's values and the original's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from agmc_onnx.measuring.boxes import LEAST_WEIGHT, SURE
from agmc_onnx.measuring.outputs import Answer
from agmc_onnx.refit.goals import Goal

_LEAST = 1e-6  # of a probability whose logarithm is taken


def loss_of(
    goal: Goal, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float, kind: str = "kl"
) -> Tensor:
    """Return how far the student's values of a goal are from the original's, 0 where they are equal.

    Args:
        goal: Which; its answer is settled.
        ours, theirs: Its values, in order.
        temperature: That scores of classes are divided by.
        kind: "kl" of softened scores of classes, or "mse" of all values.
    """
    if kind == "kl" and goal.is_scores:
        return divergence(ours[0], theirs[0], temperature)
    if kind == "kl" and goal.answer is not None:
        return LOSSES[goal.answer.kind](goal, ours, theirs, temperature)
    return sum(
        (relative_error(a, b) for a, b in zip(ours, theirs, strict=True)), torch.zeros((), device=ours[0].device)
    )


def divergence(ours: Tensor, theirs: Tensor, temperature: float, dim: int = 1) -> Tensor:
    """Return the Kullback-Leibler divergence of softened scores, mean over all positions (Hinton et al. 2015)."""
    t = temperature
    ours_log, theirs_log = torch.log_softmax(ours / t, dim), torch.log_softmax(theirs / t, dim)
    if ours.dim() == 2:
        return t * t * F.kl_div(ours_log, theirs_log, reduction="batchmean", log_target=True)
    return t * t * (theirs_log.exp() * (theirs_log - ours_log)).sum(dim).mean()


def relative_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean squared error over the variance of what is wanted."""
    if theirs.dim() == 4:
        theirs = theirs.contiguous(memory_format=torch.channels_last)  # as ours are: mixed layouts are far slower
    return F.mse_loss(ours, theirs) / theirs.var(unbiased=False).clamp_min(1e-12)


def _positions(goal: Goal, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float) -> Tensor:
    assert goal.answer is not None
    a, b = ours[0], theirs[0]
    if goal.answer.form == "probabilities" and not goal.is_logits:
        a, b = a.clamp_min(_LEAST).log(), b.clamp_min(_LEAST).log()
    return divergence(a, b, temperature, goal.answer.axis)


def _mask(goal: Goal, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float) -> Tensor:
    return _bits(ours[0], theirs[0]).mean()


def _embedding(goal: Goal, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float) -> Tensor:
    assert goal.answer is not None
    return (1 - F.cosine_similarity(ours[0], theirs[0], dim=goal.answer.axis)).mean()


def _detections(goal: Goal, ours: Sequence[Tensor], theirs: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the loss of a detector: every position weighs as much as the original is sure that something is there.

    Probabilities by their cross entropy beyond the original's own entropy, objectness everywhere a little; boxes by their squared
    error, in the unit of the form (cells and logarithms, or sizes of the original's boxes), where it is sure.
    """
    assert goal.answer is not None
    place, bits = _parts(ours, goal.answer)
    told_place, told = _parts(theirs, goal.answer)
    sure = told[-1].amax(2, keepdim=True) * (told[0] if len(told) > 1 else 1)
    everywhere = sure + LEAST_WEIGHT
    weights = [everywhere, sure] if len(told) > 1 else [everywhere]
    total = sum(
        (weight * _bits(a, b)).sum() / weight.sum().clamp_min(1)
        for weight, a, b in zip(weights, bits, told, strict=True)
    )
    near = sure * (sure > SURE)
    scale = 1 if goal.answer.form == "raw" else _sizes(told_place, goal.answer.form).clamp_min(_LEAST)
    return total + (near * ((place - told_place) / scale) ** 2).sum() / (4 * near.sum()).clamp_min(1)


def _bits(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the divergence of single probabilities, element by element; its gradient does not vanish where ours is sure."""
    a, b = ours.clamp(_LEAST, 1 - _LEAST), theirs.clamp(_LEAST, 1 - _LEAST)
    return b * (b.log() - a.log()) + (1 - b) * ((1 - b).log() - (1 - a).log())


def _parts(values: Sequence[Tensor], answer: Answer) -> tuple[Tensor, list[Tensor]]:
    """Return the four numbers of the boxes, and the probabilities of objectness, where there is one, and classes."""
    if answer.form.startswith("pair"):
        scores = values[1]
        if "logits" in answer.form:
            scores = scores.sigmoid() if answer.background is None else scores.softmax(2)
        if answer.background is not None:
            left = [c for c in range(scores.shape[2]) if c != answer.background]
            scores = scores[..., left]
        return values[0], [scores]
    rows = values[0].movedim(answer.axis, 2)
    rest = rows[..., 4:]
    if answer.form in ("raw", "objectness") and rest.shape[2] > 1:
        return rows[..., :4], [rest[..., :1], rest[..., 1:]]
    return rows[..., :4], [rest]


def _sizes(place: Tensor, form: str) -> Tensor:
    """Return the root of the area of boxes, (n, positions, 1)."""
    sides = place[..., 2:] if "centres" in form or not form.startswith("pair") else place[..., 2:] - place[..., :2]
    return sides.clamp_min(0).prod(2, keepdim=True).sqrt()


LOSSES: dict[str, Callable[[Goal, Sequence[Tensor], Sequence[Tensor], float], Tensor]] = {
    "detections": _detections,
    "embedding": _embedding,
    "mask": _mask,
    "positions": _positions,
}
