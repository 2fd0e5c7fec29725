"""What a search has measured, on disk: a killed run goes on where it stopped, with the outcome of an uninterrupted one.

A run with an output X.onnx has a folder X.run beside it, with `journal.jsonl`: a first line that says whose journal it is
(model, data, settings, versions), then one line an evaluation, on the disk before the next one begins. Every line ends with a
checksum, of itself and the first line, so that one that was changed, or is of another run, is noticed. A resumed run
repeats the search from its seed and takes from the journal what was measured before. The folder goes when the result has
been written (the report has the whole history); it stays when the run was interrupted or failed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import write_atomically
from agmc_onnx.schema import checked
from agmc_onnx.search.problem import Outcome

FORMAT = "agmc-onnx/journal@3"
NAME, OLD_NAME = "journal.jsonl", "journal.old.jsonl"
_ADVICE = "Remove that line, or start anew without --resume after moving the file away."
MAX_DIFFERENCES = 3  # named in the error about a journal of another run

Key = tuple[int, ...]
EvaluateAll = Callable[..., Iterable[tuple[int, Outcome]]]  # of candidates and, in a race, the errors of the best
Errors = tuple[float, ...]
OPTIONAL = ("errors", "n_images")  # fields of outcomes that only races write


def run_folder(output: str | Path) -> Path:
    """Return where the journal of a run with this output lies: X.run beside X.onnx."""
    path = Path(output)
    stem = path.with_suffix("") if path.suffix == ".onnx" else path
    return stem.with_name(stem.name + ".run")


@dataclass(frozen=True)
class Evaluation:
    """A line of a journal: kept units by group, the reward, and what was measured."""

    kept: list[int]
    reward: float
    metric: float
    inference_s: float
    wall_s: float
    fidelity: float | None = None
    errors: tuple[float, ...] | None = None
    n_images: int | None = None


def read_lines(path: Path, raw: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and content of the whole lines of a journal, checked against their sums.

    Raises:
        UsageError: If a line is no JSON object, or its sum is not its own.
    """
    first = ""
    for place, line in enumerate(raw.splitlines(), 1):
        try:
            row = json.loads(line)
            wanted = _sum({name: value for name, value in row.items() if name != "sum"}, first)
        except (ValueError, AttributeError, RecursionError):
            raise _damaged(path, place) from None
        if place == 1 and row.get("format") != FORMAT:
            raise UsageError(
                f"{path}: not a journal of this version, got format {row.get('format')!r}; expected {FORMAT!r}."
                " Leave out --resume, or move the file away."
            )
        if row.get("sum") != wanted:
            raise _damaged(path, place)
        first = first or wanted
        yield place, row


def _sum(row: Mapping[str, Any], first: str) -> str:
    return hashlib.sha256((first + json.dumps(row)).encode()).hexdigest()[:16]


def _damaged(path: Path, place: int) -> UsageError:
    return UsageError(f"{path}: line {place} is damaged or was changed; expected what agmc-onnx wrote. {_ADVICE}")


def _open(folder: Path, path: Path) -> IO[bytes]:
    """Open a journal; links are not followed, since they would lead to a file of somebody else's."""
    if folder.is_symlink() or path.is_symlink() or (path.exists() and path.stat().st_nlink > 1):
        raise UsageError(f"{path}: is a link; expected a folder and a file of their own. Remove the link.")
    return open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644), "ab")


class Journal:
    """The append-only record of the evaluations of one run.

    Attributes:
        path: `journal.jsonl` in the run's folder.
        old_path: Where the journal of an interrupted run goes that is not resumed.
        known: Outcomes by kept counts, those of an interrupted run included.
        notes: What a run of several searches wrote down between them, by name, as JSON has it.
        n_resumed: Evaluations taken from an interrupted run.
        n_set_aside: Evaluations of an interrupted run that was not resumed; its journal lies at `old_path` now.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
        """Open the journal of a run, or start one.

        Args:
            folder: Of the run; made where there is none.
            identity: What makes another run: model, data, settings, versions; as JSON can say it, two levels.
            resume: Go on with the journal that is there, if there is one.

        Raises:
            UsageError: If the journal is another run's, is damaged, is in use, or cannot be read or written.
        """
        self.path, self.old_path = folder / NAME, folder / OLD_NAME
        self.known: dict[Key, Outcome] = {}
        self.notes: dict[str, Any] = {}
        self.n_resumed = self.n_set_aside = 0
        self._sum = ""  # of the first line
        is_new = not folder.exists()
        self._file: IO[bytes] | None = None
        header = {"format": FORMAT, **json.loads(json.dumps(identity))}
        try:
            folder.mkdir(exist_ok=True)
            self._file = _open(folder, self.path)
            _lock(self._file, self.path)
            found, n_bytes = self._read()
            if found and resume:
                _check_identity(self.path, found[0], header)
                self._sum = found[0]["sum"]
                rows = [(place, row) for place, row in enumerate(found[1:], 2) if "note" not in row]
                self.known = dict(self._outcome(row, place) for place, row in rows)
                self.notes = {row["note"]: row.get("value") for row in found[1:] if "note" in row}
                self.n_resumed = len(self.known)
                self._file.truncate(n_bytes)
            else:
                self.n_set_aside = sum("note" not in row for row in found[1:])
                if len(found) > 1:
                    write_atomically(self.old_path, self.path.read_bytes())
                self._drop_models()
                self._file.truncate(0)
                self._append(header)
                _sync_folder(folder)
        except OSError as error:
            self._close()
            if is_new:
                self.end(finished=True)
            raise UsageError(
                f"{self.path}: the journal cannot be written ({error.strerror}). Choose another output with -o."
            ) from None
        except BaseException:
            self._close()
            raise

    def add(self, kept: IntArray, outcome: Outcome, reward: float) -> None:
        """Write one evaluation, on the disk when this returns.

        Raises:
            UsageError: If it cannot be written; what was written before is kept.
        """
        key = tuple(int(n) for n in kept)
        try:
            facts = {name: v for name, v in asdict(outcome).items() if v is not None or name not in OPTIONAL}
            self._append({"kept": key, "reward": reward, **facts})
        except OSError as error:
            raise UsageError(
                f"{self.path}: an evaluation cannot be written down ({error.strerror}). Make room on the disk."
            ) from None
        self.known[key] = outcome

    def note(self, name: str, value: Any) -> None:
        """Write down what a search came to, on the disk when this returns.

        Raises:
            UsageError: If it cannot be written; what was written before is kept.
        """
        try:
            self._append({"note": name, "value": value})
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror}). Make room on the disk.") from None
        self.notes[name] = value

    def model_path(self, number: int) -> Path:
        """Return where the model of a stage lies until the run is finished; a link there is removed."""
        path = self.path.with_name(f"stage-{number}.onnx")
        if path.is_symlink():
            path.unlink()
        return path

    def hint(self) -> str:
        """Return how an interrupted or failed run goes on; "" where nothing was measured."""
        n = len(self.known)
        what = "1 evaluation is" if n == 1 else f"{n} evaluations are" if n else "What was measured is"
        is_empty = not (self.known or self.notes)
        return "" if is_empty else f"{what} kept in {self.path.parent}; the same command with --resume goes on."

    def end(self, finished: bool) -> None:
        """Close the journal, and remove it where the run is finished or nothing was measured."""
        self._close()
        if not finished and (self.known or self.notes):
            return
        self._drop_models()
        with suppress(OSError):
            self.path.unlink()
        if finished:
            with suppress(OSError):
                self.old_path.unlink()
        with suppress(OSError):  # not empty: something of another's lies there
            self.path.parent.rmdir()

    def _drop_models(self) -> None:
        for path in self.path.parent.glob("stage-*.onnx*"):
            with suppress(OSError):
                path.unlink()

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._sum = self._sum or _sum(row, "")
        self._file.write(json.dumps({**row, "sum": _sum(row, "" if "format" in row else self._sum)}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the whole lines and their length in bytes; a torn last line was never finished and counts as none."""
        raw = self.path.read_bytes()
        n_bytes = raw.rfind(b"\n") + 1
        return [row for _, row in read_lines(self.path, raw[:n_bytes])], n_bytes

    def _outcome(self, row: Mapping[str, Any], place: int) -> tuple[Key, Outcome]:
        found = checked(row, Evaluation, f"{self.path} line {place}", "a line of a journal", _ADVICE, UsageError)
        facts = {f.name: getattr(found, f.name) for f in fields(Outcome)}
        return tuple(found.kept), Outcome(**facts)

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None


class Section:
    """The part of a journal that belongs to one of several searches of a run, whose candidates are different models.

    Attributes:
        known: Outcomes of this search by kept counts.
        notes: What was written down of this search, by name.
    """

    def __init__(self, journal: Journal, number: int) -> None:
        """Take the rows whose counts begin with -number; counts themselves are never negative."""
        self._journal, self._number = journal, number
        self.known = {key[1:]: outcome for key, outcome in journal.known.items() if key[0] == -number}
        self._prefix = f"{number}: "
        self.notes = {
            name.removeprefix(self._prefix): value
            for name, value in journal.notes.items()
            if name.startswith(self._prefix)
        }

    def add(self, kept: IntArray, outcome: Outcome, reward: float) -> None:
        """Write one evaluation, as `Journal.add`."""
        self._journal.add(np.concatenate([[-self._number], kept]), outcome, reward)
        self.known[tuple(kept.tolist())] = outcome

    def note(self, name: str, value: Any) -> None:
        """Write something down, as `Journal.note`."""
        self._journal.note(self._prefix + name, value)
        self.notes[name] = value


class Recorder:
    """Evaluates candidates, but each only once in the life of a run: what a journal knows is not measured again."""

    def __init__(
        self,
        evaluate_all: EvaluateAll,
        reward_of: Callable[[IntArray, Outcome], float],
        journal: Journal | Section | None,
    ) -> None:
        """Evaluate with `evaluate_all`, and write to `journal` where there is one; `reward_of` is for its readers."""
        self.known: dict[Key, Outcome] = {} if journal is None else dict(journal.known)
        self._evaluate_all, self._reward_of, self._journal = evaluate_all, reward_of, journal

    def __call__(self, kept: IntArray) -> Outcome:
        """Return the outcome of one candidate, int (n_groups,)."""
        return next(iter(self.all([kept])))[1]

    def all(self, candidates: Sequence[IntArray], best: Errors | None = None) -> Iterator[tuple[int, Outcome]]:
        """Yield (place, outcome) of candidates that differ from each other, as they become known; see `loop.search`."""
        keys = [tuple(kept.tolist()) for kept in candidates]
        missing = [place for place, key in enumerate(keys) if key not in self.known]
        yield from ((place, self.known[key]) for place, key in enumerate(keys) if key in self.known)
        if not missing:
            return
        race = () if best is None else (best,)
        for which, outcome in self._evaluate_all([candidates[place] for place in missing], *race):
            place = missing[which]
            if self._journal is not None:
                self._journal.add(candidates[place], outcome, self._reward_of(candidates[place], outcome))
            self.known[keys[place]] = outcome
            yield place, outcome


def _check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise if a journal's first line is another's."""
    ours, theirs = _flat(wanted), _flat({name: value for name, value in found.items() if name != "sum"})
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if not names:
        return
    said = [f"{name} {_short(ours.get(name))} (journal: {_short(theirs.get(name))})" for name in names]
    more = f" and {len(said) - MAX_DIFFERENCES} more" if len(said) > MAX_DIFFERENCES else ""
    raise UsageError(
        f"{path}: belongs to another run, got {', '.join(said[:MAX_DIFFERENCES])}{more}; expected the model, data and options of"
        " the journal. Give the same as before, or leave out --resume to start anew."
    )


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a header under one name each."""
    rows = ((name, value if isinstance(value, dict) else {"": value}) for name, value in header.items())
    return {f"{name} {inner}".strip(): value for name, facts in rows for inner, value in facts.items()}


def _short(value: Any) -> str:
    """Return a value as an error says it; of a digest the beginning is enough."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _lock(file: IO[bytes], path: Path) -> None:
    """Raise if another process writes this journal; where the system has no such locks, nobody is kept out."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"{path}: another run is writing it; expected one run per output. Wait for it, or choose another output with -o."
        ) from None
    except OSError:  # a file system without locks
        return


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
