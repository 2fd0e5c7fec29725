"""Refit of a pruned network in closed form: every linear node in turn, towards what the original network computes.

With u the input patch of a node in the pruned network and r what its target lacks of the original's, the correction D of
the weight and b of the bias minimise

    sum |D u + b - r|^2 + lambda |D|^2,     lambda = ridge * mean diagonal of the second moments of u,

which is the ridge towards the old weights. The target of the last node that feeds a residual sum is the sum, so that what
the pruned shortcut delivers wrong is corrected too. Nodes are refitted in topological order, each on the activations that
the refitted nodes before it give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from agmc_onnx.channels.groups import Channels
from agmc_onnx.errors import ModelError
from agmc_onnx.measuring.data import Samples
from agmc_onnx.model.graph import view
from agmc_onnx.pruning.editor import Cut
from agmc_onnx.recover.moments import Moments, Patches, Stream, read_batches, sample_positions, to_rows
from agmc_onnx.recover.options import RecoverOptions
from agmc_onnx.recover.sites import Site, find_sites
from agmc_onnx.recover.sparse import Thinner
from agmc_onnx.recover.torch_graph import replace_constants

IntArray = npt.NDArray[np.int64]
Halves = tuple[Moments, Moments]
Progress = Callable[[int, int, str], None]
_TRIES = 16  # tenfold ridges before moments count as not finite
_ROUNDING = 1e-5  # a residual this small beside its target is float32 rounding
_DEAD = 1e-6  # a channel scaled down this much beside the others has nothing to say about its weights


def compensate(
    channels: Channels,
    kept: Sequence[IntArray],
    pruned: onnx.ModelProto,
    samples: Samples,
    options: RecoverOptions | None = None,
    progress: Progress | None = None,
    thin: Thinner | None = None,
) -> onnx.ModelProto:
    """Return the pruned model, refitted to compute what the original does.

    Only numbers of existing float tensors change; Conv, ConvTranspose and Gemm nodes that had no bias, nor a
    BatchNormalization or Add behind them to hold one, may get one.

    Args:
        channels: Analysis of the original.
        kept: For each prunable group the kept positions.
        pruned: What `Surgeon(channels).cut(kept)` returned; not changed.
        samples: Calibration samples; labels are not looked at.
        options: Those of the refit.
        progress: Called with (nodes done, nodes, name) after each.
        thin: Sets single weights to zero, node by node.

    Raises:
        ModelError: If the model has an op without a counterpart in torch.
    """
    return Compensator(channels, samples, options, remember=False, thin=thin)(kept, pruned, progress)


class Compensator:
    """Refits candidate after candidate of one network; what the original computes is taken once.

    Attributes:
        channels: Analysis of the original.
        options: Those of the refit.
    """

    def __init__(
        self,
        channels: Channels,
        samples: Samples,
        options: RecoverOptions | None = None,
        remember: bool = True,
        thin: Thinner | None = None,
    ) -> None:
        """Read the samples.

        Args:
            channels: Analysis of the original.
            samples: Calibration samples; labels are not looked at.
            options: Those of the refit.
            remember: Keep the original's values at the sampled positions for the next candidate: 4 bytes for each
                position, channel and node.
            thin: Sets single weights of the refitted nodes to zero.
        """
        self.channels, self.thin = channels, thin
        self.options = options or RecoverOptions()
        self.remember = remember
        self.batches = read_batches(samples, self.options, channels.graph)
        lead = channels.graph.inputs[0] if channels.graph.inputs else ""
        self.n_rows = [batch[lead].shape[0] if batch[lead].dim() else 1 for batch in self.batches]
        self.targets: dict[tuple[str, int, int], Tensor] = {}  # by target, number of the site, batch: (positions, channels)

    def __call__(
        self, kept: Sequence[IntArray], pruned: onnx.ModelProto, progress: Progress | None = None
    ) -> onnx.ModelProto:
        """Return a pruned model, refitted; see `compensate`."""
        with torch.no_grad():
            return _Refit(self, kept, pruned).run(progress)


class _Refit:
    """One pruned network on its way through the refit."""

    def __init__(self, owner: Compensator, kept: Sequence[IntArray], pruned: onnx.ModelProto) -> None:
        self.owner, self.options, self.n_rows = owner, owner.options, owner.n_rows
        self.pruned = pruned
        self.cut = Cut(owner.channels, kept)
        self.graph = view(pruned, owner.channels.graph.folder)
        self.old = Stream(owner.channels.graph, owner.batches, self.options.memory_bytes)
        self.new = Stream(self.graph, owner.batches, self.options.memory_bytes)
        self.changed: dict[str, np.ndarray] = {}
        self.added: dict[str, np.ndarray] = {}  # new biases by the node's output

    def run(self, progress: Progress | None) -> onnx.ModelProto:
        sites = [site for site in find_sites(self.graph) if self._has_target(site)]
        self.old.pinned = {site.target for site in sites}
        for number, site in enumerate(sites):
            self.new.advance(site.node.index)
            if (site.target, number, 0) not in self.owner.targets:
                self.old.advance(self.old.graph.producer[site.target].index + 1)
            halves = self._collect(site, number, assume_off=self._is_thinned(site))
            if halves is not None:
                self._correct(site, halves)
            self.old.release(site.target)
            if progress is not None:
                progress(number + 1, len(sites), site.node.label)
        return add_biases(replace_constants(self.pruned, self.changed), self.added)

    def _target(self, site: Site, number: int, batch: int, index: Tensor) -> Tensor:
        """Return the original's value at some positions, (positions, channels), all channels."""
        key = (site.target, number, batch)
        if key in self.owner.targets:
            return self.owner.targets[key]
        whole = self.old.peek(batch, [site.target])[site.target]
        found = to_rows(whole, site.channel_dim).index_select(0, index)
        if self.owner.remember:
            self.owner.targets[key] = found
        return found

    def _has_target(self, site: Site) -> bool:
        if site.target not in self.cut.graph.producer:
            return False
        shape = self.cut.graph.shape(site.target)
        mask = None if shape is None else self.cut.mask(site.target, site.channel_dim % shape.rank)
        return shape is not None and (mask is None or mask.ndim == 1)

    def _collect(self, site: Site, number: int, assume_off: bool = False) -> Halves | None:
        """Return the moments of a site in two halves of the batches; None where its target is off by rounding alone."""
        generator = np.random.default_rng([self.options.seed, number])
        patches = Patches(site.node, self.graph.opset)
        weight = self.new.constants[site.weight]
        matrix = patches.matrix(weight).float()
        g, n, width = matrix.shape
        scale, shift = (torch.from_numpy(v).float() for v in (site.scale, site.shift))
        own_bias = site.node.inputs[2] if len(site.node.inputs) > 2 else ""
        if own_bias:
            beta = site.node.attribute("beta", 1.0) if site.node.op_type == "Gemm" else 1.0
            shift = shift + scale * self.new.constants[own_bias].reshape(-1) * beta
        back = torch.where(scale.abs() > _DEAD * scale.abs().max(), 1 / scale, torch.zeros_like(scale))
        kept = self._kept_channels(site)
        halves = Moments.empty(g, width, n), Moments.empty(g, width, n)
        residual = size = 0.0
        for i, rows in enumerate(self.n_rows):
            found = self.new.peek(i, [site.x, *site.others])
            x = found[site.x]
            n_available = int(np.prod(patches.output_sizes(x, weight)))
            at = sample_positions(n_available, rows, sum(self.n_rows), self.options.n_positions, generator)
            u = patches.take(x, weight, at)
            index = torch.from_numpy(at)
            target = self._target(site, number, i, index)
            target = target if kept is None else target.index_select(1, kept)
            y = torch.matmul(u, matrix.transpose(1, 2)).permute(1, 0, 2).reshape(at.size, g * n)
            r = target - (y * scale + shift)
            for name in site.others:
                r -= to_rows(found[name], site.channel_dim).index_select(0, index)
            residual, size = max(residual, float(r.abs().max())), max(size, float(target.abs().max()))
            if assume_off or residual > _ROUNDING * size:
                if i > 0 and not assume_off:  # the batches before were taken for clean and passed over
                    return self._collect(site, number, assume_off=True)
                assume_off = True
                halves[i % 2].add(u, (r * back).reshape(at.size, g, n).permute(1, 0, 2))
        return halves if assume_off else None

    def _is_thinned(self, site: Site) -> bool:
        return self.owner.thin is not None and self.owner.thin.wants(site.weight)

    def _kept_channels(self, site: Site) -> Tensor | None:
        shape = self.cut.graph.shape(site.target)
        assert shape is not None
        mask = self.cut.mask(site.target, site.channel_dim % shape.rank)
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))

    def _correct(self, site: Site, halves: Halves) -> None:
        has_bias = site.bias is not None or site.can_add_bias
        ridge = choose_ridge(halves, self.options.ridges, has_bias)
        moments = halves[0] + halves[1]
        patches = Patches(site.node, self.graph.opset)
        old = self.new.constants[site.weight]
        if np.isinf(ridge):
            step, offset = gain(moments, patches.matrix(old).double(), has_bias)
        else:
            step, offset = solve(moments, ridge, has_bias)
        if self.owner.thin is not None and self._is_thinned(site):
            matrix, n_places = patches.matrix(old).double(), math.prod(old.shape[2:])
            step, offset = self.owner.thin(site, matrix, step, moments, min(ridge, 1.0), has_bias, n_places)
        new = patches.weight(patches.matrix(old).double() + step.transpose(1, 2), old)
        self.new.constants[site.weight] = new
        self.changed[site.weight] = new.numpy()
        if site.bias is not None:
            bias = self.new.constants[site.bias]
            moved = offset.reshape(-1) * torch.from_numpy(site.bias_scale)
            fresh = (bias.double() + moved.reshape(bias.shape)).to(bias.dtype)
            self.new.constants[site.bias] = fresh
            self.changed[site.bias] = fresh.numpy()
        elif site.can_add_bias:
            fresh = offset.reshape(-1).to(old.dtype)
            output = site.node.outputs[0]
            self.added[output] = fresh.numpy()
            self.new.give_bias(site.node.index, f"{output}__agmc_bias", fresh)


def choose_ridge(halves: Halves, ridges: Sequence[float], has_bias: bool) -> float:
    """Return the ridge that serves best where each half of the samples is predicted from the other.

    Infinity where any correction learned on one half makes the other worse: few samples fit a wide node by heart.

    Args:
        halves: Moments of two disjoint sets of samples.
        ridges: Candidates, ascending.
        has_bias: As in `solve`.
    """
    if len(ridges) == 1 or not halves[0].n or not halves[1].n:
        return ridges[0]
    errors = np.zeros(len(ridges))
    for known, other in (halves, halves[::-1]):
        for i, ridge in enumerate(ridges):
            errors[i] += other.error(*solve(known, ridge, has_bias))
    best = int(np.argmin(errors))
    return ridges[best] if errors[best] < 0 else np.inf


def solve(moments: Moments, ridge: float, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return the correction that minimises the squared residual plus the ridge.

    Args:
        moments: Of u and of the residual.
        ridge: Share of the mean diagonal of the second moments.
        has_bias: Whether a constant may be added to the output.

    Returns:
        Float64: of the weight (groups, width, channels / groups), and of the bias (groups, channels / groups), zero
        without one.
    """
    n = max(moments.n, 1)
    second, cross = moments.uu / n, moments.ur / n
    mean, r_mean = moments.u / n, moments.r / n
    weight = ridge * second.diagonal(dim1=1, dim2=2).mean(1)  # (groups,)
    if has_bias:
        second = second - mean[:, :, None] * mean[:, None, :]
        cross = cross - mean[:, :, None] * r_mean[:, None, :]
    weight = torch.where(weight > 0, weight, torch.ones_like(weight))  # an input that is always zero
    step = torch.cholesky_solve(cross, _factor(second, weight))
    offset = r_mean - torch.einsum("gwo,gw->go", step, mean) if has_bias else torch.zeros_like(r_mean)
    return step, offset


def _factor(second: Tensor, weight: Tensor) -> Tensor:
    """Return Cholesky factors of moments (groups, width, width) with the ridge `weight` (groups,) on the diagonal.

    Rounding can leave moments that are not positive even so; the ridge grows by tens until they are.

    Raises:
        ModelError: If the moments are not finite.
    """
    eye = torch.eye(second.shape[1], dtype=torch.float64)
    for _ in range(_TRIES):
        factor, failed = torch.linalg.cholesky_ex(second + weight[:, None, None] * eye)
        if not failed.any():
            return factor
        weight = torch.where(failed > 0, 10 * weight, weight)
    raise ModelError(
        "recovery: activations of the calibration samples are not finite, got inf or nan; expected numbers. Check the"
        " card's scale, mean and std, or use --recover none."
    )


def gain(moments: Moments, matrix: Tensor, has_bias: bool) -> tuple[Tensor, Tensor]:
    """Return the best correction that only multiplies the old weight by one number, for all that few samples can tell.

    Refitted nodes before this one give somewhat smaller values than the original, as every regression does.

    Args:
        moments: As in `solve`.
        matrix: The old weight, float64 (groups, channels / groups, width).
        has_bias: As in `solve`.

    Returns:
        As `solve`.
    """
    n = max(moments.n, 1)
    second, cross, mean, r_mean = moments.uu / n, moments.ur / n, moments.u / n, moments.r / n
    if has_bias:
        second = second - mean[:, :, None] * mean[:, None, :]
        cross = cross - mean[:, :, None] * r_mean[:, None, :]
    turned = matrix.transpose(1, 2)
    power = float((turned * (second @ turned)).sum())
    step = turned * (float((turned * cross).sum()) / power if power > 0 else 0.0)
    offset = r_mean - torch.einsum("gwo,gw->go", step, mean) if has_bias else torch.zeros_like(r_mean)
    return step, offset


def add_biases(model: onnx.ModelProto, added: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Give nodes a bias, by the names of their outputs; the model is changed."""
    for node in model.graph.node:
        if node.output and node.output[0] in added:
            name = f"{node.output[0]}__agmc_bias"
            model.graph.initializer.append(numpy_helper.from_array(added[node.output[0]], name))
            del node.input[2:]
            node.input.append(name)
    return model
