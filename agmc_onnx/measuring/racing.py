"""Racing: a candidate that is clearly worse than the best one so far is not measured to the end.

Two candidates are compared image by image: what one loses on an image, the other mostly loses too, so the mean of the
differences is known from few images (Maron and Moore 1993, Hoeffding races; here with a normal bound on paired differences,
as in F-Race, Birattari et al. 2002). A candidate is only ever held against the best one, so a stopped one can never win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
LOOKS = (0.25, 0.5)  # shares of the images after which a candidate may be stopped
MARGIN = 3.0  # standard errors that the mean difference must be away from zero: one in 700 at each look, were it zero
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


def is_lost(errors: FloatArray, best: FloatArray) -> bool:
    """Return whether a candidate is clearly worse than the best one.

    Args:
        errors: Of the first m images.
        best: Those of the best candidate, on at least as many.
    """
    difference = errors - best[: len(errors)]
    deviation = float(np.std(difference, ddof=1)) if len(difference) > 1 else math.inf
    return float(np.mean(difference)) > MARGIN * deviation / math.sqrt(len(difference))


def estimate(errors: FloatArray, best: FloatArray) -> float:
    """Return the fidelity, 0..100, of a candidate that was stopped: that of the best one, plus the mean difference.

    Its own images alone may be easier than the others; the best one's errors on all of them say how much.

    Args:
        errors: As in `is_lost`.
        best: Those of the best candidate, on all images.
    """
    mean = float(np.mean(best)) + float(np.mean(errors - best[: len(errors)]))
    return 100 / (1 + math.sqrt(max(mean, 0.0)))
