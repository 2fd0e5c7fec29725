"""Arrays of .npz and .npy files: what a header claims is checked against the file before anything is allocated for it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from agmc_onnx.data.card import bad_data
from agmc_onnx.errors import DataError

UNPACKED_BYTES = 2**31  # that any file may unpack to; more only where it is no more than
UNPACKED_TIMES = 20  # times the file's own size


def load_npz(where: str, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz by name.

    Raises:
        DataError: If it cannot be read, holds Python objects, claims more than it holds, or unpacks to over 2 GiB and over
            twenty times its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size):
                got = f"{unpacked / 2**30:.1f} GiB out of {path.stat().st_size / 2**20:.1f} MiB"
                expected = "2 GiB, or twenty times the file's size"
                raise bad_data(where, f"{path.name} unpacks to too much", got, expected, "Write it with numpy.savez.")
            for member in archive.infolist():
                with archive.open(member) as file:
                    _check_header(where, f"{path.name}: {member.filename}", file, member.file_size)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if isinstance(arrays[name], np.ndarray)}
    except DataError:
        raise
    except Exception as error:  # zlib, struct, zipfile, numpy's parser: what lies in a file can break any of them
        todo = "Write it with numpy.savez(path, x=..., y=...)."
        raise bad_data(where, f"cannot read {path.name}", _short(error), "an .npz of arrays", todo) from None


def load_npy(where: str, path: Path) -> np.ndarray:
    """Return the array of an .npy.

    Raises:
        DataError: If it cannot be read, holds Python objects, or claims more than it holds.
    """
    try:
        with path.open("rb") as file:
            _check_header(where, path.name, file, path.stat().st_size)
        return np.asarray(np.load(path, allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # as in load_npz
        raise bad_data(where, f"cannot read {path.name}", _short(error), "an .npy array", "Correct `labels`.") from None


def _check_header(where: str, name: str, file: IO[bytes], n_bytes: int) -> None:
    """Raise where an array claims more numbers than its file has; what is no array is left to numpy."""
    if file.read(6) != b"\x93NUMPY":
        return
    version = tuple(file.read(2))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or (claimed > n_bytes and not dtype.hasobject):
        got = f"{claimed:,} bytes of {list(shape)}"
        raise bad_data(where, f"{name} claims more than it holds", got, f"at most {n_bytes:,}", "Write it again.")


def _short(error: Exception) -> str:
    return f"{error}"[:120] or type(error).__name__
