"""What is imported, how it was asked for, and what a converter gives back."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import io
import logging
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.errors import AgmcError, ModelError, UsageError

Feed = Mapping[str, np.ndarray]
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SCRIPT = re.compile(r"(?P<path>.+)\.py:(?P<name>[A-Za-z_][\w.]*)")
_FRAMEWORKS = ("torch", "keras", "tensorflow", "sklearn")
_NO_DEFAULT = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


@dataclass(frozen=True)
class InputShape:
    """What one input of the source looks like; of `--input-shape [NAME=]DIMS[:DTYPE]`.

    Attributes:
        dims: Sizes; a name stands for a dim that stays open. The first is the batch.
        dtype: As numpy calls it.
        name: Of the input, or None.
    """

    dims: tuple[int | str, ...]
    dtype: str = "float32"
    name: str | None = None

    @classmethod
    def of(cls, text: str) -> InputShape:
        """Return the shape that a text such as "1,3,224,224", "ids=N,T:int64" stands for.

        Raises:
            UsageError: If it is no shape.
        """
        name, _, rest = text.rpartition("=")
        sizes, _, dtype = rest.partition(":")
        dims = [part.strip() for part in re.split(r"[,x]" if re.fullmatch(r"[\dx]+", sizes) else ",", sizes)]
        is_good = all(re.fullmatch(r"[1-9]\d*|[A-Za-z_]\w*", part) for part in dims)
        with contextlib.suppress(TypeError):
            np.dtype(dtype or "float32")
            if is_good:
                made = tuple(int(part) if part.isdigit() else part for part in dims)
                return cls(made, dtype or "float32", name.strip() or None)
        raise UsageError(
            f"--input-shape: not a shape, got {text!r}; expected [NAME=]DIMS[:DTYPE] with the batch first, such as"
            " 1,3,224,224 or ids=N,T:int64 (a name stands for a dim that stays open)."
        )

    def sizes(self, batch: int, other: int = 16) -> tuple[int, ...]:
        """Return numbers for all dims: `batch` for the first, `other` for open ones."""
        rest = (dim if isinstance(dim, int) else other for dim in self.dims[1:])
        return (batch, *rest) if self.dims else ()

    @property
    def open_dims(self) -> dict[int, str]:
        """Return dim -> name of what stays open; the first always does."""
        named = {i: dim for i, dim in enumerate(self.dims) if isinstance(dim, str)}
        return {0: named.get(0, "batch"), **named} if self.dims else {}


@dataclass(frozen=True)
class ImportOptions:
    """How to import; every field is an option of the command line.

    Attributes:
        framework: Row of `IMPORTERS`; None recognises it.
        weights: File of weights for a `package.module:factory`.
        input_shapes: One per input, for sources that do not know their own.
        opset: Of the written model; None takes what the converter is best with.
        fixed_batch: Keep the batch that the shape says, instead of leaving it open.
        allow_pickle: Load files that run code when they are opened.
        python: Interpreter of another environment, where the converter is installed (Paddle).
        arguments: Of a `package.module:factory`, by name.
    """

    framework: str | None = None
    weights: str | Path | None = None
    input_shapes: tuple[InputShape, ...] = ()
    opset: int | None = None
    fixed_batch: bool = False
    allow_pickle: bool = False
    python: str | Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """What a converter gives.

    Attributes:
        model: The ONNX model.
        answer: What the source says to a feed, keyed by graph input: one array per graph output, in order.
        framework: Name and version of the source's framework.
        converter: Name and version of what converted.
        ranges: Integer inputs by name: (lowest, one above the highest) value that makes sense, for synthetic inputs.
        notes: What the user should know.
    """

    model: onnx.ModelProto
    answer: Callable[[Feed], Sequence[np.ndarray]]
    framework: str
    converter: str
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Importer:
    """One kind of source; a row of `IMPORTERS`.

    Attributes:
        title: What such a source is called, with how it is recognised.
        recognises: Whether a source is of this kind.
        convert: Converts it.
    """

    title: str
    recognises: Callable[[Source], bool]
    convert: Callable[[Source, ImportOptions], Conversion]

    @classmethod
    def of(cls, title: str, recognises: Callable[[Source], bool], module: str, function: str) -> Importer:
        """Return an importer whose module is imported when it converts; its framework is heavy."""

        def convert(source: Source, options: ImportOptions) -> Conversion:
            home = importlib.import_module(f"{__package__}.{module}")
            made: Conversion = getattr(home, function)(source, options)
            return made

        return cls(title, recognises, convert)


class Source:
    """What the user named: a file, a folder, or `package.module:name`."""

    def __init__(self, text: str | Path, arguments: Mapping[str, Any] | None = None) -> None:
        """Take it as it was typed; nothing is opened.

        Args:
            text: What the user named.
            arguments: Of the factory that it refers to, by name.
        """
        self.text, self.arguments = str(text), arguments or {}
        self.path = Path(text)

    def __str__(self) -> str:
        return self.text

    @property
    def suffix(self) -> str:
        """Return the file's suffix in lower case; empty for what is no file."""
        return self.path.suffix.lower() if self.path.is_file() else ""

    @property
    def is_reference(self) -> bool:
        """Return whether this is `package.module:name`, and no file of that name."""
        is_one = _REFERENCE.fullmatch(self.text) or _SCRIPT.fullmatch(self.text)
        return bool(is_one) and not self.path.exists()

    def has(self, *names: str) -> bool:
        """Return whether this is a folder with all these files; a name may have `*`."""
        return self.path.is_dir() and all(any(self.path.glob(name)) for name in names)

    @functools.cached_property
    def value(self) -> Any:
        """Return what the reference stands for: a factory is called, if no argument of it is missing.

        Raises:
            UsageError: If there is no such module or name, an argument is missing, or importing or calling it fails.
        """
        if script := _SCRIPT.fullmatch(self.text):
            file = Path(script["path"])
            where = f", in the folder {file.parent}" if file.parent != Path() else ""
            raise UsageError(
                f"{self.text}: is the name of a file; expected that of a module. Write {file.name}:{script['name']}{where}."
            )
        module_name, _, path = self.text.partition(":")
        here = os.getcwd()
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            value = module = importlib.import_module(module_name)
            for name in path.split("."):
                value = getattr(value, name)
            missing = [] if _kinds(value) else [name for name in _required(value) if name not in self.arguments]
            if missing and (isinstance(value, type) or self.arguments or _uses(module, *_FRAMEWORKS)):
                raise UsageError(
                    f"{self.text}: needs {' and '.join(missing)}; expected a value for each argument without a default. Give"
                    f" --arg {missing[0]}=VALUE."
                )
            if isinstance(value, type) or (callable(value) and not _kinds(value) and not missing):
                value = value(**self.arguments)
        except UsageError:
            raise
        except Exception as error:  # whatever the user's own code raises
            raise UsageError(
                f"{self.text}: cannot be used, got {one_line(error)!r}; expected package.module:name of a model, or of a function"
                " that makes one. Run it from the folder of the module; --arg NAME=VALUE gives the function an argument."
            ) from error
        return value

    def is_value_of(self, *modules: str) -> bool:
        """Return whether this refers to an instance of a class that is defined in one of these packages."""
        return self.is_reference and bool(_kinds(self.value) & set(modules))


def _kinds(value: Any) -> set[str]:
    """Return the packages that the value's classes come from."""
    return {base.__module__.split(".")[0] for base in type(value).__mro__} & set(_FRAMEWORKS)


def _uses(module: Any, *packages: str) -> bool:
    """Return whether a module has names of one of these packages, and none of JAX: its functions make networks then."""
    homes = [getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in vars(module).values()]
    roots = {str(home).split(".")[0] for home in homes}
    return bool(roots & set(packages)) and not roots & {"jax", "flax", "equinox"}


def _required(function: Any) -> list[str]:
    """Return the arguments a function cannot do without; one that cannot be inspected is held to need some."""
    if not callable(function):
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return [] if isinstance(function, type) else ["its arguments"]
    return [p.name for p in parameters if p.kind in _NO_DEFAULT and p.default is p.empty]


def archive_names(path: Path) -> list[str]:
    """Return the names in a zip archive; none for another file."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def need(source: Source, extra: str, *modules: str) -> None:
    """Import what a converter needs.

    Args:
        source: What it is needed for.
        extra: Of agmc-onnx, that installs it.
        modules: To import, in order.

    Raises:
        UsageError: If one is not installed, or cannot be imported.
    """
    for name in modules:
        try:
            with silence():
                importlib.import_module(name)
        except ImportError as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == name.split(".", maxsplit=1)[0]
            what = "is not installed" if is_missing else f"cannot be imported ({one_line(error)})"
            raise UsageError(f"{source}: needs {name}, which {what}. Run pip install 'agmc-onnx[{extra}]'.") from None


def version(*packages: str) -> str:
    """Return "name version" of the first of these distributions that is installed."""
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return packages[0]


def one_line(error: object, limit: int = 200) -> str:
    """Return what an error is and the first line of what it says."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines() if line.strip()]
    name = "" if isinstance(error, str) else f"{type(error).__name__}: "
    return (name + (lines[0] if lines else "")).removesuffix(": ")[:limit]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop warnings, log records and printed text of converters while the block runs; what C++ writes as well."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            _silent_descriptor(2),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _silent_descriptor(descriptor: int) -> Iterator[None]:
    """Send what is written to a file descriptor nowhere; one that is closed stays so."""
    try:
        saved = os.dup(descriptor)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


@contextlib.contextmanager
def converting(source: Source, converter: str) -> Iterator[None]:
    """Run a converter silently; what it raises becomes one line.

    Raises:
        ModelError: If the block raises anything but an error of ours.
    """
    try:
        with silence():
            yield
    except (AgmcError, MemoryError):
        raise
    except Exception as error:  # converters raise whatever they like
        raise ModelError(
            f"{source}: {converter} cannot convert it, got {one_line(error)!r}; expected a model that it supports."
            " Look for the message in the converter's documentation."
        ) from error
