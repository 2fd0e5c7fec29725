"""Is a model one? Asked of onnxruntime and onnx in a process of its own, which may crash, hang or want more memory than there is.

It is asked only where something failed with a model that passed `graph.soundness`: most models never come here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from signal import Signals

SECONDS, WALL_SECONDS = 20, 200  # of processor time; the second where a machine is busy
BYTES = 2**31  # of data, and as much as the file has four times


def why_unusable(path: Path) -> str | None:
    """Return in one line what onnxruntime or onnx's shape inference has against a model; None where it runs.

    Args:
        path: An .onnx file.
    """
    command = [sys.executable, "-m", "agmc_onnx.measuring.probe", str(path)]
    endless = (
        f"{path.name}: onnxruntime is not done with it in {SECONDS} s; expected a model that it loads. Simplify it."
    )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return endless
    if done.returncode < 0:
        name = Signals(-done.returncode).name
        if name in ("SIGXCPU", "SIGKILL"):
            return endless
        return f"{path.name}: onnxruntime or onnx crashes on it ({name}); expected a valid model. Check it with onnx.checker."
    return done.stdout.strip() or None


def main(arguments: Sequence[str]) -> int:
    """Load a model, infer its shapes strictly, run it on random inputs, and print what fails."""
    path = Path(arguments[0])
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        limit = BYTES + 4 * path.stat().st_size
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import onnx

    from agmc_onnx.errors import AgmcError
    from agmc_onnx.graph.files import read_model
    from agmc_onnx.measuring.random_inputs import runnable
    from agmc_onnx.measuring.session import make_session, model_inputs, one_line

    try:
        make_session(path, optimise=False)
        model = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        whole = read_model(path).proto
        if all(spec.dtype.kind in "biuf" for spec in model_inputs(whole)):
            runnable(whole, 1, 0)
    except AgmcError as error:
        print(error if str(error).startswith(str(path.name)) else f"{path.name}: {error}")
    except MemoryError:
        print(f"{path.name}: needs over {limit / 2**30:.1f} GiB to be loaded; expected less. Check its sizes.")
    except Exception as error:  # onnx's and protobuf's errors share no base class below Exception
        print(
            f"{path.name}: no valid model, got {one_line(error)!r}; expected one that onnx accepts. Export the model again."
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
