"""Samples that fit a model's inputs: opened from a data card by role, preprocessed batch by batch, or synthetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.archives import load_npz
from agmc_onnx.data.card import (
    LABELLED,
    NEEDS_LABELS,
    TEXTS,
    DataCard,
    InputSpec,
    Slice,
    bad_data,
    default_roles,
    load_card,
    shape_text,
)
from agmc_onnx.data.images import convert, crop, decode_all, fits, normalise, resize
from agmc_onnx.data.labels import check_labels, file_labels, is_sorted, list_files, spread
from agmc_onnx.errors import UsageError

__all__ = ["DataCard", "Dataset", "InputSpec", "Samples", "load_card", "open_data", "synthetic"]

SYNTHETIC_DIM = 16  # size of a dynamic dim that is not the batch
SYNTHETIC_BYTES = 2**30  # of all random samples together

Feed = dict[str, np.ndarray]
Read = Callable[[IntArray], Feed]


class Samples:
    """Samples of one role, in a fixed order; nothing is decoded before it is asked for.

    Attributes:
        name: How error messages call them.
        n: Number of samples.
        labels: Of length n: int64, or any type for a "module:function" metric; None without labels and for calibration.
        fixed_batch: The only batch size the model takes, or None.
        unbatched: Inputs without a batch axis.
    """

    def __init__(
        self,
        name: str,
        read: Read,
        index: IntArray,
        labels: np.ndarray | None,
        *,
        fixed_batch: int | None = None,
        unbatched: frozenset[str] = frozenset(),
    ) -> None:
        """Describe the samples `index` of a source.

        Args:
            name: How error messages call them.
            read: Gives the feeds of source rows, first axis = sample.
            index: Rows of the source, int64 of shape (n,).
            labels: Of shape (n, ...), or None.
            fixed_batch: The only batch size the model takes, or None.
            unbatched: Inputs without a batch axis: `read` gives them one and it is dropped; `fixed_batch` is then 1.
        """
        self.name = name
        self.n = len(index)
        self.labels = labels
        self.fixed_batch = fixed_batch
        self._read = read
        self._index = index
        self.unbatched = unbatched
        self._feeds: dict[int, list[Feed]] = {}

    def batch_size(self, wanted: int) -> int:
        """Return the batch size really used where `wanted` is asked for: the model's fixed one, if it has one."""
        if wanted < 1:
            raise UsageError(f"batch size: too small, got {wanted}; expected at least 1. Use for example 100.")
        return self.fixed_batch or wanted

    def valid_rows(self, batch_size: int) -> list[int]:
        """Return how many rows of each batch are samples; only the last one of a fixed batch has padding behind."""
        size = self.batch_size(batch_size)
        return [min(size, self.n - start) for start in range(0, self.n, size)]

    def batches(self, batch_size: int) -> Iterator[tuple[Feed, np.ndarray | None]]:
        """Yield (feed, labels) of consecutive samples, read and preprocessed one batch at a time.

        The last batch is shorter, but for a model of a fixed batch it is filled up with copies of its last sample;
        `labels` has `valid_rows` entries, and so has what counts of the outputs.
        """
        start = 0
        for rows in self.valid_rows(batch_size):
            index = self._index[start : start + rows]
            labels = None if self.labels is None else self.labels[start : start + rows]
            start += rows
            if self.fixed_batch:
                index = np.pad(index, (0, self.fixed_batch - rows), mode="edge")
            feed = self._read(index)
            yield {name: np.asarray(a[0]) if name in self.unbatched else a for name, a in feed.items()}, labels

    def read(self, rows: IntArray) -> Feed:
        """Return the feed of any samples by their numbers 0..n-1, read and preprocessed now."""
        feed = self._read(self._index[rows])
        return {name: np.asarray(a[0]) if name in self.unbatched else a for name, a in feed.items()}

    def feeds(self, batch_size: int) -> list[Feed]:
        """Return the feeds of all batches, kept in memory in the model's input types for the next call."""
        size = self.batch_size(batch_size)
        if size not in self._feeds:
            self._feeds[size] = [feed for feed, _ in self.batches(size)]
        return self._feeds[size]

    def take(self, n: int) -> Samples:
        """Return the first `n` samples, or all where there are fewer.

        Raises:
            UsageError: If `n` is below 1.
        """
        if n < 1:
            raise UsageError(f"{self.name}: cannot take samples, got {n}; expected at least 1. Ask for more.")
        labels = None if self.labels is None else self.labels[:n]
        index, batch, unbatched = self._index[:n], self.fixed_batch, self.unbatched
        return Samples(self.name, self._read, index, labels, fixed_batch=batch, unbatched=unbatched)


@dataclass(frozen=True)
class Dataset:
    """A data card opened for one model.

    Attributes:
        card: The card.
        n: Number of samples, without those of [train].
        metric: The card's metric; where it names none, top1 with labels and agreement without.
        roles: Role name -> (start, stop), the default ones where the card names none.
    """

    card: DataCard
    n: int
    metric: str
    roles: Mapping[str, Slice]
    _source: _Source
    _inputs: tuple[InputSpec, ...]

    def role(self, name: str) -> Samples:
        """Return the samples of "calibration" (never with labels), "reward", "test" or "train".

        Raises:
            DataError: If the card has no such role, or the training images cannot be used.
        """
        if name == "train":
            return self._train()
        if name not in self.roles:
            known = ", ".join(self.roles)
            raise bad_data(self.card.where, "no such role", repr(name), f"one of {known}", "Add it under [roles].")
        return self._source.samples(f"{self.card.where} {name}", self.roles[name], name != "calibration")

    def with_all(self, n: int) -> Samples:
        """Return n samples, at equal distances among all, with their labels: for what does not know roles yet."""
        rows = self._source.order[np.linspace(0, self.n - 1, min(n, self.n)).round().astype(np.int64)]
        labels = None if self._source.labels is None else self._source.labels[rows]
        batch, unbatched = self._source.fixed_batch, self._source.unbatched
        return Samples(self.card.where, self._source.read, rows, labels, fixed_batch=batch, unbatched=unbatched)

    def _train(self) -> Samples:
        train, where = self.card.train, f"{self.card.where} [train]"
        if train is None:
            raise bad_data(self.card.where, "no training images", "no [train]", "one", "Add [train] with images.")
        if train.images == self.card.images and train.labels == self.card.labels:
            source = self._source
        else:
            source = _open_source(self.card, where, train.images, train.labels, inputs=self._inputs, metric=self.metric)
        part = train.slice or (0, source.n)
        _check_inside(where, "slice", part, source.n)
        return source.samples(where, part, True)


@dataclass(frozen=True)
class _Source:
    """Rows of one .npz or folder: how to read them, and their labels (row i of `labels` is row i of `read`)."""

    n: int
    read: Read
    labels: np.ndarray | None
    order: IntArray  # (n,) rows in the order that roles are slices of
    fixed_batch: int | None
    unbatched: frozenset[str]

    def samples(self, name: str, part: Slice, labelled: bool) -> Samples:
        index = self.order[part[0] : part[1]]
        labels = self.labels[index] if labelled and self.labels is not None else None
        return Samples(name, self.read, index, labels, fixed_batch=self.fixed_batch, unbatched=self.unbatched)


def open_data(card: DataCard, inputs: Sequence[InputSpec]) -> Dataset:
    """Return the card's samples, checked against what a model wants to be fed.

    Kinds of images:
      - .npz with `x` of shape (N, H, W, C) or (N, H, W), 8-bit or float, and perhaps `y`: images;
      - .npz whose arrays carry the names of all graph inputs (first axis = sample), or with `x` of the rank of the only
        input where that is not 4, or its last dim is no number of colours and it fits as it is, and color is not L: fed
        as they are, only the type is changed. An input without a batch axis (an array of one dim more than the input)
        makes the batch size 1;
      - folder with one folder per class: labels are the sorted folders' numbers, or their names if all are whole
        numbers. Order: the classes are spread evenly, files sorted within a class, so that any slice is a fair sample;
      - folder of files, sorted by name; with a labels .csv the files it names, and every image must be named.
    Where labels are sorted (first all of class 0, then 1, ...) and the card gives no roles, the default roles are cut
    from the same even spread.

    Args:
        card: Of `load_card`.
        inputs: The model's inputs (`session.model_inputs`).

    Raises:
        DataError: If the images are missing or of the wrong size, a role lies outside of them, labels do not fit the
            images, or the metric needs labels and there are none.
    """
    source = _open_source(card, card.where, card.images, card.labels, inputs=inputs, metric=card.metric)
    roles = card.roles or default_roles(source.n, card.where)
    for name, part in roles.items():
        _check_inside(card.where, f"role {name}", part, source.n)
    metric = card.metric or ("agreement" if source.labels is None else "top1")
    if NEEDS_LABELS.get(metric) and source.labels is None:
        todo = 'Add labels, or set metric = "agreement".'
        raise bad_data(card.where, f"metric {metric} needs labels", "images without labels", "labels", todo)
    if not card.roles and source.labels is not None and is_sorted(source.labels):
        source = replace(source, order=spread(source.labels))
    return Dataset(card, source.n, metric, dict(roles), source, tuple(inputs))


def synthetic(
    inputs: Sequence[InputSpec],
    n: int,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    default_size: int = SYNTHETIC_DIM,
) -> Samples:
    """Return random samples for a model without data; they carry no labels.

    Float inputs are standard normal, integer inputs 0 or 1 (valid as token, mask and segment), bool inputs random.

    Args:
        inputs: The model's inputs. The first dim of the first is taken as the batch; an input of another fixed first
            dim, or none, is held to have no batch axis, and the batch size is then 1.
        n: Number of samples, at least 1.
        seed: Of the random generator; the same seed gives the same samples.
        sizes: Sizes of dynamic dims by their symbol, or by "input:dim" ("x:2").
        default_size: Size of all other dynamic dims; dims that share the batch's symbol are 1.

    Raises:
        DataError: If an input is neither numeric nor bool, or the samples would take over 1 GiB.
        UsageError: If n is below 1.
    """
    if n < 1:
        raise UsageError(f"synthetic samples: too few, got {n}; expected at least 1. Ask for more.")
    generator, sizes = np.random.default_rng(seed), dict(sizes or {})
    lead = next((spec for spec in inputs if spec.shape), None)
    if lead and lead.symbols and lead.symbols[0]:
        sizes[lead.symbols[0]] = 1
    batch = lead.shape[0] if lead else None
    unbatched = frozenset(s.name for s in inputs if not s.shape or s.shape[0] not in (None, batch or 1))
    arrays: Feed = {}
    left = SYNTHETIC_BYTES
    for spec in inputs:
        symbols = spec.symbols or (None,) * len(spec.shape)
        shape = [
            size or sizes.get(f"{spec.name}:{dim}", sizes.get(symbol or "", default_size))
            for dim, (size, symbol) in enumerate(zip(spec.shape, symbols, strict=True))
        ]
        full = (n, *shape) if spec.name in unbatched else (n, *shape[1:])
        rows = n if spec.name in unbatched else max(n, batch or 1)  # a fixed batch is filled up
        left -= rows * math.prod(full[1:]) * max(spec.dtype.itemsize, 4)  # made in float32
        if left < 0:
            todo = "Give real data with --data."
            raise bad_data(
                f"input {spec.name!r}",
                "random samples of over 1 GiB",
                shape_text((rows, *full[1:])),
                "smaller ones",
                todo,
            )
        if np.issubdtype(spec.dtype, np.floating):
            arrays[spec.name] = generator.standard_normal(full, np.float32).astype(spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
            arrays[spec.name] = generator.integers(0, 2, full).astype(spec.dtype)
        else:
            todo = "Give real data with --data."
            raise bad_data(f"input {spec.name!r}", "no synthetic samples", spec.dtype, "numbers or bool", todo)
    fixed = _fixed_batch("synthetic samples", [s for s in inputs if s.name not in unbatched], bool(unbatched))
    read = lambda index: {name: array[index] for name, array in arrays.items()}  # noqa: E731
    return Samples("synthetic samples", read, np.arange(n), None, fixed_batch=fixed, unbatched=unbatched)


def _check_inside(where: str, what: str, part: Slice, n: int) -> None:
    if part[1] > n:
        todo = f"End it at {n} or before."
        raise bad_data(where, f"{what} outside of the data", f"{part[0]}:{part[1]}", f"a slice of 0:{n}", todo)


def _fixed_batch(where: str, batched: Sequence[InputSpec], has_unbatched: bool) -> int | None:
    """Return the only batch size the batched inputs allow, or None."""
    fixed = {spec.shape[0] for spec in batched if spec.shape[0] is not None} | ({1} if has_unbatched else set())
    if len(fixed) > 1:
        got = ", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in batched)
        todo = "Give such inputs arrays of one dim more than the input."
        raise bad_data(where, "inputs of different fixed batch", got, "one batch size", todo)
    return fixed.pop() if fixed else None


def _open_source(
    card: DataCard,
    where: str,
    images: Path,
    labels: Path | None,
    *,
    inputs: Sequence[InputSpec],
    metric: str | None,
) -> _Source:
    _check_input(card, where, inputs)
    if not images.exists():
        raise bad_data(where, "images missing", str(images), "an .npz file or a folder", "Correct `images`.")
    as_classes = "texts" if metric in TEXTS else metric is None or (":" not in metric and metric not in LABELLED)
    if images.is_dir():
        files, own = list_files(where, images, labels, as_classes)
        order = np.arange(len(files)) if own is None or labels else spread(own)
        return _image_source(card, where, files, inputs, own, order=order)
    arrays = load_npz(where, images)
    named = _named(card, arrays, inputs)
    own = file_labels(where, labels) if labels else None if "y" in (named or {}) else arrays.get("y")
    pixels = None if named else arrays.get("x")
    if named is None and pixels is None:
        expected = "an array x (and y), or arrays " + ", ".join(spec.name for spec in inputs)
        raise bad_data(where, f"no samples in {images.name}", ", ".join(arrays), expected, "Rename the arrays.")
    n = len(pixels) if pixels is not None else _common_length(where, named or {})
    if own is not None:
        own = check_labels(where, own, n, as_classes)
    if pixels is not None:
        return _image_source(card, where, pixels, inputs, own)
    return _array_source(card, where, named or {}, own, inputs)


def _named(card: DataCard, arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec]) -> Feed | None:
    """Return the arrays to be fed as they are, or None where `x` holds images."""
    only = inputs[0] if len(inputs) == 1 else None
    x = arrays.get("x")
    if only and x is not None and (only.name == "x" or only.name not in arrays):
        is_image = len(only.shape) == 4 and (
            x.ndim != 4 or x.shape[3] in (1, 3, 4) or not fits(x.shape[1:], only.shape[1:])
        )
        is_plain = not is_image and x.ndim == len(only.shape) and card.color != "L"
        return {only.name: x} if is_plain else None
    return {s.name: arrays[s.name] for s in inputs} if all(s.name in arrays for s in inputs) else None


def _common_length(where: str, named: Feed) -> int:
    lengths = {name: len(a) if a.ndim else 0 for name, a in named.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        got = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise bad_data(where, "arrays of different length", got, "one sample per row in each", "Repeat or cut them.")
    return next(iter(lengths.values()))


def _array_source(
    card: DataCard, where: str, named: Feed, labels: np.ndarray | None, inputs: Sequence[InputSpec]
) -> _Source:
    plain = DataCard(where, card.images)
    for key in ("resize", "crop", "scale", "mean", "std"):
        if getattr(card, key) != getattr(plain, key):
            todo = "Remove it, and store the arrays as the model wants them."
            raise bad_data(where, f"{key} is for images", "arrays that are fed as they are", f"no {key}", todo)
    unbatched = set()
    for spec in inputs:
        array = named[spec.name]
        tail = spec.shape[1:] if array.ndim == len(spec.shape) else spec.shape
        if array.ndim == len(spec.shape) + 1:
            unbatched.add(spec.name)
        if array.ndim != len(tail) + 1 or any(b not in (None, a) for a, b in zip(array.shape[1:], tail, strict=True)):
            expected, todo = f"{shape_text(spec.shape)}, first axis = sample", "Store it as the model wants it."
            raise bad_data(where, f"array {spec.name!r} of the wrong shape", shape_text(array.shape), expected, todo)
        if not np.can_cast(array.dtype, spec.dtype, "same_kind") and np.issubdtype(array.dtype, np.inexact):
            todo = "Store it in that type."
            raise bad_data(where, f"array {spec.name!r} of the wrong type", array.dtype, spec.dtype, todo)
    batched = [spec for spec in inputs if spec.name not in unbatched]
    types = {spec.name: spec.dtype for spec in inputs}
    read = lambda index: {name: named[name][index].astype(types[name]) for name in types}  # noqa: E731
    n = _common_length(where, named)
    return _Source(n, read, labels, np.arange(n), _fixed_batch(where, batched, bool(unbatched)), frozenset(unbatched))


def _image_source(
    card: DataCard,
    where: str,
    images: np.ndarray | list[Path],
    inputs: Sequence[InputSpec],
    labels: np.ndarray | None,
    *,
    order: IntArray | None = None,
) -> _Source:
    spec = _image_input(where, inputs)
    if not len(images):
        raise bad_data(where, "no images", 0, "at least one", "Check `images`.")
    if isinstance(images, np.ndarray):
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
            todo = f"Transpose them, or name the array {spec.name!r} to feed it as it is."
            expected = "[N, H, W, 1, 3 or 4] or [N, H, W]"
            raise bad_data(where, "not images", f"x {shape_text(images.shape)}", expected, todo)
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise bad_data(where, "not images", f"x of {images.dtype}", "uint8 or float", "Change its type.")
        if images.ndim == 3:
            images = images[..., None]

    def read(index: IntArray) -> Feed:
        if isinstance(images, np.ndarray):
            pixels = images[index]
            if card.resize:
                pixels = np.stack([resize(image, card.resize, card.pad) for image in pixels])
            pixels = convert(crop(where, pixels, card.crop), card.color)
        else:
            pixels = decode_all(where, card, [images[i] for i in index])
        return {spec.name: normalise(card, where, pixels, spec)}

    read(np.arange(1))
    order = np.arange(len(images)) if order is None else order
    return _Source(len(images), read, labels, order, spec.shape[0], frozenset())


def _check_input(card: DataCard, where: str, inputs: Sequence[InputSpec]) -> None:
    names = [spec.name for spec in inputs]
    if card.input is not None and card.input not in names:
        expected = "one of " + ", ".join(names)
        raise bad_data(where, "no such graph input", repr(card.input), expected, "Correct `input`.")


def _image_input(where: str, inputs: Sequence[InputSpec]) -> InputSpec:
    names = ", ".join(spec.name for spec in inputs)
    if len(inputs) != 1:
        todo = "Give an .npz whose arrays carry these names."
        raise bad_data(where, "images for a model of several inputs", f"inputs {names}", "one input", todo)
    if len(inputs[0].shape) < 2:
        todo = f"Give an .npz with an array {names!r}."
        raise bad_data(where, "images for a model that takes none", shape_text(inputs[0].shape), "[N, ...]", todo)
    return inputs[0]
