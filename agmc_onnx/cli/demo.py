"""demo: the main job on the network and the images that come with the package."""

from __future__ import annotations

from agmc_onnx.cli.compress import compressed
from agmc_onnx.cli.parsing import Said, argument, option_of, verb
from agmc_onnx.cli.words import PROGRAM, tell
from agmc_onnx.options import Execution, Search


@verb("demo", "agmc-onnx demo")
@argument("folder", "FOLDER", "where the files go; default: this folder", required=False, default=".")
@option_of(Search, "episodes")
@option_of(Execution, "seed")
def command(folder: str, episodes: int, seed: int, quiet: bool) -> Said:
    """Say which command does the same, and run it."""
    from agmc_onnx.verbs.demo import FLOPS, SMALL, original_in

    original = original_in(folder)
    small = original.with_name(SMALL)
    words = f"--flops {FLOPS} --data digits -o {small} --episodes {episodes} --seed {seed}"
    tell(f"the same as: {PROGRAM} compress {original} {words}")
    return compressed(original, "digits", str(small), quiet, {"flops": FLOPS, "episodes": episodes, "seed": seed})
