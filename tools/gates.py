"""Compare two trees of this project: what they find, cut and write, byte for byte, and how long they take, in turns.

    python -m tools.gates OLD_TREE [NEW_TREE] [--graphs FOLDER] [--networks FOLDER] [--only ties commands times]

`ties`: groups, ties, costs at several kept counts, and the cut model of every graph in FOLDER and of every network; FOLDER is
filled first with all graphs that the tests analyse (`--collect`). `commands`: plans and models of the command line on the
networks, one thread, one seed, but for the ids of sets. `times`: analysis, cut and `inspect` in both trees by turns on ten
networks of docs/coverage.md, the median of the ratios.

Each tree runs in a process of its own, which answers one JSON line for each line it is asked. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SET_KEY = "agmc_onnx.set"
COLLECT = "AGMC_GATES_COLLECT"
TESTS = ("tests/ops", "tests/ties", "tests/pruning", "tests/graph", "tests/motifs", "tests/refit")
DIGITS = "digits_resnet.onnx"
COMMANDS: dict[str, tuple[str, ...]] = {  # network: options; {data} is the folder of the networks
    DIGITS: ("--flops", "0.3", "--data", "digits", "--episodes", "20"),
    "cifar10_resnet20_bn.onnx": ("--flops", "0.5", "--data", "{data}/cifar10.toml", "--episodes", "6"),
    "cifar10_tinyresnet_tf2onnx.onnx": (
        *("--flops", "0.5", "--data", "{data}/cifar10_tinyresnet.toml"),
        *("--episodes", "6", "--policy", "gnn-rl"),
    ),
    "imagenet_mobilenetv2.onnx": ("--flops", "0.7", "--policy", "uniform"),
    "face_rfb320.onnx": ("--flops", "0.6", "--policy", "greedy", "--episodes", "4"),
    "silero_vad_16k.onnx": ("--params", "0.97", "--policy", "uniform"),
}
LIGHT = ("light_densenet121", "light_inception_v2", "light_resnet50", "light_shufflenet", "light_squeezenet")
TRAINED = (
    "cifar10_resnet20_bn.onnx", "cifar10_tinyresnet_tf2onnx.onnx", "imagenet_mobilenetv2.onnx", "face_rfb320.onnx",
    "silero_vad_16k.onnx",
)  # fmt: skip
ROUNDS = 5
CUTS = 5


# -- in a process of one tree


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Analyse and cut one graph, or time it; runs in the process of a tree."""
    import numpy as np

    from agmc_onnx.pruning.cost import macs_cost, params_cost
    from agmc_onnx.pruning.importance import choose
    from agmc_onnx.pruning.surgery import Surgeon
    from agmc_onnx.run.analysis import analyse_model

    start = time.process_time()
    channels = analyse_model(asked["path"]).channels
    seconds = {"analysis": time.process_time() - start}
    rng = np.random.default_rng(0)

    def draw() -> Any:
        return np.array(
            [int(rng.integers(1, group.n_units // group.step + 1)) * group.step for group in channels.groups], np.int64
        )

    found: dict[str, Any] = {
        "groups": [[g.name, g.n_units, g.step] for g in channels.groups],
        "frozen": [[g.name, g.why_frozen] for g in channels.frozen],
        "axes": hashlib.sha256(
            repr(sorted((axis, units.units.tolist()) for axis, units in channels.axes.items())).encode()
        ).hexdigest(),
    }
    whole = np.array([g.n_units for g in channels.groups], np.int64)
    counts = [whole, *(draw() for _ in range(5))]
    for name, cost_of in (("macs", macs_cost), ("params", params_cost)):
        cost = cost_of(channels)
        found[name] = [int(cost(kept)) for kept in counts] if channels.groups else int(cost(whole))
    if channels.groups:
        kept = choose(channels, rng.random(channels.n_units), draw())
        surgeon = Surgeon(channels)
        start = time.process_time()
        try:
            cut = surgeon.cut(kept)
            found["cut"] = hashlib.sha256(cut.SerializeToString(deterministic=True)).hexdigest()
        except Exception as error:  # both trees must fail alike
            found["cut"] = type(error).__name__
        seconds["first cut"] = time.process_time() - start
        if asked.get("again"):  # what a search does for every candidate: the structure of the cut is known by now
            start = time.process_time()
            for _ in range(CUTS):
                surgeon.cut(kept)
            seconds["cut"] = (time.process_time() - start) / CUTS
    return {"found": found, "seconds": seconds}


def serve() -> None:
    """Answer lines on stdin until there are none."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints does not mix with the answers
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as error:  # said in both trees alike, or a difference
            said = {"found": f"{type(error).__name__}: {error}", "seconds": {}}
        out.write(json.dumps(said) + "\n")
        out.flush()


class Tree:
    """A process that runs the code of one tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this tree sees: its own package, one thread."""
        return {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}

    def ask(self, path: Path, again: bool = False) -> dict[str, Any]:
        """Return what this tree finds in a graph, and the seconds it takes, of repeated cuts too where wanted."""
        if self.process is None:
            command = [sys.executable, "-W", "ignore", __file__, "--serve"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, env=self.environment, cwd=self.root
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"path": str(path), "again": again}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process = None
            return {"found": "the process died", "seconds": {}}
        said: dict[str, Any] = json.loads(line)
        return said

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line of this tree."""
        command = [sys.executable, "-W", "ignore", "-m", "agmc_onnx", *words]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=self.root, check=False)

    def digits(self) -> Path:
        """Return where this tree keeps the digits network."""
        places = [self.root / "agmc_onnx" / "data" / "digits" / DIGITS, self.root / "models" / "digits" / DIGITS]
        return next(place for place in places if place.exists())


# -- the gates


def compare_ties(old: Tree, new: Tree, graphs: list[Path]) -> int:
    """Print every graph that the trees see differently; return how many."""
    differing = 0
    for path in graphs:
        one, other = old.ask(path)["found"], new.ask(path)["found"]
        if one != other:
            differing += 1
            keys = (
                [k for k in one if one[k] != other.get(k)] if isinstance(one, dict) and isinstance(other, dict) else []
            )
            print(f"DIFFERS {path.name}: {', '.join(keys) or f'{one} | {other}'}")
    print(f"ties and costs: {len(graphs)} graphs, {differing} differ")
    return differing


def without_set_id(path: Path) -> bytes:
    """Return what a model or plan says but for the id of its set, which an old tree does not write; b"" for no file."""
    if not path.exists():
        return b""
    if path.suffix != ".onnx":
        return re.sub(rb'^ "set": "[0-9a-f]*",\n', b"", path.read_bytes(), count=1, flags=re.MULTILINE)
    import onnx

    model = onnx.load(path)
    others = [entry for entry in model.metadata_props if entry.key != SET_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    return model.SerializeToString(deterministic=True)


def compare_commands(old: Tree, new: Tree, networks: Path, only: list[str], extra: list[str]) -> int:
    """Run the command line of both trees on the networks; return how many plans or models differ."""
    differing = 0
    for name, options in COMMANDS.items():
        model = old.digits() if name == DIGITS else networks / name
        if not model.exists() or (only and name not in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = []
            for tree, more in ((old, []), (new, extra)):
                out = Path(folder) / str(len(made)) / "out.onnx"
                out.parent.mkdir()
                words = [word.format(data=networks) for word in options]
                ran = tree.command("compress", str(model), *words, "--threads", "1", "--quiet", *more, "-o", str(out))
                files = [out, out.with_suffix(".plan.json")]
                made.append((ran.returncode, [without_set_id(f) for f in files], ran.stderr[-300:]))
            alike = made[0][:2] == made[1][:2]
            differing += not alike
            sizes = " ".join(str(len(content)) for content in made[1][1])
            what = "equal" if alike else f"DIFFERS: {made[0][2]} | {made[1][2]}"
            print(f"command {name} {' '.join(options)}: exit {made[1][0]}, {sizes} bytes, {what}", flush=True)
    return differing


def compare_times(old: Tree, new: Tree, graphs: list[Path]) -> None:
    """Print the median of new over old, round by round, for analysis, cut and `inspect`, in processor time."""
    for path in graphs:
        ratios: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for turn in range(ROUNDS + 1):
            pair = [tree.ask(path, again=True)["seconds"] for tree in (old, new)]
            for key in pair[0] if turn else ():  # the first round warms up
                ratios.setdefault(key, []).append(pair[1][key] / pair[0][key])
                seconds.setdefault(key, []).append(pair[1][key])
        for _ in range(3):
            taken = []
            for tree in (old, new):
                start = os.times()
                tree.command("inspect", str(path), "--json")
                taken.append(sum(os.times()[2:4]) - sum(start[2:4]))  # of processes that have ended
            ratios.setdefault("inspect", []).append(taken[1] / taken[0])
            seconds.setdefault("inspect", []).append(taken[1])
        said = [
            f"{k} {statistics.median(r):.2f} ({statistics.median(seconds[k]) * 1e3:.0f} ms)" for k, r in ratios.items()
        ]
        print(f"time new / old {path.name}: {', '.join(said)}", flush=True)


# -- graphs of the tests


def pytest_configure() -> None:
    """As a plugin of pytest: keep every graph that a test analyses."""
    folder = Path(os.environ[COLLECT])
    from agmc_onnx.ties import groups

    analyse = groups.analyse

    def keep(graph: Any, *more: Any, **named: Any) -> Any:
        content = graph.model.SerializeToString(deterministic=True)
        path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.onnx"
        if len(content) < 20_000_000 and not path.exists():
            path.write_bytes(content)
        return analyse(graph, *more, **named)

    groups.analyse = keep


def collect(folder: Path) -> None:
    """Run the tests that analyse graphs, and keep those."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, COLLECT: str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.gates", *TESTS]
    subprocess.run(command, env=environment, cwd=ROOT, check=False)


def coverage_networks(networks: Path, folder: Path) -> Iterator[Path]:
    """Yield networks of docs/coverage.md: those of the onnx package, with weights put in, and the trained ones."""
    from tools import zoo

    for source in zoo.light_models():
        if source.stem in LIGHT:
            path = folder / source.name
            path.write_bytes(zoo.load(f"light:{source.stem}", "torchscript").SerializeToString())
            yield path
    yield from (networks / name for name in TRAINED if (networks / name).exists())


def _networks(folder: Path) -> Iterator[Path]:
    for name in COMMANDS:
        if (folder / name).exists():
            yield folder / name


def main() -> int:
    """Run the gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", type=Path, help="tree to compare with")
    parser.add_argument("new", nargs="?", type=Path, default=ROOT, help="tree to judge (this one)")
    parser.add_argument("--graphs", type=Path, default=Path("runs/gates"), help="folder of graphs")
    parser.add_argument("--collect", action="store_true", help="fill the folder with the graphs of the tests first")
    parser.add_argument("--networks", type=Path, default=ROOT.parent / "shared" / "data", help="folder of networks")
    parser.add_argument(
        "--only", nargs="+", choices=("ties", "commands", "times"), default=["ties", "commands", "times"]
    )
    parser.add_argument("--names", nargs="*", default=[], help="of the networks, only these")
    parser.add_argument("--extra", nargs="*", default=[], help="more options for the commands of the new tree")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve()
        return 0
    if asked.collect:
        collect(asked.graphs)
    if asked.old is None:
        return 0
    old, new = Tree(asked.old.resolve()), Tree(asked.new.resolve())
    networks = [old.digits(), *_networks(asked.networks)]
    networks = [path for path in networks if not asked.names or path.name in asked.names]
    differing = 0
    if "ties" in asked.only:
        differing += compare_ties(old, new, sorted(asked.graphs.glob("*.onnx")) + networks)
    if "commands" in asked.only:
        differing += compare_commands(old, new, asked.networks, asked.names, asked.extra)
    if "times" in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            timed = [old.digits(), *coverage_networks(asked.networks, Path(folder))]
            compare_times(old, new, [path for path in timed if not asked.names or path.name in asked.names])
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
