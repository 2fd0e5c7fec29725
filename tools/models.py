"""Measure what users do to trained models, and write docs/models.md: the original, int8 alone, pruned, and both.

    python -m tools.models MODELS.toml --folder RUNS [--write docs/models.md]

MODELS.toml has a [[model]] for each: name, file, data, and points and minutes (of the frontier; 1 and no limit where left out).
A model whose frontier lies in RUNS already is not measured again; one that cannot be measured has its reason in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agmc_onnx.errors import AgmcError
from agmc_onnx.reporting.frontier import Frontier
from agmc_onnx.verbs.frontier import frontier

HEAD = """# Models of users

What the tool does to trained models, one command a model; this page is made by `python -m tools.models`. The metric is of
the test role, the time a share of the original's in onnxruntime, one thread, all models of a block measured in turns on one
machine (AMD EPYC with AVX2 only: no 8-bit dot products). Nothing was trained. No pruned rows: `--minutes` ended before the
first point. A model that is not here was not run.

| model | | metric (test samples) | lost | time | MACs | bytes |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


class Model(msgspec.Struct):
    """A model to be measured."""

    name: str
    file: str
    data: str
    points: int = 1
    minutes: float | None = None


class _Models(msgspec.Struct):
    model: list[Model]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    models = msgspec.toml.decode(arguments.models.read_text(), type=_Models).model
    text = HEAD + "\n".join(line for model in models for line in lines(model, arguments.folder)) + "\n"
    text += "\n## Commands\n\n" + "".join(f"    {command(model)}\n" for model in models)
    print(text) if arguments.write is None else arguments.write.write_text(text)


def command(model: Model) -> str:
    """Return what a user types."""
    file, data = (Path(path).name for path in (model.file, model.data))
    limit = "" if model.minutes is None else f" --minutes {model.minutes:g}"
    return f"agmc-onnx frontier {file} --data {data} -o {model.name} --points {model.points}{limit}"


def lines(model: Model, folder: Path) -> list[str]:
    """Return a model's rows; of one that cannot be measured, the reason."""
    path = folder / model.name / "frontier.json"
    try:
        if not path.is_file():
            frontier(model.file, data=model.data, output=path.parent, points=model.points, minutes=model.minutes)
    except AgmcError as error:
        return [f"| {model.name} | not measured: {error} | | | | | |"]
    return rows(model.name, msgspec.json.decode(path.read_bytes(), type=Frontier))


def rows(name: str, found: Frontier) -> Sequence[str]:
    """Return the rows of a frontier, the model's name in the first."""
    return [
        f"| {name if i == 0 else ''} | {point.kind} | {point.metric.name} {point.metric.value:.2f} ({point.metric.n:,})"
        f" | {point.lost:.2f} | {point.time:.2f} | {point.macs:,} | {point.file_bytes:,} |"
        for i, point in enumerate(found.points)
    ]


if __name__ == "__main__":
    main()
