"""The command line: run inputs, judge each, and sum them up."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tools.fuzz
from tools.fuzz.inputs import INPUTS, KINDS, prepare
from tools.fuzz.server import Ended, import_all, run

BYTES = 2 * 2**30  # resident, that an input may take


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        i: Its number.
        kind: Of input.
        what: Verbs, with the mutations.
        codes: Exit code of every verb.
        seconds: Wall clock.
        mb: Largest resident size.
        fault: "" or "internal", "hang", "memory", "partial".
        said: Of a fault, what was said.
    """

    i: int
    kind: str
    what: str
    codes: list[int]
    seconds: float
    mb: int
    fault: str
    said: str


def run_one(i: int, seed: int, made: Path, keep: Path | None) -> Outcome:
    """Make input number `i` and run it in a process of its own."""
    rng = random.Random(f"{seed} {i}")
    kind = KINDS[i % len(KINDS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        what, verbs = INPUTS[kind](folder, rng, made)
        given = {path.name for path in folder.iterdir()}
        if keep is not None:
            shutil.copytree(folder, keep / f"{i}-{kind}", dirs_exist_ok=True)
            print(f"{keep / f'{i}-{kind}'}: " + " && ".join(" ".join(verb) for verb in verbs))
        ended = run(verbs, folder)
        fault, said = judge(ended, {path.name for path in folder.iterdir()} - given)
        codes = [row.code for row in ended.rows]
        return Outcome(i, kind, what, codes, round(ended.seconds, 2), ended.n_bytes >> 20, fault, said)


def judge(ended: Ended, new: set[str]) -> tuple[str, str]:
    """Return the kind of fault, or "", and what was said.

    Args:
        ended: How the process ended.
        new: Names of the files that are there now and were not before.
    """
    last, verb = ended.last, ended.last.verb
    if ended.timed_out:
        return "hang", verb
    if ended.signal or last.code is None:
        return "internal", f"{verb}: ended by signal {ended.signal}: {last.stderr[-300:]}"
    if last.trace or last.code == 1:
        return "internal", f"{verb}: {last.trace or last.stderr}"
    if ended.n_bytes > BYTES:
        return "memory", f"{verb}: {ended.n_bytes / 2**30:.1f} GB"
    if "out of memory" in last.stderr:
        return "memory", f"{verb}: {last.stderr.strip()}"
    if last.code and not is_error(last.stderr):
        return "internal", f"{verb}: exit {last.code} with other than one line: {last.stderr[-300:]!r}"
    whole = {"out.onnx", "out.plan.json", "out.report.json", "out.report.html"}
    due = {"compress": whole, "apply": {"out.onnx", "out.plan.json"}, "report": {"r.html"}}
    made = {name for row in ended.rows if row.code == 0 for name in due.get(row.verb, ())}
    new = new - {"out.run"}
    if new != made and not (new - made <= {"out.onnx.data"}):
        return "partial", f"{verb}: {sorted(new)} where {sorted(made)} was due"
    return "", ""


def is_error(text: str) -> bool:
    """Return whether a text is one line of error, after lines of progress."""
    return re.fullmatch(r"(agmc-onnx: (?!error)[^\n]+\n)*agmc-onnx: error: [^\n]+\n", text) is not None


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the counts of faults, of every kind of input, and the most frequent faults."""
    faults = Counter(o.fault for o in outcomes)
    lines = [
        f"{len(outcomes)} inputs: " + ", ".join(f"{faults[f]} {f}" for f in ("internal", "hang", "memory", "partial"))
    ]
    for kind in dict.fromkeys(KINDS):
        of_kind = [o for o in outcomes if o.kind == kind]
        codes = Counter("/".join(map(str, o.codes)) for o in of_kind)
        said = ", ".join(f"{n} x {code}" for code, n in codes.most_common(8))
        lines.append(f"  {kind}: {len(of_kind)}, exit codes {said}")
    if outcomes:
        slow, large = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.mb)
        lines.append(f"  slowest {slow.seconds} s (input {slow.i}), largest {large.mb} MB (input {large.i})")
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        if o.fault:
            groups.setdefault(f"{o.fault}: {re.sub(r'[0-9]+', '#', o.said)[:160]}", []).append(o)
    for some in sorted(groups.values(), key=len, reverse=True)[:60]:
        numbers = ", ".join(str(o.i) for o in some[:4])
        lines.append(f"{len(some)} x {some[0].fault}: {some[0].said[:400]} (inputs {numbers}; {some[0].what})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run inputs that the log has not yet, print the summary, and return 1 where there is a fault."""
    parser = argparse.ArgumentParser(
        description=tools.fuzz.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="one line an input; inputs that are in it are not run again")
    parser.add_argument("--kinds", nargs="*", choices=sorted(INPUTS), help="default: all")
    parser.add_argument("--only", type=int, nargs="*", help="run these inputs again")
    parser.add_argument("--keep", type=Path, help="copy the inputs that are run there")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--again", action="store_true", help="run the inputs of the log that failed again")
    given = parser.parse_args(argv)
    known: dict[int, Outcome] = {}
    log = given.log.resolve() if given.log else None
    keep = given.keep.resolve() if given.keep else None
    if log is not None and log.exists():
        known = {row["i"]: Outcome(**row) for row in map(json.loads, log.read_text().splitlines())}
    kinds = given.kinds or tuple(INPUTS)
    wanted = given.only or [i for i in range(given.first, given.first + given.inputs) if KINDS[i % len(KINDS)] in kinds]
    todo = [i for i in wanted if given.only or i not in known or (given.again and known[i].fault)]
    import_all()
    here, start = Path.cwd(), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        os.chdir(here)
        for i in todo:
            if time.monotonic() - start > 60 * given.minutes:
                break
            known[i] = run_one(i, given.seed, Path(made), keep)
            if log is not None:
                with log.open("a") as out:
                    out.write(json.dumps(asdict(known[i])) + "\n")
    outcomes = [known[i] for i in sorted(known) if i in set(wanted)]
    print(summary(outcomes))
    return int(any(o.fault for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
