"""frontier: original, int8, pruned, and both, at several points."""

from __future__ import annotations

from typing import Any

from agmc_onnx.cli.compress import DATA
from agmc_onnx.cli.parsing import Said, argument, option, option_of, verb
from agmc_onnx.cli.words import noting
from agmc_onnx.options import Data, Execution, Search
from agmc_onnx.verbs.frontier import EPISODES, FINALISTS, POINTS, PRECISIONS, SECONDS


@verb("frontier", "agmc-onnx frontier model.onnx --data card.toml -o frontier")
@argument("model", "MODEL.onnx", "the original")
@option("data", str, "CARD", DATA, required=True)
@option("output", str, "FOLDER", "for all models, frontier.json and frontier.html", short="-o", required=True)
@option("points", int, "N", "times that are aimed at; each gives a quantised model and its float twin", POINTS, low=1)
@option("precision", str, "NAME", "of what is pruned and quantised", PRECISIONS[0], choices=PRECISIONS)
@option("policy", str, "NAME", "what decides, as in compress", "greedy")
@option("episodes", int, "N", "candidates of every search", EPISODES, low=1)
@option("finalists", int, "N", "of every search, quantised and judged so", FINALISTS, low=1)
@option_of(Search, "exclude", "keep_layers")
@option_of(Data, "input_shape")
@option_of(Execution, "minutes", "seed", "threads")
@option("seconds", float, "S", "time given to timing all models in turns", SECONDS, low=0, wrong="not a time")
def command(model: str, quiet: bool, **given: Any) -> Said:
    """Make the frontier."""
    from agmc_onnx.reporting.frontier import lines
    from agmc_onnx.reporting.progress import Episodes
    from agmc_onnx.verbs.frontier import frontier

    with Episodes(quiet, noting()) as episodes:
        found = frontier(model, progress=episodes, **given)
    folder = given["output"]
    wrote = f"wrote {folder}/frontier.html, {folder}/frontier.json and {len(found.points) - 1} models"
    *table, advice = lines(found)
    return Said(found.to_dict(), [*table, wrote, advice])
