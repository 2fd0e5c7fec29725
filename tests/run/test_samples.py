"""The samples of a run without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.samples import roles_of
from tests import nets

TEXT = "g (float[N, 3, H, W] x) => (float[N, 4, 1, 1] y) { c = Conv(x, w) r = Relu(c) a = GlobalAveragePool(r) y = Conv(a, v) }"


@pytest.mark.parametrize("sizes, n", [((), 8), (("x=1,3,32,32",), 64)])
def test_images_of_a_size_that_is_only_guessed_are_few(tmp_path: Path, sizes: tuple[str, ...], n: int) -> None:
    onnx.save(nets.model(TEXT, {"w": np.ones((8, 3, 3, 3), np.float32), "v": (4, 8, 1, 1)}), tmp_path / "m.onnx")
    analysis = analyse_model(tmp_path / "m.onnx", input_shape=sizes)
    roles = roles_of(analysis, None, CompressOptions.of(flops=0.5, recover="none", input_shape=sizes))
    assert roles.sizes() == {"calibration": n, "reward": n, "test": n}


def test_few_samples_where_what_they_become_is_large(tmp_path: Path) -> None:
    text = "g (float[N, 3, 8, 8] x) => (float[N, 4, H, W] y) { c = Conv(x, w) r = Relu(c) u = Resize(r, , s) y = Conv(u, v) }"
    scales = np.array([1, 1, 256, 256], np.float32)  # 64 MiB a sample
    weights = {"w": (8, 3, 1, 1), "v": (4, 8, 1, 1), "s": scales}
    onnx.save(nets.model(text, weights), tmp_path / "m.onnx")
    roles = roles_of(analyse_model(tmp_path / "m.onnx"), None, CompressOptions.of(flops=0.5, recover="none"))
    assert roles.sizes() == {"calibration": 2, "reward": 2, "test": 2}
    assert roles.evaluator("reward").batch_size == 2
