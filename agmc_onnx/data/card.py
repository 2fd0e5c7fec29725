"""Data cards: which images, labels, preprocessing and roles a measurement uses, read from TOML and checked."""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from agmc_onnx.errors import DataError
from agmc_onnx.schema import checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
LAYOUTS = ("NCHW", "NHWC")
COLORS = ("RGB", "BGR", "L")
AUGMENTATIONS = ("flip", "crop")
BUILT_IN = {"digits": Path(__file__).parent / "digits" / "digits.toml"}
TEXTS = ("characters", "words", "lines")  # whose labels are texts
LABELLED = ("miou", *TEXTS)  # of the following, with labels where there are any
# with the original's answers
COMPARING = ("agreement", "positions", "miou", "boxes", *TEXTS, "cosine", "neighbours", "psnr", "sisdr")
NEEDS_LABELS = {"top1": True, "top5": True} | dict.fromkeys(COMPARING, False)  # a "module:function" gets labels, if any
MAX_CALIBRATION = 1000  # samples, of the default roles
FEW = 50  # samples, of which no role gets many
WANTED = 500  # samples that a refit and distillation want before the other roles get more

Slice = tuple[int, int]
Size = tuple[int, int]


@dataclass(frozen=True)
class InputSpec:
    """One input that a model must be fed.

    Attributes:
        name: Graph input.
        dtype: NumPy type of its elements.
        shape: One size per dim; None where it is dynamic.
        symbols: Names of the dims ("batch"), None where there is none; dims of one name have one size. May be empty.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    symbols: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class TrainCard:
    """Images for fine-tuning; they are preprocessed like the card's own.

    Attributes:
        images: .npz or folder; the card's own images where the card names none.
        labels: .csv or .npy, or None.
        slice: (start, stop) of the samples to use; None means all.
        augment: Subset of `AUGMENTATIONS`, applied by whoever trains.
    """

    images: Path
    labels: Path | None = None
    slice: Slice | None = None
    augment: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataCard:
    """A checked data card (CONTRACT.md); paths are absolute.

    Attributes:
        where: How error messages name the card.
        images: .npz, or folder with one folder per class, or folder of files.
        labels: .csv with the columns file,label (for an .npz: label) or .npy; None where the images carry their own.
        input: Name of the graph input; None where the model has only one.
        layout: What the model wants, one of `LAYOUTS`.
        color: Channels in the order the model wants, one of `COLORS`; L is one channel (ITU-R 601 luma).
        resize: An int is the new length of the shorter side, the other side following (rounded down); (height, width)
            is exact. Bilinear, with the support widened when shrinking. Done before the crop.
        pad: With a `resize` of both sides: images keep their proportions, in the upper left corner of pixels of this value.
        crop: (height, width) of the centre crop.
        scale: Pixels are divided by it first; None means 255 for 8-bit images fed to a float input and 1 otherwise.
        mean: One per channel, or one for all, in the order of `color`: (x / scale - mean) / std.
        std: Likewise, each > 0.
        metric: A key of `NEEDS_LABELS`, or "module:function"; None means top1 with labels and agreement without.
        roles: Role name -> (start, stop); empty means `default_roles`.
        train: For fine-tuning only.
        outputs: What outputs of the model say, a key of `measuring.outputs.KINDS` by their name, where the graph does not tell.
    """

    where: str
    images: Path
    labels: Path | None = None
    input: str | None = None
    layout: str = "NCHW"
    color: str = "RGB"
    resize: int | Size | None = None
    crop: Size | None = None
    pad: float | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    metric: str | None = None
    roles: Mapping[str, Slice] = field(default_factory=dict)
    train: TrainCard | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)


Pixels = Annotated[int, Meta(ge=1)]
PixelsFile = Pixels | Annotated[list[Pixels], Meta(min_length=1, max_length=2)]
NumbersFile = float | Annotated[list[float], Meta(min_length=1)]


@dataclass(frozen=True)
class RolesFile:
    """Slices "start:stop" of the samples, which may not overlap."""

    calibration: Annotated[str | None, Meta(description="inputs only; labels of it are never read")] = None
    reward: Annotated[str | None, Meta(description="steers the search")] = None
    test: Annotated[str | None, Meta(description="reported once, at the end")] = None


@dataclass(frozen=True)
class TrainFile:
    """For finetune and --recover distill; same preprocessing."""

    images: Annotated[str | None, Meta(description="the card's own where it is not given")] = None
    labels: str | None = None
    slice: Annotated[str | None, Meta(description="start:stop of the samples to learn from")] = None
    augment: Annotated[list[str], Meta(description="of flip and crop")] = field(default_factory=list)


@dataclass(frozen=True)
class CardFile:
    """A data card as it is written."""

    images: Annotated[str, Meta(description="an .npz, a folder with a folder per class, or a folder of files")]
    labels: Annotated[str | None, Meta(description=".csv with the columns file,label, or .npy")] = None
    input: Annotated[str | None, Meta(description="name of the graph input, where the model has several")] = None
    layout: Annotated[str, Meta(description="what the model wants: NCHW or NHWC")] = "NCHW"
    color: Annotated[str, Meta(description="RGB, BGR, or L for one channel")] = "RGB"
    resize: Annotated[PixelsFile | None, Meta(description="the shorter side, or [height, width]; done first")] = None
    crop: Annotated[PixelsFile | None, Meta(description="centre crop, or [height, width]")] = None
    pad: Annotated[
        float | None,
        Meta(description="letterbox: proportions stay, and what is left of [height, width] is of this value"),
    ] = None
    scale: Annotated[
        float | None, Meta(description="pixels are divided by it; 255 for 8-bit images and float inputs")
    ] = None
    mean: Annotated[NumbersFile, Meta(description="then (x / scale - mean) / std")] = 0.0
    std: NumbersFile = 1.0
    metric: Annotated[str | None, Meta(description="see below")] = None
    roles: RolesFile = field(default_factory=RolesFile)
    train: TrainFile | None = None
    outputs: Annotated[dict[str, str], Meta(description="what an output says, by its name; see below")] = field(
        default_factory=dict
    )


CARD_KEYS, TRAIN_KEYS, ROLES = (tuple(f.name for f in fields(schema)) for schema in (CardFile, TrainFile, RolesFile))


def bad_data(where: str, wrong: str, got: object, expected: object, todo: str) -> DataError:
    """Return the one-line error of a card, image or label that cannot be used."""
    return DataError(f"{where}: {wrong}, got {got}; expected {expected}. {todo}")


def shape_text(shape: Sequence[int | str | None]) -> str:
    """Return a shape as messages write it; ? is a dynamic dim."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def default_roles(n: int, where: str = "data") -> dict[str, Slice]:
    """Return the roles of `n` samples whose card names none.

    Calibration is the first tenth (at most `MAX_CALIBRATION`), or the `WANTED` first samples where that is more, but no more than
    two thirds, and of fewer than `FEW` the first tenth; half of the rest is reward, what remains is test.

    Args:
        n: Number of samples, at least 3.
        where: How an error names the data.

    Raises:
        DataError: If there are too few samples for three roles.
    """
    if n < len(ROLES):
        raise bad_data(where, "too few samples for three roles", n, "at least 3", "Add images.")
    wanted = min(WANTED, 2 * n // 3) if n >= FEW else 1
    first = min(max(n // 10, wanted), MAX_CALIBRATION)
    second = first + (n - first) // 2
    return {"calibration": (0, first), "reward": (first, second), "test": (second, n)}


def load_card(source: str | Path, **overrides: Any) -> DataCard:
    """Read and check a data card, or make one for data given directly.

    Args:
        source: A .toml card; a .npz file; a folder of images (a `labels.csv` in it is used); or a word of `BUILT_IN`.
        overrides: Keys of the card that replace what it says, in the card's own notation (`crop=224`,
            `roles={"test": "0:100"}`); None means not given. Paths here are relative to the working directory.

    Returns:
        The card; that images exist and roles fit them is checked by `open_data`.

    Raises:
        DataError: If there is no such card, it is not TOML, or a key or value is wrong.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(source, str) and source in BUILT_IN:
        source = BUILT_IN[source]
    path = Path(source)
    where = path.name
    if not path.exists():
        words = ", ".join(repr(word) for word in BUILT_IN)
        expected = f"a .toml card, an .npz file, a folder or {words}"
        raise bad_data(str(source), "no such data", "a path where nothing is", expected, "Check the path.")
    table: dict[str, Any] = {}
    if path.is_dir():
        table["images"] = str(path.resolve())
        if (path / "labels.csv").is_file():
            table["labels"] = str((path / "labels.csv").resolve())
    elif path.suffix == ".npz":
        table["images"] = str(path.resolve())
    elif path.suffix == ".toml":
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise bad_data(where, "malformed card", str(error), "TOML", "Correct that line.") from None
    else:
        raise bad_data(
            where, "unknown kind of data", repr(path.suffix), "a .toml card, an .npz or a folder", "Write a card."
        )
    _check_keys(where, given, CARD_KEYS)
    table = _absolute(where, table, path.resolve().parent) | _absolute(where, given, Path.cwd())
    return _card(where, table)


def data_files(source: str | Path) -> list[Path]:
    """Return the files that data is read from: the card and all it names, images of folders one by one.

    A card that cannot be read gives itself alone.
    """
    path = Path(BUILT_IN.get(str(source), source))
    try:
        card = load_card(path)
    except (DataError, OSError):
        return [path]
    named = [path, card.images, card.labels, *((card.train.images, card.train.labels) if card.train else ())]
    found = [one for one in named if one is not None]
    module = (card.metric or "").partition(":")[0] if ":" in (card.metric or "") else ""
    found += [Path(f"{module.replace('.', '/')}.py")] if module else []
    return [*found, *(file for one in found if one.is_dir() for file in one.rglob("*") if _is_image(file))]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _absolute(where: str, table: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Return the table with its paths, also those of [train], taken from `base`."""
    out = dict(table)
    for key in ("images", "labels"):
        if isinstance(out.get(key), str | Path) and str(out[key]):
            out[key] = base / out[key]
    if isinstance(out.get("train"), Mapping):
        out["train"] = _absolute(where, out["train"], base)
    return out


def _check_keys(where: str, keys: Iterable[str], known: tuple[str, ...], kind: str = "key") -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            todo = f"Did you mean {near[0]!r}?" if near else "Remove it."
            raise bad_data(where, f"unknown {kind}", repr(key), "one of " + ", ".join(known), todo)


def _card(where: str, table: Mapping[str, Any]) -> DataCard:
    """Return the checked card of a table whose paths are absolute."""
    _check_keys(where, table, CARD_KEYS)
    if "images" not in table:
        raise bad_data(where, "no images named", "no key 'images'", "a path", 'Add images = "...".')
    checked(
        _as_written(table),
        CardFile,
        where,
        "a data card",
        "Correct it; docs/data-cards.md says what each key holds.",
        DataError,
    )
    _check_keys(where, table.get("roles", {}), ROLES, "role")
    roles = {name: _slice(f"{where} [roles] {name}", text) for name, text in table.get("roles", {}).items()}
    ordered = sorted(roles.items(), key=lambda role: role[1])
    for (a, first), (b, second) in itertools.pairwise(ordered):
        if second[0] < first[1]:
            got = f"{a} = {first[0]}:{first[1]} and {b} = {second[0]}:{second[1]}"
            raise bad_data(where, "roles overlap", got, "slices that share no sample", "Move one of them.")
    scale = _numbers(where, "scale", table["scale"])[0] if "scale" in table else None
    if scale == 0:
        raise bad_data(where, "bad scale", 0, "a number other than 0", "Use 255.0 for 8-bit images.")
    mean = _numbers(where, "mean", table.get("mean", 0.0))
    std = _numbers(where, "std", table.get("std", 1.0))
    if min(std) <= 0:
        raise bad_data(where, "bad std", list(std), "numbers above 0", "Use 1.0 for no change.")
    crop = _size(table.get("crop"))
    return DataCard(
        where=where,
        images=table["images"],
        labels=table.get("labels"),
        input=table.get("input"),
        layout=_choice(where, "layout", table.get("layout", "NCHW"), LAYOUTS),
        color=_choice(where, "color", table.get("color", "RGB"), COLORS),
        resize=_size(table.get("resize")),
        crop=(crop, crop) if isinstance(crop, int) else crop,
        pad=_numbers(where, "pad", table["pad"])[0] if "pad" in table else None,
        scale=scale,
        mean=mean,
        std=std,
        metric=_metric(where, table.get("metric")),
        roles=roles,
        train=_train(where, table, roles),
        outputs=dict(table.get("outputs", {})),
    )


def _as_written(given: Any) -> Any:
    """Return a table as a file has it: paths as text, slices given as pairs too."""
    if isinstance(given, Mapping):
        return {key: _as_written(value) for key, value in given.items()}
    is_slice = isinstance(given, tuple) and len(given) == 2 and all(isinstance(value, int) for value in given)
    return f"{given[0]}:{given[1]}" if is_slice else str(given) if isinstance(given, Path) else given


def _train(where: str, table: Mapping[str, Any], roles: Mapping[str, Slice]) -> TrainCard | None:
    train = table.get("train")
    if train is None:
        return None
    _check_keys(f"{where} [train]", train, TRAIN_KEYS)
    images = train.get("images", table["images"])
    shared = images == table["images"]
    part = _slice(f"{where} [train] slice", train["slice"]) if "slice" in train else None
    for name in ("reward", "test"):
        start, stop = roles.get(name, (0, 0))
        if shared and start < stop and (part is None or (part[0] < stop and start < part[1])):
            got = f"train = {part[0]}:{part[1]}" if part else "train on all images"
            got = f"{got} and {name} = {start}:{stop} of the same images"
            raise bad_data(where, "roles overlap", got, "slices that share no sample", "Set slice in [train].")
    if shared and not roles:
        raise bad_data(where, "roles overlap", "[train] of the same images and no [roles]", "both", "Write [roles].")
    augment = train.get("augment", [])
    for name in augment:
        _choice(f"{where} [train]", "augment", name, AUGMENTATIONS)
    labels = train.get("labels", table.get("labels") if shared else None)
    return TrainCard(images=images, labels=labels, slice=part, augment=tuple(augment))


def _slice(where: str, text: Any) -> Slice:
    text = _as_written(text)
    match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d+)\s*", text)
    if not match:
        raise bad_data(where, "not a slice", repr(text), '"start:stop" of whole numbers', "Write for example 0:1000.")
    start, stop = int(match[1] or 0), int(match[2])
    if stop <= start:
        raise bad_data(where, "empty role", f"{start}:{stop}", "at least one sample", "Make stop larger than start.")
    return start, stop


def _choice(where: str, key: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise bad_data(where, f"bad {key}", repr(value), "one of " + ", ".join(choices), "Choose one.")
    return str(value)


def _metric(where: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and (value in NEEDS_LABELS or re.fullmatch(r"[\w.]+:\w+", value))):
        return value
    expected = ", ".join(NEEDS_LABELS) + ' or "module:function"'
    raise bad_data(where, "unknown metric", repr(value), expected, "Choose one.")


def _numbers(where: str, key: str, value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not all(abs(v) < float("inf") for v in values):
        raise bad_data(where, f"bad {key}", repr(value), "numbers", "Write for example 255.0.")
    return tuple(float(v) for v in values)


def _size(value: Any) -> int | Size | None:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0] if len(values) == 1 else (values[0], values[1])
