"""Single weights that become zero."""

from __future__ import annotations

from dataclasses import dataclass

from agmc_onnx.errors import UsageError
from agmc_onnx.options.fields import option


@dataclass(frozen=True)
class Sparsity:
    """What single weights become: zero, where they keep their shapes, or numbers of fewer bits."""

    precision: str = option(
        "float",
        "what the result computes in",
        "NAME",
        choices=("float", "int8", "mixed", "fp16", "bf16"),
        is_common=True,
        more="int8: finalists are quantised before they are judged and timed, with ranges from the calibration role;"
        " X.float.onnx, the twin that plan, verify and finetune speak of, is written beside the result. Other candidates are"
        " judged in float; the report has the rank correlation of both. mixed: int8 node by node, where the measured time that it"
        " saves is worth the answers that it changes. fp16 and bf16 are refused where they gain nothing.",
    )

    sparsity: float | None = option(
        None,
        "share of the weights of dense layers that become zero",
        "R",
        default_text="none",
        low=0,
        high=1,
        is_open=True,
        example="0.3",
        wrong="the share of zeros is out of range",
    )
    sparse_pattern: str | None = option(
        None, "of M such weights in a row keep at most N; instead of --sparsity", "N:M", default_text="none"
    )
    sparse_method: str | None = option(
        None,
        "how they are chosen",
        "NAME",
        choices=("magnitude", "wanda", "obs"),
        default_text="obs, or magnitude without recovery",
    )
    sparse_layers: str = option(
        "dense", "which layers: fully connected ones, or convolutions too", "NAME", choices=("dense", "all")
    )
    sparse_decide: str = option(
        "uniform",
        "who divides the zeros among the layers",
        "NAME",
        choices=("uniform", "policy"),
        more="uniform: every layer has the same share of zeros; policy: the policy decides it layer by layer, in the same"
        " episode as the widths, such that --sparsity of all the layers' weights together are zero.",
    )
    sparse_storage: str = option(
        "dense",
        "dense, or as sparse_initializer where smaller",
        "NAME",
        choices=("dense", "smallest"),
        more="smallest is not the default, since onnx's own checker and most other runtimes refuse sparse_initializer, and a"
        " zip file makes up the difference.",
    )

    def check(self) -> None:
        """Raise for what does not go together."""
        if self.sparse_pattern is not None:
            n, m = pattern_of(self.sparse_pattern)
            if self.sparsity is not None:
                raise UsageError(
                    f"--sparsity: got {self.sparsity} beside --sparse-pattern {n}:{m}, which sets {1 - n / m:.3g} of the"
                    " weights to zero; expected one of the two. Leave one out."
                )
        if self.sparse_decide == "policy" and self.sparsity is None:
            raise UsageError(
                "--sparse-decide: got policy without --sparsity; expected a share to divide. Give --sparsity R."
            )

    @property
    def is_sparse(self) -> bool:
        """Whether single weights become zero."""
        return self.sparsity is not None or self.sparse_pattern is not None


def pattern_of(text: str) -> tuple[int, int]:
    """Return (n, m) of a pattern "N:M".

    Raises:
        UsageError: If it is none.
    """
    n, _, m = text.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise UsageError(
            f"--sparse-pattern: not a pattern, got {text!r}; expected N:M with 0 < N < M, such as 2:4 to keep 2 of 4."
        )
    return int(n), int(m)
