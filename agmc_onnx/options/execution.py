"""Where and how long a run runs, and what is random in it."""

from __future__ import annotations

from dataclasses import dataclass

from agmc_onnx.options.fields import AT_LEAST_0, AT_LEAST_1, option


@dataclass(frozen=True)
class Execution:
    """Where and how long a run runs, and what is random in it."""

    minutes: float | None = option(
        None,
        "time limit of the whole command: the search stops in time and keeps the best model so far",
        "M",
        default_text="none",
        is_common=True,
        low=0,
        is_open=True,
        wrong="too few",
        more="What comes behind the search is reckoned in, by what one candidate takes; at least one candidate is measured."
        " The same seed gives the same result only where as many candidates are evaluated.",
    )
    seed: int = option(
        0, "of every random choice; the same seed gives the same result", "S", is_common=True, **AT_LEAST_0
    )
    resume: bool = option(False, "go on with an interrupted run of the same output, model, data and options")
    workers: int = option(1, "processes that evaluate candidates side by side, with --threads each", "N", **AT_LEAST_1)
    ray: str | None = option(
        None,
        "Ray cluster where --workers run: local, auto, host:port or ray://host:port",
        "ADDRESS",
        default_text="none",
    )
    threads: int = option(1, "threads of onnxruntime, and of torch in a refit", "N", **AT_LEAST_1)
    provider: str = option("cpu", "where onnxruntime runs", "NAME", choices=("cpu", "cuda", "auto"))
    custom_ops: tuple[str, ...] = option(
        (),
        "library of ops of others for onnxruntime; its code is run, and what its ops touch stays whole",
        "LIBRARY",
        default_text="none",
        example="libmy_ops.so",
        more="May be given once for each library; those of onnxruntime_extensions are at its get_library_path().",
    )
    latency_seconds: float = option(5.0, "time given to measuring latency", "S", low=0, wrong="not a time", example="5")

    def check(self) -> None:
        """Nothing here depends on something else."""
