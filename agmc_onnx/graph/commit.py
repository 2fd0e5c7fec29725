"""Files put in place together: all of them or none, even where the process is killed between two of them.

New files are written into a hidden folder `.X.agmc` beside X. A small record written there says what is to be moved; from then on
the files count as written. Whoever finds the folder after a kill moves the rest into place, or, where there is no record yet,
throws away what was begun. In a process that goes on, what fails is undone, and the record says that too.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agmc_onnx.errors import UsageError

try:
    import fcntl
except ImportError:  # a system without such locks: nobody is kept out
    fcntl = None  # type: ignore[assignment]

FORMAT = "agmc-onnx/commit@1"
SUFFIXES = (".plan.json", ".report.json", ".report.html", ".float.onnx.data", ".float.onnx", ".onnx.data", ".onnx")
WAIT_S = 10.0  # for another process that is moving files


def stem_of(path: str | Path) -> Path:
    """Return the X of X.onnx, X.plan.json and the other files of a set."""
    path = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix) and path.name != suffix), "")
    return path.with_name(path.name.removesuffix(suffix))


def scratch_of(path: str | Path) -> Path:
    """Return the hidden folder of a set, which is there only while it is written."""
    stem = stem_of(path)
    return stem.with_name(f".{stem.name}.agmc")


@contextmanager
def staging(output: str | Path, remove: Iterable[str] = ()) -> Iterator[Path]:
    """Give an empty folder; what was written into it is moved beside the output when the block ends, all of it or nothing.

    Args:
        output: Names the set.
        remove: Names of files beside it that are to go, unless they are among the new ones.

    Raises:
        UsageError: If it cannot be written, or another process writes it.
    """
    output, folder = Path(output), scratch_of(output)
    try:
        settle(output)
        try:
            folder.mkdir()
        except FileExistsError:
            raise _in_use(output) from None
        with _locked(folder) as is_ours:
            if not is_ours:
                raise _in_use(output)
            try:
                (folder / "new").mkdir()
                (folder / "old").mkdir()
                yield folder / "new"
            except BaseException:
                _clear(folder)
                raise
            _commit(folder, sorted(remove))
    except (OSError, UsageError) as error:
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or isinstance(reason, FileExistsError):
            raise
        raise UsageError(
            f"{output}: cannot be written ({reason.strerror or reason}). Choose another output with -o."
        ) from None


def settle(path: str | Path) -> None:
    """Finish or undo what a killed process left of writing the set that a file belongs to.

    While another process moves files of the set, it waits for that.

    Raises:
        UsageError: If files cannot be moved, or the record is not one of ours.
    """
    folder = scratch_of(path)
    end = time.monotonic() + WAIT_S
    while os.path.isdir(folder) and not os.path.islink(folder):  # Path.is_dir raises where a name is too long
        with _locked(folder) as is_ours:
            if is_ours:
                _finish(folder)
                return
        if not (folder / "commit.json").exists():
            return  # it is still being written; what was there before is whole
        if time.monotonic() > end:
            raise _in_use(Path(path))
        time.sleep(0.02)


def _finish(folder: Path) -> None:
    record = folder / "commit.json"
    try:
        if record.exists():
            found = json.loads(record.read_bytes())
            names, remove = (list(found[key]) for key in ("files", "remove"))
            if found["format"] != FORMAT or not all(_is_name(name) for name in (*names, *remove)):
                raise ValueError(FORMAT)
            (_back if found["back"] else _forward)(folder, names, remove)
        _clear(folder)
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{record}: not what agmc-onnx writes while it puts files in place. Remove the folder {folder}."
        ) from None
    except OSError as error:
        raise UsageError(
            f"{folder}: an interrupted run left files to be put in place, and they cannot be moved ({error.strerror})."
            " Make the folder writable."
        ) from None


def _commit(folder: Path, remove: list[str]) -> None:
    """Move every file of `new` beside the folder, and what is replaced to `old`; undo it all where one move fails."""
    new = folder / "new"
    for path in new.rglob("*"):
        if path.is_file():
            _sync(path)
    names = sorted(path.name for path in new.iterdir())
    remove = [name for name in remove if name not in names]
    _write_record(folder, "undo.json", names, remove, back=True)  # now: where the disk is full, renaming still works
    try:
        _write_record(folder, "commit.json", names, remove, back=False)
        _forward(folder, names, remove)
    except BaseException:
        (folder / "undo.json").replace(folder / "commit.json")
        _back(folder, names, remove)
        _clear(folder)
        raise
    try:
        _clear(folder)
    except KeyboardInterrupt:  # too late: all is in place
        _clear(folder)


def _write_record(folder: Path, name: str, names: list[str], remove: list[str], back: bool) -> None:
    partial = folder / "record.tmp"
    partial.write_text(json.dumps({"format": FORMAT, "files": names, "remove": remove, "back": back}))
    _sync(partial)
    partial.replace(folder / name)
    _sync(folder)


def _forward(folder: Path, names: list[str], remove: list[str]) -> None:
    for name in names:
        new, target, old = folder / "new" / name, folder.parent / name, folder / "old" / name
        if not os.path.lexists(new):
            continue  # moved before the kill
        is_folder = target.is_dir() and not target.is_symlink()
        if is_folder and not new.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        if os.path.lexists(target) and not os.path.lexists(old):
            _keep(target, old)
        new.replace(target)
    for name in remove:
        if os.path.lexists(folder.parent / name):
            (folder.parent / name).replace(folder / "old" / name)
    _sync(folder.parent)


def _back(folder: Path, names: list[str], remove: list[str]) -> None:
    for name in (*names, *remove):
        new, target, old = folder / "new" / name, folder.parent / name, folder / "old" / name
        if name in names and not os.path.lexists(new) and os.path.lexists(target):
            target.replace(new)
        if os.path.lexists(old):
            old.replace(target)
    _sync(folder.parent)


def _keep(target: Path, old: Path) -> None:
    """Let a file have a second name, so that it is there until it is replaced; move it where that cannot be."""
    try:
        os.link(target, old, follow_symlinks=False)
    except (OSError, NotImplementedError):
        target.replace(old)


def _clear(folder: Path) -> None:
    """Remove the folder, the record first: without one nothing in it is looked at any more."""
    (folder / "commit.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, or say that another process does; a folder that is gone by now is nobody's."""
    if fcntl is None:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.lexists(folder) and os.path.samestat(os.fstat(handle), os.lstat(folder))
    except BlockingIOError:
        held = False
    except OSError:  # a file system without locks
        held = True
    try:
        yield held
    finally:
        os.close(handle)


def _in_use(path: Path) -> UsageError:
    return UsageError(f"{path}: another run is writing it; expected one at a time. Wait for it, or choose another -o.")


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
