"""What a result may cost at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy.typing as npt

from agmc_onnx.errors import UsageError
from agmc_onnx.options import Budget
from agmc_onnx.pruning.cost import Cost, macs_cost, params_cost
from agmc_onnx.ties.groups import Channels

KINDS: dict[str, Callable[[Channels], Cost]] = {"flops": macs_cost, "params": params_cost}


@dataclass(frozen=True)
class Target:
    """A budget.

    Attributes:
        kind: Key of `KINDS`, and the field of `Budget` it was given by.
        share: Share of the original's cost to keep at most, 0..1.
        cost: Cost of kept counts (n_groups,).
        full: Cost of the original.
        miss: What was measured of the cost, over what was predicted; 1 where the cost is exact.
        table: Digest of the timed samples that a latency is learned from, else None: one table and seed give one result.
    """

    kind: str
    share: float
    cost: Callable[[npt.ArrayLike], int]
    full: int
    miss: float = 1.0
    table: str | None = None

    @property
    def budget(self) -> int:
        """Largest cost allowed."""
        return int(self.share / self.miss * self.full)

    def share_of(self, kept: npt.ArrayLike) -> float:
        """Return the share of the original's cost that kept counts have."""
        return self.cost(kept) * self.miss / self.full


def target_of(asked: Budget, channels: Channels, n_params: int | None = None) -> Target:
    """Return the target of a run.

    Args:
        asked: The budget.
        channels: The analysis.
        n_params: Parameters of the original's file; None: as many as the analysed model has.

    Raises:
        UsageError: If there is none.
    """
    for kind, make in KINDS.items():
        share = getattr(asked, kind)
        if asked.max_drop is not None and kind == asked.minimise:
            share = 1.0  # what is tried is less; see `run.dropping`
        if share is not None:
            cost = make(channels)
            full = n_params if kind == "params" and n_params else cost([group.n_units for group in channels.groups])
            return Target(kind, share, cost, full)
    raise UsageError("budget: none given; expected --flops R or --params R, with 0 < R < 1. Say how much to keep.")
