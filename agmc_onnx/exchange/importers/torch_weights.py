"""What PyTorch wrote, opened without running code that lies in it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.importers.source import archive_names, one_line

FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by every torch.load (torch/serialization.py)
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")  # keys that training scripts put weights under
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_CODE_PARTS = (
    "/constants/custom_obj_",
    "/constants/opaque_obj_",
    "/aotinductor/",
)  # torch.export.pt2_archive.constants
_SYMBOL = re.compile(r"'[a-z]+\d+'")  # in Symbol('s77', positive=True, integer=True)
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*")
_CALLS_PYTHON = re.compile(r"__|\.\s*[A-Za-z_]|\b[a-z_]\w*\s*\(|\)\s*\(")  # sympy's own functions are capitalised


def read_weights(path: Path, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file or of what torch.save wrote, by name.

    Args:
        path: `.safetensors`, or any file of torch.save: a state dict, or a dict with one under a key of `WRAPPERS`.
        allow_pickle: Let torch.load run the code in it.

    Raises:
        UsageError: If it cannot be read, would run code, or holds no tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Check the path given as --weights.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{path}: not a safetensors file, got {one_line(error)!r}; save it again.") from None
    return state_dict(path, read_saved(path, allow_pickle))


def read_saved(path: Path, allow_pickle: bool = False) -> Any:
    """Return what torch.save wrote.

    Raises:
        UsageError: If it cannot be read, or would run code and that is not allowed.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if not allow_pickle and "weights_only" in str(error):
            raise UsageError(
                f"{path}: holds Python objects, not only tensors; opening it can run any code. Save model.state_dict(), or"
                " give --allow-pickle if you trust where the file is from."
            ) from None
        raise UsageError(f"{path}: cannot be read, got {one_line(error)!r}; expected a file of torch.save.") from None
    except Exception as error:  # a pickle may raise anything
        raise UsageError(f"{path}: cannot be read, got {one_line(error)!r}; expected a file of torch.save.") from None


def state_dict(path: Path, saved: Any) -> dict[str, torch.Tensor]:
    """Return the state dict in what was saved; prefixes of wrappers are dropped.

    Raises:
        UsageError: If there is none.
    """
    if not _is_state(saved) and isinstance(saved, Mapping):
        saved = next((saved[key] for key in WRAPPERS if _is_state(saved.get(key))), saved)
    if not _is_state(saved):
        got = (
            f"a dict of {', '.join(map(str, list(saved)[:8]))}" if isinstance(saved, Mapping) else type(saved).__name__
        )
        raise UsageError(
            f"{path}: no state dict in it, got {got}; expected tensors by name, or a dict with them under one of"
            f" {', '.join(WRAPPERS)}. Save model.state_dict()."
        )
    found = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def load_into(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Give a module its weights; all of them.

    Raises:
        UsageError: If names or shapes do not fit.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    for what, names in (("lacks", missing), ("has too many", extra), ("has other shapes", shapes)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UsageError(
                f"{path}: {what}, got {shown}; expected exactly the {len(own)} tensors of the network. Use the factory and"
                " the arguments that the weights were trained with."
            )
    module.load_state_dict(dict(weights))


@contextlib.contextmanager
def no_code(path: Path, allow_pickle: bool) -> Iterator[None]:
    """While a .pt2 file is opened, let nothing in it run as Python.

    `torch.export.load` falls back to full unpickling, unpickles opaque objects, loads compiled libraries, and evaluates
    the sizes of dims as Python expressions (torch 2.13); a crafted file could use each of them.

    Raises:
        UsageError: If the file has parts that only code could open.
    """
    if allow_pickle:
        yield
        return
    for name in archive_names(path):
        if any(part in f"/{name}" for part in _CODE_PARTS):
            raise UsageError(
                f"{path}: holds {name}, which runs code when it is opened; expected a program of tensors alone. Export"
                " the network again, or give --allow-pickle if you trust where the file is from."
            )
        if name.endswith(".json"):
            for text in _expressions(_read_json(path, name)):
                if not _is_arithmetic(text):
                    raise UsageError(
                        f"{path}: {name} has a size that is no arithmetic, got {text[:60]!r}; expected such as 2*s0. Export"
                        " the network again, or give --allow-pickle if you trust where the file is from."
                    )
    before = os.environ.get(FORCE_SAFE)
    os.environ[FORCE_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE_SAFE]
        else:
            os.environ[FORCE_SAFE] = before


def _is_state(value: Any) -> bool:
    """Return whether a value is a dict from names to tensors; counters and the like may be among them."""
    return (
        isinstance(value, Mapping)
        and any(isinstance(item, torch.Tensor) for item in value.values())
        and all(isinstance(key, str) for key in value)
        and all(isinstance(item, torch.Tensor | int | float) for item in value.values())
    )


def _read_json(path: Path, name: str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(name))
    except ValueError:  # not read by torch either, or refused there
        return None


def _is_arithmetic(text: str) -> bool:
    """Return whether an expression has nothing but numbers, symbols and calls of sympy's functions."""
    bare = _SYMBOL.sub("S", text)
    return bool(_EXPRESSION.fullmatch(bare)) and not _CALLS_PYTHON.search(bare)


def _expressions(value: Any) -> Iterator[str]:
    """Yield every symbolic expression of an exported program's JSON."""
    if isinstance(value, Mapping):
        if isinstance(value.get("expr_str"), str):
            yield value["expr_str"]
        for item in value.values():
            yield from _expressions(item)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item)
