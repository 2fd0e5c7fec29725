"""Samples that several test modules read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, images: np.ndarray) -> Path:
    """A folder that holds x.npz with images x and labels y = 0, 1, 2, 0, 1, 2, ..."""
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(10) % 3)
    return tmp_path
