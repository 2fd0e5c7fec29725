"""How much of the data is used, and what candidates are judged by."""

from __future__ import annotations

from dataclasses import dataclass

from agmc_onnx.errors import UsageError
from agmc_onnx.options.fields import AT_LEAST_1, option


@dataclass(frozen=True)
class Data:
    """How much of the data is used, and what candidates are judged by."""

    judge: str = option(
        "fidelity",
        "what a reward is made of",
        "NAME",
        choices=("fidelity", "metric"),
        more="fidelity: the closeness of a candidate's outputs to the original's (of class scores as soft probabilities),"
        " metric: the card's (paper). On few images closeness says far more than a count of right answers (ours). Finalists"
        " are chosen by it too.",
    )
    reward_samples: int = option(
        500,
        "samples every candidate is measured on, at most; the best ones on eight times as many",
        "N",
        more="Judged by fidelity, a candidate that is not behind the best so far is measured on more, up to eight times as"
        " many: among the best, 500 images tell nothing. Finalists are measured on those too.",
        **AT_LEAST_1,
    )
    racing: bool = option(
        False,
        "stop measuring a candidate that is clearly worse than the best so far",
        more="Image by image, after a quarter or half of them; its reward is then an estimate. Not the default: the refit"
        " takes as long as what it saves from.",
    )
    search_samples: int = option(128, "calibration samples a candidate is refitted with", "N", **AT_LEAST_1)
    input_shape: tuple[str, ...] = option(
        (),
        "sizes of an input's open dims, for cost, latency, memory and verification: NAME=1,3,224,224",
        "NAME=SIZES",
        default_text="the data's, else a guess that is printed",
        example="x=1,3,224,224",
        more="May be given once for each input; the name may be left out where there is one input. The batch counts as 1. A"
        " source that is imported is read at these sizes.",
    )

    def check(self) -> None:
        """Raise for what does not go together."""
        if self.racing and self.judge != "fidelity":
            raise UsageError(f"--racing: got --judge {self.judge}; expected fidelity, which is known image by image.")
