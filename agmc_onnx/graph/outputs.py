"""The files of a result, put in place all or none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import check_writable, write_atomically, write_model


def output_files(output: str | Path) -> dict[str, Path]:
    """Return the paths of everything `compress` writes for an output X.onnx: model, plan, report, html."""
    path = Path(output)
    stem = path.with_suffix("") if path.suffix == ".onnx" else path
    return {
        "model": path,
        "plan": stem.with_name(stem.name + ".plan.json"),
        "report": stem.with_name(stem.name + ".report.json"),
        "html": stem.with_name(stem.name + ".report.html"),
    }


def check_output(output: str | Path, model: str | Path) -> None:
    """Raise before any work what writing a result would raise after it.

    Raises:
        UsageError: If a file of the result cannot be written, or would replace the model it is made from.
    """
    for path in output_files(output).values():
        check_writable(path)
        if path.resolve() == Path(model).resolve():
            raise UsageError(f"{path}: is the model itself; expected another file. Choose another output with -o.")


def write_files(model: onnx.ModelProto, texts: Mapping[str, str], output: str | Path) -> None:
    """Write a model and its texts: all of them, or none, and then what was there before is still there.

    Everything is first written to a folder of its own beside the output, then moved into place.

    Args:
        model: Goes to `output`; its weights to OUTPUT.data where they do not fit into one file.
        texts: Contents by name, as `output_files` names them.
        output: The compressed model's path.

    Raises:
        UsageError: If it cannot be written.
    """
    files = output_files(output)
    with staging(files["model"]) as staged:
        for text_name, text in texts.items():
            write_atomically(staged / files[text_name].name, text.encode())
        write_model(model, staged / files["model"].name)


@contextmanager
def staging(output: str | Path) -> Iterator[Path]:
    """Give a folder of its own beside an output; what was written into it is moved beside the output, all of it or nothing.

    Raises:
        UsageError: If it cannot be written.
    """
    output = Path(output)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".agmc-") as name:
            staged, old = Path(name, "new"), Path(name, "old")
            staged.mkdir()
            old.mkdir()
            yield staged
            _exchange(staged, output.parent, old)
    except (OSError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.__context__ or error
        reason = reason.strerror if isinstance(reason, OSError) else reason
        raise UsageError(f"{output}: cannot be written ({reason}). Choose another output with -o.") from None


def _exchange(staged: Path, folder: Path, old: Path) -> None:
    """Move every file of `staged` into `folder` and what it replaces to `old`; undo it all where one move fails."""
    moved: list[str] = []
    try:
        for path in sorted(staged.iterdir()):
            target = folder / path.name
            if target.exists():
                target.replace(old / path.name)
            moved.append(path.name)
            path.replace(target)
    except BaseException:
        for name in moved:
            _remove(folder / name)
        for path in old.iterdir():
            path.replace(folder / path.name)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
