"""card: a data card for a model and a folder of images, tried out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agmc_onnx.cli.parsing import Said, argument, option, option_of, verb
from agmc_onnx.cli.words import FORCE
from agmc_onnx.options import Execution


@verb("card", "agmc-onnx card model.onnx photos -o card.toml")
@argument("model", "MODEL.onnx")
@argument("folder", "FOLDER", "of images, one folder a class, or with a labels.csv in it")
@option("images", int, "N", "images that are tried, at most", 48, low=1, wrong="too small")
@option_of(Execution, "threads")
@option("output", str, "CARD.toml", "default: MODEL.toml beside MODEL.onnx", short="-o")
@option("force", bool, "", FORCE, False)
def command(model: str, folder: str, output: str | None, **given: Any) -> Said:
    """Try usual preprocessings and write the best as a data card."""
    from agmc_onnx.reporting.tables import carded
    from agmc_onnx.verbs.card import card

    target = output or str(Path(model).with_suffix(".toml"))
    made = card(model, folder, output=target, **given)
    return Said(dict(made.report), [*carded(made.report), "", made.text.rstrip(), "", f"wrote {target}"])
