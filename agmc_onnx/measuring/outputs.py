"""What the outputs of a model say: classes, boxes, directions, ...: known from the graph, or said by the user.

One record a kind (`KINDS`) decides everywhere what is compared: the closeness that a search is steered by, the agreement that is
printed without labels, and (by the same name, in `distill.losses`) what distillation learns. An answer is what one output
says, or several together (boxes and their scores).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from agmc_onnx.errors import DataError, did_you_mean
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.measuring import boxes, closeness
from agmc_onnx.measuring.closeness import MAX_ENTRIES
from agmc_onnx.measuring.reading import alphabet_of, has_alphabet
from agmc_onnx.ops.norm import is_stored
from agmc_onnx.ops.table import op_of

MOST_BOXES = 300  # of a sample that are compared
N_MARKED = 512  # positions of a detector, per sample, that its closeness is measured at
N_SIGNAL = 1000  # samples, from which on one row of numbers may be a sound
_PASSING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_NORMS = frozenset(
    {"LayerNormalization", "LpNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
     "SkipLayerNormalization"}
)  # fmt: skip
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_LENGTHS = frozenset({"ReduceL2", "ReduceSumSquare", "Sqrt"})
_STATES = ("cache", "hidden", "past", "present", "state")

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What one output, or several together, say.

    Attributes:
        kind: A key of `KINDS`.
        at: Numbers of the graph outputs that it is made of.
        axis: Dim of the classes, or of the direction.
        form: How they are written: "probabilities" or "" of classes; a key of `boxes.FORMS` of boxes.
        grid: Of boxes on a grid: (rows, columns, stride) of its levels.
        background: Class of detections that stands for nothing; None where there is none.
        alphabet: What classes at positions stand for, where the model says it.
    """

    kind: str
    at: tuple[int, ...]
    axis: int = 1
    form: str = ""
    grid: tuple[tuple[int, int, int], ...] = ()
    background: int | None = None
    alphabet: tuple[str, ...] = ()

    def settled(self, outputs: Arrays) -> Answer:
        """Return what numbers tell of the form beside the graph.

        Args:
            outputs: All outputs of the original for some samples.
        """
        with np.errstate(all="ignore"):
            return KINDS[self.kind].settle(self, [outputs[i] for i in self.at])

    def seen(self, outputs: Arrays, marks: np.ndarray | None = None) -> Seen:
        """Return what is looked at of all outputs for some samples.

        Args:
            outputs: Of any model.
            marks: Those of the original for the same samples; None: this is the original.
        """
        try:
            with np.errstate(all="ignore"):
                return KINDS[self.kind].look(self, [outputs[i] for i in self.at], marks)
        except (ValueError, IndexError):  # of other shape than the original's: they say nothing alike
            return Seen(np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Seen:
    """What is looked at of an answer, sample by sample.

    Attributes:
        compared: (n, ...) numbers whose squared error says how close two models are; empty where only the answers say it.
        said: (n, ...) what is counted when two models are held side by side.
        marks: (n, ...) where, and with what weight, the original wants to be looked at; None: everywhere alike.
    """

    compared: np.ndarray
    said: np.ndarray
    marks: np.ndarray | None = None


@dataclass(frozen=True)
class Kind:
    """What is done with answers of a kind.

    Attributes:
        settle: Fills in their form from numbers.
        look: Takes from outputs what is compared and counted; gets the original's marks, or None for the original itself.
        metric: Name of the metric that says without labels how far two models agree (`measuring.agreeing.METRICS`).
    """

    settle: Callable[[Answer, Arrays], Answer]
    look: Callable[[Answer, Arrays, np.ndarray | None], Seen]
    metric: str


def answers_of(model: onnx.ModelProto | Graph, said: Mapping[str, str] | None = None) -> tuple[Answer, ...]:
    """Return what the outputs of a model say, in their order; outputs that say something together are one answer.

    What is a guess is the plainest one: numbers, or classes where one row of scores is left.

    Args:
        model: The original.
        said: Kinds by the name of an output, from the data card; they overrule the graph.

    Raises:
        DataError: If a name is no output, or a kind is unknown.
    """
    graph = model if isinstance(model, Graph) else graph_of(model)
    said = said or {}
    for name, kind in said.items():
        for what, value, known in (("output", name, graph.outputs), ("kind", kind, tuple(KINDS))):
            if value not in known:
                expected = (
                    f"one of {', '.join(known)}.{did_you_mean(value, known) or ' Correct [outputs] in the card.'}"
                )
                raise DataError(f"[outputs] {name}: no such {what}, got {value!r}; expected {expected}")
    shapes = [graph.shape(name) for name in graph.outputs]
    kinds = [said.get(name) or _kind_of(graph, name, shape) for name, shape in zip(graph.outputs, shapes, strict=True)]
    found = _together(graph, kinds, shapes, said)
    taken = {i for answer in found for i in answer.at}
    for i, (name, kind) in enumerate(zip(graph.outputs, kinds, strict=True)):
        if i in taken:
            continue
        one = Answer(kind, (i,), _axis(graph, name, shapes[i], kind))
        shape = shapes[i]
        if kind == "detections":
            one = _on_grid(graph, one, shape)
        elif kind == "positions":
            one = replace(one, alphabet=alphabet_of(graph.model, _n_classes(graph, name, shape, one.axis)))
        found.append(one)
    return tuple(sorted(found, key=lambda answer: answer.at))


def answers_by_shape(outputs: Arrays) -> tuple[Answer, ...]:
    """Return what outputs say of which no graph is known."""
    kinds = [
        "classes" if closeness.class_scores(o) is not None else "numbers" if o.dtype.kind == "f" else "choices"
        for o in outputs
    ]
    return tuple(Answer(kind, (i,)) for i, kind in enumerate(kinds))


# -- what the graph tells -------------------------------------------------------------------------------------------------


def _kind_of(graph: Graph, name: str, shape: Shape | None) -> str:
    """Return the kind of an output by itself."""
    value = next(v for v in graph.model.graph.output if v.name == name)
    if value.type.tensor_type.elem_type not in (1, 10, 11, 16):
        return "choices"
    if any(word in name.lower() for word in _STATES) and len(graph.inputs) > 1:
        return "state"
    if shape is None and has_alphabet(graph.model):
        made = _maker(graph, name)
        return "positions" if made is not None and made.op_type in ("Softmax", "LogSoftmax") else "numbers"
    if shape is None or shape.rank < 2:
        return "numbers"
    maker, rest = _maker(graph, name), [size for size in shape.dims[1:] if size != 1]
    op = "" if maker is None else maker.op_type
    if shape.rank == 3 and _levels(graph, shape) is not None:
        return "detections"
    if len(rest) <= 1:
        size = math.prod(rest)
        if size == 1:
            return "mask" if op == "Sigmoid" else "numbers"
        if size >= N_SIGNAL and (op in ("ConvTranspose", "Tanh") or _hears(graph)):
            return "waveform"
        is_direction = shape.rank == 2 and maker is not None and (op in _POOLING or _is_normed(graph, maker))
        return "embedding" if is_direction else "classes"
    if op in ("Softmax", "LogSoftmax"):
        return "positions"
    if op == "Sigmoid":
        return "mask"
    if shape.rank == 3 and maker is not None:
        if _is_normed(graph, maker):
            return "embedding"
        return "positions" if _is_product(graph, maker) and shape.dims[-1] > 4 else "numbers"
    if shape.rank == 4 and maker is not None and _is_segmentation(graph, shape, maker):
        return "positions"
    return "map" if shape.rank >= 4 else "numbers"


def _n_classes(graph: Graph, name: str, shape: Shape | None, axis: int) -> int:
    """Return the number of classes; of an output of unknown shape what the weight before the softmax says, or 0."""
    if shape is not None:
        return shape.dims[axis]
    maker = _maker(graph, name)
    last = None if maker is None else _maker(graph, maker.inputs[0])
    weights = [] if last is None else [graph.array(one) for one in last.inputs if one in graph.tensors]
    return next((weight.shape[-1] for weight in weights if weight.ndim), 0)


def _maker(graph: Graph, value: str) -> Node | None:
    """Return the node that makes a value, behind those that only arrange it."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _PASSING:
        node = graph.producer.get(node.inputs[0])
    return node


def _is_normed(graph: Graph, node: Node) -> bool:
    """Return whether a value is brought to one length or spread by what makes it, perhaps scaled and shifted behind."""
    for _ in range(3):
        if node.op_type in _NORMS or is_stored(node):
            return True
        if node.op_type == "Div":
            below = _maker(graph, node.inputs[1])
            for _ in range(4):
                if below is None or below.op_type in _LENGTHS:
                    return below is not None
                below = _maker(graph, below.inputs[0])
            return False
        before = [_maker(graph, name) for name in node.inputs if name not in graph.weights]
        if node.op_type not in ("Add", "Mul") or len(before) != 1 or before[0] is None:
            return False
        node = before[0]
    return False


def _is_product(graph: Graph, node: Node) -> bool:
    """Return whether a value is a matrix product with a weight, perhaps with a bias: what a classifier ends in."""
    if node.op_type == "Add":
        before = [_maker(graph, name) for name in node.inputs if name not in graph.weights]
        return len(before) == 1 and before[0] is not None and _is_product(graph, before[0])
    return node.op_type in ("Gemm", "MatMul") and node.inputs[1] in graph.weights


def _is_segmentation(graph: Graph, shape: Shape, maker: Node) -> bool:
    """Return whether channels of a picture are scores of classes: of the only picture, that is not in colours, and not small."""
    pictures = [s for name in graph.outputs if (s := graph.shape(name)) is not None and s.rank == 4]
    given = _picture(graph)
    classes = shape.dims[_channels(shape)]
    if not (op_of(maker).kernel or maker.op_type in ("Add", "Resize", "Upsample")) or given is None:
        return False
    area = math.prod(shape.dims[1:]) / classes
    return len(pictures) == 1 and 4 <= classes <= 256 and area * 64 >= given[0] * given[1]


def _picture(graph: Graph) -> tuple[int, int] | None:
    """Return height and width of the input that is a picture."""
    shapes = [s for name in graph.inputs if (s := graph.shape(name)) is not None and s.rank == 4]
    if not shapes:
        return None
    dims = shapes[0].dims
    return (dims[2], dims[3]) if dims[1] in (1, 3, 4) or dims[3] not in (1, 3, 4) else (dims[1], dims[2])


def _hears(graph: Graph) -> bool:
    """Return whether the first input is one long row of numbers."""
    shape = graph.shape(graph.inputs[0]) if graph.inputs else None
    return shape is not None and max(shape.dims, default=0) == math.prod(shape.dims) >= N_SIGNAL


def _channels(shape: Shape) -> int:
    """Return the dim of classes of a picture: the smaller of the first and the last behind the samples."""
    return 1 if shape.dims[1] <= shape.dims[-1] else shape.rank - 1


def _axis(graph: Graph, name: str, shape: Shape | None, kind: str) -> int:
    """Return the dim of classes or of the direction."""
    if shape is None or shape.rank < 2:
        return 1
    node = graph.producer.get(name)
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        axis = node.attribute("axis", 1 if graph.opset < 13 else -1) % shape.rank
        return axis if graph.opset >= 13 or axis == shape.rank - 1 else _channels(shape)
    if kind == "positions":
        return shape.rank - 1 if shape.rank == 3 else _channels(shape)
    return shape.rank - 1 if kind in ("embedding", "detections") else 1


def _levels(graph: Graph, shape: Shape) -> tuple[tuple[int, int, int], ...] | None:
    """Return the levels of the grid that an output (n, positions, numbers) or (n, numbers, positions) is on; None: on none."""
    given = _picture(graph)
    if given is None or min(shape.dims[1:]) < 5:
        return None
    return boxes.levels(max(shape.dims[1:]), *given)


def _on_grid(graph: Graph, answer: Answer, shape: Shape | None) -> Answer:
    """Return detections of one output with its grid and, as far as the graph says it, its form."""
    if shape is None or shape.rank != 3:
        return replace(answer, form="list")
    levels = _levels(graph, shape)
    if levels is None:
        return replace(answer, form="list")
    axis = 1 if shape.dims[1] < shape.dims[2] else 2
    is_raw = not _computes_boxes(graph, graph.outputs[answer.at[0]])
    form = "raw" if is_raw else "classes" if axis == 1 else "objectness"
    return replace(answer, axis=axis, form=form, grid=levels)


def _computes_boxes(graph: Graph, output: str) -> bool:
    """Return whether there is arithmetic between the last convolutions and an output."""
    left, seen = [output], set[str]()
    while left:
        name = left.pop()
        node = graph.producer.get(name)
        if name in seen or node is None or op_of(node).refit:
            continue
        seen.add(name)
        if node.op_type in ("Add", "Sub", "Mul", "Div", "Exp", "Pow"):
            return True
        left += [one for one in node.inputs if one and one not in graph.weights]
    return False


def _together(
    graph: Graph, kinds: Sequence[str], shapes: Sequence[Shape | None], said: Mapping[str, str]
) -> list[Answer]:
    """Return detections whose boxes are one output, and their scores another (and the classes a third)."""
    ranked = {i: s.dims for i, s in enumerate(shapes) if s is not None and s.rank in (1, 2, 3)}
    found = []
    for i, dims in ranked.items():
        if dims[-1] != 4 or len(dims) < 2 or said.get(graph.outputs[i], "detections") != "detections":
            continue
        over = dims[:-1]
        scores = [
            j for j, d in ranked.items() if j != i and kinds[j] != "choices" and d[: len(over)] == over and d[-1] != 4
        ]
        rows = [j for j, d in ranked.items() if kinds[j] == "choices" and d == over]
        plain = [j for j in scores if ranked[j] == over]
        if plain and rows:
            found.append(Answer("detections", (i, plain[0], rows[0]), form="list"))
        elif len(scores) == 1 and len(over) == 2 and len(ranked[scores[0]]) == 3:
            found.append(Answer("detections", (i, scores[0]), 2, "pair"))
    return found


# -- what is looked at ------------------------------------------------------------------------------------------------------


def sampled(values: np.ndarray, most: int) -> np.ndarray:
    """Return (n, positions, ...) at no more than so many positions, the same ones every time: a fixed draw, no pattern."""
    n = values.shape[1]
    if n <= most:
        return values
    return np.ascontiguousarray(values[:, np.sort(np.random.default_rng(n).choice(n, most, replace=False))])


def _as_is(answer: Answer, values: Arrays) -> Answer:
    return answer


def _plain(answer: Answer, values: Arrays, marks: np.ndarray | None) -> Seen:
    """Numbers as they are, at some of their places."""
    thin = closeness.thinned(list(values))[0]
    return Seen(thin, thin)


def _scores_form(answer: Answer, values: Arrays) -> Answer:
    """Whether they are probabilities; and along which dim, where the graph's is not the one that sums to 1."""
    value = values[0]
    if value.ndim < 2 or not value.size:
        return answer
    summed = [a for a in range(1, value.ndim) if value.shape[a] > 1 and closeness.are_shares(value, a)]
    axis = answer.axis if answer.axis in summed or not summed else summed[-1]
    return replace(answer, axis=axis, form="probabilities" if summed else "")


def _at_positions(answer: Answer, values: Arrays, marks: np.ndarray | None) -> Seen:
    """The class at every position, and its probabilities, softened, at some."""
    flat = np.moveaxis(values[0], answer.axis, -1)
    flat = flat.reshape(len(flat), -1, flat.shape[-1])
    classes = np.argmax(sampled(flat, MAX_ENTRIES), axis=-1)
    few = sampled(flat, max(1, MAX_ENTRIES // flat.shape[-1]))
    soft = closeness.softened(few, answer.form == "probabilities").astype(np.float32)
    lost = np.isnan(flat).any(axis=(1, 2))
    classes[lost] = -1
    return Seen(soft, classes.astype(np.int32))


def _yes_or_no(answer: Answer, values: Arrays, marks: np.ndarray | None) -> Seen:
    """Whether every position is above one half."""
    flat = sampled(values[0].reshape(len(values[0]), -1), MAX_ENTRIES)
    return Seen(flat, np.where(np.isnan(flat), -1, flat > 0.5).astype(np.int32))


def _direction(answer: Answer, values: Arrays, marks: np.ndarray | None) -> Seen:
    """Vectors of length 1."""
    flat = np.moveaxis(values[0], answer.axis, -1).astype(np.float64)
    flat = flat.reshape(len(flat), -1, flat.shape[-1])
    flat = sampled(flat, max(1, MAX_ENTRIES // flat.shape[-1]))
    units = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-12)
    return Seen(units, units)


def _boxes_form(answer: Answer, values: Arrays) -> Answer:
    if answer.form in ("list", "raw"):
        return answer
    return replace(answer, **boxes.form_of(answer.form, values, answer.axis))


def _detections(answer: Answer, values: Arrays, marks: np.ndarray | None) -> Seen:
    """The boxes that are left of overlapping ones; compared are the positions that the original is surest at.

    Probabilities weigh as much as the original is sure of them, and boxes are compared where it is (their numbers
    are in sizes of its own boxes).
    """
    if answer.form == "list":
        said = boxes.listed(values, MOST_BOXES)
        return Seen(np.zeros((len(said), 0), np.float32), said)
    corners, shares = boxes.decoded(values, answer.form, answer.axis, answer.grid, answer.background)
    said = boxes.best(corners, shares, MOST_BOXES)
    sure = np.nan_to_num(shares.max(axis=2))
    if marks is None:
        place = np.argsort(-sure, axis=1, kind="stable")[:, :N_MARKED]
        sure = np.take_along_axis(sure, place, axis=1)
        own = np.take_along_axis(corners, place[..., None], axis=1)
        size = np.sqrt(np.maximum(np.prod(own[..., 2:] - own[..., :2], axis=2), 1e-12))
        marks = np.stack([place, sure, size], axis=2)
    place = marks[..., 0].astype(np.int64)[..., None]
    weight = np.sqrt(marks[..., 1:2] + boxes.LEAST_WEIGHT)
    both = [
        np.take_along_axis(shares, place, axis=1) * weight,
        np.take_along_axis(corners, place, axis=1) / marks[..., 2:3] * (marks[..., 1:2] > boxes.SURE),
    ]
    return Seen(np.concatenate(both, axis=2).astype(np.float32), said, marks)


KINDS: dict[str, Kind] = {
    "classes": Kind(_as_is, _plain, "agreement"),
    "positions": Kind(_scores_form, _at_positions, "positions"),
    "mask": Kind(_as_is, _yes_or_no, "positions"),
    "detections": Kind(_boxes_form, _detections, "boxes"),
    "embedding": Kind(_as_is, _direction, "cosine"),
    "map": Kind(_as_is, _plain, "closeness"),
    "waveform": Kind(_as_is, _plain, "closeness"),
    "state": Kind(_as_is, _plain, "closeness"),
    "numbers": Kind(_as_is, _plain, "closeness"),
    "choices": Kind(_as_is, _plain, "closeness"),
}
