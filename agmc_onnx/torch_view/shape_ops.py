"""ONNX ops as torch functions: shapes, indexing, padding, rearranging.

Whole numbers (shapes, indices) stay on the CPU, whatever device the floats are on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from agmc_onnx.torch_view.math_ops import Call, Op, Result, numbers, on, together


def shape(call: Call, x: Tensor) -> Tensor:
    """Shape."""
    return torch.tensor(list(x.shape)[call.get("start", 0) : call.get("end", x.dim())], dtype=torch.int64)


def reshape(call: Call, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Reshape: 0 copies a size, -1 is what is left."""
    sizes = numbers(target) if target is not None else list(call.get("shape"))
    assert sizes is not None
    if not call.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    """Flatten to two dims."""
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(call: Call, x: Tensor) -> Tensor:
    """Transpose."""
    perm = call.get("perm")
    return x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze."""
    dims = numbers(axes) if axes is not None else call.get("axes")
    if dims is None:
        return x.squeeze()
    gone = {dim % x.dim() for dim in dims}
    return x.reshape([size for dim, size in enumerate(x.shape) if dim not in gone])


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze."""
    dims = numbers(axes) if axes is not None else list(call.get("axes"))
    assert dims is not None
    rank = x.dim() + len(dims)
    for dim in sorted(d % rank for d in dims):
        x = x.unsqueeze(dim)
    return x


def concat(call: Call, *values: Tensor) -> Tensor:
    """Concat."""
    return torch.cat(together(*values), call.get("axis", 1))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Result:
    """Split into given or equal parts."""
    axis = call.get("axis", 0)
    given = numbers(sizes) if sizes is not None else call.get("split")
    if given is None:
        n, size = len(call.outputs), x.shape[axis]
        each = -(-size // n)
        given = [min(each, size - i * each) for i in range(n)]
    return tuple(torch.split(x, list(given), axis))


def slice_(call: Call, x: Tensor, *bounds: Tensor | None) -> Tensor:
    """Slice: bounds are attributes before opset 10."""
    if bounds:
        starts, ends, axes, steps = ([numbers(b) for b in bounds] + [None, None])[:4]
    else:
        starts, ends, axes, steps = call.get("starts"), call.get("ends"), call.get("axes"), None
    assert starts is not None and ends is not None
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        dim = i if axes is None else axes[i] % x.dim()
        step = 1 if steps is None else steps[i]
        size = x.shape[dim]
        stop = None if step < 0 and end < -size else end
        first, last, step = slice(start, stop, step).indices(size)
        if step > 0:
            x = x[(slice(None),) * dim + (slice(first, max(first, last), step),)]
        else:
            x = x.index_select(dim, on(x, torch.arange(first, last, step)))
    return x


def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Gather along one axis."""
    axis = call.get("axis", 0) % x.dim()
    index = index.to(torch.int64)
    if index.dim() == 0:
        return x.select(axis, int(index))
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, on(x, index.reshape(-1)))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """GatherElements."""
    axis = call.get("axis", 0) % x.dim()
    index = on(x, index.to(torch.int64))
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """GatherND."""
    if call.get("batch_dims", 0):
        raise call.refuse("batch_dims")
    return x[tuple(on(x, index).movedim(-1, 0))]


def scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """ScatterND."""
    if call.get("reduction", "none") not in ("none", "add"):
        raise call.refuse(f"reduction {call.get('reduction')}")
    at = tuple(on(x, index).movedim(-1, 0))
    return x.clone().index_put_(at, on(x, updates), accumulate=call.get("reduction", "none") == "add")


def scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """ScatterElements."""
    if call.get("reduction", "none") != "none":
        raise call.refuse(f"reduction {call.get('reduction')}")
    axis = call.get("axis", 0) % x.dim()
    index = on(x, torch.where(index < 0, index + x.shape[axis], index))
    return x.scatter(axis, index, on(x, updates))


def expand(_: Call, x: Tensor, sizes: Tensor) -> Tensor:
    """Expand: sizes are broadcast with the input's."""
    wanted = numbers(sizes)
    assert wanted is not None
    return x.expand(torch.broadcast_shapes(x.shape, tuple(wanted)))


def tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Tile."""
    return x.repeat(numbers(repeats) or [])


def constant_of_shape(call: Call, sizes: Tensor) -> Tensor:
    """ConstantOfShape."""
    value = call.get("value")
    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    fill = torch.from_numpy(np.array(array))
    return fill.reshape(-1)[0].expand(numbers(sizes) or []).clone()


def range_(_: Call, start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    """Range."""
    return torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


def pad(
    call: Call, x: Tensor, amounts: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad: constant, reflect, edge or wrap; negative amounts crop."""
    given = numbers(amounts) if amounts is not None else (call.get("pads") or call.get("paddings"))
    dims = [int(d) % x.dim() for d in numbers(axes) or range(x.dim())]
    assert given is not None
    mode = call.get("mode", "constant")
    pairs = {dim: (int(given[i]), int(given[i + len(dims)])) for i, dim in enumerate(dims)}
    if mode == "constant":
        fill = call.get("value", 0.0) if value is None or value.numel() == 0 else value.item()
        flat = [n for dim in reversed(range(x.dim())) for n in pairs.get(dim, (0, 0))]
        return F.pad(x, flat, value=fill)
    for dim, (before, after) in pairs.items():
        if (before, after) != (0, 0):
            at = np.arange(-before, x.shape[dim] + after)
            x = x.index_select(dim, on(x, torch.from_numpy(_fold_index(at, x.shape[dim], mode))))
    return x


def _fold_index(at: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Return the place inside 0..size-1 that each place of a padded axis copies."""
    if mode == "edge":
        return at.clip(0, size - 1)
    if mode == "wrap":
        return at % size
    period = max(2 * (size - 1), 1)
    at = np.abs(at) % period
    return np.where(at >= size, period - at, at)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """DepthToSpace."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """SpaceToDepth."""
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.get("mode", "DCR") != "DCR":
        raise call.refuse(f"mode {call.get('mode')}")
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def one_hot(call: Call, index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """OneHot."""
    n = int(depth.reshape(-1)[0])
    hot = F.one_hot(index.to(torch.int64) % n, n).to(torch.bool)
    off, hit = values[0], values[1]
    return torch.where(hot, hit, off).movedim(-1, call.get("axis", -1))


def cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """CumSum."""
    dim = int(axis)
    x = x.flip(dim) if call.get("reverse", 0) else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(dim) if call.get("reverse", 0) else total


def top_k(call: Call, x: Tensor, k: Tensor) -> Result:
    """TopK."""
    found = torch.topk(x, int(k.reshape(-1)[0]), call.get("axis", -1), bool(call.get("largest", 1)))
    return found.values, found.indices


def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Trilu."""
    offset = 0 if k is None else int(k)
    return torch.triu(x, offset) if call.get("upper", 1) else torch.tril(x, offset)


def _arg(function: Callable[..., Tensor]) -> Op:
    def run(call: Call, x: Tensor) -> Tensor:
        return function(x, call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))

    return run


SHAPES: dict[str, Op] = {
    "ArgMax": _arg(torch.argmax), "ArgMin": _arg(torch.argmin), "Concat": concat, "ConstantOfShape": constant_of_shape,
    "CumSum": cumsum, "DepthToSpace": depth_to_space, "Expand": expand, "Flatten": flatten, "Gather": gather,
    "GatherElements": gather_elements, "GatherND": gather_nd, "NonZero": lambda _, x: torch.nonzero(x).t(),
    "OneHot": one_hot, "Pad": pad, "Range": range_, "Reshape": reshape, "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd, "Shape": shape, "Size": lambda _, x: torch.tensor(x.numel()), "Slice": slice_,
    "SpaceToDepth": space_to_depth, "Split": split, "Squeeze": squeeze, "Tile": tile, "TopK": top_k,
    "Transpose": transpose, "Trilu": trilu, "Unsqueeze": unsqueeze,
}  # fmt: skip
