"""Scores of detectors, set right at the end: as many boxes pass the threshold as the original has.

What regresses on the original's scores is less sure than it: boxes that a refitted or distilled detector finds, it finds with
too low a score, and a fixed threshold loses them. Two numbers, added to the logits of objectness and of classes, are
chosen by the F1 of the original's boxes on samples that nothing else was learned from, and go into biases.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring import boxes
from agmc_onnx.measuring.outputs import MOST_BOXES, Answer
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.ops.conv import is_conv

SHIFTS = tuple(np.arange(-1, 4.1, 0.5).tolist())  # of logits
MOST_SAMPLES = 200
LEAST_BOXES = 10  # of the original, to choose by
_THROUGH = frozenset({"Concat", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose"})
SLACK = 0.02  # of F1, that a smaller shift may be behind the best one: few boxes say no more
_LEAST = 1e-9
_TOLERANCE = 1e-3  # of a probability

Shift = tuple[float, float]  # of objectness, and of classes


def rescored(
    model: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, answers: Sequence[Answer]
) -> onnx.ModelProto:
    """Return a detector with scores set right; any other model, and a detector whose scores are not understood, as it is.

    Args:
        model: Pruned and recovered; not changed.
        original: What it is held against.
        samples: Any that the model was not recovered with; labels are not looked at.
        answers: What the outputs are.
    """
    found = [answer for answer in answers if answer.kind == "detections"]
    if len(found) != 1 or found[0].form not in ("raw", "objectness", "classes"):
        return model
    few = samples.take(MOST_SAMPLES)
    sample = few.read(np.arange(few.batch_size(1)) % few.n)
    sessions = make_session(original), make_session(model)
    both = ([run_model(session, feed) for session in sessions] for feed, _ in few.batches(few.batch_size(1)))
    first = [np.asarray(value) for value in run_model(sessions[0], sample)]
    answer = found[0].settled(first)
    graph, n_classes = graph_of(model), first[answer.at[0]].shape[answer.axis] - 4 - (answer.form != "classes")
    heads = _heads(graph, graph.outputs[answer.at[0]], n_classes, answer.form != "classes")
    if heads is None:
        return model
    shift = _best_shift(answer, ((a[answer.at[0]], b[answer.at[0]]) for a, b in both))
    arrays = {name: graph.array(name) + np.float32(shift[part]) for part, names in enumerate(heads) for name in names}
    changed = with_arrays(model, arrays) if any(shift) else model
    before, after = (
        np.moveaxis(run_model(make_session(one), sample)[answer.at[0]], answer.axis, 2) for one in (model, changed)
    )
    wanted = np.concatenate(_moved(before[..., 4:], answer.form, shift), axis=2)
    return changed if np.abs(after[..., 4:] - wanted).max() < _TOLERANCE else model


def _heads(graph: Graph, output: str, n_classes: int, has_objectness: bool) -> tuple[list[str], list[str]] | None:
    """Return the biases of convolutions whose sigmoids are objectness, and classes; None where they are not all found."""
    left, found = [output], dict[int, list[str]]()
    while left:
        node = graph.producer.get(left.pop())
        if node is None:
            continue
        if node.op_type in _THROUGH:
            left += node.inputs[:1] if node.op_type != "Concat" else node.inputs
        elif node.op_type == "Sigmoid":
            conv = graph.producer.get(node.inputs[0])
            if conv is None or not is_conv(conv) or len(conv.inputs) < 3 or conv.inputs[2] not in graph.tensors:
                return None
            bias = conv.inputs[2]
            if len(graph.consumers[bias]) != 1 or len(graph.consumers[conv.outputs[0]]) != 1:
                return None
            found.setdefault(graph.array(bias).size, []).append(bias)
    if n_classes == 1 or set(found) != ({1, n_classes} if has_objectness else {n_classes}):
        return None
    return found.get(1, []), found[n_classes]


def _best_shift(answer: Answer, outputs: Iterator[tuple[np.ndarray, np.ndarray]]) -> Shift:
    """Return the smallest shift whose F1 is nearly the best; nothing where the original finds hardly a box.

    Args:
        answer: Settled.
        outputs: For every sample the original's and the model's.
    """
    tried = list(itertools.product(SHIFTS if answer.form != "classes" else (0.0,), SHIFTS))
    counts = np.zeros((len(tried), 3))
    for theirs, ours in outputs:
        wanted = boxes.best(*boxes.decoded([theirs], answer.form, answer.axis, answer.grid, None), MOST_BOXES)
        corners, _ = boxes.decoded([ours], answer.form, answer.axis, answer.grid, None)
        parts = np.moveaxis(ours, answer.axis, 2)[..., 4:].astype(np.float32)
        most = _scores(_moved(parts, answer.form, (SHIFTS[-1], SHIFTS[-1])))
        at = np.flatnonzero(most.max(axis=2)[0] > boxes.SCORE)  # no other position ever has a box
        for i, shift in enumerate(tried):
            scores = _scores(_moved(parts[:, at], answer.form, shift))
            counts[i] += boxes.matches(boxes.best(corners[:, at], scores, MOST_BOXES), wanted)[0]
    f1 = 2 * counts[:, 0] / np.maximum(2 * counts[:, 0] + counts[:, 1] + counts[:, 2], 1)
    if counts[0, 0] + counts[0, 2] < LEAST_BOXES:
        return 0.0, 0.0
    good = [
        (abs(shift[0]) + abs(shift[1]), -own, shift)
        for shift, own in zip(tried, f1, strict=True)
        if own >= f1.max() - SLACK
    ]
    return min(good)[2]


def _moved(parts: FloatArray, form: str, shift: Shift) -> list[FloatArray]:
    """Return the probabilities of objectness, where there is one, and classes, with their logits shifted."""
    split = [parts] if form == "classes" else [parts[..., :1], parts[..., 1:]]
    found = []
    for part, by in zip(split, shift[-len(split) :], strict=True):
        odds = np.clip(part, 0, 1) * np.float32(np.exp(by))
        found.append(np.asarray(odds / np.maximum(odds + 1 - np.clip(part, 0, 1), _LEAST), np.float32))
    return found


def _scores(parts: Sequence[FloatArray]) -> FloatArray:
    return parts[0] * parts[1] if len(parts) == 2 else parts[0]
