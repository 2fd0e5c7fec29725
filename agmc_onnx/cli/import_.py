"""import: a model of another framework as ONNX; and the import that `compress SOURCE` begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agmc_onnx.cli.parsing import Said, argument, option, verb
from agmc_onnx.cli.words import FORCE, tell

SHAPE = (
    "shape of an input, batch first, for sources that do not know theirs: 1,3,224,224 or ids=N,T:int64 (a name stays open, and"
    " so does the batch); once per input"
)
NAMES = ("input_shape", "arg", "weights", "framework", "opset", "fixed_batch", "allow_pickle", "python")


def import_options(of_compress: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options which say how a source is read; `compress` has --input-shape of its own."""
    panel: dict[str, Any] = {
        "panel": "Import, where MODEL is not ONNX" if of_compress else "Source",
        "is_rare": of_compress,
    }
    added = (
        *([] if of_compress else [option("input_shape", tuple, "SHAPE", SHAPE, (), **panel)]),
        option("arg", tuple, "NAME=VALUE", "argument of package.module:factory; once per argument", (), **panel),
        option("weights", str, "FILE", "state dict or safetensors for package.module:factory", **panel),
        option("framework", str, "NAME", "what the source is, where that cannot be told from its name", **panel),
        option("opset", int, "N", "of the ONNX model", default_text="what suits the converter", low=1, **panel),
        option("fixed_batch", bool, "", "keep the batch of the shape instead of leaving it open", False, **panel),
        option(
            "allow_pickle",
            bool,
            "",
            "open files that run code when they are opened; only if you trust them",
            False,
            **panel,
        ),
        option("python", str, "PATH", "python of the environment that has Paddle and paddle2onnx", **panel),
        option(
            "force", bool, "", f"go on even if an import does not agree with its source, and {FORCE}", False, **panel
        ),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(added):
            function = one(function)
        return function

    return decorate


@verb("import", "agmc-onnx import mynet:make --arg width=64 --input-shape 1,3,224,224 -o model.onnx")
@argument("source", "SOURCE", "a file, a folder, or package.module:factory")
@import_options()
@option("seed", int, "S", "of the synthetic inputs", 0, low=0)
@option("output", str, "MODEL.onnx", "where to write it", short="-o", required=True)
def command(source: str, output: str, seed: int, force: bool, **given: Any) -> Said:
    """Import a model."""
    from agmc_onnx.verbs.import_ import import_

    report = import_(source, output, **options_of(given), force=force, seed=seed).report
    return Said(report, lines(report))


def options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `import_` that were given."""
    return {name: given[name] or None if name == "input_shape" else given[name] for name in NAMES}


def as_onnx(model: str, output: str | Path, resume: bool, given: Mapping[str, Any]) -> str | Path:
    """Return the ONNX file that `compress` works on; a source of another framework is imported beside the output.

    With --resume a file that was imported from the same source with the same options is taken as it is.
    """
    from agmc_onnx.exchange.importers import is_onnx

    if is_onnx(model):
        return model
    from agmc_onnx.verbs.import_ import import_, is_import_of

    path = Path(output)
    path = path.with_name(f"{path.name.removesuffix('.onnx').removesuffix('.agmc')}.imported.onnx")
    options = options_of(given)
    if resume and is_import_of(path, model, **options):
        tell(f"{model} was imported already: {path}")
        return path
    for line in lines(import_(model, path, **options, force=given["force"]).report):
        tell(line)
    return path


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return what is said of an import."""
    agreement = report["agreement"]
    batches = ", ".join(str(n) for n in agreement["batches"])
    said = [
        f"source     {report['source']}: {report['title']}, {report['framework']}",
        f"converter  {report['converter']}: opset {report['opset']}, {report['nodes']} nodes, {report['params']:,} parameters",
        f"inputs     {'; '.join(report['inputs'])}",
        f"outputs    {'; '.join(report['outputs'])}",
        f"agreement  with the source on {agreement['n_samples']} synthetic samples, in batches of {batches}:",
    ]
    for output in agreement["outputs"]:
        if output["allowed"]:
            text = f"largest difference {output['max_abs']:.2g}, {output['max_rel']:.2g} of the largest value"
            text += f" (allowed {output['allowed']:g})"
        else:
            text = "equal" if output["holds"] else f"{output['max_abs']:.1%} of the entries differ"
        if not output["varies"]:
            text += "; the output is the same for all samples, so this says little"
        said.append(f"           {output['name']}: {text}")
    if report["forced"]:
        said.append("           DOES NOT AGREE; went on because of --force")
    said += [f"note       {note}" for note in report["notes"]]
    if report["output"]:
        said.append(f"wrote {report['output']} ({report['file_bytes']:,} bytes)")
    return said
