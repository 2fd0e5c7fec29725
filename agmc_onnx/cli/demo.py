"""demo: the main job on the network and the images that come with the package."""

from __future__ import annotations

import argparse

from agmc_onnx.cli.parsing import Parser, Verb, whole
from agmc_onnx.cli.words import PROGRAM, tell


def add(one: Parser) -> None:
    """Add the arguments of `demo`."""
    one.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=".", help="where the files go; default: this folder"
    )
    one.add_argument("--episodes", type=whole, metavar="N", default=100, help="default: %(default)s")
    one.add_argument("--seed", type=whole, metavar="S", default=0, help="default: %(default)s")
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def run(arguments: argparse.Namespace) -> int:
    """Say which command does the same, and run it."""
    from agmc_onnx.cli import main
    from agmc_onnx.verbs.demo import FLOPS, SMALL, original_in

    original = original_in(arguments.folder)
    words = ["compress", str(original), "--flops", str(FLOPS), "--data", "digits", "-o", str(original.with_name(SMALL))]
    words += ["--episodes", str(arguments.episodes), "--seed", str(arguments.seed)]
    if not arguments.json:
        tell(f"the same as: {PROGRAM} {' '.join(words)}")
    words += ["--json"] * arguments.json + ["--quiet"] * arguments.quiet + ["--verbose"] * arguments.verbose
    return main(words)


VERBS = (Verb("demo", "compress the digits network that comes with the package", add, run),)
