"""What the result may cost, or lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agmc_onnx.errors import UsageError
from agmc_onnx.options.fields import AT_LEAST_1, SHARE, flag, option

BUDGETS = ("flops", "params")  # the fields that name a share of a cost
ONE_OF = (*BUDGETS, "latency", "max_drop")  # the fields of which exactly one is given


@dataclass(frozen=True)
class Budget:
    """What the result may cost, or lose: one of the first four."""

    flops: float | None = option(None, "keep at most this share of the MACs, 0 < R < 1", "R", is_common=True, **SHARE)
    params: float | None = option(
        None, "keep at most this share of the parameters, 0 < R < 1", "R", is_common=True, **SHARE
    )
    latency: float | None = option(
        None,
        "keep at most this share of the latency, 0 < R < 1, measured on this machine",
        "R",
        more="That of one inference of batch 1 with --threads, measured beside the original's.",
        is_common=True,
        **SHARE,
    )
    max_drop: float | None = option(
        None,
        "the smallest model that loses at most P points of the metric; needs --data",
        "P",
        is_common=True,
        low=0,
        high=100,
        is_open=True,
        example="1",
        wrong="the points to lose are out of range",
    )
    minimise: str = option("flops", "what --max-drop makes small", "NAME", choices=(*BUDGETS, "latency"))
    latency_table: str | Path | None = option(
        None,
        "op times of another device for --latency; `agmc-onnx time-ops` makes them",
        "FILE",
        default_text="timed here",
        more="Ops that are timed here are timed once, and kept in the user's cache folder.",
    )
    stages: int = option(1, "steps in which the budget is reached, each recovered before the next", "N", **AT_LEAST_1)

    @property
    def is_latency(self) -> bool:
        """Whether it is latency that is kept within the budget, or made small."""
        return self.latency is not None or (self.max_drop is not None and self.minimise == "latency")

    def check(self) -> None:
        """Raise unless exactly one budget is given."""
        given = [name for name in ONE_OF if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(
                f"budget: got {' and '.join(flag(name) for name in given) or 'none'}; expected exactly one of"
                " --flops R, --params R and --latency R, with 0 < R < 1, or --max-drop P. Say how much to keep, or to lose."
            )
        if self.latency_table is not None and not self.is_latency:
            raise UsageError("--latency-table: got no --latency; expected the budget it is for. Add --latency R.")
