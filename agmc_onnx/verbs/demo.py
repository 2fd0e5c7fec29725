"""The verb `demo`: the main job on the network and the images that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import write_atomically

if TYPE_CHECKING:
    from agmc_onnx.run.progress import Progress
    from agmc_onnx.verbs.compress import Result

NETWORK = Path(__file__).parents[1] / "data" / "digits" / "digits_resnet.onnx"
ORIGINAL, SMALL = "digits.onnx", "digits_small.onnx"
FLOPS = 0.3


def demo(folder: str | Path = ".", *, episodes: int = 100, seed: int = 0, progress: Progress | None = None) -> Result:
    """Compress the digits network that comes with the package to 0.3 of its MACs, measured on the digits that do.

    Args:
        folder: Where `digits.onnx`, the original, and `digits_small.onnx` with its plan and reports are written.
        episodes: Candidates that the search measures.
        seed: Of everything random.
        progress: As of `compress`.

    Raises:
        UsageError: If the folder has another file called digits.onnx.
    """
    from agmc_onnx.verbs.compress import compress

    original = original_in(folder)
    return compress(
        original,
        flops=FLOPS,
        data="digits",
        output=original.with_name(SMALL),
        episodes=episodes,
        seed=seed,
        progress=progress,
    )


def original_in(folder: str | Path) -> Path:
    """Put the original into a folder, where it is not there already, and return its path.

    Raises:
        UsageError: If the folder has another file of its name, or is none.
    """
    path = Path(folder) / ORIGINAL
    content = NETWORK.read_bytes()
    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: no such folder. Make it first, or name another.")
    if path.exists() and path.read_bytes() != content:
        raise UsageError(f"{path}: there is another file of this name; the demo writes its own. Give another folder.")
    if not path.exists():
        write_atomically(path, content)
    return path
