"""What this machine and installation can do: versions, providers that really start, processor, memory, extras."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

from agmc_onnx.measuring.processor import cpu_name

DOCTOR_FORMAT = "agmc-onnx/doctor@1"
PACKAGE = "agmc-onnx"
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-silicon")
FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "sve",
    "i8mm",
    "bf16",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
LITTLE_MEMORY, LITTLE_DISK = 2 << 30, 2 << 30  # bytes


def doctor() -> dict[str, Any]:
    """Return what could be found out about this installation, ready for JSON (`agmc-onnx/doctor@1`).

    Returns:
        "packages" (name: version, "wanted" and "ok" of every dependency), "onnxruntime" (wheels, providers: "ok" or why not),
        "cpu" (name, cores, usable cores, flags), "memory" (bytes, available), "torch" (version, build, threads), "extras"
        (by name: the packages that are missing), "folders" (path, writable, free bytes), "variables" (those that change
        threads and devices), and "problems": lines that say what is wrong and what to do; empty where nothing is.
    """
    problems: list[str] = []
    packages = _packages(problems)
    found: dict[str, Any] = {
        "format": DOCTOR_FORMAT,
        "agmc_onnx": _version(PACKAGE),
        "python": {"version": platform.python_version(), "path": sys.executable},
        "platform": platform.platform(),
        "packages": packages,
        "onnxruntime": _runtime(problems),
        "cpu": _cpu(),
        "memory": _memory(problems),
        "torch": _torch(problems),
        "extras": _extras(),
        "folders": _folders(problems),
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }
    found["problems"] = problems
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterator[tuple[str, str, str | None]]:
    """Yield (name, wanted versions, extra) of every requirement that is meant for this machine."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        wanted = Requirement(line)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra[1] if extra else ""}):
            yield wanted.name, str(wanted.specifier), extra[1] if extra else None


def _packages(problems: list[str]) -> dict[str, dict[str, Any]]:
    from packaging.specifiers import SpecifierSet

    found = {}
    for name, wanted, extra in _requirements():
        if extra is not None:
            continue
        version = _version(name)
        if version is None and name.startswith("onnxruntime"):  # one wheel stands for the other
            version = next((v for other in RUNTIMES if (v := _version(other))), None)
        fits = version is not None and SpecifierSet(wanted).contains(version, prereleases=True)
        found[name] = {"version": version, "wanted": wanted, "ok": fits}
        if not fits:
            problems.append(f"{name}: got {version or 'none'}; expected {wanted}. Run: pip install '{name}{wanted}'")
    if not found:
        problems.append(f"{PACKAGE} is not installed, only importable: versions are not checked. Run: pip install -e .")
    return found


def _runtime(problems: list[str]) -> dict[str, Any]:
    """Return the wheels of onnxruntime, and of every provider whether a session really runs on it."""
    wheels = {name: version for name in RUNTIMES if (version := _version(name))}
    if len(wheels) > 1:
        names = " and ".join(wheels)
        problems.append(
            f"onnxruntime: {names} are installed at once and overwrite each other's files; expected one. Run: pip uninstall -y"
            f" {' '.join(wheels)}, then install one of them"
        )
    try:
        import onnxruntime as ort
    except Exception as error:  # a broken wheel raises whatever its loader does
        problems.append(f"onnxruntime: cannot be imported ({_line(str(error))}). Install it again")
        return {"wheels": wheels, "version": None, "providers": {}}
    providers = {name.removesuffix("ExecutionProvider"): _tried(name) for name in ort.get_available_providers()}
    if providers.get("CPU") != "ok":
        problems.append(
            f"onnxruntime: the CPU provider does not run ({providers.get('CPU', 'not there')}). Install it again"
        )
    return {"wheels": wheels, "version": ort.__version__, "providers": providers}


def _tried(provider: str) -> str:
    """Return "ok" where a tiny model really runs on a provider, else why not."""
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    said: list[str] = []
    try:
        with _overheard(said):
            session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
            got = session.get_providers()[0]
            made = session.run(None, {"x": np.eye(2, dtype=np.float32)})[0]
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        return _line(str(error))
    if got != provider:
        why = re.search(r"with error: (.*)", "\n".join(said))
        return f"does not start: {_line(why[1]) if why else 'its libraries or its device are missing'}"
    return "ok" if np.allclose(made, np.eye(2)) else "runs, but computes wrong numbers"


@contextmanager
def _overheard(said: list[str]) -> Iterator[None]:
    """Keep what libraries print meanwhile, in Python or not, and append it to `said`."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, redirect_stdout(StringIO()):
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 160 else f"{words[:159]}\u2026"


def _cpu() -> dict[str, Any]:
    flags: set[str] = set()
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        line = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
        flags = set(line[1].split()) if line else set()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": cpu_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "quota_cores": _quota(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _quota() -> float | None:
    """Return the processor time a container may use, in cores, or None where it is not limited."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _memory(problems: list[str]) -> dict[str, int | None]:
    sizes: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, value = line.split(":", 1)
            sizes[name] = int(value.split()[0]) * 1024
    available = sizes.get("MemAvailable")
    if available is not None and available < LITTLE_MEMORY:
        problems.append(f"memory: only {available >> 20:,} MiB are free; large models need more. Close other programs")
    return {"bytes": sizes.get("MemTotal"), "available": available}


def _torch(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # as for onnxruntime
        problems.append(
            f"torch: cannot be imported ({_line(str(error))}); learned policies and recovery need it. Install it again"
        )
        return {"version": None}
    cuda = torch.version.cuda
    return {
        "version": torch.__version__,
        "build": f"cuda {cuda}" if cuda else "cpu",
        "cuda_starts": bool(cuda) and torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
    }


def _extras() -> dict[str, list[str]]:
    """Return for every optional extra the packages that are missing."""
    found: dict[str, list[str]] = {}
    for name, wanted, extra in _requirements():
        if extra is not None:
            missing = found.setdefault(extra, [])
            if _version(name) is None:
                missing.append(f"{name}{wanted}")
    return dict(sorted(found.items()))


def _folders(problems: list[str]) -> dict[str, dict[str, Any]]:
    """Return the folders that are written to: where programs start, and the one for temporary files."""
    found = {}
    for what, path in (("working", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(path).free
        writable = os.access(path, os.W_OK)
        found[what] = {"path": str(path), "writable": writable, "free": free}
        if what == "temporary" and not writable:
            problems.append(f"{path}: the folder for temporary files cannot be written. Set TMPDIR to another one")
        if free < LITTLE_DISK:
            problems.append(f"{path}: only {free >> 20:,} MiB are free on that disk. Make room, or set TMPDIR")
    return found
