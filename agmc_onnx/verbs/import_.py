"""The verb `import`: convert, compare with the source, check, write."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from agmc_onnx import __version__
from agmc_onnx.errors import ModelError, UsageError, VerificationError
from agmc_onnx.exchange.importers import importer_of
from agmc_onnx.exchange.importers.agreement import Agreement, check_model, compare
from agmc_onnx.exchange.importers.plain_shapes import with_plain_shapes
from agmc_onnx.exchange.importers.source import Conversion, ImportOptions, InputShape, Source
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.files import model_bytes, read_model
from agmc_onnx.graph.outputs import check_output, stamped, write_files
from agmc_onnx.graph.view import graph_of
from agmc_onnx.pruning.cost import count_params

IMPORT_FORMAT = "agmc-onnx/import@1"
METADATA = "agmc_onnx.import"  # key of the model's metadata: where it came from, as JSON
MAX_IR = 10  # what every supported onnxruntime reads; newer only where the opset needs it


@dataclass(frozen=True)
class Imported:
    """What `import_` made.

    Attributes:
        model: The ONNX model; its metadata says where it came from.
        agreement: How far it is from the source; None where that was not asked for.
        report: As `agmc-onnx/import@1`: source, framework, converter, inputs, outputs, agreement, notes.
    """

    model: onnx.ModelProto
    agreement: Agreement | None
    report: dict[str, Any]


def import_(
    source: str | Path,
    output: str | Path | None = None,
    *,
    framework: str | None = None,
    weights: str | Path | None = None,
    input_shape: str | Sequence[int | str] | Sequence[str] | None = None,
    arg: Mapping[str, Any] | Sequence[str] = (),
    opset: int | None = None,
    fixed_batch: bool = False,
    allow_pickle: bool = False,
    python: str | Path | None = None,
    force: bool = False,
    seed: int = 0,
) -> Imported:
    """Convert a model of another framework to ONNX, and compare the two on synthetic inputs.

    Args:
        source: A file, a folder, or `package.module:name`; see `IMPORTERS` for what is understood.
        output: Where to write the model; None writes nothing.
        framework: Row of `IMPORTERS`; None recognises it.
        weights: State dict or safetensors file for a function that makes a PyTorch network; `.weights.h5` for Keras.
        input_shape: "1,3,224,224", (1, 3, 224, 224), or one such text per input; needed where the source does not know.
        arg: Arguments of `package.module:factory`, by name, or as texts "name=value".
        opset: Of the written model; None takes what the converter is best with.
        fixed_batch: Keep the batch of the shape instead of leaving it open.
        allow_pickle: Open files that run code when they are opened; only for files you trust.
        python: Interpreter of the environment where Paddle is installed.
        force: Write the model even if it does not agree with its source, and over a file that is not ours.
        seed: Of the synthetic inputs.

    Raises:
        UsageError: If the source or an option cannot be used, or a package is missing.
        ModelError: If the source cannot be converted, or the result is no valid ONNX model.
        VerificationError: If the two do not agree to rounding; nothing is written then.
    """
    start = time.perf_counter()
    options = ImportOptions(
        framework, weights, _shapes(input_shape), opset, fixed_batch, allow_pickle, python, _arguments(arg)
    )  # fmt: skip
    named = Source(source, options.arguments)
    if output is not None:
        settle(output)
        sources = [named.path, *(named.path.rglob("*") if named.path.is_dir() else ())]
        check_output(output, {"the source itself": sources, "the weights": [] if weights is None else [weights]}, force)
    name, importer = importer_of(named, options)
    conversion = importer.convert(named, options)
    model = _tidied(conversion.model)
    _check_opset(named, model)
    check_model(model, str(named))
    model = with_plain_shapes(model, seed)
    agreement = compare(
        Conversion(model, conversion.answer, conversion.framework, conversion.converter, conversion.ranges), seed
    )
    if not agreement.holds and not force:
        worst = agreement.worst
        raise VerificationError(
            f"{named}: the imported model does not answer as its source does: output {worst.name} differs by"
            f" {worst.max_abs:.3g}, {worst.max_rel:.2g} of the largest value; expected at most {worst.allowed:g}."
            " Nothing was written; --force writes it nevertheless."
        )
    origin = {
        "source": named.path.name if named.path.exists() else named.text,
        "kind": name,
        "framework": conversion.framework,
        "converter": conversion.converter,
        "sha256": digest(named, options),
        "agmc_onnx": __version__,
    }
    _describe(model, origin)
    report = _report(named, origin, importer.title, conversion, model, agreement)
    report["forced"] = not agreement.holds
    report["output"] = None if output is None else str(output)
    model, _ = stamped(model)
    if output is not None:
        write_files(model, {}, output)
        report["file_bytes"] = model_bytes(model)
    report["wall_s"] = round(time.perf_counter() - start, 3)
    return Imported(model, agreement, report)


def digest(source: Source, options: ImportOptions) -> str:
    """Return what identifies an import: the bytes of its files and its options; hexadecimal.

    Code behind `package.module:name` is represented by its name alone.
    """
    found = hashlib.sha256(json.dumps({**asdict(options), "text": source.text}, default=str, sort_keys=True).encode())
    paths = [source.path, *([Path(options.weights)] if options.weights is not None else [])]
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                found.update(file.name.encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        found.update(block)
    return found.hexdigest()


def is_import_of(
    path: str | Path, source: str | Path, *, input_shape: Any = None, arg: Any = (), **options: Any
) -> bool:
    """Return whether an ONNX file says that it was imported from this source, as it is now, with these options."""
    try:
        proto = read_model(path).proto
    except ModelError:
        return False
    wanted = digest(
        Source(source), ImportOptions(input_shapes=_shapes(input_shape), arguments=_arguments(arg), **options)
    )
    return any(entry.key == METADATA and f'"{wanted}"' in entry.value for entry in proto.metadata_props)


def _shapes(given: Any) -> tuple[InputShape, ...]:
    if given is None:
        return ()
    if isinstance(given, str):
        return (InputShape.of(given),)
    if all(isinstance(item, InputShape) for item in given):
        return tuple(given)
    if any(isinstance(item, int) for item in given):
        return (InputShape.of(",".join(str(item) for item in given)),)
    if all(isinstance(item, str) for item in given):
        return tuple(InputShape.of(item) for item in given)
    return tuple(InputShape.of(",".join(str(dim) for dim in item)) for item in given)


def _arguments(given: Mapping[str, Any] | Sequence[str]) -> Mapping[str, Any]:
    """Return arguments by name; of a text "name=value" the value is read as Python writes it, or is the text itself."""
    if isinstance(given, Mapping):
        return given
    found: dict[str, Any] = {}
    for text in given:
        name, is_one, value = text.partition("=")
        if not is_one or not name.isidentifier():
            raise UsageError(f"--arg: not an argument, got {text!r}; expected NAME=VALUE, such as width=64.")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in a form that every supported onnxruntime reads, without the traces that exporters leave.

    torch writes the lines of code that made a node, with the paths of the machine, into the node's metadata.
    """
    tidy = onnx.ModelProto()
    tidy.CopyFrom(model)
    for node in (*tidy.graph.node, *(node for function in tidy.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*tidy.graph.input, *tidy.graph.output, *tidy.graph.value_info):
        del value.metadata_props[:]
    del tidy.graph.metadata_props[:]
    typed = [value for value in tidy.graph.value_info if value.type.WhichOneof("value")]
    del tidy.graph.value_info[:]
    tidy.graph.value_info.extend(typed)
    _name_batch(tidy)
    if tidy.ir_version > MAX_IR:
        needed = onnx.helper.find_min_ir_version_for(list(tidy.opset_import), ignore_unknown=True)
        tidy.ir_version = max(MAX_IR, needed)
    return tidy


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the symbol of the first dim of the inputs "batch", in place; converters call it s77 or unk__12."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    firsts = [value.type.tensor_type.shape.dim for value in model.graph.input]
    symbols = {dim[0].dim_param for dim in firsts if len(dim) and not dim[0].HasField("dim_value")}
    if len(symbols) != 1 or any(dim.dim_param == "batch" for dim in dims):
        return
    symbol = symbols.pop()
    for dim in dims:
        if symbol and dim.dim_param == symbol:
            dim.dim_param = "batch"
    for first in firsts:
        if len(first) and not first[0].HasField("dim_value"):
            first[0].dim_param = "batch"


def _check_opset(source: Source, model: onnx.ModelProto) -> None:
    wrong = sorted({e.domain for e in model.opset_import} & {"ai.onnx.contrib", "com.microsoft.extensions"})
    if wrong:
        raise ModelError(
            f"{source}: the converted model has ops that only an extension of onnxruntime knows, got {', '.join(wrong)};"
            " expected standard ONNX. Remove the string ops from the network."
        )


def _describe(model: onnx.ModelProto, origin: dict[str, Any]) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != METADATA]
    del model.metadata_props[:]
    for entry in kept:
        model.metadata_props.add(key=entry.key, value=entry.value)
    model.metadata_props.add(key=METADATA, value=json.dumps(origin))


def _report(
    source: Source,
    origin: dict[str, Any],
    title: str,
    conversion: Conversion,
    model: onnx.ModelProto,
    agreement: Agreement,
) -> dict[str, Any]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {
        "format": IMPORT_FORMAT,
        **origin,
        "source": str(source),
        "title": title,
        "opset": opsets.get("ai.onnx"),
        "nodes": len(model.graph.node),
        "params": count_params(graph_of(model)),
        "inputs": [_value_text(value) for value in model.graph.input],
        "outputs": [_value_text(value) for value in model.graph.output],
        "agreement": {
            "holds": agreement.holds,
            "n_samples": agreement.n_samples,
            "batches": list(agreement.batches),
            "outputs": [{**asdict(output), "holds": output.holds} for output in agreement.outputs],
        },
        "notes": [*conversion.notes, *agreement.notes],
    }


def _value_text(value: onnx.ValueInfoProto) -> str:
    """Return name, type and shape of a graph input or output as a message writes it."""
    tensor = value.type.tensor_type
    dims = [dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    kind = "float32" if tensor.elem_type == 1 else onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} [{', '.join(dims)}]"
