"""The verdict on a run: what was lost, as surely as the numbers say, and the next step that they speak for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from agmc_onnx.schema import Count, Record

UNUSABLE = 0.2  # share of what the original gets right that is surely gone where a result is called not usable
UNLIKE = 50.0  # closeness, 0..100, at which the difference from the original is as large as its answers' own variation
WIDE = 1.0  # points on either side, from which on a loss that cannot be told is worth more samples
FEW = 100  # calibration samples, below which a refit is held back: ResNet-20, 40 in place of 240: 12 points
NO_FASTER = 0.97  # share of the original's time from which on nothing was gained
DECIBELS = ("psnr", "sisdr")  # metrics that are no share
FINE = 0.05  # shares to keep are said in steps of this

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Loss(Record):
    """What the metric lost on the test role, sample by sample where it counts samples."""

    name: str
    original: float
    points: Annotated[float, Meta(description="of the original less that of the result")]
    n: Annotated[Count, Meta(description="samples")]
    interval: Annotated[Interval | None, Meta(description="95 % confidence of the points, of paired samples")] = None


@dataclass(frozen=True, eq=False)
class Verdict(Record):
    """What a run came to.

    `kind`: kept (no significant loss), lost, unusable, or unknown (no data, and the answers are the original's).
    """

    kind: str
    text: str
    next: Annotated[str | None, Meta(description="the next step that the numbers speak for")] = None


@dataclass(frozen=True)
class Circumstances:
    """What the next step depends on; None is not known.

    Attributes:
        recover: How the result was recovered.
        n_calibration: Samples that it was recovered with.
        n_train: Samples it could learn from by distillation.
        distil_minutes: That this would take.
        keep: Share that was asked for.
        kind: Of what.
        time: Latency over the original's.
        keep_more: Share to keep at which the curves expect a loss of one point.
        int8: What int8 alone does: share of the time, points lost.
    """

    recover: str = "compensate"
    n_calibration: int | None = None
    n_train: int | None = None
    distil_minutes: float | None = None
    keep: float | None = None
    kind: str = "flops"
    time: float | None = None
    keep_more: float | None = None
    int8: tuple[float, float] | None = None


def judged(loss: Loss, is_real: bool, closeness: float | None = None, about: Circumstances | None = None) -> Verdict:
    """Return the verdict on a result.

    Args:
        loss: On the test role, or on synthetic inputs.
        is_real: Whether there was data.
        closeness: Of the outputs to the original's, 0..100, where there was none.
        about: What the next step depends on.
    """
    about = about or Circumstances()
    low, high = loss.interval or (loss.points, loss.points)
    is_gone = low > UNUSABLE * abs(loss.original)
    if not is_real:
        return _without_data(loss, is_gone or (closeness is not None and closeness < UNLIKE), closeness)
    unit = f"{'dB' if loss.name in DECIBELS else 'points'} of " if loss.interval else ""
    known = (
        f"95 %: {low:.2f} to {high:.2f}, n = {loss.n:,}" if loss.interval else f"n = {loss.n:,}, uncertainty not known"
    )
    if is_gone:
        text = f"not usable: {loss.points:.2f} of {loss.original:.2f} {unit}{loss.name} lost ({known})"
        return Verdict("unusable", text, _mend(loss, about, is_gone=True))
    if low > 0:
        return Verdict("lost", f"{loss.points:.2f} {unit}{loss.name} lost ({known})", _mend(loss, about, is_gone=False))
    word = "lost" if loss.points > 0 else "gained"
    words = f"{abs(loss.points):.2f} {unit}{loss.name} {word}" if loss.points else f"{loss.name} is equal"
    return Verdict("kept", f"no significant loss: {words} ({known})", _further(loss, about))


def _without_data(loss: Loss, is_gone: bool, closeness: float | None) -> Verdict:
    same = f"{loss.name} {loss.original - loss.points:.2f} % on {loss.n:,} synthetic inputs"
    near = "" if closeness is None else f", closeness {closeness:.1f}"
    if is_gone:
        return Verdict(
            "unusable",
            f"not usable: its answers are not the original's ({same}{near})",
            "give --data: weights are then refitted to what is left, and the loss is measured; inputs without labels do",
        )
    return Verdict(
        "unknown",
        f"not known without data; on synthetic inputs it answers much as the original does ({same}{near})",
        "measure it on real samples: agmc-onnx measure with --data",
    )


def _mend(loss: Loss, about: Circumstances, is_gone: bool) -> str:
    """Return what the numbers speak for where something was lost, the surest first."""
    found = []
    if about.recover == "none":
        found.append("refit the weights: leave out --recover none")
    elif about.n_calibration is not None and about.n_calibration < FEW:
        found.append(f"more calibration samples: it had {about.n_calibration}, some hundreds are worth most")
    if loss.name == "agreement":
        found.append("labels in the card: agreement counts a wrong answer that became right as lost")
    if (about.int8 is not None and about.int8[0] <= NO_FASTER) and (
        about.time is None or about.int8[0] <= about.time or about.int8[1] < loss.points / 2
    ):
        share, lost = about.int8
        found.append(
            f"int8 instead: {share:.2f} of the time for {lost:.2f} points (export --to int8 of the original, measured)"
        )
    if loss.name == "boxes":
        found.append("keep more: boxes go before the error curves say so")
    elif about.keep_more is not None and about.keep is not None and about.keep_more > about.keep:
        found.append(
            f"keep more: --{about.kind} {about.keep_more:.2f}, where the curves expect a loss of a point at most"
        )
    if (
        about.recover == "compensate"
        and about.distil_minutes is not None
        and not (is_gone and found and loss.name != "boxes")
    ):
        minutes = max(1, math.ceil(about.distil_minutes))
        on = f" on {about.n_train:,} samples" if about.n_train else ""
        found.append(f"distil: --recover distill, about {minutes} minute{'s' if minutes > 1 else ''} here{on}")
    return "; or ".join(found[:3]) if found else "keep more"


def _further(loss: Loss, about: Circumstances) -> str | None:
    """Return what the numbers speak for where no loss is significant."""
    low, high = loss.interval or (0.0, 0.0)
    if about.time is not None and about.time > NO_FASTER:
        return f"it is not faster ({about.time:.2f} of the time): ask for --latency, which searches by measured time"
    if (high - low) / 2 > WIDE:
        n = math.ceil(loss.n * ((high - low) / 2 / WIDE) ** 2 / 100) * 100
        return f"more test samples: about {n:,} would show a loss of {WIDE:g} point"
    if about.keep is not None and about.keep > 2 * FINE:
        return f"keep less: --{about.kind} {max(about.keep - max(FINE, 0.2 * about.keep), FINE):.2f}"
    return None


def share_for(errors: Sequence[float], shares: Sequence[float], lost: float, points: float = 1.0) -> float | None:
    """Return the smallest share to keep at which a loss falls to some points, in steps of `FINE`; None if none does.

    What a network loses is taken to grow with the square of the sum of its errors: on the digits, points by it have exponents
    of 1.7 to 2.6.

    Args:
        errors: Sum of the curves' errors between the result and the original, falling.
        shares: Of the cost there, rising.
        lost: Points lost at the first.
        points: That may be lost.
    """
    if not errors or errors[0] <= 0 or lost <= points:
        return None
    for error, share in zip(errors, shares, strict=True):
        if lost * (error / errors[0]) ** 2 <= points:
            found = math.ceil(share / FINE - 1e-9) * FINE
            return found if found < 1 else None
    return None


def lines(found: Mapping[str, Any] | None) -> list[str]:
    """Return a verdict as terminal and page have it; of reports that have none, nothing."""
    if not found:
        return []
    return [f"verdict: {found['text']}", *([f"next: {found['next']}"] if found.get("next") else [])]
