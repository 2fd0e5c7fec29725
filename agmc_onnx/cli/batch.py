"""batch: compress every model of a folder."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agmc_onnx.cli.compress import settings_of
from agmc_onnx.cli.parsing import PANELS, Said, argument, option, options_of_compress, verb
from agmc_onnx.cli.words import FORCE, tell

if TYPE_CHECKING:
    from agmc_onnx.verbs.batch import Row


@verb("batch", "agmc-onnx batch models/ --flops 0.5 -o small/ --jobs 4")
@argument("folder", "FOLDER", "of .onnx files; NAME.toml beside NAME.onnx is its data card")
@option("data", str, "CARD", "of the models that have no card of their own", panel="Data")
@options_of_compress()
@option("jobs", int, "N", "models at a time", 1, low=1, wrong="too small", panel=PANELS["execution"])
@option("force", bool, "", FORCE, False, panel="Output")
@option("output", str, "FOLDER", "for the results and summary.json", short="-o", required=True, panel="Output")
def command(folder: str, data: str | None, output: str, jobs: int, force: bool, **given: Any) -> Said:
    """Compress a folder; the exit code is that of the first model which failed, by name."""
    from agmc_onnx.reporting.tables import WIDTH
    from agmc_onnx.verbs.batch import SUMMARY, batch

    def progress(row: Row, n_done: int, n: int) -> None:
        begin = f"[{n_done}/{n}] "
        tell(f"{begin}{row_line(row, WIDTH - len(begin))}")

    rows = batch(folder, output, data=data, jobs=jobs, force=force, progress=progress, **settings_of(given))
    failed = [row for row in rows if row.exit_code]
    line = f"{len(rows) - len(failed)} of {len(rows)} models compressed; wrote {output}/{SUMMARY}"
    return Said([asdict(row) for row in rows], [line], failed[0].exit_code if failed else 0)


def row_line(row: Row, width: int) -> str:
    """Return what became of one model, in a line of a width; a long name is shortened."""
    if row.exit_code:
        return f"{row.model}: failed ({row.exit_code}): {row.message}"
    assert row.reached is not None and row.latency_ratio is not None
    from agmc_onnx.reporting.tables import shortened

    words = [f"{100 * row.reached:.2f} % left"]
    if row.before is not None and row.after is not None:
        words.append(f"metric {row.before:.2f} -> {row.after:.2f}")
    words.append(f"time x {row.latency_ratio:.2f}")
    words.append("done before" if row.found else f"{row.wall_s:.0f} s")
    facts = ", ".join(words)
    return f"{shortened(row.model, max(width - len(facts) - 2, 12))}: {facts}"
