"""The files of a result: known as one set, never written over what they were made from or over what is not ours.

A set is the model X.onnx with its plan and reports. All of them carry the same id, made from the model and the plan, so the same
content has the same id. Files of two sets side by side are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.commit import staging
from agmc_onnx.graph.files import check_writable, external_bytes, external_tensors, write_atomically, write_model

COMMAND_FILES: ContextVar[tuple[Path, ...]] = ContextVar("COMMAND_FILES", default=())  # what a command is written in
SET_KEY = "agmc_onnx.set"  # of the model's metadata
_HTML_ID = re.compile(rb'<meta name="agmc-onnx-set" content="([0-9a-f]*)">')
_HEAD = 4096  # bytes of a page within which its id stands


def output_files(output: str | Path) -> dict[str, Path]:
    """Return the paths of everything `compress` writes for an output X.onnx: model, plan, report, html."""
    path = Path(output)
    stem = path.with_suffix("") if path.suffix == ".onnx" else path
    return {
        "model": path,
        "plan": stem.with_name(stem.name + ".plan.json"),
        "report": stem.with_name(stem.name + ".report.json"),
        "html": stem.with_name(stem.name + ".report.html"),
    }


def twin_of(output: str | Path) -> Path:
    """Return the path of the float twin of a quantised model X.onnx: X.float.onnx."""
    path = Path(output)
    return path.with_name(f"{path.name.removesuffix('.onnx')}.float.onnx")


def stamped(model: onnx.ModelProto, plan: str = "", folder: Path | None = None) -> tuple[onnx.ModelProto, str]:
    """Return a model that carries the id of its set, and the id: SHA-256 of model and plan without ids, 16 digits.

    Args:
        model: Not changed; an id that it has is replaced.
        plan: Text of the plan without an id; "" for a model without one.
        folder: Of its external data, where locations are relative.
    """
    bare = with_id(model, None)
    found = hashlib.sha256(bare.SerializeToString(deterministic=True))
    for tensor in external_tensors(bare):
        found.update(external_bytes(tensor, folder).data)
    found.update(plan.encode())
    return with_id(bare, found.hexdigest()[:16]), found.hexdigest()[:16]


def with_id(model: onnx.ModelProto, set_id: str | None) -> onnx.ModelProto:
    """Return a model that carries an id and no other, or none."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    others = [entry for entry in model.metadata_props if entry.key != SET_KEY]
    del made.metadata_props[:]
    made.metadata_props.extend(others)
    if set_id is not None:
        made.metadata_props.add(key=SET_KEY, value=set_id)
    return made


def stamp_file(path: Path) -> None:
    """Give an .onnx file that something else wrote an id of its own."""
    made, _ = stamped(onnx.load(path, load_external_data=False), folder=path.parent)
    path.write_bytes(made.SerializeToString(deterministic=True))


def set_of(path: str | Path) -> str | None:
    """Return the id that a model, plan, report or page carries; None where it has none, or is not one of these."""
    path = Path(path)
    try:
        if path.suffix == ".html":
            with path.open("rb") as file:
                found = _HTML_ID.search(file.read(_HEAD))
            return found[1].decode() if found else None
        if path.suffix == ".json":
            value = json.loads(path.read_bytes())
            is_ours = isinstance(value, dict) and str(value.get("format")).startswith("agmc-onnx/")
            return str(value.get("set") or "") if is_ours else None
        proto = onnx.ModelProto.FromString(path.read_bytes())
        return next((entry.value for entry in proto.metadata_props if entry.key == SET_KEY), None)
    except (OSError, ValueError, DecodeError, RecursionError):
        return None


def check_set(*paths: Path) -> None:
    """Raise if files that are there are not of one set.

    Raises:
        UsageError: If one carries another id than the first, or none where the first has one.
    """
    found = [(path, set_of(path) or "") for path in paths if path.is_file()]
    for path, found_id in found[1:]:
        if found_id != found[0][1]:
            raise UsageError(
                f"{path}: is not of one set with {found[0][0]}, got id {found_id or 'none'}; expected {found[0][1] or 'none'}."
                " Make both again with one command, or name the files of one set."
            )


def check_output(
    output: str | Path,
    inputs: Mapping[str, Iterable[str | Path]],
    force: bool = False,
    alone: bool = False,
    has_twin: bool = False,
) -> None:
    """Raise before any work what writing a result would raise after it.

    Args:
        output: The main file.
        inputs: By what they are ("the model itself"), the files that the command reads.
        force: Write over files that are not ours; inputs are never written over.
        alone: The output is one file, not a set.
        has_twin: The set has a float twin too.

    Raises:
        UsageError: If a file of the result cannot be written, is an input, or is there and not one that we wrote.
    """
    inputs = {**inputs, "the file of options": COMMAND_FILES.get()}
    paths = [Path(output)] if alone else [*output_files(output).values(), *([twin_of(output)] if has_twin else [])]
    for path in paths:
        check_writable(path.with_suffix(".new") if path.suffix == ".mlpackage" else path)  # that one is a folder
    for path in paths if alone else [*paths, _data_file(paths[0])]:
        for what, files in inputs.items():
            if any(is_same(path, file) for file in files):
                raise UsageError(f"{path}: is {what}; expected another file. Choose another output with -o.")
        if os.path.lexists(path) and not force and not is_ours(path):
            raise UsageError(
                f"{path}: is there already and is no file that agmc-onnx wrote; expected a new name. Choose another output"
                " with -o, or write over it with --force."
            )


def is_ours(path: Path) -> bool:
    """Return whether we wrote a file: it carries an id, or is the weights of a model that does."""
    return set_of(path.with_name(path.name.removesuffix(".data"))) is not None


def write_files(
    model: onnx.ModelProto,
    texts: Mapping[str, str],
    output: str | Path,
    keep: Iterable[str] = (),
    twin: onnx.ModelProto | None = None,
) -> None:
    """Write a model and its texts: all of them, or none, and then what was there before is still there.

    Files of ours that an older set of the same name had, and this one has not, go with it.

    Args:
        model: Goes to `output`; its weights to OUTPUT.data where they do not fit into one file.
        texts: Contents by name, as `output_files` names them.
        output: The compressed model's path.
        keep: Names of files, as `output_files` has them, that stay although they are not written.
        twin: The float model that `model` was quantised from; goes to X.float.onnx.

    Raises:
        UsageError: If it cannot be written.
    """
    files = output_files(output)
    float_path = twin_of(output)
    members = [*files.values(), _data_file(files["model"]), float_path, _data_file(float_path)]
    kept = {files[name] for name in keep}
    stale = [path.name for path in members if path not in kept and os.path.lexists(path) and is_ours(path)]
    with staging(files["model"], stale) as staged:
        for text_name, text in texts.items():
            write_atomically(staged / files[text_name].name, text.encode())
        if twin is not None:
            write_model(twin, staged / float_path.name)
        write_model(model, staged / files["model"].name)


def write_page(text: str, path: Path) -> None:
    """Write one page, whole or not at all.

    Raises:
        UsageError: If it cannot be written.
    """
    with staging(path) as staged:
        write_atomically(staged / path.name, text.encode())


def _data_file(model: Path) -> Path:
    return model.with_name(model.name + ".data")


def is_same(path: Path, other: str | Path) -> bool:
    """Return whether two paths lead to one file, by links too."""
    other = Path(other)
    try:
        return path.resolve() == other.resolve() or os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return False
