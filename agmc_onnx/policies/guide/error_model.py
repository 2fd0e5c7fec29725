"""What known errors cost in reward, learned from the episodes so far: Bayesian linear regression with one weight a group.

Error curves say how the error of one group grows as it shrinks, but not what that error does to the answers: an error in one
layer is washed out by those that follow, in another it is not. Added up as they are, they order candidates of one budget
hardly better than chance; with a weight for every group, learned from a few dozen episodes, they order them well
(docs/decisions/error-model.md). Ours; the regression is that of Bishop 2006, "Pattern Recognition and Machine Learning",
section 3.3, with its hyperparameters chosen by the marginal likelihood (3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from agmc_onnx.policies.guide.linear_budget import LinearBudget

# Grid of the hyperparameters, both in units of the rewards' deviation: what weights that differ explain, and the noise.
_DEVIATIONS = (0.25, 0.5, 1.0, 2.0, 4.0)
_NOISES = (0.1, 0.2, 0.4, 0.8)
# Deviation of what no weights explain, in the same unit, and the distance of keep ratios, root mean square over the groups, at
# which that is another.
_RESTS = ((0.0, 1.0), (0.2, 0.05), (0.2, 0.1), (0.5, 0.05), (0.5, 0.1), (0.5, 0.2), (1.0, 0.1), (1.0, 0.2))
_LEAST_MEAN = 0.05  # of the common mean: errors never do good
# Of a climb: steps, trials of a step, noise of the first and of the last
_N_STEPS, _N_TRIALS, _WIDEST, _NARROWEST = 40, 24, 0.15, 0.02
REWARD_CLIP = 6.0  # normalised rewards are cut here: one collapsed candidate must not decide
_SPREAD = 0.1  # of keep ratios, by which the size of an error counts as one


@dataclass(frozen=True, eq=False)
class Tables:
    """Errors of every group at evenly spaced keep ratios, of one kind or several.

    Attributes:
        errors: float64 (n_kinds, n_groups, n_grid) at keep ratios 0, 1 / (n_grid - 1), ..., 1; falling in the keep ratio.
    """

    errors: Tensor

    def at(self, actions: Tensor) -> Tensor:
        """Return the errors (n, n_kinds, n_groups) of keep ratios (n, n_groups) in 0..1, linear between the points."""
        last = self.errors.shape[2] - 1
        place = actions.double().clamp(0.0, 1.0) * last
        below = place.floor().clamp(max=last - 1).long()
        group = torch.arange(self.errors.shape[1]).expand_as(below)
        low, high = self.errors[:, group, below], self.errors[:, group, below + 1]
        return (low + (place - below) * (high - low)).movedim(0, 1)

    def standardised(self, around: Tensor) -> Tables:
        """Return tables in units of how much their errors vary when keep ratios near `around` (n_groups,) do."""
        moved = torch.stack([around + shift for shift in (-_SPREAD, _SPREAD)])
        low, high = self.at(moved).unbind(0)
        size = ((low - high) / 2).clamp_min(0)
        typical = size.mean(dim=1, keepdim=True).clamp_min(1e-12)
        return Tables(self.errors / typical[..., None])


@dataclass(frozen=True, eq=False)
class Rest:
    """What the weights leave of the rewards: the mean of a Gaussian process.

    Attributes:
        actions: float64 (n, n_groups), keep ratios of the episodes.
        dual: float64 (n,), the inverse of the rewards' covariance times what they differ from the prior's mean.
        deviation: Of the process.
        length: Its length, root mean square over the groups.
    """

    actions: Tensor
    dual: Tensor
    deviation: float
    length: float

    def __call__(self, actions: Tensor) -> Tensor:
        """Return it (...) at keep ratios (..., n_groups)."""
        return self.deviation**2 * _closeness(actions.double(), self.actions, self.length) @ self.dual


def _closeness(a: Tensor, b: Tensor, length: float) -> Tensor:
    """Return exp(-d^2 / (2 length^2)) of rows (..., n_groups) and (n, n_groups), d^2 the mean square difference: (..., n)."""
    square = (a**2).sum(-1, keepdim=True) + (b**2).sum(-1) - 2 * a @ b.T
    return torch.exp(-square.clamp_min(0.0) / (2 * length**2 * a.shape[-1]))


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """The posterior of the weights; rewards are -(errors * weights).sum() plus a constant, and a smooth rest.

    The rest is what no weights explain, since the error of one group depends on the widths of others: a Gaussian process over
    the keep ratios (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", 2.7: explicit basis functions).

    Attributes:
        tables: The errors.
        mean: float64 (n_kinds * n_groups,), expected weights.
        root: float64 (n_kinds * n_groups, same), R with R R^T the covariance of the weights.
        rest: What the weights leave, or None where nothing speaks for it.
    """

    tables: Tables
    mean: Tensor
    root: Tensor
    rest: Rest | None = None

    @classmethod
    def fit(cls, tables: Tables, actions: Tensor, rewards: Tensor, shapes: Sequence[Tensor] = ()) -> ErrorModel:
        """Return the posterior given episodes.

        Args:
            tables: The errors.
            actions: float (n, n_groups), executed keep ratios.
            rewards: float (n,), of deviation about 1; n may be 0, then the posterior is the prior.
            shapes: Of float (n_kinds, n_groups) each, what the prior's mean may be a multiple of, about 1: the first before any
                episode, then the one that the episodes speak for most (the largest marginal likelihood). Default: 1 everywhere.
        """
        x = -tables.at(actions).flatten(1)
        size = x.shape[1]
        evens = [shape.double().flatten() for shape in shapes] or [torch.ones(size, dtype=torch.float64)]
        if len(x) < 2:
            return cls(tables, evens[0] / size**0.5, torch.eye(size, dtype=torch.float64) / size**0.5)
        y = rewards.double()
        x, y, places = x - x.mean(0), y - y.mean(), actions.double()
        gram, sums = x @ x.T, [x @ even for even in evens]
        scale = float(gram.diagonal().mean().clamp_min(1e-12))
        best: tuple[float, Tensor, float, Tensor, Tensor, Rest | None] | None = None
        rests = [(left, length, left**2 * _closeness(places, places, length)) for left, length in _RESTS]
        for deviation, noise, (left, length, of_rest) in product(_DEVIATIONS, _NOISES, rests):
            v = deviation**2 / scale  # weights ~ N(m shape, v I)
            covariance = gram * v + of_rest + noise**2 * torch.eye(len(y), dtype=torch.float64)
            factor = torch.linalg.cholesky(covariance)
            solved = torch.cholesky_solve(torch.stack([y, *sums], 1), factor)
            size_of_factor = float(factor.diagonal().log().sum())
            for even, summed, of_sum in zip(evens, sums, solved[:, 1:].T, strict=True):
                m = max(float(y @ of_sum) / max(float(summed @ of_sum), 1e-12), _LEAST_MEAN / size**0.5)
                unexplained, dual = y - m * summed, solved[:, 0] - m * of_sum
                evidence = -0.5 * float(unexplained @ dual) - size_of_factor
                if best is None or evidence > best[0]:
                    rest = Rest(places, dual, left, length) if left else None
                    best = evidence, m * even, v, dual, factor, rest
        assert best is not None
        _, expected, v, dual, factor, rest = best
        mean = expected + v * (x.T @ dual)
        half = torch.linalg.solve_triangular(factor, x, upper=False)
        covariance = v * torch.eye(size, dtype=torch.float64) - v * v * half.T @ half
        jitter = 1e-9 * v * torch.eye(size, dtype=torch.float64)
        return cls(tables, mean, torch.linalg.cholesky(covariance + jitter), rest)

    def expected(self, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the rewards (n,) of keep ratios (n, n_groups), but for a constant.

        Args:
            actions: The keep ratios.
            generator: Draws weights, as in `table`; None takes the expected ones.
        """
        found = -self.tables.at(actions).flatten(1) @ self._weights(generator)
        return found if self.rest is None else found + self.rest(actions)

    def climb(self, starts: Tensor, budget: LinearBudget, generator: torch.Generator, reach: float = 0.3) -> Tensor:
        """Return keep ratios (n, n_groups) that cost the least reward near `starts` (n, n_groups), on the linear budget.

        Each start climbs on weights of its own, drawn from the posterior, but the first, which has the expected ones. Steps
        are noise on a few groups, narrower as it goes on; no keep ratio moves farther than `reach`.
        """
        n, n_groups = starts.shape
        tables = torch.stack([self.table(None if i == 0 else generator) for i in range(n)]).float()
        chain, group, last = torch.arange(n)[:, None, None], torch.arange(n_groups), tables.shape[2] - 1
        low, high = (starts - reach).clamp_min(0.0)[:, None], (starts + reach).clamp_max(1.0)[:, None]
        share = max(2.0 / n_groups, 0.15)
        at = starts[:, None]
        for step in range(_N_STEPS):
            width = _WIDEST * (_NARROWEST / _WIDEST) ** (step / (_N_STEPS - 1))
            shape = (n, _N_TRIALS, n_groups)
            moved = torch.rand(shape, generator=generator) < share
            trials = torch.maximum(
                torch.minimum(at + width * moved * torch.randn(shape, generator=generator), high), low
            )
            trials = torch.cat([at, budget.rescale(trials)], dim=1)
            place = trials * last
            below = place.floor().clamp(max=last - 1).long()
            left, right = tables[chain, group, below], tables[chain, group, below + 1]
            lost = (left + (place - below) * (right - left)).sum(dim=2)
            if self.rest is not None:
                lost = lost - self.rest(trials).float()
            at = trials[torch.arange(n), lost.argmin(dim=1)][:, None]
        return at[:, 0]

    def table(self, generator: torch.Generator | None = None) -> Tensor:
        """Return float64 (n_groups, n_grid), what a group takes off the reward at every keep ratio, falling in it.

        Args:
            generator: Draws weights from the posterior (Thompson 1933); None takes the expected ones.
        """
        weights = self._weights(generator)
        errors = self.tables.errors
        summed = (weights.reshape(*errors.shape[:2], 1) * errors).sum(0)
        return summed.flip(1).cummax(1).values.flip(1)

    def _weights(self, generator: torch.Generator | None) -> Tensor:
        """Return weights drawn from the posterior, or the expected ones."""
        if generator is None:
            return self.mean
        return self.mean + self.root @ torch.randn(len(self.mean), generator=generator, dtype=torch.float64)


def normalised(rewards: Tensor) -> Tensor:
    """Return rewards (n,) less their median, of deviation about 1, cut at `REWARD_CLIP`."""
    low, middle, high = torch.quantile(rewards, torch.tensor([0.1, 0.5, 0.9], dtype=rewards.dtype)).tolist()
    return ((rewards - middle) / max((high - low) / 2.56, 1e-6)).clamp(-REWARD_CLIP, REWARD_CLIP)
