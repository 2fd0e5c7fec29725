"""Parts of tensors: taken now, or named now and read when they are needed.

A weight that lies in another file is never read to be cut. Its cut form is a reference to the same file that also names
what stays; whoever writes or runs the model reads one such tensor after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from agmc_onnx.arrays import Mask

Masks = Mapping[int, Mask]
_DIMS, _KEEP, _FILL = "agmc.dims", "agmc.keep.", "agmc.fill"  # keys of external_data; no file that is written has them


def take(array: np.ndarray, masks: Masks) -> np.ndarray:
    """Return what stays of a tensor.

    Args:
        array: The tensor.
        masks: By dim: bool (size,), or for dim 1 of a grouped Conv's weight bool (groups, size): one row a group of
            consecutive entries of dim 0, all rows keeping equally many.
    """
    grouped = next(((dim, mask) for dim, mask in masks.items() if mask.ndim == 2), None)
    if grouped is not None:
        dim, mask = grouped
        assert dim == 1
        index = np.stack([np.flatnonzero(row) for row in mask])  # (groups, kept)
        index = np.repeat(index, array.shape[0] // mask.shape[0], axis=0)
        array = np.take_along_axis(array, index.reshape(index.shape + (1,) * (array.ndim - 2)), axis=1)
    for dim, mask in sorted(
        masks.items(), key=lambda item: np.count_nonzero(item[1]) / item[1].size
    ):  # the deepest cut first
        if mask.ndim == 1:
            array = np.compress(mask, array, axis=dim)
    return np.ascontiguousarray(array)


def neutral(array: np.ndarray, masks: Masks, fill: float) -> np.ndarray:
    """Return a tensor of the same shape with `fill` where something goes; `masks` as in `take`."""
    stays = np.ones((1,) * array.ndim, bool)
    for dim, mask in masks.items():
        if mask.ndim == 2:
            mask = np.repeat(mask, array.shape[0] // mask.shape[0], axis=0)
            stays = stays & mask.reshape(mask.shape + (1,) * (array.ndim - 2))
        else:
            stays = stays & mask.reshape([-1 if d == dim else 1 for d in range(array.ndim)])
    return np.where(stays, array, array.dtype.type(fill))


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's numbers lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def part_of(tensor: onnx.TensorProto, masks: Masks, fill: float | None = None) -> onnx.TensorProto:
    """Return a reference to a part of a tensor in another file.

    Args:
        tensor: External, with an absolute location (`agmc_onnx.graph.files.read_model`); whole.
        masks: As in `take`.
        fill: Keep the shape, with this number where something goes; None cuts.
    """
    part = onnx.TensorProto()
    part.CopyFrom(tensor)
    for dim, mask in masks.items():
        if fill is None:
            part.dims[dim] = int(mask.sum()) if mask.ndim == 1 else int(mask[0].sum())
        shape = ",".join(map(str, mask.shape))
        part.external_data.add(key=f"{_KEEP}{dim}", value=f"{shape}:{np.packbits(mask).tobytes().hex()}")
    part.external_data.add(key=_DIMS, value=",".join(map(str, tensor.dims)))
    if fill is not None:
        part.external_data.add(key=_FILL, value=repr(float(fill)))
    return part


def stored_dims(tensor: onnx.TensorProto) -> tuple[int, ...]:
    """Return the shape of what lies in the file that a tensor refers to."""
    text = next((entry.value for entry in tensor.external_data if entry.key == _DIMS), None)
    return tuple(tensor.dims) if text is None else tuple(int(size) for size in text.split(",") if size)


def is_part(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor refers to a part of what lies in the file."""
    return any(entry.key == _DIMS for entry in tensor.external_data)


def part(tensor: onnx.TensorProto, stored: np.ndarray) -> np.ndarray:
    """Return the part of a stored tensor that a reference names; all of it where it names none."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if _DIMS not in entries:
        return stored
    masks = {}
    for key, value in entries.items():
        if key.startswith(_KEEP):
            shape, _, bits = value.partition(":")
            sizes = [int(size) for size in shape.split(",")]
            flat = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=int(np.prod(sizes)))
            masks[int(key.removeprefix(_KEEP))] = flat.astype(bool).reshape(sizes)
    return take(stored, masks) if _FILL not in entries else neutral(stored, masks, float(entries[_FILL]))
