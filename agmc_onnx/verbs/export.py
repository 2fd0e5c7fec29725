"""The verb `export`: a model in another format, run there beside onnxruntime where that runtime exists."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agmc_onnx.data.samples import Dataset, Feed, Samples, load_card, open_data
from agmc_onnx.errors import UsageError, VerificationError
from agmc_onnx.exchange.exporters.plain import converting, write_plain
from agmc_onnx.exchange.exporters.row import CALIBRATIONS, Exporter, Settings, Source
from agmc_onnx.exchange.exporters.table import check_installed, exporter_of, missing, versions_of
from agmc_onnx.graph.commit import settle, staging
from agmc_onnx.graph.files import ModelFile, read_model
from agmc_onnx.graph.outputs import check_output, stamp_file
from agmc_onnx.latency.timing import Latency, compare, ratio
from agmc_onnx.measuring.accuracy import Evaluator, Score, needs_original
from agmc_onnx.measuring.closeness import class_scores
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import Run, make_session, model_inputs, run_model
from agmc_onnx.options import Execution
from agmc_onnx.precision.int8 import TARGETS, has_vnni
from agmc_onnx.reporting.record import environment_versions
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.verbs.given import Given, on_files, path_of

EXPORT_FORMAT = "agmc-onnx/export@1"
N_COMPARED = 64  # samples whose outputs are compared number by number
N_SYNTHETIC = 16


@on_files
def export(
    model: Given,
    *,
    to: str,
    output: str | Path | None = None,
    data: str | Path | None = None,
    samples: int | None = None,
    target: str = Settings.target,
    calibrate: str = Settings.calibrate,
    calibration_samples: int = Settings.calibration_samples,
    batch: int = Settings.batch,
    threads: int = Settings.threads,
    force: bool = False,
    seconds: float = Execution.latency_seconds,
) -> dict[str, Any]:
    """Write a model in another format, and say how it does there, ready for JSON (`agmc-onnx/export@1`).

    Args:
        model: An .onnx file.
        to: A key of `table.EXPORTERS`.
        output: The main file; None puts it beside the model under its name.
        data: A data card, an .npz, a folder, or "digits"; needed for "int8" and "mixed", which read the calibration role.
            Accuracy is that of the test role; None measures no accuracy, and all else on random inputs.
        samples: Measure on so many of the test role's samples; None takes all.
        target: Kind of processor, a key of `row.TARGETS`; int8 and ort differ by it.
        calibrate: How int8 finds the range of every value: one of `row.CALIBRATIONS`.
        calibration_samples: Samples that int8 calibrates on, at most.
        batch: Samples per inference of formats that fix it, and of the timed inferences.
        threads: Of both runtimes.
        force: Write over files at the output that are not ours; inputs are never written over.
        seconds: Time given to latency.

    Returns:
        "to", "model", "output" (path, files, file_bytes), "converter" (versions), "settings", "ran", "why_not" (where it
        cannot run here), "difference" (max_abs, max_abs_output, same_class in percent or None, n, inputs), "metric" and
        "latency_ms" (each "onnx" and "exported"), "latency_ratio", "notes", "environment". What was not measured is None.

    Raises:
        UsageError: If an option is wrong, the converter is not installed, or the output cannot be written.
        ModelError: If the model cannot be read, converted, or run in the format.
        DataError: If the data cannot be used, or int8 gets none.
        VerificationError: If the exported model answers otherwise than the ONNX model; nothing is written.
    """
    row = exporter_of(to)
    if row.check is None:
        check_installed(row)
    settings = Settings(target, calibrate, calibration_samples, batch, threads)
    _check_settings(settings)
    model = path_of(model)
    if output is None and "agmc-given-" in str(model):
        raise UsageError("export: got a model in memory and no output; expected a path for the result. Give output.")
    file = read_model(model)
    path = _output_path(file, row, output)
    inputs = inputs_of(model, data)
    settle(path)
    check_output(path, inputs, force, alone=True)
    dataset = open_data(load_card(data), model_inputs(file.proto)) if data is not None else None
    tested = _tested(file, row, dataset, samples, batch)
    with tempfile.TemporaryDirectory(prefix="agmc-") as scratch:
        source = _source(file, row, tested, dataset, settings, Path(scratch))
        if row.check is not None:
            row.check(source, path)
            check_installed(row)
        made = Path(scratch, "made")
        made.mkdir()
        with converting(row.name):
            told = row.convert(source, made / path.name) or []
        for one in made.glob("*.onnx"):
            stamp_file(one)
        report = {
            "format": EXPORT_FORMAT,
            "to": row.name,
            "model": {"path": str(file.path), "sha256": file.sha256, "file_bytes": file.file_bytes},
            "output": {"path": str(path), "files": [], "file_bytes": _size(made)},
            "converter": versions_of(row),
            "settings": asdict(settings),
            **_measured(row, source, made / path.name, tested, dataset, seconds),
            "notes": [*_notes(row, settings), *told],
            "environment": environment_versions("cpu"),
        }
        report["output"]["files"] = _put_in_place(made, path, inputs, force)
    return report


def _check_settings(settings: Settings) -> None:
    for name, value, choices in (("target", settings.target, TARGETS), ("calibrate", settings.calibrate, CALIBRATIONS)):
        if value not in choices:
            raise UsageError(
                f"--{name}: unknown name, got {value!r}; expected one of {', '.join(choices)}. Choose one."
            )
    for name in ("calibration_samples", "batch", "threads"):
        if getattr(settings, name) < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: too small, got {getattr(settings, name)}; expected at least 1. Give more.")


def _output_path(file: ModelFile, row: Exporter, output: str | Path | None) -> Path:
    path = Path(output) if output else file.path.with_name(file.path.name.removesuffix(".onnx") + row.suffix)
    ending = f".{row.suffix.rpartition('.')[2]}"
    if path.suffix != ending:
        raise UsageError(
            f"{path}: wrong ending for {row.name}, got {path.suffix or 'none'!r}; expected {ending!r}. Correct -o."
        )
    return path


def _tested(file: ModelFile, row: Exporter, dataset: Dataset | None, n: int | None, batch: int) -> Samples:
    """Return the samples that are measured on; formats of one batch size get no shorter last batch."""
    if dataset is None:
        found = runnable(file.proto, n or max(N_SYNTHETIC, batch), 0)
    else:
        found = dataset.role("test")
        found = found.take(found.n if n is None else n)
    if row.fixed_batch and found.fixed_batch is None:
        found.fixed_batch = batch
    return found


def _source(
    file: ModelFile, row: Exporter, tested: Samples, dataset: Dataset | None, settings: Settings, scratch: Path
) -> Source:
    size = tested.batch_size(settings.batch)
    found = _as_it_is(file, tested.take(size).feeds(size)[0], settings)
    calibration = None if dataset is None else dataset.role("calibration")
    if not row.plain:
        return replace(found, calibration=calibration)
    plain = write_plain(file.path, scratch, found.feed if row.plain == "fixed" else None)
    return replace(found, calibration=calibration, plain=plain.resolve())


def _as_it_is(file: ModelFile, feed: Feed, settings: Settings) -> Source:
    path = file.path.resolve()
    return Source(
        path=path,
        plain=path,
        inputs=tuple(model_inputs(file.proto)),
        outputs=tuple(value.name for value in file.proto.graph.output),
        feed=feed,
        answers=tuple(np.asarray(answer) for answer in run_model(make_session(path), feed)),
        calibration=None,
        settings=settings,
    )


def open_exported(model: str | Path, to: str, path: str | Path, feed: Feed, threads: int = 1) -> Run:
    """Return what runs a model that `export` wrote.

    Args:
        model: The ONNX model that it was made from.
        to: Its format, a key of `table.EXPORTERS`.
        path: Its main file.
        feed: One batch, by input name.
        threads: Of the runtime.

    Raises:
        UsageError: If there is no such format.
        ModelError: If it cannot be loaded.
    """
    row = exporter_of(to)
    source = _as_it_is(read_model(model), feed, Settings(threads=threads))
    with converting(row.name):
        return row.open(Path(path), source)


def _measured(
    row: Exporter, source: Source, path: Path, tested: Samples, dataset: Dataset | None, seconds: float
) -> dict[str, Any]:
    why_not = _why_not(row)
    if why_not:
        empty = dict.fromkeys(("difference", "metric", "latency_ms", "latency_ratio"))
        return {"ran": False, "why_not": why_not, **empty}
    settings, metric = source.settings, None
    with converting(row.name):
        run = row.open(path, source)
        found = _difference(row, source, run, tested.take(N_COMPARED))
        found["inputs"] = "synthetic" if dataset is None else "test role"
        if dataset is not None:
            reference = source.path if needs_original(dataset.metric) else None
            answers = answers_of(read_model(source.path).proto, dataset.card.outputs)
            run_by: dict[str, Any] = {"answers": answers, "threads": settings.threads}
            evaluator = Evaluator(tested, dataset.metric, reference=reference, **run_by)
            metric = {"onnx": _score(evaluator(source.path).score), "exported": _score(evaluator(run).score)}
        size = tested.batch_size(settings.batch)
        feeds = tested.take(8 * size).feeds(size)
        feeds = feeds[:-1] if len(feeds) > 1 and tested.n < 8 * size else feeds
        before, after = compare([source.path, run], feeds, threads=settings.threads, seconds=seconds)
    paired = ratio(after, before)
    return {
        "ran": True,
        "why_not": None,
        "difference": found,
        "metric": metric,
        "latency_ms": {"onnx": _times(before), "exported": _times(after)},
        "latency_ratio": {"median": paired.median, "minimum": paired.minimum},
    }


def _why_not(row: Exporter) -> str:
    """Return why the format cannot be run here, or ""."""
    if row.system and platform.system() != row.system:
        system = {"Darwin": "macOS"}.get(row.system, row.system)
        return f"{row.name} runs on {system} only; this is {platform.system()}"
    absent = missing(row.runtime)
    return f"its runtime is not installed: pip install {' '.join(absent)}" if absent else ""


def _difference(row: Exporter, source: Source, run: Run, tested: Samples) -> dict[str, Any]:
    """Return how far the outputs of the exported model are from those of the ONNX model.

    Raises:
        VerificationError: If they are no numbers, or differ by more than rounding where the format promises no less.
    """
    size = tested.batch_size(source.settings.batch)
    session = make_session(source.path, source.settings.threads)
    largest, scale, same, n = 0.0, 0.0, 0, 0
    for feed, rows in zip(tested.feeds(size), tested.valid_rows(size), strict=True):
        wanted, got = run_model(session, feed), run(feed)
        _check_shapes(row, wanted, got)
        for a, b in zip(wanted, got, strict=True):
            if not np.issubdtype(np.asarray(a).dtype, np.number) or not np.asarray(a).size:
                continue
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            if np.isfinite(a).all() and not np.isfinite(b).all():
                raise _wrong(row, "infinite or undefined outputs")
            largest, scale = max(largest, float(np.abs(a - b).max())), max(scale, float(np.abs(a).max()))
        scores = [class_scores(np.asarray(outputs[0])) for outputs in (wanted, got)]
        if scores[0] is not None and scores[1] is not None:
            same += int(np.sum(scores[0].argmax(1)[:rows] == scores[1].argmax(1)[:rows]))
            n += rows
    if row.tolerance is not None and largest > row.tolerance * max(scale, 1e-6):
        raise _wrong(row, f"outputs that differ by {largest:.3g} (largest output {scale:.3g})")
    return {"max_abs": largest, "max_abs_output": scale, "same_class": 100 * same / n if n else None, "n": tested.n}


def _check_shapes(row: Exporter, wanted: Sequence[Any], got: Sequence[Any]) -> None:
    shapes = [[list(np.shape(value)) for value in values] for values in (wanted, got)]
    if shapes[0] != shapes[1]:
        raise _wrong(row, f"outputs of shapes {shapes[1]} instead of {shapes[0]}")


def _wrong(row: Exporter, what: str) -> VerificationError:
    return VerificationError(
        f"{row.name}: the exported model does not answer as the ONNX model does, got {what}; expected the same to rounding."
        " Nothing was written."
    )


def _score(score: Score) -> dict[str, Any]:
    return {"name": score.name, "value": score.value, "n": score.n, "interval": score.interval}


def _times(latency: Latency) -> dict[str, Any]:
    facts: dict[str, Any] = {"p50": latency.p50, "p90": latency.p90, "min": latency.minimum, "cpu": latency.mean_cpu_ms}
    facts |= {"cpu_p50": latency.cpu_p50, "cpu_p10": latency.cpu_p10, "provider": latency.provider}
    return {**facts, "batch": latency.batch, "threads": latency.threads, "n": latency.n}


def _notes(row: Exporter, settings: Settings) -> list[str]:
    notes = [row.note] if row.note else []
    if row.name in ("int8", "mixed") and settings.target == "x86" and not has_vnni():
        notes.append("this processor has no VNNI: sums of 8-bit products may overflow here; --target avx2 avoids it")
    if row.name == "ort" and settings.target == "x86":
        notes.append("laid out for processors like this one; --target arm makes a file that runs anywhere")
    return notes


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _put_in_place(made: Path, path: Path, inputs: Mapping[str, list[Path]], force: bool) -> list[str]:
    """Move what was made beside `path`, all or nothing, and return the paths.

    Raises:
        UsageError: If that would replace an input or a file that is not ours, or cannot be done.
    """
    names = sorted(entry.name for entry in made.iterdir())
    for name in names:
        check_output(path.with_name(name), inputs, force, alone=True)
    with staging(path) as staged:
        for name in names:
            shutil.move(made / name, staged / name)
    return [str(path.with_name(name)) for name in names]
