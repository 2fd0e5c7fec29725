"""Time and peak memory against the number of nodes and against the size of the file; prints one JSON line a measurement.

    python -m tools.bench.scaling nodes --sizes 100 300 1000 3000 10000 20000 [--out scaling.jsonl]
    python -m tools.bench.scaling file --megabytes 100 2500 --scratch FOLDER [--out scaling.jsonl]

`nodes`: generated networks of residual, concatenating, gated and shuffling blocks with few channels, so that the weights
weigh nothing; read, analysed, cut to half of every group and written in a process of their own, the smallest of
`--repeats` processor times. `file`: residual networks of dense layers with LayerNorm, few nodes and large weights in
external data; `agmc-onnx apply` and `agmc-onnx compress --policy uniform --recover none`, both with their verification, as
they are run from a shell. The files are removed afterwards; at the peak twice their size is needed, and in the temporary
folder (TMPDIR) once more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Row = dict[str, Any]
SIDE, WIDTHS = 8, (16, 24, 32)  # of the feature maps; of the trunk in turn, another one every BLOCKS_PER_STAGE blocks
BLOCKS_PER_STAGE = 12
DENSE, HIDDEN, N_IN, N_OUT = 4096, 8192, 1024, 1000


class _Builder:
    """Collects the nodes and weights of a network with about as many nodes as asked for."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int) -> str:
        scale = 1 / math.sqrt(math.prod(shape[1:]) or 1)
        return self.weight((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, n_in: int, n_out: int, kernel: int = 1, groups: int = 1) -> str:
        inputs = [x, self.normal(n_out, n_in // groups, kernel, kernel), self.normal(n_out)]
        return self.node("Conv", inputs, group=groups, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def residual(self, x: str, width: int) -> str:
        y = self.conv(self.relu(self.conv(x, width, width, 3)), width, width, 3)
        return self.relu(self.node("Add", [x, y]))

    def concatenated(self, x: str, width: int) -> str:
        parts, y = [x], x
        for _ in range(3):
            y = self.relu(self.conv(y, width, width, 3))
            parts.append(y)
        return self.relu(self.conv(self.node("Concat", parts, axis=1), 4 * width, width))

    def gated(self, x: str, width: int) -> str:
        y = self.relu(self.conv(self.relu(self.conv(x, width, 2 * width)), 2 * width, 2 * width, 3, groups=2 * width))
        gate = self.relu(self.conv(self.node("GlobalAveragePool", [y]), 2 * width, width // 2))
        y = self.node("Mul", [y, self.node("Sigmoid", [self.conv(gate, width // 2, 2 * width)])])
        return self.node("Add", [x, self.conv(y, 2 * width, width)])

    def shuffled(self, x: str, width: int) -> str:
        y = self.relu(self.conv(x, width, 2 * width, groups=2))
        y = self.node("Reshape", [y, self.weight(np.array([-1, 2, width, SIDE, SIDE]))])
        y = self.node("Transpose", [y], perm=[0, 2, 1, 3, 4])
        y = self.node("Reshape", [y, self.weight(np.array([-1, 2 * width, SIDE, SIDE]))])
        return self.relu(self.node("Add", [x, self.conv(y, 2 * width, width, groups=2)]))


def network(n_nodes: int) -> onnx.ModelProto:
    """Return a convolutional network with that many nodes, or a few more."""
    made, x, width = _Builder(), "x", 3
    blocks = (made.residual, made.concatenated, made.gated, made.shuffled)
    number = 0
    while len(made.nodes) < n_nodes - 3:
        if number % BLOCKS_PER_STAGE == 0:
            wider = WIDTHS[number // BLOCKS_PER_STAGE % len(WIDTHS)]
            x, width = made.relu(made.conv(x, width, wider, 3)), wider
        x = blocks[number % len(blocks)](x, width)
        number += 1
    x = made.node("Flatten", [made.node("GlobalAveragePool", [x])])
    made.node("Gemm", [x, made.normal(width, 10)])
    made.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        made.nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])], made.weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_dense(path: Path, megabytes: int) -> None:
    """Write a network of dense layers whose weights lie in external data."""
    dense = DENSE if megabytes >= 500 else DENSE // 4
    hidden = HIDDEN if megabytes >= 500 else HIDDEN // 4
    n_blocks = max(1, round(megabytes * 1e6 / (2 * dense * hidden * 4)))
    rng, nodes, weights, offset = np.random.default_rng(0), [], [], 0
    with path.with_suffix(".data").open("wb") as data:

        def weight(name: str, *shape: int) -> str:
            nonlocal offset
            tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
            if len(shape) == 1:
                tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))
                weights.append(tensor)
                return name
            array = (rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[0]))).astype(np.float32)
            tensor.data_location = TensorProto.EXTERNAL
            facts = (("location", path.with_suffix(".data").name), ("offset", offset), ("length", array.nbytes))
            for key, value in facts:
                tensor.external_data.add(key=key, value=str(value))
            data.write(array.data)
            offset += array.nbytes
            weights.append(tensor)
            return name

        nodes.append(helper.make_node("MatMul", ["x", weight("w_in", N_IN, dense)], ["h0"]))
        for i in range(n_blocks):
            norm = [f"h{i}", weight(f"s{i}", dense), weight(f"b{i}", dense)]
            nodes += [
                helper.make_node("LayerNormalization", norm, [f"n{i}"], axis=-1),
                helper.make_node("MatMul", [f"n{i}", weight(f"u{i}", dense, hidden)], [f"u{i}y"]),
                helper.make_node("Relu", [f"u{i}y"], [f"r{i}"]),
                helper.make_node("MatMul", [f"r{i}", weight(f"d{i}", hidden, dense)], [f"d{i}y"]),
                helper.make_node("Add", [f"h{i}", f"d{i}y"], [f"h{i + 1}"]),
            ]
        nodes.append(helper.make_node("MatMul", [f"h{n_blocks}", weight("w_out", dense, N_OUT)], ["y"]))
    graph = helper.make_graph(
        nodes, "dense", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", N_IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", N_OUT])], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


# -- measuring


def read_cut_write(path: Path, output: Path) -> Row:
    """Return the processor time of every stage of a cut to half of every group, and the peak memory."""
    from agmc_onnx.graph.files import read_model, write_model
    from agmc_onnx.graph.normal_form import normalize
    from agmc_onnx.graph.view import graph_of
    from agmc_onnx.ops import analyse
    from agmc_onnx.pruning.importance import choose, l2_norm
    from agmc_onnx.pruning.surgery import Surgeon

    at = time.process_time()
    seconds: dict[str, float] = {}

    def lap(stage: str) -> None:
        nonlocal at
        seconds[stage] = round(time.process_time() - at, 4)
        at = time.process_time()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = read_model(path)
    lap("read")
    graph = graph_of(normalize(file.proto))
    _ = graph.shapes
    lap("shapes")
    channels = analyse(graph)
    lap("analyse")
    half = [max(g.step, g.n_units // 2 // g.step * g.step) for g in channels.groups]
    kept = choose(channels, l2_norm(channels), half)
    lap("choose")
    pruned = Surgeon(channels).cut(kept)
    lap("cut")
    write_model(pruned, output)
    lap("write")
    return {
        "nodes": len(graph.nodes), "groups": len(channels.groups), "frozen": len(channels.frozen), "seconds": seconds,
        "total_s": round(sum(seconds.values()), 4), "imports_mb": before // 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def measure_nodes(n_nodes: int, repeats: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "model.onnx")  # made elsewhere: what this process ever took counts in those it starts
        subprocess.run([sys.executable, __file__, "build", str(path), "--sizes", str(n_nodes)], check=True)
        command = [sys.executable, __file__, "one", str(path), str(Path(name, "small.onnx"))]
        rows = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
    return {"kind": "nodes", "repeats": repeats} | min(rows, key=lambda row: row["total_s"])


def run_measured(command: list[str]) -> Row:
    """Return the seconds and the peak memory of a command, from the system's account of its process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    row = {
        "wall_s": round(time.perf_counter() - start, 2), "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": usage.ru_maxrss // 1024, "exit": os.waitstatus_to_exitcode(status),
    }  # fmt: skip
    return row if row["exit"] == 0 else row | {"error": errors.decode()[-300:]}


def plan_of(path: Path) -> None:
    """Write the plan that keeps half of every group, as `compress` would, beside the model."""
    from agmc_onnx.graph.files import read_model
    from agmc_onnx.graph.normal_form import normalize
    from agmc_onnx.graph.view import graph_of
    from agmc_onnx.ops import analyse
    from agmc_onnx.pruning.importance import choose, l2_norm
    from agmc_onnx.pruning.plan import make_plan

    channels = analyse(graph_of(normalize(read_model(path).proto)))
    half = [max(g.step, g.n_units // 2 // g.step * g.step) for g in channels.groups]
    kept = choose(channels, l2_norm(channels), half)
    plan = make_plan(channels, kept, hashlib.sha256(path.read_bytes()).hexdigest())
    path.with_suffix(".plan.json").write_text(plan.to_json())


def measure_file(megabytes: int, scratch: Path, verbs: list[str]) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        path = Path(name, "model.onnx")  # made elsewhere: what this process ever took counts in those it starts
        subprocess.run([sys.executable, __file__, "make", str(path), "--megabytes", str(megabytes)], check=True)
        n_bytes = sum(file.stat().st_size for file in (path, path.with_suffix(".data")))
        cli = [sys.executable, "-m", "agmc_onnx"]
        half = ["--flops", "0.5", "--policy", "uniform", "--recover", "none", "--latency-seconds", "0.1"]
        commands = {
            "inspect": [*cli, "inspect", str(path)],
            "apply": [
                *cli,
                "apply",
                str(path),
                str(path.with_suffix(".plan.json")),
                "-o",
                str(Path(name, "applied.onnx")),
            ],
            "compress": [*cli, "compress", str(path), *half, "-o", str(Path(name, "small.onnx"))],
        }
        for verb in verbs:
            row = {"kind": "file", "verb": verb, "file_mb": round(n_bytes / 1e6, 1)} | run_measured(commands[verb])
            rows.append(row | {"peak_over_file": round(row["peak_mb"] * 1024**2 / n_bytes, 3)})
    return rows


def exponent(rows: list[Row], of: str = "total_s") -> float:
    """Return the exponent b of time = a * nodes^b, fitted to the logarithms by least squares."""
    nodes, values = ([math.log(row[key]) for row in rows] for key in ("nodes", of))
    return float(np.polyfit(nodes, values, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("nodes", "file", "one", "make", "build"))
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300, 1000, 3000, 10000, 20000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", nargs="+", type=int, default=[100, 2500])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--verbs", nargs="+", default=["inspect", "apply", "compress"])
    parser.add_argument("--out", type=Path, help="append the lines here too")
    args = parser.parse_args()
    if args.what == "one":
        print(json.dumps(read_cut_write(*args.paths)))
        return
    if args.what == "build":
        onnx.save(network(args.sizes[0]), args.paths[0])
        return
    if args.what == "make":
        write_dense(args.paths[0], args.megabytes[0])
        plan_of(args.paths[0])
        return
    if args.what == "nodes":
        rows = [measure_nodes(size, args.repeats) for size in args.sizes]
        rows.append({"kind": "exponent", "sizes": args.sizes, "value": round(exponent(rows), 3)})
    else:
        rows = [row for size in args.megabytes for row in measure_file(size, args.scratch, args.verbs)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    sys.stdout.write(text)
    if args.out:
        with args.out.open("a") as out:
            out.write(text)


if __name__ == "__main__":
    main()
