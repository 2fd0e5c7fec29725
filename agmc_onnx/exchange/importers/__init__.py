"""Models of other frameworks as ONNX: the maintained converter of each framework converts, and the two are compared.

`IMPORTERS` is the table of what is understood. A framework is imported when it is used; what is missing is named with the
extra that installs it.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.importers.source import Importer, ImportOptions, Source, archive_names

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _is_torchscript(source: Source) -> bool:
    names = archive_names(source.path) if source.suffix else []
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def _is_saved_by_torch(source: Source) -> bool:
    if source.suffix not in _TORCH_SUFFIXES or _is_torchscript(source):
        return False
    if any(name.endswith("data.pkl") for name in archive_names(source.path)):
        return True
    with source.path.open("rb") as file:
        return file.read(2) in _PICKLES


def _is_paddle(source: Source) -> bool:
    is_program = source.suffix == ".pdmodel" or (source.suffix == ".json" and _has_beside(source, ".pdiparams"))
    return is_program or source.has("*.pdiparams")


def _has_beside(source: Source, suffix: str) -> bool:
    return source.path.with_suffix(suffix).is_file()


# The order counts: a Keras model on PyTorch is an nn.Module too, and any other callable is held to be a JAX function.
IMPORTERS: dict[str, Importer] = {
    "torch-export": Importer.of(
        "PyTorch exported program (.pt2)", lambda s: s.suffix == ".pt2", "torch_models", "convert_program"
    ),
    "torchscript": Importer.of("TorchScript (.pt)", _is_torchscript, "torch_models", "convert_torchscript"),
    "keras": Importer.of(
        "Keras model (.keras, .h5, module:function)",
        lambda s: s.suffix in (".keras", ".h5", ".hdf5") or s.is_value_of("keras"),
        "tensorflow_models",
        "convert_keras",
    ),
    "torch": Importer.of(
        "PyTorch network (module:function with --weights)",
        lambda s: s.is_value_of("torch") or _is_saved_by_torch(s),
        "torch_models",
        "convert_module",
    ),
    "tensorflow": Importer.of(
        "TensorFlow SavedModel (folder)", lambda s: s.has("saved_model.pb"), "tensorflow_models", "convert_saved_model"
    ),
    "tflite": Importer.of("TFLite (.tflite)", lambda s: s.suffix == ".tflite", "tensorflow_models", "convert_tflite"),
    "sklearn": Importer.of(
        "scikit-learn estimator (module:name, .skops, .joblib, .pkl)",
        lambda s: s.suffix in (".skops", ".joblib", ".pkl", ".pickle") or s.is_value_of("sklearn"),
        "sklearn_models",
        "convert_estimator",
    ),
    "paddle": Importer.of("Paddle program (.pdmodel, .json)", _is_paddle, "paddle_models", "convert_program"),
    "huggingface": Importer.of(
        "Hugging Face folder (config.json)", lambda s: s.has("config.json"), "transformers_models", "convert_folder"
    ),
    "jax": Importer.of(
        "JAX function (module:function)",
        lambda s: s.is_reference and callable(s.value),
        "jax_models",
        "convert_function",
    ),
}

_HINTS = {
    ".safetensors": "It holds weights without a network: give package.module:factory with --weights.",
    ".pb": "A frozen graph does not name its inputs: save the network as a SavedModel folder.",
    ".mlmodel": "Import the model that it was converted from.",
    ".mlpackage": "Import the model that it was converted from.",
    ".xml": "Import the model that it was converted from.",
    ".engine": "A TensorRT engine cannot be read back: import the model that it was built from.",
    ".onnx": "It is ONNX already: compress takes it as it is.",
}


def importer_of(source: Source, options: ImportOptions) -> tuple[str, Importer]:
    """Return the row of `IMPORTERS` for a source, and its name.

    Raises:
        UsageError: If none recognises it, or `options.framework` is no row.
    """
    wanted = options.framework
    if wanted is not None:
        if wanted not in IMPORTERS:
            near = difflib.get_close_matches(wanted, IMPORTERS, 1)
            hint = f" Did you mean {near[0]}?" if near else " Choose one."
            raise UsageError(f"framework: unknown name, got {wanted!r}; expected one of {', '.join(IMPORTERS)}.{hint}")
        return wanted, IMPORTERS[wanted]
    for name, importer in IMPORTERS.items():
        if importer.recognises(source):
            return name, importer
    titles = ", ".join(importer.title for importer in IMPORTERS.values())
    raise UsageError(f"{source}: {_what(source)}; expected one of {titles}.{_suggestion(source)}")


def is_onnx(source: str | Path) -> bool:
    """Return whether a name is held to be that of an ONNX file: all but references, known suffixes and folders."""
    named = Source(source)
    if named.path.is_dir():
        return not any(IMPORTERS[name].recognises(named) for name in _FOLDERS)
    return not (named.is_reference or named.path.suffix.lower() in _SUFFIXES)


def _what(source: Source) -> str:
    if source.path.is_dir():
        return "a folder that is no model, got " + (
            ", ".join(sorted(p.name for p in source.path.iterdir())[:5]) or "nothing"
        )
    if source.path.exists():
        return f"not understood, got a {source.path.suffix or 'file without a suffix'}"
    return "no such file, folder or module:name"


def _suggestion(source: Source) -> str:
    if source.path.exists() and source.path.suffix.lower() in _HINTS:
        return f" {_HINTS[source.path.suffix.lower()]}"
    folder = source.path.parent
    if not source.path.exists() and folder.is_dir():
        near = difflib.get_close_matches(source.path.name, [path.name for path in folder.iterdir()], 1)
        if near:
            return f" Did you mean {folder / near[0]}?"
    return " If it is one of these, name it with --framework." if source.path.is_file() else ""


_FOLDERS = ("tensorflow", "paddle", "huggingface")
_SUFFIXES = {
    ".pt2", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".keras", ".h5", ".hdf5", ".tflite", ".skops", ".joblib", ".pkl",
    ".pickle", ".pdmodel", ".json", ".safetensors", ".mlmodel", ".mlpackage", ".engine",
}  # fmt: skip
