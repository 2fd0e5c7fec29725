"""Which weights become zero, and what the others do about it, from second moments of what they are multiplied with.

The error of a thinned weight V beside the weight W it is made from is tr((V - W) H (V - W)^T), where H is the covariance of
the inputs (the bias takes the mean) plus the ridge of the refit. The refit (`compensate`) has found the W that is best
towards the original network's values, so this error is added to what the refit has left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray, Mask
from agmc_onnx.errors import UsageError
from agmc_onnx.pruning.sparsity import Sparsity, weakest, weakest_of_pattern, zeros_wanted
from agmc_onnx.refit.moments import Moments
from agmc_onnx.refit.sites import Site

BLOCK = 128  # columns thinned before their error is handed on to the later ones
DAMPING = 1e-2  # least ridge as a share of the mean diagonal; arXiv:2301.00774 has the same
Choose = Callable[[FloatArray, int], Mask]  # (scores, first column) -> what goes


class Thinner:
    """Sets weights of refitted nodes to zero; `Compensator` hands it every node that it has solved.

    Attributes:
        sparsity: What is asked for.
    """

    def __init__(self, sparsity: Sparsity) -> None:
        """Check the method.

        Raises:
            UsageError: If there is no such row in `METHODS`.
        """
        if sparsity.method not in METHODS:
            raise UsageError(
                f"--sparse-method: unknown name, got {sparsity.method!r}; expected one of {', '.join(METHODS)}."
            )
        self.sparsity = sparsity

    def wants(self, weight: str) -> bool:
        """Whether a tensor is to be thinned."""
        return weight in self.sparsity.names and self.sparsity.share_of(weight) > 0

    def __call__(
        self,
        site: Site,
        matrix: Tensor,
        step: Tensor,
        moments: Moments,
        ridge: float,
        has_bias: bool,
        n_places: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the correction of a refit that leaves the weights thinned.

        Args:
            site: The node.
            matrix: float64 (groups, channels / groups, width), its weight before the refit.
            step: (groups, width, channels / groups), the correction that the refit found.
            moments: Of what the weight is multiplied with, and of the residual.
            ridge: Share of the mean diagonal that the refit has chosen.
            has_bias: Whether the mean of the inputs is the bias's business.
            n_places: Places of the kernel; the width runs over them, then over the inputs.

        Returns:
            Float64: of the weight (groups, width, channels / groups), and of the bias (groups, channels / groups), zero
            without one.
        """
        n, n_groups = max(moments.n, 1), matrix.shape[0]
        mean, r_mean = moments.u / n, moments.r / n
        refitted = (matrix + step.transpose(1, 2)).numpy()
        scale = np.abs(site.scale).reshape(n_groups, -1, 1)
        run = matrix.shape[2] // n_places
        method = METHODS[self.sparsity.method]
        found = []
        for g in range(n_groups):
            second = (moments.uu[g] / n).numpy()
            power = second.diagonal().copy()
            if has_bias:
                second = second - np.outer(mean[g], mean[g])
            level = max(ridge, DAMPING) * float(power.mean())
            second = shrunk(second, n) + (level if level > 0 else 1.0) * np.eye(len(second))
            found.append(method(refitted[g], second, power, scale[g], self.sparsity, site.weight, run))
        step = torch.from_numpy(np.stack(found)).transpose(1, 2) - matrix.transpose(1, 2)
        offset = r_mean - torch.einsum("gwo,gw->go", step, mean) if has_bias else torch.zeros_like(r_mean)
        return step, offset


def shrunk(covariance: FloatArray, n: int) -> FloatArray:
    """Return a covariance of n samples shrunk towards its diagonal, the more the fewer samples say about its other entries.

    The intensity is that of Schaefer and Strimmer 2005, target D, with the variances that normal inputs have. On
    the diagonal alone `obs` is `wanda`; without it the few samples of a classifier seem to make up for every weight.
    """
    own = covariance.diagonal()
    squares = float((covariance**2).sum() - (own**2).sum())
    doubt = (float(own.sum()) ** 2 - float((own**2).sum()) + squares) / n
    share = min(1.0, doubt / squares) if squares > 0 else 1.0
    return np.asarray((1 - share) * covariance + share * np.diag(own))


def magnitude(
    rows: FloatArray, second: FloatArray, power: FloatArray, scale: FloatArray, asked: Sparsity, name: str, run: int
) -> FloatArray:
    """Return a matrix (channels, width) without its smallest weights. Han et al. 2015, arXiv:1506.02626."""
    return np.where(_goes(np.abs(rows), asked, name, run), 0.0, rows)


def wanda(
    rows: FloatArray, second: FloatArray, power: FloatArray, scale: FloatArray, asked: Sparsity, name: str, run: int
) -> FloatArray:
    """Return a matrix without the weights of least |w| |x|, output by output. Sun et al. 2023, arXiv:2306.11695, sec. 3."""
    scores = np.abs(rows) * np.sqrt(power)
    if asked.pattern is not None:
        return np.where(weakest_of_pattern(scores, asked.pattern, run), 0.0, rows)
    total, width = zeros_wanted(rows.size, asked.share_of(name)), rows.shape[1]
    place = np.argsort(np.argsort(scores, axis=1, kind="stable"), axis=1, kind="stable")
    goes = place < total // len(rows)
    left = total - int(goes.sum())
    if left and total // len(rows) < width:  # a weight more of the outputs that miss it least
        next_one = np.where(place == total // len(rows), scores, np.inf)
        goes |= weakest(next_one, left)
    return np.where(goes, 0.0, rows)


def obs(
    rows: FloatArray, second: FloatArray, power: FloatArray, scale: FloatArray, asked: Sparsity, name: str, run: int
) -> FloatArray:
    """Return a matrix whose weights left make up for those that go: optimal brain surgeon, column by column.

    Frantar and Alistarh 2023 (SparseGPT), arXiv:2301.00774, algorithm 1: with U the upper Cholesky factor of H^-1, the
    weight w_j is worth w_j^2 / U_jj^2, and its removal moves the later weights by -w_j / U_jj U_j. Columns are taken from
    the least to the most powerful input, so that what can make up for others comes last, unless a pattern ties neighbours.
    """
    width = rows.shape[1]
    order = np.arange(width) if asked.pattern is not None else np.argsort(power, kind="stable")
    factor = _factor_of_inverse(second[np.ix_(order, order)])
    weights = rows[:, order].copy()
    diagonal = factor.diagonal()
    size = BLOCK if asked.pattern is None else max(asked.pattern[1], BLOCK // asked.pattern[1] * asked.pattern[1])
    spans = [(a, min(a + size, width)) for a in range(0, width, size)]
    if asked.pattern is not None:  # no block of the pattern may lie in two spans
        spans = [(a + at, min(a + at + size, a + run)) for a in range(0, width, run) for at in range(0, run, size)]
    gone_wanted = zeros_wanted(rows.size, asked.share_of(name))
    gone = np.zeros(rows.shape, bool)
    for first, last in spans:
        scores = (weights[:, first:last] / diagonal[first:last]) ** 2 * scale**2
        if asked.pattern is not None:
            goes = weakest_of_pattern(scores, asked.pattern, last - first)
        else:
            later = (weights[:, last:] / diagonal[last:]) ** 2 * scale**2
            goes = _share_of_rest(scores, later, gone_wanted - int(gone.sum()))
        gone[:, first:last] = goes
        errors = np.zeros_like(scores)
        for j in range(first, last):
            at = j - first
            errors[:, at] = np.where(goes[:, at], weights[:, j] / diagonal[j], 0.0)
            weights[:, j:last] -= errors[:, at : at + 1] * factor[j, j:last]
        weights[:, last:] -= errors @ factor[first:last, last:]
    weights[gone] = 0.0
    found = np.empty_like(weights)
    found[:, order] = weights
    return found


def _share_of_rest(scores: FloatArray, later: FloatArray, n: int) -> Mask:
    """Return what goes of these columns when n weights of these and the later ones go, the weakest of all first."""
    both = np.concatenate([scores, later], axis=1)
    return weakest(both, n)[:, : scores.shape[1]]


def _factor_of_inverse(second: FloatArray) -> FloatArray:
    """Return the upper U with U^T U = H^-1, row j scaled as Gaussian elimination of the columns before j leaves it."""
    from scipy.linalg import cholesky, solve_triangular

    turned = cholesky(second[::-1, ::-1], lower=True)  # H = R R^T with R upper, from the factor of the reversed matrix
    upper = turned[::-1, ::-1]
    return np.asarray(solve_triangular(upper, np.eye(len(second)), lower=False))


def _goes(scores: FloatArray, asked: Sparsity, name: str, run: int) -> Mask:
    if asked.pattern is not None:
        return weakest_of_pattern(scores, asked.pattern, run)
    return weakest(scores, zeros_wanted(scores.size, asked.share_of(name)))


METHODS = {"magnitude": magnitude, "wanda": wanda, "obs": obs}
