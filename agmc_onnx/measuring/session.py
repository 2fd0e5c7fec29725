"""The only place that makes onnxruntime sessions: options, provider, and errors in one line."""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.data.card import InputSpec
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph.files import external_tensors, relative_to_folder, write_model

ort.set_default_logger_severity(4)  # asking for CUDA where there is none prints two lines and goes on without it

Model = onnx.ModelProto | bytes | Path
Run = Callable[[Mapping[str, np.ndarray]], Sequence[Any]]  # a model opened in any runtime: feed -> all outputs
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
_LIBRARIES = "AGMC_ONNX_CUSTOM_OPS"  # in the environment, so that processes that are started know them too
_LARGE_BYTES = 32_000_000  # of a model: what sessions leave free in the allocator then counts
_SHORT_NAMES = {names[0]: short for short, names in PROVIDERS.items()}


def processors() -> int:
    """Return how many processors this process may use, fewer where OMP_NUM_THREADS says so."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(asked)) if asked.isdecimal() and int(asked) else usable


def use_libraries(paths: Sequence[str]) -> None:
    """Let all sessions of this process, and of those it starts, know the ops of these libraries, which are code that runs.

    Raises:
        UsageError: If one of them is no custom-op library of this onnxruntime.
    """
    for path in paths:
        try:
            ort.SessionOptions().register_custom_ops_library(str(path))
        except Exception as error:  # as in run_model
            raise UsageError(
                f"--custom-ops: not a library of custom ops, got {str(path)!r} ({one_line(error)[:160]}); expected one built for"
                f" onnxruntime {ort.__version__}. Check the path."
            ) from None
    if paths:
        os.environ[_LIBRARIES] = os.pathsep.join(map(str, paths))


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for path in filter(None, os.environ.get(_LIBRARIES, "").split(os.pathsep)):
        options.register_custom_ops_library(path)
    return options


def model_inputs(model: onnx.ModelProto) -> list[InputSpec]:
    """Return what a caller must feed: the graph inputs in order, without those that are initializers.

    Raises:
        ModelError: If an input is not a tensor (a sequence, map or optional), or its rank is unknown.
    """
    graph = model.graph
    has_value = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    specs = []
    for value in graph.input:
        if value.name in has_value:
            continue
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ModelError(
                f"input {value.name!r}: not a tensor, got {kind}; expected tensor_type. Feed it from Python instead."
            )
        if not value.type.tensor_type.HasField("shape"):
            raise ModelError(
                f"input {value.name!r}: rank unknown, got no shape; expected a shape. Export it with input shapes."
            )
        dims = value.type.tensor_type.shape.dim
        specs.append(
            InputSpec(
                name=value.name,
                dtype=helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
                shape=tuple(d.dim_value if d.dim_value > 0 else None for d in dims),
                symbols=tuple(d.dim_param or None for d in dims),
            )
        )
    return specs


def make_session(
    model: Model, threads: int = 1, provider: str = "cpu", optimise: bool = True, profile: Path | None = None
) -> ort.InferenceSession:
    """Return a session for a model; every measurement of this project runs in one of these.

    Args:
        model: A model, its bytes, or its path. External data is found by path, or where `read_model` has read the model;
            a model above protobuf's 2 GB, or with references to parts, is written to a temporary folder and read there.
        threads: Threads inside one node, at least 1; nodes run one after the other.
        provider: "cpu"; "cuda", an error where CUDA does not start; or "auto", CUDA where it starts and CPU otherwise.
        optimise: All graph optimisations; only these turn on the fast convolution layout.
        profile: Where the profiler writes, as the beginning of a path; None leaves it off.

    Raises:
        UsageError: If `threads` or `provider` cannot be used here.
        ModelError: If onnxruntime refuses the model.
    """
    if threads < 1:
        raise UsageError(f"threads: too few, got {threads}; expected at least 1. Use 1 on a shared machine.")
    if provider not in (*PROVIDERS, "auto"):
        choices = ", ".join((*PROVIDERS, "auto"))
        raise UsageError(f"provider: unknown name, got {provider!r}; expected one of {choices}. Choose one.")
    if provider == "auto":
        provider = "cuda" if _cuda_starts() else "cpu"
    session = _open(model, threads, PROVIDERS[provider], optimise, profile)
    if provider_of(session) != provider:
        raise UsageError(
            f"provider: {provider} did not start, got {provider_of(session)}; expected {provider}. "
            "Install the CUDA and cuDNN libraries that this onnxruntime asks for, or use 'auto' or 'cpu'."
        )
    return session


def provider_of(session: ort.InferenceSession) -> str:
    """Return the short name ("cpu", "cuda") of the provider a session really uses, as it says itself."""
    first = session.get_providers()[0]
    return _SHORT_NAMES.get(first, first.removesuffix("ExecutionProvider").lower())


def run_model(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> Sequence[Any]:
    """Return all outputs of one inference; mostly arrays, but a model may return sequences and maps.

    Raises:
        ModelError: If the feed does not fit the model, or a node fails.
    """
    try:
        return session.run(None, feed)
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        raise ModelError(
            f"model: inference failed, got {one_line(error)!r}; expected outputs. Check the model and what it is fed."
        ) from None


def opened(model: Model | Run, threads: int = 1, provider: str = "cpu") -> tuple[Run, str]:
    """Return what runs a model, and where: "cpu" or "cuda".

    Args:
        model: As in `make_session`; or a function that runs it in another runtime, which is returned as it is.
        threads: As in `make_session`.
        provider: As in `make_session`.

    Raises:
        UsageError: As `make_session`.
        ModelError: As `make_session`.
    """
    if callable(model):
        return model, "cpu"
    session = make_session(model, threads, provider)
    return functools.partial(run_model, session), provider_of(session)


def bound(run: Run, feeds: Sequence[Mapping[str, np.ndarray]]) -> Run:
    """Return what runs a model on these very feeds; on a GPU they lie there already, and so do the outputs.

    Args:
        run: As `opened` returns it; what does not run on a GPU is returned as it is.
        feeds: The only ones it will be called with, the same objects.
    """
    session = (getattr(run, "args", None) or (None,))[0]
    if not isinstance(session, ort.InferenceSession) or provider_of(session) != "cuda":
        return run
    bindings = {id(feed): _bind(session, feed) for feed in feeds}

    def on_device(feed: Mapping[str, np.ndarray]) -> Sequence[Any]:
        session.run_with_iobinding(bindings[id(feed)])
        bindings[id(feed)].synchronize_outputs()
        return []

    return on_device


def _bind(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> ort.IOBinding:
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value), "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    return binding


def save_optimised(model: Path, target: Path, level: str = "basic", is_portable: bool = True) -> None:
    """Write a model as onnxruntime's graph optimisations leave it.

    Args:
        model: An .onnx file.
        target: Ends in .onnx or .ort, which decides the format.
        level: "basic" folds constants and merges nodes, in standard ops alone; "all" takes everything for this machine.
        is_portable: Without the convolution layout of this machine's vector width.

    Raises:
        ModelError: If onnxruntime refuses the model.
    """
    options = _session_options()
    levels = {"basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
    options.graph_optimization_level = levels[level]
    options.optimized_model_filepath = str(target)
    if target.suffix == ".ort":
        options.add_session_config_entry("session.save_model_format", "ORT")
    skipped = ["NchwcTransformer"] if is_portable else []
    try:
        ort.InferenceSession(str(model), options, providers=list(PROVIDERS["cpu"]), disabled_optimizers=skipped)
    except Exception as error:  # as in run_model
        raise ModelError(
            f"{model.name}: onnxruntime cannot optimise it, got {one_line(error)!r}; expected a valid model. "
            "Check it with onnx.checker."
        ) from None


def _open(
    model: Model, threads: int, names: Sequence[str], optimise: bool, profile: Path | None = None
) -> ort.InferenceSession:
    is_large = isinstance(model, onnx.ModelProto) and model.ByteSize() > _LARGE_BYTES
    if is_large:
        _give_back()
    options = _session_options()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    where = "model"
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # a provider this build lacks: told by get_providers
        if isinstance(model, onnx.ModelProto):
            source = _serialise(model, options, None if optimise else Path(folder))
        elif isinstance(model, bytes):
            source = model
        else:
            source, where = str(model), Path(model).name
            if not Path(model).is_file():
                raise ModelError(f"{model}: no such model, got no file; expected an .onnx file. Check the path.")
        try:
            session = ort.InferenceSession(source, options, providers=list(names))
            session._model_bytes = None  # kept to change providers later: the weights once more
            if is_large:
                del source
                _give_back()
            return session
        except Exception as error:  # as in run_model
            foreign = re.search(r"(\S+?)\(-?\d+\) is not a registered function/op", str(error))
            if foreign:
                raise ModelError(
                    f"{where}: op {foreign[1]} is not one of ONNX or onnxruntime, so it cannot be run; expected ops that can."
                    " Name its library with --custom-ops, export the model without it, or only inspect it."
                ) from None
            raise ModelError(
                f"{where}: onnxruntime cannot load it, got {one_line(error)!r}; "
                "expected a valid ONNX model that this onnxruntime supports. Check it with onnx.checker."
            ) from None


def _give_back() -> None:
    """Return what the C allocator keeps free to the system: pieces as large as weights, which fit nothing that comes next."""
    trim = getattr(_libc(), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None


def _serialise(model: onnx.ModelProto, options: ort.SessionOptions, folder: Path | None) -> bytes | str:
    """Return the model's bytes, or the path of a copy where it has more than 2 GB or refers to parts.

    A copy that is opened once goes to `folder`; with None it is kept, and found again.

    Weights in other files are mapped by onnxruntime, which makes no second form of them: that would take their size again.
    """
    if not any(True for _ in external_tensors(model)):
        try:
            return model.SerializeToString()
        except (ValueError, EncodeError, DecodeError):
            return _spill(model, folder)
    options.add_session_config_entry("session.disable_prepacking", "1")
    found = relative_to_folder(model)
    if found is None:
        return _spill(model, folder)
    slim, place = found
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(place))
    return slim.SerializeToString()


_spilled: dict[str, str] = {}  # folder of the copy written last, by the digest of its model


def _spill(model: onnx.ModelProto, folder: Path | None = None) -> str:
    """Write a model to a temporary folder, or find it where the last was kept: a result is opened again and again."""
    try:
        digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    except (ValueError, EncodeError, DecodeError):
        digest = ""  # more than 2 GB: kept until the next, but never found
    if folder is not None and (not digest or digest not in _spilled):
        write_model(model, folder / "model.onnx", external=True)
        return str(folder / "model.onnx")
    if digest not in _spilled or not digest:
        _forget_spilled()  # sessions go on with a file that is gone
        _spilled[digest] = tempfile.mkdtemp(prefix="agmc-onnx-")
        write_model(model, Path(_spilled[digest], "model.onnx"), external=True)
    return str(Path(_spilled[digest], "model.onnx"))


@atexit.register
def _forget_spilled() -> None:
    for folder in _spilled.values():
        shutil.rmtree(folder, ignore_errors=True)
    _spilled.clear()


@functools.cache
def _cuda_starts() -> bool:
    """Return whether a session really gets CUDA; the list of available providers names it on any machine."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "probe", [x], [y], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return provider_of(_open(model, 1, PROVIDERS["cuda"], True)) == "cuda"


def one_line(error: Exception) -> str:
    """Return what onnxruntime or onnx says, without its prefix, its source paths and its stack."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"/\S+\.(?:cc|h|cpp):\d+ ", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
