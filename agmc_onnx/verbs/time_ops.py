"""The verb `time-ops`: op times of another device, as a request that is filled there."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import check_writable, write_atomically, write_model
from agmc_onnx.latency import op_times
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions, Execution
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.latency import samples_of
from agmc_onnx.run.precise import laid_out


def time_ops(
    source: str | Path,
    output: str | Path,
    *,
    batch: int = 1,
    round_to: int | str = "auto",
    runs: int | None = None,
    threads: int = Execution.threads,
    provider: str = Execution.provider,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make a request for the op times of another device, or fill one here.

    Unpacked there, the request holds `time_ops.py`, which needs only onnxruntime, onnx and numpy: `python time_ops.py . -o
    table.json --threads 1`. `compress(latency=..., latency_table="table.json")` takes the table.

    Args:
        source: An .onnx file, of which a request is made; or a request (.zip), that is filled on this machine.
        output: The request, or the table.
        batch: Samples per inference, of a request that is made.
        round_to: Widths that are timed beside multiples of 4.
        runs: Timed inferences of every model, of a request that is filled; None: as many as are enough.
        threads: Of onnxruntime, likewise.
        provider: "cpu" or "cuda", likewise.
        progress: Called with how many of all timings are done, where a request is filled.

    Returns:
        "output", "models" (how many are timed) and "text" (what to do with it).

    Raises:
        UsageError: If the output cannot be written, or a .zip is no request.
        ModelError: If the model cannot be read, or nothing in it can be pruned.
    """
    check_writable(output)
    if zipfile.is_zipfile(source):
        n, text = (
            _fill(Path(source), Path(output), threads, provider, runs or op_times.RUNS, progress),
            "give it to compress as --latency-table",
        )
    else:
        n, text = (
            _request(Path(source), Path(output), batch, round_to),
            "unpack it on the device, run time_ops.py there",
        )
    return {"output": str(output), "models": n, "text": text}


def _fill(
    source: Path, output: Path, threads: int, provider: str, runs: int, progress: Callable[[int, int], None] | None
) -> int:
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(source) as packed:
            if "request.json" not in packed.namelist():
                raise UsageError(f"{source}: no request; expected what agmc-onnx time-ops MODEL.onnx wrote. Make one.")
            packed.extractall(folder)
        table = op_times.fill(Path(folder), threads, provider, runs, progress)
    write_atomically(output, json.dumps(table).encode())
    return len(next(iter(table["models"].values())))


def _request(model: Path, output: Path, batch: int, round_to: int | str) -> int:
    settings = CompressOptions.of(latency=0.5, recover="none", round_to=round_to)
    analysis = analyse_model(model)
    data = Roles(analysis.file.proto, None, settings.data, settings.execution)
    environment = environment_of(analysis, data, settings)
    feed = data.role("calibration").take(batch).feeds(batch)[0]
    samples = []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as packed:
        for i, kept in enumerate(samples_of(environment)):
            name = f"sample_{i:02d}.onnx"
            candidate = laid_out(environment.candidate(kept), settings.execution.provider)
            write_model(_emptied(candidate), Path(folder, name), external=False)
            packed.write(Path(folder, name), name)
            samples.append({"file": name, "kept": kept.tolist()})
        arrays = io.BytesIO()
        np.savez(arrays, **feed)  # type: ignore[arg-type]
        packed.writestr("feed.npz", arrays.getvalue())
        packed.writestr("request.json", json.dumps({"model": analysis.file.sha256, "batch": batch, "samples": samples}))
        packed.write(Path(op_times.__file__), "time_ops.py")
    return len(samples)


def _emptied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with zeros for weights: it takes as long, and packs to nothing."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return model
