"""Put every model of some folders through inspect, compress and verify, and say what came of it.

Right is exit 0 with a verified result, or 2 or 3 with one line. Run: python tools/cases.py FOLDER [--flops 0.7]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def run(*words: str) -> tuple[int, str]:
    """Return the exit code of a command line and the last line it printed."""
    done = subprocess.run([sys.executable, "-m", "agmc_onnx", *words], capture_output=True, text=True, check=False)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
    return done.returncode, next(
        (line for line in reversed(lines) if line.startswith(("verified", "agmc-onnx"))), lines[-1]
    )


def main() -> int:
    """Return the number of cases with a wrong end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flops", default="0.7")
    asked = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(asked.folder.glob("**/*.onnx")):
            output = str(Path(folder, f"{path.parent.name}-{path.stem}.onnx"))
            steps = {"inspect": run("inspect", str(path))}
            if steps["inspect"][0] == 0:
                options = (
                    "--flops",
                    asked.flops,
                    "--policy",
                    "uniform",
                    "--recover",
                    "none",
                    "--latency-seconds",
                    "0.1",
                )
                steps["compress"] = run("compress", str(path), *options, "-o", output)
            if steps.get("compress", (1, ""))[0] == 0:
                steps["verify"] = run("verify", str(path), output)
            code, line = list(steps.values())[-1]
            good = code in (0, 2, 3) and "internal error" not in line and (code != 0 or line.startswith("verified"))
            wrong += not good
            print(
                f"{'ok   ' if good else 'WRONG'} {path.parent.name}/{path.name}: {list(steps)[-1]} {code}: {line[:240]}",
                flush=True,
            )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
