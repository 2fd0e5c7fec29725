"""Models as a Python caller has them: a path, the bytes of a file, or a ModelProto."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import onnx

from agmc_onnx.graph.files import write_model

P = ParamSpec("P")
R = TypeVar("R")
Given = str | Path | bytes | onnx.ModelProto


def on_files(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a verb that reads files take models in memory too: they lie in a file of their own while it runs."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> R:
        if not any(isinstance(one, bytes | onnx.ModelProto) for one in (*args, *kwargs.values())):
            return verb(*args, **kwargs)
        with tempfile.TemporaryDirectory(prefix="agmc-given-") as name:
            n = 0

            def put(one: Any) -> Any:
                nonlocal n
                if not isinstance(one, bytes | onnx.ModelProto):
                    return one
                folder = Path(name, str(n))
                n += 1
                folder.mkdir()
                path = folder / "model.onnx"
                if isinstance(one, bytes):
                    path.write_bytes(one)
                else:
                    write_model(one, path)
                return path

            return verb(*map(put, args), **{key: put(one) for key, one in kwargs.items()})

    return run


def path_of(model: Given) -> str | Path:
    """Return the path that `on_files` has made of a model."""
    assert isinstance(model, str | Path)
    return model
