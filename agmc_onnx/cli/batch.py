"""batch."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from agmc_onnx.cli.compress import add_settings, settings_of
from agmc_onnx.cli.parsing import Parser, Verb, whole
from agmc_onnx.cli.words import FORCE, tell

if TYPE_CHECKING:
    from agmc_onnx.verbs.batch import Row


def add(one: Parser) -> None:
    """Add the arguments of `batch`: those of `compress`, for all models."""
    one.add_argument("folder", metavar="FOLDER", help="of .onnx files; NAME.toml beside NAME.onnx is its data card")
    one.add_argument("-o", "--output", metavar="FOLDER", required=True, help="for the results and summary.json")
    one.add_argument("--jobs", type=whole, metavar="N", default=1, help="models at a time; default: %(default)s")
    one.add_argument("--force", action="store_true", help=FORCE)
    add_settings(one)


def run(arguments: argparse.Namespace) -> int:
    """Compress a folder; the exit code is that of the first model which failed, by name."""
    from agmc_onnx.verbs.batch import SUMMARY, batch

    def progress(row: Row, n_done: int, n: int) -> None:
        if not arguments.quiet:
            tell(f"[{n_done}/{n}] {row_line(row)}")

    options = settings_of(arguments)
    rows = batch(
        arguments.folder,
        arguments.output,
        data=arguments.data,
        jobs=arguments.jobs,
        force=arguments.force,
        progress=progress,
        **options,
    )
    failed = [row for row in rows if row.exit_code]
    if not arguments.quiet:
        tell(f"{len(rows) - len(failed)} of {len(rows)} models compressed; wrote {arguments.output}/{SUMMARY}")
    return failed[0].exit_code if failed else 0


def row_line(row: Row) -> str:
    """Return what became of one model, in a line."""
    if row.exit_code:
        return f"{row.model}: failed ({row.exit_code}): {row.message}"
    assert row.reached is not None and row.latency_ratio is not None
    words = [f"{row.model}: {100 * row.reached:.2f} % left"]
    if row.before is not None and row.after is not None:
        words.append(f"metric {row.before:.2f} -> {row.after:.2f}")
    words.append(f"time x {row.latency_ratio:.2f}")
    words.append("done before" if row.found else f"{row.wall_s:.0f} s")
    return ", ".join(words)


VERBS = (Verb("batch", "compress every model of a folder, each in a process of its own", add, run),)
