"""Make a request for the op times of another device: models to be timed there, and the script that does it.

    python tools/time_ops.py request MODEL.onnx -o request.zip         # here
    unzip request.zip -d request; cd request
    python time_ops.py . -o table.json --threads 1                     # there: needs onnxruntime, onnx, numpy
    agmc-onnx compress MODEL.onnx --latency 0.6 --latency-table table.json

`fill` does here what the script does there.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx

from agmc_onnx.data.roles import Roles
from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.files import write_atomically, write_model
from agmc_onnx.latency import op_times as time_ops
from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.latency import laid_out, samples_of


def request(model: Path, output: Path, batch: int, round_to: str | int) -> int:
    """Write a request; return the number of models in it."""
    settings = CompressOptions.of(latency=0.5, recover="none", round_to=round_to)
    analysis = analyse_model(model)
    data = Roles(analysis.file.proto, None, settings.data, settings.execution)
    environment = environment_of(analysis, data, settings)
    feed = data.role("calibration").take(batch).feeds(batch)[0]
    samples = []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as packed:
        for i, kept in enumerate(samples_of(environment)):
            name = f"sample_{i:02d}.onnx"
            candidate = laid_out(environment.candidate(kept), settings.execution.provider)
            write_model(_emptied(candidate), Path(folder, name), external=False)
            packed.write(Path(folder, name), name)
            samples.append({"file": name, "kept": kept.tolist()})
        arrays = io.BytesIO()
        np.savez(arrays, **feed)
        packed.writestr("feed.npz", arrays.getvalue())
        packed.writestr("request.json", json.dumps({"model": analysis.file.sha256, "batch": batch, "samples": samples}))
        packed.write(Path(time_ops.__file__), "time_ops.py")
    return len(samples)


def _emptied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with zeros for weights: it takes as long, and packs to nothing."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            zeros = np.zeros(tuple(tensor.dims), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return model


def main() -> int:
    """Make or fill a request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("request", help="write a request for a model")
    one.add_argument("model", type=Path, metavar="MODEL.onnx")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="REQUEST.zip")
    one.add_argument("--batch", type=int, default=1, help="samples per inference; default: %(default)s")
    one.add_argument("--round-to", default="auto", help="widths that are timed, besides multiples of 4")
    one = verbs.add_parser("fill", help="time the ops of a request here")
    one.add_argument("request", type=Path, metavar="REQUEST.zip")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="TABLE.json")
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--provider", choices=("cpu", "cuda"), default="cpu")
    one.add_argument("--runs", type=int, default=time_ops.RUNS)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "request":
            round_to = arguments.round_to if arguments.round_to == "auto" else int(arguments.round_to)
            n = request(arguments.model, arguments.output, arguments.batch, round_to)
            print(f"wrote {arguments.output}: {n} models; unpack it on the device and run time_ops.py there")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(arguments.request) as packed:
                packed.extractall(folder)
            table = time_ops.fill(Path(folder), arguments.threads, arguments.provider, arguments.runs)
        write_atomically(arguments.output, json.dumps(table).encode())
    except AgmcError as error:
        print(f"time_ops: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
