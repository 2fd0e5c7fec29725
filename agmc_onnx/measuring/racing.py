"""Racing: only a candidate that keeps up with the best one so far is measured on many images.

Two candidates are compared image by image: what one loses on an image, the other mostly loses too, so the mean of the
differences is known from few images (Maron and Moore 1993, Hoeffding races; here with a normal bound on paired differences,
as in F-Race, Birattari et al. 2002). A candidate is only ever held against the best one, so a stopped one can never win.

Among the best candidates of a search 500 images tell nothing: what they differ by is half of a standard error. So who is not
behind after those is measured on twice as many, and again (docs/decisions/racing.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agmc_onnx.arrays import FloatArray

LOOKS = (0.25, 0.5)  # shares of the first images after which a candidate may be stopped early
MARGIN = 3.0  # standard errors that the mean difference must be away from zero there: by chance once in 700 looks
# After the first images: of 21 near-best candidates of a network the winner is then 0.09 points of fidelity behind the best;
# with 0 it is 0.19, with 1 it is 0.03 and takes a third more images; by the first images alone it is 0.33.
BEHIND = 0.5
LARGEST = 1e6  # stands for an error that is no number


def image_errors(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> FloatArray | None:
    """Return the squared error of every image over the variance of the original's outputs, (n,).

    With r the root of their mean, the fidelity is 100 / (1 + r). None where that is not so: of several outputs, of outputs
    that are not float or have no row for each image, or that do not vary.

    Args:
        outputs: Those of the first n images.
        reference: The original's, of all images.
    """
    if len(outputs) != 1 or len(reference) != 1:
        return None
    a, b = outputs[0], reference[0]
    if not np.issubdtype(b.dtype, np.floating) or b.ndim < 2 or a.shape[1:] != b.shape[1:] or len(a) > len(b):
        return None
    whole = b.reshape(len(b), -1).astype(np.float64)
    variance = float(np.mean((whole - whole.mean(axis=0)) ** 2)) if np.isfinite(whole).all() else 0.0
    if variance == 0:
        return None
    error = np.mean((a.reshape(len(a), -1).astype(np.float64) - whole[: len(a)]) ** 2, axis=1) / variance
    return np.nan_to_num(error, nan=LARGEST, posinf=LARGEST)


def looks(n_first: int, n_all: int, early: bool) -> list[tuple[int, float]]:
    """Return after how many images a candidate may be stopped, and by how many standard errors it must be worse then.

    Args:
        n_first: Images that every candidate is measured on.
        n_all: Images that the best one is measured on.
        early: Stop candidates that are clearly worse before `n_first` too.
    """
    found = [(math.ceil(share * n_first), MARGIN) for share in LOOKS] if early else []
    while n_first < n_all:
        found.append((n_first, BEHIND))
        n_first *= 2
    return found


def is_lost(errors: FloatArray, best: FloatArray, margin: float = MARGIN) -> bool:
    """Return whether a candidate is worse than the best one by so many standard errors.

    Args:
        errors: Of the first m images.
        best: Those of the best candidate, on at least as many.
        margin: Standard errors.
    """
    difference = errors - best[: len(errors)]
    deviation = float(np.std(difference, ddof=1)) if len(difference) > 1 else math.inf
    return float(np.mean(difference)) > margin * deviation / math.sqrt(len(difference))


def estimate(errors: FloatArray, best: FloatArray) -> float:
    """Return the fidelity, 0..100, of a candidate that was stopped: that of the best one, plus the mean difference.

    Its own images alone may be easier than the others; the best one's errors on all of them say how much.

    Args:
        errors: As in `is_lost`.
        best: Those of the best candidate, on all images.
    """
    mean = float(np.mean(best)) + float(np.mean(errors - best[: len(errors)]))
    return 100 / (1 + math.sqrt(max(mean, 0.0)))
