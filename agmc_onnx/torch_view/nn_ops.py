"""ONNX ops as torch functions: convolution, pooling, normalisation, resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agmc_onnx.torch_view.math_ops import Call, Op, Result, numbers, on

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def window_pads(
    call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """Return (before, after) of every spatial dim, whatever way the node says it.

    Args:
        call: Node with `pads` or `auto_pad`.
        sizes: Spatial sizes of its input.
        kernel: Of the window.
        strides: Of the window.
        dilations: Of the window.
    """
    mode, rank = call.get("auto_pad", "NOTSET"), len(kernel)
    if mode in ("", "NOTSET"):
        pads = call.get("pads") or [0] * (2 * rank)
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return found


def _flat(pads: list[tuple[int, int]]) -> list[int]:
    return [n for pair in reversed(pads) for n in pair]


def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv of one to three spatial dims."""
    kernel = list(w.shape[2:])
    rank = len(kernel)
    if rank not in _CONV:
        raise call.refuse(f"{rank} spatial dims")
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    pads = window_pads(call, list(x.shape[2:]), kernel, strides, dilations)
    padding: Any = 0
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x = F.pad(x, _flat(pads))
    return _CONV[rank](x, w, b, strides, padding, dilations, call.get("group", 1))


def transposed_pads(call: Call, sizes: list[int], kernel: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the (before, after) pads and the output padding of a ConvTranspose.

    Args:
        call: The node.
        sizes: Spatial sizes of its input.
        kernel: Spatial sizes of its weight.
    """
    rank = len(kernel)
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    extra = list(call.get("output_padding") or [0] * rank)
    wanted, mode = call.get("output_shape"), call.get("auto_pad", "NOTSET")
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, strides, kernel, dilations, strict=True)]
    if mode.startswith("SAME") and wanted is None:
        wanted = [n * s for n, s in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = call.get("pads") if mode in ("", "NOTSET") else None
        pads = pads or [0] * (2 * rank)
        return [(pads[i], pads[i + rank]) for i in range(rank)], extra
    found = []
    for i, size in enumerate(wanted[-rank:]):
        total = full[i] + extra[i] - size
        if total < 0:
            extra[i] -= total
            total = 0
        small = total // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return found, extra


def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose of one to three spatial dims: the full result, cropped by the pads."""
    kernel = list(w.shape[2:])
    rank = len(kernel)
    if rank not in _CONV_TRANSPOSE:
        raise call.refuse(f"{rank} spatial dims")
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    pads, extra = transposed_pads(call, list(x.shape[2:]), kernel)
    y = _CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, call.get("group", 1), dilations)
    crop = _flat([(-before, n - after) for (before, after), n in zip(pads, extra, strict=True)])
    y = F.pad(y, crop) if any(crop) else y
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _pool_window(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], list[int]]:
    """Return kernel, strides, dilations, pads and what ceil_mode adds behind each dim."""
    kernel = list(call.get("kernel_shape"))
    rank = len(kernel)
    strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    sizes = list(x.shape[2:])
    pads = window_pads(call, sizes, kernel, strides, dilations)
    extra = [0] * rank
    if call.get("ceil_mode", 0):
        for i, (before, after) in enumerate(pads):
            span, size = (kernel[i] - 1) * dilations[i] + 1, sizes[i] + before + after
            n = -(-(size - span) // strides[i]) + 1
            if (n - 1) * strides[i] >= sizes[i] + before:  # the last window would lie in the padding alone
                n -= 1
            extra[i] = max((n - 1) * strides[i] + span - size, 0)
    return kernel, strides, dilations, pads, extra


def max_pool(call: Call, x: Tensor) -> Tensor:
    """MaxPool without indices."""
    if len(call.outputs) > 1 and call.outputs[1]:
        raise call.refuse("indices as a second output")
    kernel, strides, dilations, pads, extra = _pool_window(call, x)
    padding: Any = [before for before, _ in pads]
    is_plain = all(a == b and a <= k // 2 for (a, b), k in zip(pads, kernel, strict=True)) and not any(extra)
    if not is_plain:
        least = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = F.pad(x, _flat([(a, b + n) for (a, b), n in zip(pads, extra, strict=True)]), value=least)
        padding = 0
    return _MAX_POOL[len(kernel)](x, kernel, strides, padding, dilations)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """AveragePool: the mean over what of each window lies in the input, or with count_include_pad in its padding."""
    kernel, strides, dilations, pads, extra = _pool_window(call, x)
    count_pads = bool(call.get("count_include_pad", 0))
    if not any(any(pair) for pair in pads) and not any(extra) and len(kernel) <= 3 and max(dilations) == 1:
        pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
        return pool(x, kernel, strides)
    whole = _flat([(a, b + n) for (a, b), n in zip(pads, extra, strict=True)])
    inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if count_pads:
        inside = F.pad(F.pad(inside, _flat(pads), value=1.0), _flat([(0, n) for n in extra]))
    else:
        inside = F.pad(inside, whole)
    return _window_sum(F.pad(x, whole), kernel, strides, dilations) / _window_sum(inside, kernel, strides, dilations)


def _window_sum(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    """Sum over windows, one dim after the other."""
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        dim = i + 2
        n = (x.shape[dim] - (k - 1) * d - 1) // s + 1
        every = (slice(None),) * dim + (slice(None, None, s),)
        parts = [x.narrow(dim, j * d, (n - 1) * s + 1)[every] for j in range(k)]
        x = torch.stack(parts).sum(0)
    return x


def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """GlobalMaxPool."""
    return torch.amax(x, tuple(range(2, x.dim())), keepdim=True)


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """LpPool."""
    p = call.get("p", 2)
    kernel, strides, dilations, pads, extra = _pool_window(call, x)
    power = F.pad(x.abs() ** p, _flat([(a, b + n) for (a, b), n in zip(pads, extra, strict=True)]))
    return _window_sum(power, kernel, strides, dilations) ** (1 / p)


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """GlobalLpPool."""
    p = call.get("p", 2)
    return (x.abs() ** p).sum(tuple(range(2, x.dim())), keepdim=True) ** (1 / p)


def batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Result:
    """BatchNormalization: with the stored statistics, or in training with those of the batch."""
    if call.get("spatial", 1) != 1:
        raise call.refuse("spatial=0")
    eps = call.get("epsilon", 1e-5)
    if not call.get("training_mode", 0):
        return F.batch_norm(x, mean, var, scale, bias, call.training, call.momentum, eps)
    if call.training:
        y = F.batch_norm(x, mean, var, scale, bias, True, call.momentum, eps)
        return y, mean, var
    dims = [d for d in range(x.dim()) if d != 1]
    own_mean, own_var = x.mean(dims), x.var(dims, unbiased=False)
    keep = call.get("momentum", 0.9)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, eps)
    return y, mean * keep + own_mean * (1 - keep), var * keep + own_var * (1 - keep)


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Result:
    """LayerNormalization; mean and inverse deviation only where the node asks for them."""
    axis, eps = call.get("axis", -1) % x.dim(), call.get("epsilon", 1e-5)
    y = F.layer_norm(x, x.shape[axis:], None, None, eps) * scale
    y = y if bias is None else y + bias
    if len(call.outputs) == 1:
        return y
    dims = tuple(range(axis, x.dim()))
    return y, x.mean(dims, keepdim=True), torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)


def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNormalization."""
    dims = tuple(range(call.get("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(dims, keepdim=True) + call.get("epsilon", 1e-5)) * scale


def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """GroupNormalization: before opset 21 scale and bias are those of the groups."""
    groups = call.get("num_groups")
    if scale.numel() != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """InstanceNormalization."""
    return F.group_norm(x, x.shape[1], scale, bias, call.get("epsilon", 1e-5))


def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """LpNormalization."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm.clamp_min(torch.finfo(x.dtype).tiny))


def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """MeanVarianceNormalization."""
    axes = tuple(call.get("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)


def lrn(call: Call, x: Tensor) -> Tensor:
    """LRN across channels."""
    size = call.get("size")
    square = F.pad((x * x).flatten(2), [0, 0, (size - 1) // 2, size // 2])
    total = square.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total) ** call.get("beta", 0.75)


def _as_list(value: Tensor | None) -> list[Any] | None:
    return numbers(value) if value is not None and value.numel() else None


def resize(call: Call, x: Tensor, *rest: Tensor | None) -> Tensor:
    """Resize and Upsample: nearest, linear and cubic, one axis after the other."""
    rank = x.dim()
    legacy = call.op_type == "Upsample" or call.opset < 11
    sizes = None
    if legacy:
        scales = _as_list(rest[0]) if rest else list(call.get("scales"))
        coordinates, nearest = "asymmetric", "floor"
    else:
        _, given, wanted = (*rest, None, None, None)[:3]
        scales, sizes = _as_list(given), _as_list(wanted)
        coordinates = call.get("coordinate_transformation_mode", "half_pixel")
        nearest = call.get("nearest_mode", "round_prefer_floor")
    if coordinates == "tf_crop_and_resize" or call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("cropping or a kept aspect ratio")
    if call.get("antialias", 0):
        raise call.refuse("antialias=1")
    axes = [a % rank for a in call.get("axes") or range(rank)]
    mode = call.get("mode", "nearest")
    for i, axis in enumerate(axes):
        before = x.shape[axis]
        if sizes is not None:
            after, scale = int(sizes[i]), int(sizes[i]) / before
        else:
            assert scales is not None
            scale = float(scales[i])
            after = math.floor(before * scale)
        if after == before and scale == 1:
            continue
        at = _source_places(before, after, scale, coordinates)
        if mode == "nearest":
            index = _nearest(at, nearest).clip(0, before - 1).astype(np.int64)
            x = x.index_select(axis, on(x, torch.from_numpy(index)))
        else:
            matrix = _interpolation(at, before, "cubic" if mode == "cubic" else "linear", call)
            weight = torch.from_numpy(matrix).to(x.device, x.dtype)
            x = torch.matmul(x.movedim(axis, -1), weight.t()).movedim(-1, axis)
    return x


def _source_places(before: int, after: int, scale: float, coordinates: str) -> np.ndarray:
    """Return the place in the input, float64 (after,), of every entry of the output."""
    i = np.arange(after, dtype=np.float64)
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "align_corners":
        return i * (before - 1) / (after - 1) if after > 1 else i * 0
    if coordinates == "pytorch_half_pixel" and after == 1:
        return i * 0
    if coordinates == "half_pixel_symmetric":
        adjustment = after / (scale * before)
        return before / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def _nearest(at: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return np.floor(at)
    if mode == "ceil":
        return np.ceil(at)
    return np.ceil(at - 0.5) if mode == "round_prefer_floor" else np.floor(at + 0.5)


def _interpolation(at: np.ndarray, before: int, mode: str, call: Call) -> np.ndarray:
    """Return the matrix (after, before) that interpolates along one axis."""
    reach = 2 if mode == "cubic" else 1
    taps = np.floor(at - reach).astype(np.int64)[:, None] + np.arange(2 * reach + 2)  # (after, taps)
    distance = np.abs(taps - at[:, None])
    if mode == "linear":
        weight = np.clip(1 - distance, 0, None)
    else:
        a = call.get("cubic_coeff_a", -0.75)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if call.get("exclude_outside", 0):
        weight = np.where((taps >= 0) & (taps < before), weight, 0)
        weight /= weight.sum(1, keepdims=True)
    matrix = np.zeros((at.size, before))
    np.add.at(matrix, (np.arange(at.size)[:, None], taps.clip(0, before - 1)), weight)
    return matrix


NETWORK: dict[str, Op] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "Resize": resize,
    "Upsample": resize,
}
