"""Image files and labels: found in folders, .csv and .npy files, matched, checked, and spread over classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.archives import load_npy
from agmc_onnx.data.card import IMAGE_SUFFIXES, bad_data, shape_text


def list_files(
    where: str, folder: Path, labels: Path | None, as_classes: bool | str
) -> tuple[list[Path], np.ndarray | None]:
    """Return the images of a folder and their labels, or None, as `data.open_data` says.

    Raises:
        DataError: If there are no images, both kinds of folder are mixed, or a .csv does not name exactly the images.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not found:
        todo = "Check `images`."
        raise bad_data(where, f"no images in {folder.name}", "0 files", "files " + " ".join(IMAGE_SUFFIXES), todo)
    if labels:
        rows = _read_csv(where, labels, ("file", "label"))
        by_file = {folder / row["file"]: row["label"] for row in rows}
        missing = next((row["file"] for row in rows if not (folder / row["file"]).is_file()), None)
        if missing is not None:
            expected = f"a file in {folder.name}"
            raise bad_data(f"{where} {labels.name}", "no such image", repr(missing), expected, "Correct the row.")
        if len(found) != len(rows) or len(by_file) != len(rows):
            todo = "Write one row for each image."
            raise bad_data(where, "labels do not match the images", f"{len(rows)} labels", f"{len(found)} images", todo)
        files = sorted(by_file)
        return files, check_labels(where, np.array([by_file[path] for path in files]), len(files), as_classes)
    nested = [path.parent != folder for path in found]
    if not any(nested):
        return found, None
    if not all(nested):
        got = f"{sum(nested)} images in folders and {len(nested) - sum(nested)} beside them"
        expected, todo = "one folder per class, or files only", "Move the files."
        raise bad_data(where, f"{folder.name} is of two kinds", got, expected, todo)
    classes = [path.relative_to(folder).parts[0] for path in found]
    names = sorted(set(classes))
    numbers = {name: int(name) if all(n.isdecimal() for n in names) else i for i, name in enumerate(names)}
    return found, np.array([numbers[name] for name in classes], np.int64)


def _read_csv(where: str, path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file() or path.suffix != ".csv":
        raise bad_data(where, "labels missing", str(path), "a .csv file", "Correct `labels`.")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, restval="")
        names = [name or "" for name in reader.fieldnames or []]
        rows = list(reader)
    missing = [name for name in columns if name not in names]
    if missing:
        got, todo = ", ".join(names) or "nothing", "Name the columns in the first line."
        raise bad_data(f"{where} {path.name}", f"no column {missing[0]!r}", got, "columns " + ",".join(columns), todo)
    return rows


def file_labels(where: str, path: Path) -> np.ndarray:
    """Return the labels of an .npz's rows that are kept in a file of their own."""
    if path.suffix != ".npy":
        return np.array([row["label"] for row in _read_csv(where, path, ("label",))])
    return load_npy(where, path)


def check_labels(where: str, labels: np.ndarray, n: int, as_classes: bool | str) -> np.ndarray:
    """Return class numbers as int64 of shape (n,), or what else a metric wants.

    Args:
        where: How errors name the data.
        labels: As they were read.
        n: Samples.
        as_classes: Whether they are class numbers; False: numbers of any shape (n, ...) and type; "texts": as they are.

    Raises:
        DataError: If there are not `n` of them, or they are not whole numbers from 0 where classes are asked for.
    """
    labels = np.atleast_1d(labels)
    if len(labels) != n:
        got, todo = f"{len(labels)} labels", "Give one label for each image."
        raise bad_data(where, "labels do not match the images", got, f"{n} images", todo)
    if as_classes == "texts":
        return labels
    if labels.dtype.kind in "US":
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            got = next(repr(str(v)) for v in labels if not str(v).strip().isdigit())
            todo = "Number the classes from 0."
            raise bad_data(where, "labels are not whole numbers", got, "a class number", todo) from None
    if not as_classes:
        return labels
    if labels.shape not in ((n,), (n, 1)):
        todo = 'Store class numbers, or use metric = "module:function".'
        raise bad_data(where, "labels of the wrong shape", shape_text(labels.shape), f"[{n}]", todo)
    if labels.dtype.kind not in "biuf":
        todo = "Number the classes from 0."
        raise bad_data(where, "labels are not whole numbers", labels.dtype, "class numbers", todo)
    with np.errstate(invalid="ignore"):
        whole = labels.reshape(n).astype(np.int64)
    is_wrong = (whole != labels.reshape(n)) | (whole < 0)
    if is_wrong.any():
        got = labels.reshape(n)[np.argmax(is_wrong)]
        todo = 'Number the classes from 0, or use metric = "module:function".'
        raise bad_data(where, "labels are not whole numbers", got, "a class number", todo)
    return whole


def is_sorted(labels: np.ndarray) -> bool:
    """Return whether integer labels are in ascending order and of several classes."""
    is_classes = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and len(labels) > 2
    return bool(is_classes and labels[0] != labels[-1] and (np.diff(labels) >= 0).all())


def spread(labels: np.ndarray) -> IntArray:
    """Return the order in which every class is spread evenly from the first to the last sample."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((labels, place)).astype(np.int64)
