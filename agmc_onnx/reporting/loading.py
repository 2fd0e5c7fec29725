"""Reports and journals, read from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.outputs import check_set, output_files
from agmc_onnx.reporting.schema import Report, read_report
from agmc_onnx.search import journal


@dataclass(frozen=True)
class Run:
    """A run on disk, ended or not.

    Attributes:
        path: Its report, or its journal while it lasts.
        name: Of the output, without .report.json and the like.
        report: None while it lasts.
        settings: Of the run.
        evaluations: Lines of the journal; empty where there is a report.
    """

    path: Path
    name: str
    report: Report | None
    settings: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...] = ()

    @property
    def beside(self) -> dict[str, Path]:
        """The files of its set, there or not."""
        return output_files((self.path if self.report else self.path.parent).with_name(f"{self.name}.onnx"))


def read_run(source: str | Path) -> Run:
    """Return the run of X.report.json, X.onnx, X.run, or a journal.

    Args:
        source: A report; the compressed model it lies beside; a run's folder or its journal, while the run lasts.

    Raises:
        UsageError: If there is no such file, or it is neither.
    """
    path = Path(source)
    if path.is_dir():
        path = path / journal.NAME
    elif path.suffix in (".onnx", ".html"):
        stem = path.with_name(path.name.removesuffix(".report.html")) if path.suffix == ".html" else path
        made = output_files(stem)["report"]
        path = made if made.exists() else journal.run_folder(stem) / journal.NAME
    if not path.is_file():
        raise UsageError(
            f"{source}: has no report, got no file {path}; expected X.report.json, X.onnx, or a run's folder X.run."
            " Name what agmc-onnx compress wrote."
        )
    if path.suffix != ".jsonl":
        settle(path)
        report = read_report(path)
        run = Run(path, path.name.removesuffix(".json").removesuffix(".report"), report, report.settings)
        check_set(path, run.beside["model"])
        return run
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Name a run's folder.") from None
    return _journal(path, raw)


def _journal(path: Path, raw: bytes) -> Run:
    whole = raw[: raw.rfind(b"\n") + 1]  # a last line without an end is still being written
    rows = [row for _, row in journal.read_lines(path, whole)]
    if not rows:
        raise UsageError(f"{path}: not a journal, got no whole line; expected what a run writes. Name a run's folder.")
    done = tuple(row | {"episode": i} for i, row in enumerate(row for row in rows[1:] if "note" not in row))
    return Run(path, path.parent.name.removesuffix(".run"), None, rows[0].get("settings", {}), done)
