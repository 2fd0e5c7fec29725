"""import: a model of another framework as ONNX; and the import that `compress SOURCE` begins with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agmc_onnx.cli.parsing import Parser, Verb, whole
from agmc_onnx.cli.words import FORCE, tell


def add_options(one: Any, has_shape: bool = False) -> None:
    """Add the options that say how a source is read; to `import`, and to a group of `compress`, which has --input-shape."""
    if not has_shape:
        one.add_argument(
            "--input-shape",
            action="append",
            metavar="SHAPE",
            help="shape of an input, batch first, for sources that do not know theirs: 1,3,224,224 or ids=N,T:int64 (a name"
            " stays open, and so does the batch); once per input",
        )
    one.add_argument("--weights", metavar="FILE", help="state dict or safetensors for package.module:factory")
    one.add_argument("--framework", metavar="NAME", help="what the source is, where that cannot be told from its name")
    one.add_argument("--opset", type=whole, metavar="N", help="of the ONNX model; default: what suits the converter")
    one.add_argument(
        "--fixed-batch", action="store_true", help="keep the batch of the shape instead of leaving it open"
    )
    one.add_argument(
        "--allow-pickle",
        action="store_true",
        help="open files that run code when they are opened; only if you trust them",
    )
    one.add_argument("--python", metavar="PATH", help="python of the environment that has Paddle and paddle2onnx")
    one.add_argument(
        "--force", action="store_true", help=f"go on even if an import does not agree with its source, and {FORCE}"
    )


def _add(one: Parser) -> None:
    from agmc_onnx.exchange.importers import IMPORTERS

    kinds = "; ".join(f"{name}: {importer.title}" for name, importer in IMPORTERS.items())
    one.add_argument("source", metavar="SOURCE", help=f"what to import; {kinds}")
    one.add_argument("-o", "--output", metavar="MODEL.onnx", required=True, help="where to write it")
    add_options(one)
    one.add_argument("--seed", type=whole, metavar="S", default=0, help="of the synthetic inputs; default: %(default)s")
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def _import(arguments: argparse.Namespace) -> int:
    from agmc_onnx.verbs.import_ import import_model

    options = options_of(arguments)
    found = import_model(arguments.source, arguments.output, **options, force=arguments.force, seed=arguments.seed)
    if arguments.json:
        tell(json.dumps(found.report, indent=1))
        return 0
    for line in lines(found.report):
        tell(line)
    return 0


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `import_model` that were given."""
    names = ("input_shape", "weights", "framework", "opset", "fixed_batch", "allow_pickle", "python")
    return {name: getattr(arguments, name) for name in names}


def as_onnx(arguments: argparse.Namespace, output: str | Path, say: Callable[[str], None]) -> str | Path:
    """Return the ONNX file that `compress` works on; a source of another framework is imported beside the output.

    With --resume a file that was imported from the same source with the same options is taken as it is.
    """
    from agmc_onnx.exchange.importers import is_onnx

    if is_onnx(arguments.model):
        return str(arguments.model)
    from agmc_onnx.verbs.import_ import import_model, is_import_of

    path = Path(output)
    path = path.with_name(f"{path.name.removesuffix('.onnx').removesuffix('.agmc')}.imported.onnx")
    options = options_of(arguments)
    if arguments.resume and is_import_of(path, arguments.model, **options):
        say(f"{arguments.model} was imported already: {path}")
        return path
    for line in lines(import_model(arguments.model, path, **options, force=arguments.force).report):
        say(line)
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


VERBS = (Verb("import", "convert a model of another framework to ONNX, and compare the two", _add, _import),)
