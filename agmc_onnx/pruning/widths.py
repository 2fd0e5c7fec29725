"""Which numbers of channels are worth having: what a kept count is a multiple of."""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.latency.tables import layout_block
from agmc_onnx.ties.groups import Channels

AUTO = "auto"
FINE = 4  # onnxruntime's blocked layout takes no other widths: 17 channels take 1.9 times as long as 16
MOST = 2**31 - 1  # more than a group ever has


def rounding(channels: Channels, round_to: int | str | None, provider: str = "cpu") -> IntArray:
    """Return for each group what its kept counts are multiples of, (n_groups,), where it has that many units.

    Args:
        channels: Analysis of the model.
        round_to: One number for all; or "auto": the channels that this machine's convolutions take at once, so that no
            lane runs empty. A group of fewer than two such blocks goes by half of one, or a quarter, but never below
            `FINE`: else it could not be pruned.
        provider: Where onnxruntime runs.
    """
    if round_to != AUTO:
        return np.full(len(channels.groups), min(int(round_to or 1), MOST), np.int64)
    block = layout_block(provider)
    steps = [step for step in (block, block // 2, block // 4) if step >= FINE] or [FINE]
    return np.array([next((s for s in steps if g.n_units >= 2 * s), steps[-1]) for g in channels.groups], np.int64)
