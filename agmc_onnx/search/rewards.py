"""Rewards (AGMC, arXiv:2011.12641v1, sec. 3.4.3). `Error` is in percent points (100 - metric), as in the published code."""

from __future__ import annotations

import math
from collections.abc import Callable

from agmc_onnx.errors import UsageError

Reward = Callable[[float, int, int], float]


def err(metric: float, macs: int, params: int) -> float:
    """Return R_err = -Error (AGMC, sec. 3.4.3, eq. 12), for a search under a budget.

    Args:
        metric: 0..100, higher is better.
        macs: MACs of the candidate; not used.
        params: Parameters of the candidate; not used.

    Returns:
        Reward in -100..0.
    """
    return -(100.0 - metric)


def flops(metric: float, macs: int, params: int) -> float:
    """Return R_FLOPs = -Error * ln(FLOPs) (AGMC, sec. 3.4.3, eq. 13), where accuracy must be kept; FLOPs = 2 * macs.

    The natural logarithm of the absolute count is our reading; the paper gives no base, the published code no line.
    """
    return -(100.0 - metric) * math.log(max(2 * macs, 2))


def params(metric: float, macs: int, params: int) -> float:
    """Return R_Param = -Error * ln(#Param) (AGMC, sec. 3.4.3, eq. 14); see `flops` for the logarithm."""
    return -(100.0 - metric) * math.log(max(params, 2))


REWARDS: dict[str, Reward] = {"err": err, "flops": flops, "params": params}


def reward_named(name: str) -> Reward:
    """Return the reward of this name.

    Raises:
        UsageError: If there is no such row in `REWARDS`.
    """
    if name not in REWARDS:
        raise UsageError(f"reward: unknown name, got {name!r}; expected one of {', '.join(REWARDS)}.")
    return REWARDS[name]
