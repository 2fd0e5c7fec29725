"""Tables of op times: one file for each machine, onnxruntime and setting; another device's table is a file likewise."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnx.parser
from msgspec import Meta

from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.graph.files import write_model
from agmc_onnx.latency import op_times as time_ops
from agmc_onnx.schema import Count, checked, parse

CACHE = "AGMC_ONNX_CACHE"  # environment variable: the folder of the tables
_KIND, _ADVICE = "a latency table", "Give a file that agmc-onnx time-ops wrote, or fill it again."
MAX_MODELS = 32  # models a machine's table keeps, latest first
SECONDS = 0.1  # of timed inferences of one sample in one pass, about
RUNS = (4, 20)

Sample = Mapping[str, Any]  # "kept", "ops" of [owner, key, ms], "ms"


@dataclass(frozen=True)
class LatencyTable:
    """Times of ops on one device with one setting.

    Attributes:
        device: "cpu", "machine" and "onnxruntime", as `time_ops.device` returns them.
        threads: Of onnxruntime.
        provider: "cpu" or "cuda".
        batch: Samples per inference.
        models: For each model, by the SHA-256 of its file, its timed samples.
    """

    device: Mapping[str, str]
    threads: int
    provider: str
    batch: int
    models: dict[str, list[Sample]] = field(default_factory=dict)

    def with_model(self, sha256: str, samples: Sequence[Sample]) -> LatencyTable:
        """Return the table with the samples of one more model."""
        others = {name: old for name, old in self.models.items() if name != sha256}
        kept = dict(list({sha256: list(samples), **others}.items())[:MAX_MODELS])
        return LatencyTable(self.device, self.threads, self.provider, self.batch, kept)

    def to_json(self) -> str:
        """Return the table as text: every kind of op once, with its time."""
        setting = {"threads": self.threads, "provider": self.provider, "batch": self.batch}
        return json.dumps(time_ops.packed(self.device, setting, self.models))


def time_sample(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], threads: int, provider: str, ms: float
) -> dict[str, Any]:
    """Return the op times of a model as `time_ops.time_ops` does.

    Args:
        model: A candidate.
        feed: One batch.
        threads: Of onnxruntime.
        provider: "cpu" or "cuda".
        ms: What an inference takes, roughly; slow models are timed in fewer runs.

    Raises:
        ModelError: If onnxruntime cannot load or run it.
    """
    runs = int(np.clip(1000 * SECONDS / max(ms, 1e-3), *RUNS))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_model(model, path)
        try:
            return time_ops.time_ops(str(path), feed, threads, provider, runs)
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            reason = str(error).strip().splitlines()[0][:200]
            raise ModelError(
                f"latency: an op cannot be timed, got {reason!r}; expected times. Leave out --latency."
            ) from None


def cached_table(threads: int, provider: str, batch: int) -> LatencyTable:
    """Return this machine's table, empty where there is none yet or it cannot be read."""
    path = cache_path(threads, provider, batch)
    try:
        return read_table(path)
    except UsageError:
        return LatencyTable(time_ops.device(), threads, provider, batch)


def cache_path(threads: int, provider: str, batch: int) -> Path:
    """Return where this machine's table lies: under $AGMC_ONNX_CACHE, else the user's cache folder."""
    root = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    what = json.dumps([time_ops.device(), threads, provider, batch], sort_keys=True)
    return Path(root, "agmc-onnx", f"latency-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json")


@dataclass(frozen=True)
class SettingFacts:
    """How the ops were timed."""

    threads: Count
    provider: str
    batch: Count


@dataclass(frozen=True)
class OpFacts:
    """One kind of op: its attributes and shapes."""

    op: str
    ms: Annotated[float, Meta(ge=0, description="lower quartile of its times")]
    n: Annotated[Count, Meta(description="times that it was timed")] = 1


@dataclass(frozen=True)
class SampleFacts:
    """A candidate whose ops were timed."""

    kept: Annotated[list[Count], Meta(description="units of every group")]
    ops: Annotated[
        list[tuple[str | None, Count]], Meta(description="owner of every op, and its place in the table's ops")
    ]
    ms: Annotated[float, Meta(gt=0, description="of one inference")]
    share: Annotated[float | None, Meta(description="of the original's time, where it was measured beside it")] = None


@dataclass(frozen=True)
class TableFile:
    """A table of op times."""

    format: Annotated[str, Meta(description="agmc-onnx/latency-table@1")]
    device: dict[str, str]
    setting: SettingFacts
    ops: list[OpFacts]
    models: Annotated[dict[str, list[SampleFacts]], Meta(description="samples by the SHA-256 of the model's file")]


def read_table(path: str | Path) -> LatencyTable:
    """Return a table from its file.

    Raises:
        UsageError: If there is no such file, or it is no table.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: no latency table, got {error.strerror}; expected a file that agmc-onnx time-ops wrote. Check the path."
        ) from None
    data = parse(raw, path, _KIND, _ADVICE, UsageError)
    if data.get("format") != time_ops.TABLE_FORMAT:
        got = data.get("format")
        raise UsageError(f"{path}: not {_KIND}, got format {got!r}; expected {time_ops.TABLE_FORMAT!r}. {_ADVICE}")
    found = checked(data, TableFile, path, _KIND, _ADVICE, UsageError)
    for name, samples in found.models.items():
        for i, sample in enumerate(samples):
            if any(place >= len(found.ops) for _, place in sample.ops):
                raise UsageError(
                    f"{path}: not {_KIND}, models[{name[:12]!r}][{i}].ops: names an op beyond the {len(found.ops)} there."
                    f" {_ADVICE}"
                )
            if sample.ops and not any(found.ops[place].ms for _, place in sample.ops):
                raise UsageError(
                    f"{path}: not {_KIND}, models[{name[:12]!r}][{i}].ops: all of its times are 0. {_ADVICE}"
                )
    models: dict[str, list[Sample]] = {
        name: [
            {**sample, "ops": [[owner, found.ops[i].op, found.ops[i].ms] for owner, i in sample["ops"]]}
            for sample in samples
        ]
        for name, samples in data["models"].items()
    }
    setting = found.setting
    return LatencyTable(found.device, setting.threads, setting.provider, setting.batch, models)


@functools.cache
def layout_block(provider: str = "cpu") -> int:
    """Return how many channels onnxruntime's convolutions take at once here: 16 with AVX-512, 8 with AVX2, 1 without layout.

    Args:
        provider: Where onnxruntime runs; "cuda" has no such layout, and 8 is what tensor cores like.
    """
    if provider == "cuda":
        return 8
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 4, 8, 8] x, float[4, 4, 3, 3] w) => (float[1, 4, 6, 6] y) { y = Conv(x, w) }"""
    model = onnx.parser.parse_model(text)
    del model.graph.input[1]  # only a constant weight gets the layout
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w"))
    ops = time_ops.time_ops(model.SerializeToString(), {"x": np.ones((1, 4, 8, 8), np.float32)}, runs=1)["ops"]
    found = [re.search(r"nchwc\.Conv .* -> float1x(\d+)x", key) for _, key, _ in ops]
    return next((int(match[1]) for match in found if match), 1)
