"""The files that a command reads: nothing of them is ever an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agmc_onnx.data.card import data_files
from agmc_onnx.graph.files import model_files


def inputs_of(model: Any, data: str | Path | None = None, **others: Any) -> dict[str, list[Path]]:
    """Return the files of a command's inputs by what they are, as `check_output` names them.

    Args:
        model: The model; what is not a path has no files.
        data: A card, an .npz, a folder or the name of a built-in set; None: none.
        others: Files by what they are, "_" for a space; None: not given. Models bring their weights.
    """
    files: dict[str, list[Path]] = {}
    for what, given in {
        "the model itself": model,
        **{name.replace("_", " "): one for name, one in others.items()},
    }.items():
        if isinstance(given, str | Path):
            files[what], *weights = ([part] for part in model_files(given))
            files.setdefault("a file with weights of a model that is read", []).extend(path for (path,) in weights)
    files["a file of the data"] = [] if data is None else data_files(data)
    return files
