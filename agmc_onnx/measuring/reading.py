"""What recognisers read: texts of classes at positions (greedy CTC), and how many characters, words and lines are right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import DataError, UsageError

KEYS = ("character", "characters", "alphabet", "vocab", "vocabulary", "tokens", "dictionary")  # of a model's metadata
Text = Sequence[Hashable]


def alphabet_of(model: onnx.ModelProto, n_classes: int) -> tuple[str, ...]:
    """Return what every class stands for, from the model's metadata; empty where it does not say.

    Metadata holds a character a line (or all in one). Where there are more classes than characters the first class is the
    blank of CTC, and another one more is the space, as in PaddleOCR.
    """
    known = {entry.key.lower(): entry.value for entry in model.metadata_props}
    text = next((known[key] for key in KEYS if key in known), "")
    characters = text.split("\n") if "\n" in text else list(text)
    more = n_classes - len(characters)
    return {0: (*characters,), 1: ("", *characters), 2: ("", *characters, " ")}.get(more, ()) if characters else ()


def has_alphabet(model: onnx.ModelProto) -> bool:
    """Return whether a model's metadata says what its classes stand for."""
    return any(entry.key.lower() in KEYS for entry in model.metadata_props)


def blank_of(classes: np.ndarray) -> int:
    """Return the class that stands for nothing: the one that is most often there."""
    return int(np.bincount(np.maximum(classes.ravel(), 0)).argmax()) if classes.size else 0


def texts_of(classes: np.ndarray, blank: int, alphabet: Sequence[str] = ()) -> list[list[Hashable]]:
    """Return what is read, greedily: repeated classes once, blanks left out (Graves et al. 2006).

    Args:
        classes: (n, positions), the class at every position.
        blank: Class that is left out.
        alphabet: What the classes stand for; empty: themselves.
    """
    found: list[list[Hashable]] = []
    for row in classes.reshape(len(classes), -1):
        steps = row[np.flatnonzero(np.diff(row, prepend=-1))]
        read = [int(c) for c in steps if c != blank and c >= 0]
        found.append(list("".join(alphabet[c] for c in read).strip()) if alphabet else list(read))
    return found


def _errors(ours: Text, theirs: Text) -> int:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UsageError(
            "metric: reading is counted by rapidfuzz, got none; expected it. Run: pip install 'agmc-onnx[reading]'"
        ) from None
    return int(Levenshtein.distance(ours, theirs))


def _words(text: Text) -> list[str]:
    return "".join(str(c) for c in text).split()


def _pairs(ours: Sequence[Text], theirs: Sequence[Text]) -> FloatArray:
    """Return (n, 2): errors, at most as many as there is to read, and how much there is to read."""
    found = [(_errors(a, b), len(b)) for a, b in zip(ours, theirs, strict=True)]
    return np.array(found, float).reshape(-1, 2)


COUNTS: dict[str, Callable[[Sequence[Text], Sequence[Text]], FloatArray]] = {
    "characters": _pairs,
    "words": lambda ours, theirs: _pairs([_words(one) for one in ours], [_words(one) for one in theirs]),
    "lines": lambda ours, theirs: np.array([(a != b, 1) for a, b in zip(ours, theirs, strict=True)], float).reshape(
        -1, 2
    ),
}


def right(sums: FloatArray) -> FloatArray:
    """Return the percentage that is right of (..., 2) errors and lengths: 100 less the error rate."""
    return np.asarray(100 * (1 - sums[..., 0] / np.maximum(sums[..., 1], 1)))


def read_by_classes(metric: str) -> Callable[[np.ndarray, np.ndarray], FloatArray]:
    """Return what counts two models' classes at positions, as if they were characters."""

    def count(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
        blank = blank_of(theirs)
        return COUNTS[metric](texts_of(ours, blank), texts_of(theirs, blank))

    return count


def read_by_labels(metric: str, classes: np.ndarray, labels: np.ndarray, alphabet: Sequence[str]) -> FloatArray:
    """Return what is counted of a model's classes at positions against texts.

    Args:
        metric: A key of `COUNTS`.
        classes: (n, positions).
        labels: (n,) texts.
        alphabet: What the classes stand for.

    Raises:
        DataError: If the model does not say what its classes stand for.
    """
    if not alphabet:
        raise DataError(
            f"metric {metric}: the model does not say what its classes stand for, got no metadata {KEYS[0]!r}; expected a"
            " character a line. Add it (onnx.helper.set_model_props), or leave out the labels."
        )
    wanted = [list(str(text).strip()) for text in labels]
    return COUNTS[metric](texts_of(classes, blank_of(classes), alphabet), wanted)
