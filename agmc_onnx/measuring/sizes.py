"""One set of sizes of the open dims for cost, latency, memory and verification: given, the data's, or a guess that runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.errors import AgmcError, UsageError
from agmc_onnx.graph.files import external_tensors
from agmc_onnx.graph.protobuf import used_names
from agmc_onnx.graph.shapes import Shape, dims_at, guessed_sizes, infer_shapes
from agmc_onnx.graph.sizes import (
    InputDims,
    InputSizes,
    Setting,
    batch_symbols,
    changes,
    guesses,
    input_dims,
    others,
    setting_of,
    sizes_at,
    sizes_text,
    symbols_of,
)
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.measuring.session import make_session, model_inputs, run_model

Feed = dict[str, np.ndarray]
MOST_ENTRIES = 1 << 24  # of an input that is only tried
_LARGE_BYTES = 200_000_000  # of a model: it is not opened only to look whether a guess runs
_LOOKED_AT = 9  # samples of the data whose median size counts, where they differ


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model's inputs, with batch 1.

    Attributes:
        inputs: By input.
        source: What they come from, a key of `SOURCES`; "fixed" where no dim but the batch is open.
    """

    inputs: InputSizes = field(default_factory=dict)
    source: str = "fixed"

    def __str__(self) -> str:
        """Say them in one line, with where they come from."""
        return sizes_text(self.inputs, self.source)


def settle(model: onnx.ModelProto, given: Sequence[str] = (), samples: Callable[[], Samples] | None = None) -> Sizes:
    """Return the sizes that all numbers of a run are for.

    Args:
        model: The original.
        given: Texts NAME=1,3,H,W of --input-shape.
        samples: Opens the data's samples; None where there are none. Asked only where a dim is open or one is given.

    Raises:
        UsageError: If a text is wrong, or contradicts the model or the data.
    """
    inputs = input_dims(model)
    wanted = dict(_parsed(text, inputs) for text in given)
    if not symbols_of(inputs) and not wanted:
        return Sizes(sizes_at(inputs, {}))
    setting, source = setting_of(inputs, wanted), "given"
    if samples is not None:
        found = _median(samples(), inputs)
        for name, dims in wanted.items():
            if name in found and found[name][1:] != dims[1:]:
                raise UsageError(
                    f"--input-shape {name}: contradicts the data, got {_text(dims)}; the data's samples have"
                    f" {_text(found[name])}. Leave out one of the two."
                )
        setting, source = setting_of(inputs, found) | setting, "given" if wanted else "data"
    missing = [name for name in symbols_of(inputs) if name not in setting]
    if missing and any(
        sizes_at(inputs, setting | dict.fromkeys(missing, n)) != sizes_at(inputs, setting) for n in (2, 3)
    ):
        setting, source = _guess(model, inputs, setting), "guessed"
    return Sizes(sizes_at(inputs, setting), source if symbols_of(inputs) else "fixed")


def _parsed(text: str, inputs: Mapping[str, InputDims]) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition(":")[0].rpartition("=")
    name = name or (next(iter(inputs)) if len(inputs) == 1 else "")
    known = ", ".join(f"{n}={','.join(map(str, dims))}" for n, dims in inputs.items())
    if name not in inputs:
        raise UsageError(f"--input-shape: no such input, got {text!r}; expected NAME=1,3,H,W with one of {known}.")
    parts = sizes.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(parts) != len(inputs[name]):
        raise UsageError(f"--input-shape {name}: no such shape, got {sizes!r}; expected numbers for {known}.")
    dims = [int(part) for part in parts]
    for at, (size, dim) in enumerate(zip(dims, inputs[name], strict=True)):
        if isinstance(dim, int) and dim != size:
            raise UsageError(f"--input-shape {name}: dim {at} is fixed, got {size}; expected {dim}. Correct it.")
    if inputs[name] and isinstance(inputs[name][0], str):
        dims[0] = 1  # the batch
    return name, tuple(dims)


def _text(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))


def _median(samples: Samples, inputs: Mapping[str, InputDims]) -> InputSizes:
    """Return the shapes of the sample of median size among a few."""
    rows = sorted({round(at) for at in np.linspace(0, samples.n - 1, min(samples.n, _LOOKED_AT))})
    found = []
    for row in rows:
        feed = samples.read(np.array([row]))
        found.append({name: (feed[name].shape) for name in inputs if name in feed})
    found.sort(key=lambda shapes: sum(math.prod(dims) for dims in shapes.values()))
    return found[len(found) // 2]


def _guess(model: onnx.ModelProto, inputs: Mapping[str, InputDims], known: Setting) -> Setting:
    """Return the likeliest setting at which the model runs; the likeliest of all where none does or it is not tried."""
    first = setting_of(inputs, guessed_sizes(model)) | known
    if model.ByteSize() > _LARGE_BYTES or any(True for _ in external_tensors(model)):
        return first
    try:
        session, specs = make_session(model, optimise=False), model_inputs(model)
    except AgmcError:
        return first
    tried = itertools.chain([first], (setting | known for setting in guesses(inputs, model)))
    for setting in tried:
        sizes = sizes_at(inputs, setting)
        if all(math.prod(dims) <= MOST_ENTRIES for dims in sizes.values()):
            try:
                run_model(session, _feed(specs, sizes, 0))
                return setting
            except AgmcError:
                continue
    return first


def samples_at(model: onnx.ModelProto, sizes: InputSizes, n: int, seed: int) -> Samples:
    """Return `synthetic` samples of these sizes."""
    named = {f"{name}:{at}": size for name, dims in sizes.items() for at, size in enumerate(dims)}
    return synthetic(model_inputs(model), n, seed, sizes=named)


def _feed(specs: Sequence[object], sizes: InputSizes, seed: int) -> Feed:
    named = {f"{name}:{at}": size for name, dims in sizes.items() for at, size in enumerate(dims)}
    return synthetic(specs, 1, seed, sizes=named).feeds(1)[0]  # type: ignore[arg-type]


def graph_at(model: onnx.ModelProto, sizes: InputSizes) -> Graph:
    """Return the view of a model whose shapes are those at some sizes; where inference stops, a run tells them."""
    return graph_of(model, shapes=shapes_of(model, sizes))


def shapes_of(model: onnx.ModelProto, sizes: InputSizes) -> dict[str, Shape]:
    """Return the shape of every value of the main graph at some sizes: of what inference cannot tell, of a run.

    A value whose shape neither tells is left out. Where inference stops at a contradiction and the model does not run at the
    second setting either, some dims only seem open: a setting at which it runs says which.
    """
    shapes = infer_shapes(model, sizes)
    used, inputs = set(used_names(model.graph)), input_dims(model)
    missing = [name for node in model.graph.node for name in node.output if name in used and name not in shapes]
    if not missing or not all(name in shapes for name in inputs):
        return shapes
    try:
        names, run = _runner(model, missing)
        one = run({name: shapes[name].dims for name in inputs})
    except AgmcError:
        return shapes
    try:
        two = run({name: shapes[name].other for name in inputs})
    except AgmcError:
        second = _running(inputs, setting_of(inputs, sizes), run)
        shapes, two = infer_shapes(model, sizes, second), run(sizes_at(inputs, second))
    for name, a, b in zip(names, one, two, strict=True):
        if name not in shapes and isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.ndim == b.ndim:
            shapes[name] = Shape(a.shape, b.shape)
    return shapes


def _running(inputs: Mapping[str, InputDims], first: Setting, run: Callable[[InputSizes], Sequence[object]]) -> Setting:
    """Return a setting at which a model runs, with as many open dims changed as it bears; the first has none changed."""

    def runs(setting: Setting) -> bool:
        sizes = sizes_at(inputs, setting)
        if not _is_small(sizes):
            return False
        try:
            run(sizes)
        except AgmcError:
            return False
        return True

    alone = {name: next((size for size in tried if runs(first | {name: size})), None) for name, tried in
             changes(inputs, first).items()}  # fmt: skip
    changed = {name: size for name, size in alone.items() if size is not None}
    while len(changed) > 1 and not runs(first | changed):
        changed.popitem()
    return first | changed


def _runner(model: onnx.ModelProto, names: Sequence[str]) -> tuple[list[str], Callable[[InputSizes], Sequence[object]]]:
    """Return what runs a model at sizes and gives the values of these names."""
    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session, specs = make_session(told, optimise=False), model_inputs(model)
    rng = np.random.default_rng(0)

    def run(sizes: InputSizes) -> Sequence[object]:
        feed = {}
        for spec in specs:
            shape = sizes.get(spec.name, ())
            numbers = (
                rng.standard_normal(shape) if np.issubdtype(spec.dtype, np.floating) else rng.integers(0, 2, shape)
            )
            feed[spec.name] = np.asarray(numbers).astype(spec.dtype)
        return run_model(session, feed)

    return list(names), run


def second_feeds(model: onnx.ModelProto, sizes: InputSizes, seed: int) -> list[Feed]:
    """Return inputs of other sizes, at which every value differs that can: what a result must run on too.

    Of the settings that tell most values apart, and the open dims of the inputs from each other, the smallest; none where no
    dim but the batch is open.

    Args:
        model: The original.
        sizes: Those of the other inputs.
        seed: Of the random numbers.
    """
    inputs = input_dims(model)
    if not symbols_of(inputs):
        return []
    first = setting_of(inputs, sizes)
    settings = [one for one in others(inputs, first) if _is_small(sizes_at(inputs, one))]
    here, *there = dims_at(model, [first, *settings])
    shapes = infer_shapes(model, sizes)
    opened = [name for name, shape in shapes.items() if not shape.is_static]

    def alike(found: Mapping[str, tuple[int, ...]]) -> int:
        return sum(
            one == other
            for name in opened
            for one, other, is_open in zip(
                here.get(name, ()), found.get(name, here.get(name, ())), _opened(shapes[name]), strict=False
            )
            if is_open
        )

    def rank(pair: tuple[int, Setting]) -> tuple[int, int, int]:
        n_alike, setting = pair
        free = [size for name, size in setting.items() if name not in batch_symbols(inputs)]
        return n_alike, len(free) - len(set(free)), _entries(inputs, setting)

    ranked = sorted(zip(map(alike, there), settings, strict=True), key=rank)
    try:
        session, specs = make_session(model, optimise=False), model_inputs(model)
    except AgmcError:
        return []
    for _, setting in ranked:
        feed = _feed(specs, sizes_at(inputs, setting | dict.fromkeys(batch_symbols(inputs), 1)), seed)
        try:
            run_model(session, feed)
        except AgmcError:
            continue
        return [feed]
    return []


def _opened(shape: Shape) -> Iterator[bool]:
    return (not shape.is_fixed(dim) for dim in range(shape.rank))


def _entries(inputs: Mapping[str, InputDims], setting: Setting) -> int:
    return sum(math.prod(dims) for dims in sizes_at(inputs, setting).values())


def _is_small(sizes: InputSizes) -> bool:
    return all(math.prod(dims) <= MOST_ENTRIES for dims in sizes.values())
