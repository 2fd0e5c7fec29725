"""The oracle for models with open sizes: cut at random, equal to the masked original at two sizes of every open dim.

The MACs of what was cut are those that a run makes, at both sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx

from agmc_onnx.data.samples import synthetic
from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.sizes import InputSizes, batch_symbols, input_dims, others, setting_of, sizes_at
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.measuring.sizes import graph_at, settle
from agmc_onnx.ops import analyse
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.pruning.importance import choose
from agmc_onnx.pruning.masked_norms import norms_of
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from agmc_onnx.ties.groups import Channels
from tests.independent_counter import count

_MOST_ENTRIES = 1 << 22


class Held(NamedTuple):
    """What `hold` found.

    Attributes:
        channels: The analysis.
        share: Of the MACs that the cut left.
        n_settings: How many sizes of the open dims it was compared at.
    """

    channels: Channels
    share: float
    n_settings: int


def feed_of(model: onnx.ModelProto, sizes: InputSizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Return one random input of these sizes."""
    named = {f"{name}:{at}": size for name, dims in sizes.items() for at, size in enumerate(dims)}
    specs = model_inputs(model)
    batch = {name: dims[0] for name, dims in sizes.items() if dims}
    feed = synthetic(specs, 1, seed, sizes=named).feeds(1)[0]
    return {
        name: np.concatenate([x] * batch[name]) if x.ndim and x.shape[0] == 1 and batch.get(name, 1) > 1 else x
        for name, x in feed.items()
    }


def second_sizes(model: onnx.ModelProto, first: InputSizes) -> list[InputSizes]:
    """Return the sizes of a second setting, a batch of two among them, that the model runs at; none where it runs at no other."""
    inputs, session = input_dims(model), make_session(model, optimise=False)
    here = setting_of(inputs, first)
    found, batch = list(others(inputs, here)), batch_symbols(inputs)
    # of some files the batch only seems open, of some all else
    for setting in (*found, *(one | dict.fromkeys(batch, 1) for one in found), here | dict.fromkeys(batch, 2)):
        sizes = sizes_at(inputs, setting)
        if sizes == first or any(math.prod(dims) > _MOST_ENTRIES for dims in sizes.values()):
            continue
        try:
            run_model(session, feed_of(model, sizes))
            return [sizes]
        except AgmcError:
            continue
    return []


def hold(given: onnx.ModelProto, seed: int = 0, input_shape: tuple[str, ...] = ()) -> Held:
    """Cut a model at random and assert that it equals its masked original and costs what was said, at two sizes.

    Where several layers may go it is cut a second time, without a random half of them.
    """
    model = normalize(given)
    sizes = settle(model, input_shape).inputs
    channels = analyse(graph_at(model, sizes))
    rng = np.random.default_rng(seed)
    more = second_sizes(model, sizes)
    feeds = [feed_of(model, one, seed) for one in (sizes, *more)]
    counts = np.array([int(rng.integers(1, g.n_units // g.step + 1)) * g.step for g in channels.groups], np.int64)
    fewer, closer = counts.copy(), closer_of(channels)
    n = len(closer.branches)
    fewer[sorted(closer.of(closer.possible(rng.permutation(n)[: n // 2].tolist(), rng.random(n).tolist())).groups)] = 0
    for of in (counts, fewer) if n > 1 else (counts,):
        kept = choose(channels, rng.random(channels.n_units), of)
        pruned = Surgeon(channels).cut(kept)
        plan = make_plan(channels, kept, "0" * 64)
        found = verify(model, pruned, plan, feeds[:1], norms=norms_of(channels, kept), others=feeds[1:])
        assert found.masked_equivalence is not False and found.n_samples == len(feeds), found
        for one in (sizes, *({name: (1, *dims[1:])[: len(dims)] for name, dims in other.items()} for other in more)):
            again = channels if one == sizes else analyse(graph_at(model, one))
            assert [g.n_units for g in again.groups] == [g.n_units for g in channels.groups]
            assert sum(count(pruned, feed_of(model, one, seed)).values()) == macs_cost(again)(of), one
    full = [g.n_units for g in channels.groups]
    return Held(channels, macs_cost(channels)(counts) / max(macs_cost(channels)(full), 1), len(feeds))
