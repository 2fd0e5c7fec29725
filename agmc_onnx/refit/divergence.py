"""What a narrower group really costs at the outputs: candidates with one group cut, refitted quickly and run.

Refit errors (`refit.curves`) say how well a node's output is restored, not what the error does behind it. In a network
whose blocks differ much in that, the answers themselves decide better; a few hundred short inferences give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from scipy.special import log_softmax

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.data.samples import Feed, Samples
from agmc_onnx.graph.view import Graph
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.pruning.importance import choose
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.refit.curves import Curves
from agmc_onnx.refit.goals import output_goals
from agmc_onnx.refit.options import Each, RecoverOptions
from agmc_onnx.refit.quick import QuickRefit
from agmc_onnx.ties.groups import Channels

Recover = Callable[[list[IntArray], onnx.ModelProto], onnx.ModelProto]
SHARES = (0.25, 0.5, 0.75, 0.875)  # widths that are measured
JUDGES = 100  # samples that judge networks without some layers
MOST, LEAST, MOST_MACS = 64, 8, 1e12  # samples per candidate; MACs of all candidates together, about a minute


def divergence_curves(
    channels: Channels,
    scores: FloatArray,
    step: Sequence[int] | IntArray,
    samples: Samples,
    options: RecoverOptions | None = None,
    threads: int = 1,
    each: Each = iter,
) -> Curves:
    """Return what every group costs at every width, each group alone, in units of the answers.

    The unit is the Kullback-Leibler divergence from the original's answers in nats where outputs are scores of classes,
    else the squared error over the variance of what is compared of them (`measuring.outputs`). Between the measured
    widths the curve is interpolated; it never falls where units go.

    Args:
        channels: Analysis of the original.
        scores: float (n_units,), higher is kept longer.
        step: Kept counts are multiples of it, for every group.
        samples: Calibration samples, without labels: the last quarter judges what the others refit.
        options: As for `QuickRefit`.
        threads: Of onnxruntime.
        each: Hands on the groups.

    Raises:
        ModelError: If the model has an op without a counterpart in torch.
    """
    full = np.array([group.n_units for group in channels.groups], np.int64)
    per_sample = max(macs_cost(channels)(full), 1) * len(full) * len(SHARES)
    n_judges = int(np.clip(MOST_MACS / per_sample, LEAST, MOST))
    n_judges = max(1, min(n_judges, samples.n // 4))
    feeds = _last(samples, n_judges)
    refit = QuickRefit(channels, samples.take(max(1, samples.n - n_judges)), options)
    surgeon, judge = Surgeon(channels), _Judge(channels.graph, feeds, threads)
    counts, errors = [], []
    for group, n in each(list(enumerate(full.tolist()))):
        size = int(np.asarray(step)[group])
        widths = sorted({max(size, round(n * share / size) * size) for share in SHARES if size < n} - {n})
        found = []
        for width in widths:
            n_kept = full.copy()
            n_kept[group] = width
            kept = choose(channels, scores, n_kept)
            found.append(judge(refit(kept, surgeon.cut(kept))))
        measured = np.array([*found, 0.0])
        at = np.array([*widths, n], np.int64)
        counts.append(at)
        errors.append(np.maximum.accumulate(measured[::-1])[::-1])
    return Curves(tuple(counts), tuple(errors))


def losses(
    channels: Channels, samples: Samples, recovery: Callable[[Samples], Recover] | None, threads: int, original: Graph
) -> Callable[[list[IntArray]], float]:
    """Return what measures what the answers lose at kept positions of every group, in the unit of `divergence_curves`.

    Each is recovered as a candidate is: what earlier layers can make up for where a layer is gone, they do.

    Args:
        channels: Analysis of what is cut.
        samples: Calibration samples, without labels: the last quarter, or fewer, judges what the others refit.
        recovery: Makes, from samples, what a freshly cut model goes through; None: nothing.
        threads: Of onnxruntime.
        original: Whose answers count.
    """
    n_judges = max(1, min(JUDGES, samples.n if recovery is None else samples.n // 4))
    recover = None if recovery is None else recovery(samples.take(max(1, samples.n - n_judges)))
    surgeon, judge = Surgeon(channels), _Judge(original, _last(samples, n_judges), threads)

    def loss(kept: list[IntArray]) -> float:
        model = surgeon.cut(kept)
        return judge(model if recover is None else recover(kept, model))

    return loss


def _last(samples: Samples, n: int) -> list[Feed]:
    """Return the last samples in batches that the model takes."""
    size = samples.batch_size(32)
    starts = range(samples.n - n, samples.n, size)
    rows = [np.arange(start, min(start + size, samples.n)) for start in starts]
    whole = [r for r in rows if not samples.fixed_batch or r.size == size]
    return [samples.read(r) for r in whole or [np.resize(np.arange(samples.n), size)]]


class _Judge:
    """Compares a model's answers with the original's."""

    def __init__(self, graph: Graph, feeds: Sequence[Feed], threads: int) -> None:
        self._feeds, self._threads = feeds, threads
        goals = output_goals(graph)
        wanted = {goal.value: goal.is_scores for goal in goals}
        makers = [graph.producer.get(output) for output in graph.outputs]
        answers = answers_of(graph)
        self._looked = [answer for answer in answers if answer.kind in ("positions", "mask", "detections", "embedding")]
        taken = {i for answer in self._looked for i in answer.at}
        self._kinds: list[str] = []
        for output, maker in zip(graph.outputs, makers, strict=True):
            behind = maker.inputs[0] if maker is not None and maker.op_type in ("Softmax", "LogSoftmax") else ""
            if wanted.get(behind):
                self._kinds.append("probabilities" if maker is not None and maker.op_type == "Softmax" else "scores")
            else:
                self._kinds.append("scores" if wanted.get(output) else "numbers" if output in wanted else "")
        self._kinds = ["" if i in taken else kind for i, kind in enumerate(self._kinds)]
        self._marks: list[list[np.ndarray | None]] | None = None  # of every answer, those of the batches
        self._answers = self._run(graph.model)

    def _run(self, model: onnx.ModelProto) -> list[FloatArray]:
        session = make_session(model, self._threads)
        parts = [run_model(session, feed) for feed in self._feeds]
        found = []
        for i, kind in enumerate(self._kinds):
            if not kind:
                continue
            array = np.concatenate([np.asarray(part[i], np.float64).reshape(np.shape(part[i])) for part in parts])
            if kind == "probabilities":
                array = np.log(np.maximum(array, 1e-30))
            found.append(log_softmax(array, axis=1) if kind == "scores" else array)
        return found + self._compared([[np.asarray(value) for value in part] for part in parts])

    def _compared(self, parts: Sequence[Sequence[np.ndarray]]) -> list[FloatArray]:
        """Return what is compared of the answers that are looked at, of all batches; the first model is the original."""
        is_original = self._marks is None
        if is_original:
            self._looked = [answer.settled(parts[0]) for answer in self._looked]
        seen = [
            [
                answer.seen(part, None if self._marks is None else self._marks[number][batch])
                for batch, part in enumerate(parts)
            ]
            for number, answer in enumerate(self._looked)
        ]
        if is_original:
            self._marks = [[one.marks for one in batches] for batches in seen]
        return [np.concatenate([one.compared.astype(np.float64) for one in batches]) for batches in seen]

    def __call__(self, model: onnx.ModelProto) -> float:
        """Return the mean over the outputs of the divergence from the original's."""
        total = 0.0
        kinds = [kind for kind in self._kinds if kind] + ["looked at"] * len(self._looked)
        for kind, ours, theirs in zip(kinds, self._run(model), self._answers, strict=True):
            if kind in ("numbers", "looked at"):
                total += float(((ours - theirs) ** 2).mean() / max(theirs.var(), 1e-30))
            else:
                total += float((np.exp(theirs) * (theirs - ours)).sum(1).mean())
        return total / max(len(kinds), 1)
