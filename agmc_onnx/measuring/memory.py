"""Peak memory of one inference, as onnxruntime's own allocator counts it: the same every time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.measuring.session import Model, make_session


def peak_bytes(model: Model, feed: Mapping[str, np.ndarray], threads: int = 1, provider: str = "cpu") -> int | None:
    """Return the largest number of bytes in use at once for values between the nodes of a model; weights are not in it.

    Args:
        model: As in `make_session`.
        feed: One batch.
        threads: Of onnxruntime.
        provider: As in `make_session`.

    Returns:
        Bytes, or None where this onnxruntime's profiler does not tell.

    Raises:
        ModelError: If the model cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(model, threads, provider, profile=Path(folder, "profile"))
        session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    peaks = [int(e["args"]["mem_in_use_peak"]) for e in events if "mem_in_use_peak" in e.get("args", {})]
    return max(peaks, default=None)
