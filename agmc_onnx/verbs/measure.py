"""The verb `measure`: size, accuracy and latency of models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agmc_onnx.data.card import InputSpec
from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import ModelFile, read_model
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.latency.timing import MORE_ROUNDS, compare, ratio
from agmc_onnx.measuring.accuracy import Evaluator, needs_original
from agmc_onnx.measuring.memory import peak_bytes
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.session import model_inputs, use_libraries
from agmc_onnx.measuring.sizes import graph_at, samples_at, settle
from agmc_onnx.options import Execution
from agmc_onnx.pruning.cost import count_macs, stored_params
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.reporting.record import environment_versions
from agmc_onnx.verbs.given import Given, on_files, path_of

MEASURE_FORMAT = "agmc-onnx/measure@1"


@on_files
def measure(
    *models: Given,
    data: str | Path | None = None,
    threads: int = Execution.threads,
    seconds: float = Execution.latency_seconds,
    provider: str = Execution.provider,
    batch: int = 1,
    input_shape: Sequence[str] = (),
    custom_ops: Sequence[str] = (),
) -> dict[str, Any]:
    """Return size, accuracy and latency of models that take the same inputs, ready for JSON (`agmc-onnx/measure@1`).

    Latency is measured in turns, so that a busy machine slows all of them alike. Accuracy is that of the card's test role.

    Args:
        models: .onnx files; ratios refer to the first, and so does the metric "agreement".
        data: A data card, an .npz, a folder, or "digits"; None measures no accuracy, and latency on random inputs.
        threads: Of onnxruntime.
        seconds: Time given to latency, for all models together.
        provider: "cpu", "cuda" or "auto".
        batch: Samples per timed inference, where the model leaves it open.
        custom_ops: As `inspect`.
        input_shape: As `inspect`; the data say the sizes where there are any.

    Raises:
        UsageError: If there is no model, or the models take different inputs.
        ModelError: If a model cannot be read or run.
        DataError: If the data cannot be used.
    """
    use_libraries(custom_ops)
    if not models:
        raise UsageError("measure: no model given; expected at least one .onnx file. Name the models to measure.")
    files = [read_model(path_of(model)) for model in models]
    inputs = model_inputs(files[0].proto)
    for file in files[1:]:
        _check_same_inputs(files[0], file, inputs)
    dataset = open_data(load_card(data), inputs) if data is not None else None
    sizes = settle(files[0].proto, input_shape, None if dataset is None else lambda: dataset.role("test"))
    samples = dataset.role("test") if dataset else samples_at(files[0].proto, sizes.inputs, max(8, batch), 0)
    metric = dataset.metric if dataset else None
    paths = [file.path for file in files]
    scores: list[Any] = [None] * len(files)
    if metric is not None:
        reference = paths[0] if needs_original(metric) else None
        answers = answers_of(files[0].proto, dataset.card.outputs if dataset else {})
        run: dict[str, Any] = {"threads": threads, "provider": provider}
        evaluator = Evaluator(samples, metric, reference=reference, answers=answers, **run)
        scores = [evaluator(path).score for path in paths]
    feeds = samples.take(8 * batch).feeds(batch)
    feeds = feeds[:-1] if len(feeds) > 1 and samples.n % batch else feeds  # only batches of one size are comparable
    times = compare(paths, feeds, threads=threads, seconds=seconds, rounds=MORE_ROUNDS, provider=provider)
    found = []
    for file, score, latency in zip(files, scores, times, strict=True):
        graph = graph_at(normalize(dense(file.proto)), sizes.inputs)
        paired = ratio(latency, times[0])
        found.append(
            {
                "path": str(file.path),
                "macs": sum(count_macs(graph).values()),
                "params": stored_params(file.proto),
                "file_bytes": file.file_bytes,
                "metric": score
                and {"name": score.name, "value": score.value, "n": score.n, "interval": score.interval},
                "latency_ms": {
                    "p50": latency.p50,
                    "p90": latency.p90,
                    "min": latency.minimum,
                    "cpu": latency.mean_cpu_ms,
                    "batch": latency.batch,
                    "threads": latency.threads,
                    "n": latency.n,
                    "interval": list(latency.interval),
                    "cpu_p50": latency.cpu_p50,
                    "cpu_p10": latency.cpu_p10,
                    "provider": latency.provider,
                },
                "latency_ratio": asdict(paired),
                "peak_bytes": peak_bytes(file.proto, feeds[0]),
            }
        )
    return {
        "format": MEASURE_FORMAT,
        "models": found,
        "sizes": asdict(sizes),
        "environment": environment_versions(times[0].provider),
    }


def _check_same_inputs(first: ModelFile, other: ModelFile, inputs: Sequence[InputSpec]) -> None:
    wanted = [(spec.name, str(spec.dtype)) for spec in inputs]
    got = [(spec.name, str(spec.dtype)) for spec in model_inputs(other.proto)]
    if got != wanted:
        raise UsageError(
            f"{other.path}: takes other inputs than {first.path}, got {_named(got)}; expected {_named(wanted)}."
            " Measure them apart."
        )


def _named(inputs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in inputs) or "none"
