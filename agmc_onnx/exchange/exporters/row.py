"""What an exporter is given and what it has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agmc_onnx.data.card import InputSpec
from agmc_onnx.data.samples import Feed, Samples
from agmc_onnx.measuring.session import Run

CALIBRATIONS = ("best", "minmax", "percentile", "entropy")


@dataclass(frozen=True)
class Settings:
    """Options of `export`.

    Attributes:
        target: Kind of processor, a key of `precision.int8.TARGETS`; int8 and ort differ by it.
        calibrate: How int8 finds the range of every value: one of `CALIBRATIONS`; best: minmax, or the ranges of least
            error, whichever answers more as the float model does on these samples.
        calibration_samples: Samples of the calibration role that int8 looks at, at most.
        batch: Samples per inference of formats that fix it, and of the timed inferences.
        threads: Of the runtime, where the exported model is run.
    """

    target: str = "x86"
    calibrate: str = "best"
    calibration_samples: int = 200
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Source:
    """The ONNX model that is exported.

    Attributes:
        path: Its file, absolute.
        plain: File of the same model in the form that the exporter's row asks for.
        inputs: What it is fed.
        outputs: Names of its outputs.
        feed: One batch of `settings.batch` samples.
        answers: What onnxruntime answers to `feed`, in the order of `outputs`.
        calibration: The calibration role; None without data.
        settings: Options.
    """

    path: Path
    plain: Path
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    feed: Feed
    answers: tuple[np.ndarray, ...]
    calibration: Samples | None
    settings: Settings

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one batch of every input."""
        return {spec.name: self.feed[spec.name].shape for spec in self.inputs}


@dataclass(frozen=True)
class Exporter:
    """One format; a row of `EXPORTERS`.

    Attributes:
        name: As typed after --to.
        text: What it makes, for the help.
        suffix: Of the main file.
        convert: Writes the main file (and others beside it) at a path; may return what has to be known of it.
        open: Returns what runs the main file.
        packages: Distributions that converting needs, by the name to import; the first gives the version.
        runtime: The same for running, where it needs more.
        extra: Of pyproject.toml, that brings both; "" where the base install has them.
        plain: Form of the model that `convert` reads: "" as it is; "open" in standard ops with folded constants; "fixed" the
            same for inputs of the shapes of one batch.
        tolerance: Largest difference from onnxruntime, over the largest output, that is rounding; None where the format
            changes the numbers on purpose.
        fixed_batch: Whether the exported model takes one batch size only.
        system: The only operating system that its runtime exists for, as `platform.system()` names it; "" for all.
        note: What has to be known of the numbers measured here.
        check: Raises where it cannot be made here, before anything is done; given the source and the output.
    """

    name: str
    text: str
    suffix: str
    convert: Callable[[Source, Path], Sequence[str] | None]
    open: Callable[[Path, Source], Run]
    packages: tuple[tuple[str, str], ...] = ()
    runtime: tuple[tuple[str, str], ...] = ()
    extra: str = ""
    plain: str = ""
    tolerance: float | None = 1e-2
    fixed_batch: bool = False
    system: str = ""
    note: str = ""
    check: Callable[[Source, Path], None] | None = None
