"""Refit of a pruned network in closed form: every linear node in turn, towards what the original network computes.

With u the input patch of a node in the pruned network and r what its target lacks of the original's, the correction D of
the weight and b of the bias minimise

    sum |D u + b - r|^2 + lambda |D|^2,     lambda = ridge * mean diagonal of the second moments of u,

which is the ridge towards the old weights. The target of the last node that feeds a residual sum is the sum, so that what
the pruned shortcut delivers wrong is corrected too; where an activation follows the target, what comes out of it
counts (`refit.rectified`). Nodes are refitted in topological order, each on the activations that the refitted nodes
before it give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import Input, edited
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops.vanish import closer_of, repeats
from agmc_onnx.refit.moments import Line, Moments, Patches, Places, Positions, Waiting, gram, sample_positions, to_rows
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.rectified import Aim, Rows, aim_again, aim_through
from agmc_onnx.refit.sites import Site, find_sites
from agmc_onnx.refit.stream import Stream, Values, read_batches
from agmc_onnx.refit.thin import Thinner
from agmc_onnx.ties.closed import now_for
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

Halves = tuple[Moments, ...]  # of the batches of even and of odd numbers, or of all
_FLOAT32 = 0.01  # ridge from which on a candidate is solved in float32: rounding is 1e-7 of at most width / ridge
Progress = Callable[[int, int, str], None]
_TRIES = 16  # tenfold ridges before moments count as not finite
_MOST_BYTES = 1 << 30  # of patches kept for `n_rounds`; where a node has more, every value counts
_ROUNDING = 1e-5  # a residual this small beside its target is float32 rounding


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
        # by target, node, number of the site, batch: (positions, channels)
        self.targets: dict[tuple[str, str, int, int], Tensor] = {}
        self.places: dict[tuple[object, ...], list[Places]] = {}  # by node, number of the site, sizes: one a batch

    def __call__(
        self, kept: Sequence[IntArray], pruned: onnx.ModelProto, progress: Progress | None = None
    ) -> onnx.ModelProto:
        """Return a pruned model, refitted; see `compensate`."""
        with torch.no_grad():
            return _Refit(self, kept, pruned).run(progress)


@dataclass(frozen=True, eq=False)
class _Collected:
    """What a site is refitted from.

    Attributes:
        halves: Moments of two halves of the batches where several ridges are tried, else of all; none with `positions`.
        positions: In place of moments, where one ridge is tried and they are fewer than the inputs of the node.
        line: Of the site.
        aim: What the activation behind the target lets through, or None where every value counts.
        rows: With an aim, all positions.
    """

    halves: Halves
    line: Line
    aim: Aim | None
    rows: Rows
    positions: Positions | None = None


class _Refit:
    """One pruned network on its way through the refit."""

    def __init__(self, owner: Compensator, kept: Sequence[IntArray], pruned: onnx.ModelProto) -> None:
        self.owner, self.options, self.n_rows = owner, owner.options, owner.n_rows
        self.pruned = pruned
        self.cut = Cut(owner.channels, kept)
        self.is_shallower = any(not len(positions) for positions in kept)
        self.now_for = aims(owner.channels, kept)
        self.graph = graph_of(pruned, owner.channels.graph.folder)
        self._old: Stream | None = None
        self.new = Stream(self.graph, owner.batches, self.options.memory_bytes)
        self.changed: dict[str, np.ndarray] = {}
        self.added: dict[str, np.ndarray] = {}  # new biases by the node's output

    def run(self, progress: Progress | None) -> onnx.ModelProto:
        sites = [site for site in find_sites(self.graph) if self._has_target(site)]
        targets = {self._aim(site) for site in sites}
        numbers = {
            site.node.outputs[0]: i for i, site in enumerate(find_sites(self.cut.graph) if self.is_shallower else sites)
        }
        for done, site in enumerate(sites):
            number = numbers[site.node.outputs[0]]
            self.new.advance(site.node.index)
            target = self._aim(site)
            if (target, site.node.outputs[0], number, 0) not in self.owner.targets:
                if self._old is None:
                    self._old = Stream(self.owner.channels.graph, self.owner.batches, self.options.memory_bytes)
                    self._old.pinned = targets
                self._old.advance(self._old.graph.producer[target].index + 1)
            collected = self._collect(site, number, assume_off=self._is_thinned(site))
            if collected is not None:
                self._correct(site, collected)
            if self._old is not None:
                self._old.release(target)
            if progress is not None:
                progress(done + 1, len(sites), site.node.label)
        return write_back(self.pruned, self.changed, self.added)

    def _aim(self, site: Site) -> str:
        """Return the original's value that a site is fitted to: where a branch behind it is gone, what it is read as now."""
        return self.now_for.get(site.target, site.target)

    def _target(self, site: Site, number: int, batch: int, index: Tensor) -> Tensor:
        """Return the original's value at some positions, (positions, channels), all channels."""
        aim = self._aim(site)
        key = (aim, site.node.outputs[0], number, batch)
        if key in self.owner.targets:
            return self.owner.targets[key]
        assert self._old is not None
        whole = self._old.peek(batch, [aim])[aim]
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

    def _collect(self, site: Site, number: int, assume_off: bool = False) -> _Collected | None:
        """Return what a site is refitted from; None where its target is off by rounding alone."""
        patches = Patches(site.node, self.graph.opset)
        line = Line(site, self.new, patches)
        kept = self._kept_channels(site)
        n_halves = 2 if len(self.options.ridges) > 1 else 1
        halves = tuple(Moments.empty(*line.sizes) for _ in range(n_halves))
        aim = aim_through(self.graph, site.target) if self.options.n_rounds else None
        seen: Rows = []
        positions = Positions() if self._is_wide(site, patches, line) and not self._is_thinned(site) else None
        waiting = [Waiting() for _ in halves]
        passed_over = False  # positions taken for clean
        last = len(self.n_rows) - 1
        for i, (found, places) in enumerate(self._batches(site, number, patches)):
            target = self._target(site, number, i, places.at)
            target = target if kept is None else target.index_select(1, kept)
            others = (to_rows(found[name], site.channel_dim).index_select(0, places.at) for name in site.others)
            enough = waiting[i % n_halves].add(patches.take(found[site.x], places), target, *others)
            for moments, half in zip(halves, waiting, strict=True):
                rows = half.take() if enough or i == last else None
                if rows is None:
                    continue
                u, wanted, *rest = rows
                r = line.residual(u, wanted, rest)
                if not assume_off and float(r.abs().max()) <= _ROUNDING * float(wanted.abs().max()):
                    passed_over = True
                    continue
                if passed_over:
                    return self._collect(site, number, assume_off=True)
                assume_off = True
                (positions or moments).add(u, line.before_scale(r))
                if aim is not None:
                    seen.append((u, wanted, wanted - r))
                    if sum(patch.nbytes for patch, _, _ in seen) > _MOST_BYTES:
                        aim, seen = None, []
        return _Collected(halves, line, aim, seen, positions) if assume_off else None

    def _is_wide(self, site: Site, patches: Patches, line: Line) -> bool:
        """Whether a candidate's node has more inputs than there are positions to look at."""
        ridges = self.options.ridges
        if len(ridges) > 1 or ridges[0] < _FLOAT32:
            return False
        x = self.new.peek(0, [site.x])[site.x]
        a_sample = np.prod(patches.output_sizes(x, self.new.constants[site.weight])) / self.n_rows[0]
        return bool(min(a_sample * sum(self.n_rows), self.options.n_positions) < line.sizes[1])

    def _batches(self, site: Site, number: int, patches: Patches) -> Iterator[tuple[Values, Places]]:
        """Give for every batch the site's inputs and the positions that are looked at, the same for every candidate."""
        weight = self.new.constants[site.weight]
        generator = np.random.default_rng([self.options.seed, number])
        known: list[Places] | None = None
        fresh: list[Places] = []
        key: tuple[object, ...] = ()
        for i, rows in enumerate(self.n_rows):
            found = self.new.peek(i, [site.x, *site.others])
            sizes = patches.output_sizes(found[site.x], weight)
            if i == 0:
                key = (site.node.outputs[0], number, sizes)
                known = self.owner.places.get(key)
            if known is None:
                n_available = int(np.prod(sizes))
                at = sample_positions(n_available, rows, sum(self.n_rows), self.options.n_positions, generator)
                fresh.append(patches.places(found[site.x], weight, at))
            yield found, (known or fresh)[i]
        if known is None and self.owner.remember:
            self.owner.places[key] = fresh

    def _is_thinned(self, site: Site) -> bool:
        return self.owner.thin is not None and self.owner.thin.wants(site.weight)

    def _kept_channels(self, site: Site) -> Tensor | None:
        shape = self.cut.graph.shape(site.target)
        assert shape is not None
        mask = self.cut.mask(site.target, site.channel_dim % shape.rank)
        return None if mask is None else torch.from_numpy(np.flatnonzero(mask))

    def _correct(self, site: Site, collected: _Collected) -> None:
        has_bias = site.bias is not None or site.can_add_bias
        halves = collected.halves
        ridge = choose_ridge(halves, self.options.ridges, has_bias)
        moments = halves[0] if len(halves) == 1 else halves[0] + halves[1]
        is_quick = len(self.options.ridges) == 1 and ridge >= _FLOAT32
        patches = Patches(site.node, self.graph.opset)
        old = self.new.constants[site.weight]
        if np.isinf(ridge):
            step, offset = gain(moments, patches.matrix(old).double(), has_bias)
        else:
            dtype = torch.float32 if is_quick else torch.float64
            dual, known = collected.positions, collected.positions or moments
            solver: Solver | DualSolver
            solver = Solver(moments, ridge, has_bias, dtype) if dual is None else DualSolver(dual, ridge, has_bias)
            step, offset = solver()
            if collected.aim is not None:
                for _ in range(self.options.n_rounds):
                    aim_again(known, collected.rows, collected.line, collected.aim, step, offset)
                    step, offset = solver()
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


def aims(channels: Channels, kept: Sequence[IntArray]) -> dict[str, str]:
    """Return, for values that have the place of others now, the value of the original that they should be near to."""
    nothing = [i for i, positions in enumerate(kept) if not len(positions)]
    return now_for(channels.graph, closer_of(channels)(nothing), repeats) if nothing else {}


def choose_ridge(halves: Halves, ridges: Sequence[float], has_bias: bool) -> float:
    """Return the ridge that serves best where each half of the samples is predicted from the other.

    Infinity where any correction learned on one half makes the other worse: few samples fit a wide node by heart.

    Args:
        halves: Moments of two disjoint sets of samples, or of all.
        ridges: Candidates, ascending.
        has_bias: As in `solve`.
    """
    if len(ridges) == 1 or not all(half.n for half in halves):
        return ridges[0]
    errors = np.zeros(len(ridges))
    for known, other in zip(halves, halves[::-1], strict=True):
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
    return Solver(moments, ridge, has_bias)()


class Solver:
    """As `solve`, again and again for residuals that change while what is known of the inputs stays."""

    def __init__(self, moments: Moments, ridge: float, has_bias: bool, dtype: torch.dtype = torch.float64) -> None:
        self._moments, self._has_bias = moments, has_bias
        self._n = max(moments.n, 1)
        second, mean = moments.uu / self._n, moments.u / self._n
        weight = ridge * second.diagonal(dim1=1, dim2=2).mean(1)  # (groups,)
        if has_bias:
            second.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1)
        weight = torch.where(weight > 0, weight, torch.ones_like(weight))  # an input that is always zero
        self._mean, self._factor = mean, _factor(second.to(dtype), weight.to(dtype))

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return the correction for the residuals as the moments have them now."""
        cross, r_mean = self._moments.ur / self._n, self._moments.r / self._n
        if self._has_bias:
            cross.baddbmm_(self._mean[:, :, None], r_mean[:, None, :], alpha=-1)
        step = torch.cholesky_solve(cross.to(self._factor.dtype), self._factor).double()
        if not self._has_bias:
            return step, torch.zeros_like(r_mean)
        return step, r_mean - torch.einsum("gwo,gw->go", step, self._mean)


class DualSolver:
    """As `Solver`, from positions: with U of shape (positions, width), the same correction is U^T (U U^T + n lambda)^-1 r.

    A matrix of positions in place of one of inputs: of 2,048 and 4,608 that is a fifth of the products and a tenth of the
    factors. In float32.
    """

    def __init__(self, positions: Positions, ridge: float, has_bias: bool) -> None:
        self._positions, self._has_bias = positions, has_bias
        u = positions.inputs()
        weight = ridge * (u * u).sum((1, 2)) / u.shape[2]  # (groups,): n times that of `Solver`
        self._mean = u.mean(1, keepdim=True) if has_bias else torch.zeros_like(u[:, :1])
        self._u = u - self._mean if has_bias else u
        weight = torch.where(weight > 0, weight, torch.ones_like(weight))
        self._factor = _factor(gram(self._u.transpose(1, 2)), weight)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return the correction for the residuals as the positions have them now."""
        r = self._positions.residuals()
        r_mean = r.mean(1, keepdim=True) if self._has_bias else torch.zeros_like(r[:, :1])
        step = torch.matmul(self._u.transpose(1, 2), torch.cholesky_solve(r - r_mean, self._factor))
        return step.double(), (r_mean - torch.matmul(self._mean, step))[:, 0].double()


def _factor(second: Tensor, weight: Tensor) -> Tensor:
    """Return Cholesky factors of moments (groups, width, width), to whose diagonal the ridge `weight` (groups,) is added.

    Rounding can leave moments that are not positive even so; the ridge grows by tens until they are.

    Raises:
        ModelError: If the moments are not finite.
    """
    diagonal = second.diagonal(dim1=1, dim2=2)
    diagonal += weight[:, None]
    for _ in range(_TRIES):
        factor, failed = torch.linalg.cholesky_ex(second)
        if not failed.any():
            return factor
        more = torch.where(failed > 0, 9 * weight, torch.zeros_like(weight))
        diagonal += more[:, None]
        weight = weight + more
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


def write_back(
    pruned: onnx.ModelProto, changed: Mapping[str, np.ndarray], added: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    """Return a pruned model with other numbers in its constants, by name, and new biases, by the names of nodes' outputs."""
    names = {output: f"{output}__agmc_bias" for output in added}
    biases = [Input(output, 2, name) for output, name in names.items()]
    return edited(pruned, biases, {**changed, **{names[output]: bias for output, bias in added.items()}})
