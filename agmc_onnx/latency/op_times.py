"""Times of the ops of models as onnxruntime runs them; needs only onnxruntime, onnx and numpy, so it also runs alone.

On another device, without agmc-onnx: unpack a request there (`agmc-onnx time-ops MODEL.onnx -o request.zip`), and

    python time_ops.py . -o table.json --threads 1

Then here: `agmc-onnx compress MODEL.onnx --latency 0.6 --latency-table table.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

TABLE_FORMAT = "agmc-onnx/latency-table@1"
RUNS = 10
ROUNDS = 10  # of the estimate of how busy the machine was
PASSES = 3  # over all models, so that a busy minute does not fall on one of them
WARMUP = 3
PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
_LAYOUT_SUFFIX = re.compile(r"_nchwc(_token_\d+)?$")  # what onnxruntime adds to a value's name for a node of its layout
_EVENT_SUFFIX = "_kernel_time"

Feed = Mapping[str, np.ndarray]


def time_ops(
    model: bytes | str, feed: Feed, threads: int = 1, provider: str = "cpu", runs: int = RUNS
) -> dict[str, Any]:
    """Return how long each op of a model takes inside it, after all of onnxruntime's own optimisations.

    Args:
        model: An ONNX model's bytes, or its path.
        feed: One batch.
        threads: Of onnxruntime.
        provider: "cpu" or "cuda".
        runs: Timed inferences; the fastest time of each op counts, since a busy machine can only make it slower.

    Returns:
        "ops": [owner, key, ms] of every op in order of execution: the value of the model's own graph it works for, what
        it is (type, attributes, element type, shapes), and its time; "ms": of a whole inference without the profiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        session = ort.InferenceSession(model, options, providers=PROVIDERS[provider])
        for _ in range(WARMUP + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    ops = _ops(events, list(nodes))
    session = ort.InferenceSession(model, _options(threads), providers=PROVIDERS[provider])
    # other work on the machine does not count as processor time of this thread, which is all there is of one thread
    clock = thread_time if threads == 1 and provider == "cpu" else perf_counter
    times = []
    for _ in range(WARMUP + runs):
        start = clock()
        session.run(None, dict(feed))
        times.append(1000 * (clock() - start))
    return {"ops": ops, "ms": min(times[WARMUP:])}


def faster(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the faster of the times that two passes found for the same model, op by op."""
    a, b = one["ops"], other["ops"]
    if [op[:2] for op in a] != [op[:2] for op in b]:
        return dict(min(one, other, key=lambda found: float(found["ms"])))
    ops = [[*x[:2], min(x[2], y[2])] for x, y in zip(a, b, strict=True)]
    return {**one, "ops": ops, "ms": min(one["ms"], other["ms"])}


def calmed(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return samples whose ops' times are divided by how busy the machine was while each sample was timed.

    Ops that several samples have say it: the median, weighted by their times, of what they took over what they take otherwise,
    again and again (Tukey 1977, "Exploratory Data Analysis", median polish). Else a width that was met in a busy moment looks
    slower than a larger one. The calmest quarter counts as not busy.

    Args:
        samples: Of "ops", each [owner, key, ms].
    """
    place = {key: i for i, key in enumerate(dict.fromkeys(key for sample in samples for _, key, _ in sample["ops"]))}
    rows = [
        (s, place[key], np.log(max(ms, 1e-6)), ms) for s, sample in enumerate(samples) for _, key, ms in sample["ops"]
    ]
    if not rows:
        return [dict(sample) for sample in samples]
    sample_of, key_of = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    ms_log, weight = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    seen = np.bincount(np.unique(key_of * len(samples) + sample_of) // len(samples), minlength=len(place))
    is_shared = seen[key_of] > 1
    busy, own = np.zeros(len(samples)), np.zeros(len(place))
    for _ in range(ROUNDS):
        for key in np.unique(key_of[is_shared]):
            own[key] = np.median((ms_log - busy[sample_of])[key_of == key])
        for s in np.unique(sample_of[is_shared]):
            mine = is_shared & (sample_of == s)
            busy[s] = _median((ms_log - own[key_of])[mine], weight[mine])
        busy -= np.percentile(busy, 25)
    factor = np.exp(np.maximum(busy, 0.0)).tolist()
    return [
        {**sample, "ops": [[owner, key, ms / f] for owner, key, ms in sample["ops"]]}
        for sample, f in zip(samples, factor, strict=True)
    ]


def _median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)])


def device() -> dict[str, str]:
    """Return what the times of a machine depend on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {"cpu": name, "machine": platform.machine(), "onnxruntime": ort.__version__}


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def _ops(events: list[dict[str, Any]], nodes: list[onnx.NodeProto]) -> list[list[Any]]:
    """Return [owner, key, fastest ms] of the nodes of the optimised main graph."""
    by_name = {node.name: node for node in nodes}
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_EVENT_SUFFIX):
            name = name.removesuffix(_EVENT_SUFFIX)
            times.setdefault(name, []).append(event["dur"] / 1000)
            facts[name] = event["args"]
    found: list[list[Any]] = []
    owners: dict[str, str] = {}
    last = ""
    for name, durations in times.items():
        node = by_name.get(name)
        if node is None:  # of a subgraph: its time is part of the node that runs it
            continue
        last = _owner(node, owners) or last
        owners.update(dict.fromkeys(node.output, last))
        found.append([last, _key(node, facts[name]), min(durations[min(WARMUP, len(durations) - 1) :])])
    return found


def _owner(node: onnx.NodeProto, owners: Mapping[str, str]) -> str:
    """Return the value of the model's own graph that a node of the optimised graph works for."""
    if node.op_type == "ReorderOutput":
        return str(node.output[0])
    if node.op_type == "ReorderInput":
        return owners.get(node.input[0], str(node.input[0]))
    if node.domain.endswith("nchwc"):
        return _LAYOUT_SUFFIX.sub("", node.name)
    return str(node.output[0])


def _key(node: onnx.NodeProto, facts: Mapping[str, Any]) -> str:
    """Return what a node is, in one line: its type, attributes, element types and shapes."""
    domain = node.domain.rpartition(".")[2]
    attributes = [f"{a.name}={_attribute(a)}" for a in sorted(node.attribute, key=lambda a: a.name)]
    shapes = [
        "+".join(f"{kind}{'x'.join(map(str, dims))}" for one in facts.get(side, ()) for kind, dims in one.items())
        for side in ("input_type_shape", "output_type_shape")
    ]
    return f"{domain}{'.' if domain else ''}{node.op_type} {' '.join(attributes)} {shapes[0]} -> {shapes[1]}"


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value[:8])
    return f"{value:g}" if isinstance(value, float) else str(value)[:40]


def fill(
    folder: Path, threads: int, provider: str, runs: int, told: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Return the table of an unpacked request: `request.json`, its models, and `feed.npz`; `told` how many of all are timed."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    with np.load(folder / "feed.npz") as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    samples: list[dict[str, Any]] = []
    for n_pass in range(PASSES):
        for i, sample in enumerate(request["samples"]):
            timed = time_ops((folder / sample["file"]).read_bytes(), feed, threads, provider, runs)
            found = {"kept": sample["kept"], **timed}
            samples[i:] = [faster(samples[i], found), *samples[i + 1 :]] if n_pass else [found]
            if told is not None:
                told(n_pass * len(request["samples"]) + i + 1, PASSES * len(request["samples"]))
    setting = {"threads": threads, "provider": provider, "batch": request["batch"]}
    return packed(device(), setting, {request["model"]: calmed(samples)})


def packed(
    device_of: Mapping[str, str], setting: Mapping[str, Any], models: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return a table ready for JSON, where every kind of op stands once with the lower quartile of its times.

    Args:
        device_of: As `device` returns it.
        setting: "threads", "provider" and "batch".
        models: For each model, samples of "kept", "ops" and "ms".
    """
    times: dict[str, list[float]] = {}
    for samples in models.values():
        for sample in samples:
            for _, key, ms in sample["ops"]:
                times.setdefault(key, []).append(ms)
    place = {key: i for i, key in enumerate(times)}
    return {
        "format": TABLE_FORMAT,
        "device": dict(device_of),
        "setting": dict(setting),
        "ops": [{"op": key, "ms": round(float(np.percentile(ms, 25)), 6), "n": len(ms)} for key, ms in times.items()],
        "models": {
            name: [{**s, "ops": [[owner, place[key]] for owner, key, _ in s["ops"]]} for s in samples]
            for name, samples in models.items()
        },
    }


def main() -> None:
    """Fill the table of a request on this device."""
    parser = argparse.ArgumentParser(description="Time the ops of a request of agmc-onnx on this device.")
    parser.add_argument("folder", type=Path, help="the unpacked request")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the table, .json")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime; default: %(default)s")
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cpu", help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=RUNS, help="timed inferences of each model; default: %(default)s")
    arguments = parser.parse_args()

    def told(done: int, n: int) -> None:
        print(f"\rtiming {done}/{n}", end="" if done < n else "\n", flush=True)

    table = fill(arguments.folder, arguments.threads, arguments.provider, arguments.runs, told)
    arguments.output.write_text(json.dumps(table), encoding="utf-8")


if __name__ == "__main__":
    main()
