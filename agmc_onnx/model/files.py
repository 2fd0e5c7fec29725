"""Reading and writing ONNX files: checked, with external data, replaced atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from agmc_onnx.errors import ModelError, UsageError

Array = np.ndarray
_LIMIT = 1_900_000_000  # protobuf cannot hold 2 GiB; leave room for the graph itself


@dataclass(frozen=True)
class ModelFile:
    """A model as it lies on disk.

    Attributes:
        proto: The model; tensors with external data are references (not loaded).
        path: The file it was read from; external data is found beside it.
        sha256: Digest of the file (of the graph file alone where weights are external), hexadecimal.
        file_bytes: Size of the file and of its external data.
    """

    proto: onnx.ModelProto
    path: Path
    sha256: str
    file_bytes: int


def read_model(path: str | Path) -> ModelFile:
    """Read an ONNX file, external data included.

    Args:
        path: An `.onnx` file.

    Returns:
        The model with all tensors loaded when they fit in one protobuf message, else as references.

    Raises:
        ModelError: If the file is missing, is no ONNX model, is truncated, or lacks its external data.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file. Check the path of the model.") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except DecodeError:
        raise ModelError(
            f"{path}: not a complete ONNX model ({len(raw)} bytes do not parse); expected an .onnx file. "
            "Is it truncated, or of another format?"
        ) from None
    if not proto.ir_version or not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{path}: not an ONNX model (no graph found); expected an .onnx file. Export the model again.")
    file_bytes = len(raw) + sum(size for _, size in _external_files(proto, path))
    if file_bytes - len(raw) and file_bytes < _LIMIT:
        for tensor in external_tensors(proto):
            inline = numpy_helper.from_array(read_array(tensor, path.parent), tensor.name)
            inline.doc_string = tensor.doc_string
            tensor.CopyFrom(inline)
    return ModelFile(proto, path, hashlib.sha256(raw).hexdigest(), file_bytes)


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the model, subgraphs included, whose data lies in another file."""
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def read_array(tensor: onnx.TensorProto, folder: Path | None = None) -> Array:
    """Return a tensor as a numpy array; external data is memory-mapped, not copied.

    Args:
        tensor: Inline or external tensor.
        folder: Folder of the model file, needed for external data.

    Raises:
        ModelError: If external data is missing, too short, or lies outside of the model's folder.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    path, offset, length = _location(tensor, folder or Path())
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    flat = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,)) if length else np.empty(0, "u1")
    return flat.view(dtype).reshape(tuple(tensor.dims))


def write_model(proto: onnx.ModelProto, path: str | Path, external: bool | None = None) -> int:
    """Write a model so that the file is either whole or untouched.

    Args:
        proto: Model with its tensors inline.
        path: Target file; with external data its weights go to `<name>.data` beside it.
        external: Put the weights into a file of their own; None does so only above 1.9 GB.

    Returns:
        Bytes written, external data included.

    Raises:
        UsageError: If the target cannot be written.
    """
    path = Path(path)
    if external is None:
        external = proto.ByteSize() > _LIMIT
    if not external:
        data = proto.SerializeToString(deterministic=True)
        write_atomically(path, data)
        return len(data)
    slim = onnx.ModelProto()
    slim.CopyFrom(proto)
    onnx.external_data_helper.convert_model_to_external_data(
        slim, all_tensors_to_one_file=True, location=path.name + ".data", size_threshold=1024
    )
    total = 0
    with _replacing(path.with_name(path.name + ".data")) as partial:
        with partial.open("wb") as out:
            for tensor in external_tensors(slim):
                raw = tensor.raw_data
                offset = out.tell()
                out.write(raw)
                for entry in tensor.external_data:
                    if entry.key in ("offset", "length"):
                        entry.value = str(offset if entry.key == "offset" else len(raw))
                known = {entry.key for entry in tensor.external_data}
                for key, value in (("offset", offset), ("length", len(raw))):
                    if key not in known:
                        tensor.external_data.add(key=key, value=str(value))
                tensor.ClearField("raw_data")
            total = out.tell()
        data = slim.SerializeToString(deterministic=True)
        write_atomically(path, data)
    return total + len(data)


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds either its old content or all of the new.

    Raises:
        UsageError: If the folder is missing or cannot be written, or the disk is full.
    """
    with _replacing(Path(path)) as partial:
        partial.write_bytes(data)


def check_writable(path: str | Path) -> None:
    """Raise now what writing `path` would raise later.

    Raises:
        UsageError: If the folder does not exist or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; expected a file name such as {path / 'out.onnx'}. Give -o FILE.onnx.")
    if not folder.is_dir():
        raise UsageError(f"{path}: folder {folder} does not exist. Create it, or choose another output with -o.")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".agmc-"):
            return
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}). Choose another output with -o.") from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}). Choose another output with -o.") from None
    finally:
        with suppress(OSError):
            partial.unlink()


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield the initializers and tensor attributes of a graph and of the graphs inside it."""
    yield from message.initializer  # type: ignore[attr-defined]
    for node in message.node:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _tensors(graph)


def _location(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"tensor {tensor.name}"
    path = (folder / entries.get("location", "")).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{where}: its external data lies outside of the model's folder, got {path}. Move it beside.")
    if not path.is_file():
        raise ModelError(
            f"{where}: its external data file {entries.get('location')} is missing; expected it in {folder}. "
            "Put the file beside the model."
        )
    offset = int(entries.get("offset", 0))
    wanted = int(np.prod(tensor.dims, dtype=np.int64)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    length = int(entries.get("length", wanted))
    if offset + length > path.stat().st_size:
        raise ModelError(f"{where}: its external data ends early; {path.name} is truncated. Copy the file again.")
    return path, offset, length


def _external_files(proto: onnx.ModelProto, path: Path) -> list[tuple[Path, int]]:
    found = {_location(tensor, path.parent)[0] for tensor in external_tensors(proto)}
    return [(file, file.stat().st_size) for file in sorted(found)]
