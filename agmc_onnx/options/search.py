"""What proposes candidates, how many, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass

from agmc_onnx.options.fields import AT_LEAST_0, AT_LEAST_1, option


@dataclass(frozen=True)
class Search:
    """What proposes candidates, how many, and what they may be."""

    policy: str = option(
        "agmc",
        "what decides how much of every group to keep",
        "NAME",
        choices=("agmc_onnx.policies:POLICIES", "agmc_onnx.policies:COMPOSED"),
        is_common=True,
    )
    episodes: int = option(
        100,
        "candidates evaluated; 0 searches nothing, the policy names the finalists",
        "N",
        is_common=True,
        more="The paper has 400; 100 find nearly as much here in a quarter of the time (ours).",
        **AT_LEAST_0,
    )
    patience: int = option(
        20,
        "end a search after so many candidates without a better one",
        "N",
        more="In 30 searches of 100 candidates by AGMC it ends after 52, 0.6 % short of the best reward of all 100"
        " (docs/decisions/episodes.md). As many as --episodes measures all.",
        **AT_LEAST_1,
    )
    reward: str = option(
        "err", "what the policy is rewarded for", "NAME", choices=("agmc_onnx.search.rewards:REWARDS",)
    )
    finalists: int = option(
        4,
        "best candidates recovered in full and measured on more samples at the end",
        "N",
        **AT_LEAST_1,
    )
    importance: str | None = option(
        None,
        "ranking of the channels of a group",
        "NAME",
        choices=("agmc_onnx.pruning.importance:IMPORTANCE", "agmc_onnx.pruning.importance:NEED_DATA"),
        default_text="moments with --data and depthwise convolutions, else l2",
        more="L2 is the published code's; moments, where candidates are refitted on data, is ours.",
    )
    round_to: int | str | None = option(
        None,
        "kept channels are a multiple of K where the group allows; auto: of what is fast here",
        "K",
        default_text="auto with --latency, else 4",
        extra="auto",
        more="auto: the channels that convolutions take at once on this machine, half or a quarter of them in small groups,"
        " at least 4 (ours: onnxruntime leaves its fast layout for widths that are no multiple of 4; 17 channels took 1.9"
        " times as long as 16, and 20 as long as 32). At half the MACs ResNet-20 keeps 87.6 % in fours, 83.4 % in"
        " whole blocks.",
        **AT_LEAST_1,
    )
    floor: float = option(
        0.2,
        "smallest share kept of any group, unless the budget needs less",
        "R",
        low=0,
        high=1,
        example="0.2",
        more="0.2 is the published code's a_max of 0.8.",
    )
    exclude: str | None = option(
        None,
        "groups that stay whole: names as inspect prints them, separated by commas, with * and ?, or residual for all that"
        " shortcuts join",
        "NAMES",
        default_text="none",
        more="Names of weights or nodes work too. `layer:NAME` says that a layer stays, while its widths may shrink.",
    )
    keep_layers: bool = option(
        False,
        "make layers narrower, but let none go",
        more="Layers stay, too, where there is no data. With --stages they go in the last one.",
    )
    batch: int | None = option(
        None,
        "candidates proposed before the first is learned from",
        "N",
        default_text="as many as --workers",
        more="The result depends on it, unlike on --workers.",
        **AT_LEAST_1,
    )

    def check(self) -> None:
        """Nothing here depends on something else."""

    @property
    def excluded(self) -> tuple[str, ...]:
        """Names of the groups that stay whole."""
        return tuple(name for text in (self.exclude or "").split(",") if (name := text.strip()))
