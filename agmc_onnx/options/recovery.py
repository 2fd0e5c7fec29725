"""How candidates and the result recover from the cut."""

from __future__ import annotations

from dataclasses import dataclass

from agmc_onnx.options.fields import AT_LEAST_1, option


@dataclass(frozen=True)
class Recovery:
    """How candidates and the result recover from the cut."""

    recover: str | None = option(
        None,
        "how candidates and the result recover from the cut",
        "NAME",
        choices=("none", "statistics", "compensate", "distill"),
        default_text="compensate with --data, else none",
        is_common=True,
        more="compensate: every candidate is refitted in closed form before it is measured, and the result with all"
        " calibration samples; distill: as that, and then the result learns from the original, without labels, on the card's"
        " [train] images or else the calibration role; statistics: only means and variances are put right; none: measured as"
        " cut.",
    )
    search_positions: int = option(4000, "output positions sampled per node for a candidate's refit", "N", **AT_LEAST_1)
    distill_steps: int = option(
        1000,
        "optimiser steps of --recover distill",
        "N",
        **AT_LEAST_1,
    )

    def check(self) -> None:
        """Nothing here depends on something else."""

    @property
    def is_refit(self) -> bool:
        """Whether weights are refitted on data."""
        return self.recover != "none"
