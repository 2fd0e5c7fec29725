"""Put every model of some folders through inspect, compress and verify, and say what came of it.

    python -m tools.cases FOLDER... --log cases.jsonl        # again with the same log: goes on where it stopped

Right is exit 0 with a verified result, or 2 or 3 with one line; wrong is all else, and over 300 s of processor time or 4 GB.
Every file has a process of its own, a fork that holds the imported program.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tools.fuzz.__main__ import is_error
from tools.fuzz.server import Ended, Limits, import_all, run

CUT = ("--policy", "uniform", "--recover", "none", "--latency-seconds", "0.1")


def result(ended: Ended) -> tuple[bool, str]:
    """Return whether a model ended right, and the verb, exit code and line that say so."""
    row = ended.last
    said = "out of time" if ended.timed_out else row.trace or (row.stderr if row.code else row.stdout).strip()
    lines = [line for line in said.splitlines() if line.startswith(("verified", "agmc-onnx"))] or [said[-300:]]
    is_right = row.verb == "verify" and lines[-1].startswith("verified") if row.code == 0 else (
        row.code in (2, 3) and not row.trace and is_error(row.stderr) and "internal error" not in said
    )  # fmt: skip
    return is_right, f"{row.verb} {row.code}: {lines[-1]}"


def main(argv: list[str] | None = None) -> int:
    """Return 1 where a model ended wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--flops", default="0.7")
    parser.add_argument("--seconds", type=int, default=300, help="of processor time, a model")
    parser.add_argument("--log", type=Path, help="one line a model; models that are in it are not run again")
    given = parser.parse_args(argv)
    known: dict[str, list[bool | str | float]] = {}
    if given.log and given.log.exists():
        known = dict(json.loads(line) for line in given.log.read_text().splitlines())
    import_all()
    for path in sorted(path.resolve() for folder in given.folder for path in folder.glob("**/*.onnx")):
        name = f"{path.parent.name}/{path.name}"
        if name not in known:
            with tempfile.TemporaryDirectory() as folder:
                cut = ["compress", str(path), "--flops", given.flops, *CUT, "-o", "out.onnx"]
                verbs = [["inspect", str(path)], cut, ["verify", str(path), "out.onnx"]]
                ended = run(verbs, Path(folder), Limits(given.seconds, 10.0 * given.seconds))
            known[name] = [*result(ended), round(ended.seconds, 1), ended.n_bytes >> 20]
            if given.log:
                with given.log.open("a") as log:
                    log.write(json.dumps([name, known[name]]) + "\n")
        is_right, said, seconds, mb = known[name]
        print(f"{'right' if is_right else 'WRONG'} {name} ({seconds} s, {mb} MB): {said}", flush=True)
    n_wrong = sum(not row[0] for row in known.values())
    print(f"{len(known)} models, {n_wrong} wrong")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
