"""A folder of models compressed in one go: every model in a process of its own, here or on a Ray cluster, one summary."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from agmc_onnx.errors import Terminated, UsageError
from agmc_onnx.graph.outputs import check_output, output_files
from agmc_onnx.options import (
    Budget,
    CompressOptions,
    Data,
    Execution,
    Recovery,
    Search,
    Sparsity,
    documented,
    flag,
    options_in,
)
from agmc_onnx.reporting.schema import Report, read_report
from agmc_onnx.reporting.times import shown_ms

SUMMARY_FORMAT = "agmc-onnx/summary@1"
SUMMARY = "summary.json"
_POLL_S = 0.1


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        model: Path below the folder.
        exit_code: Of its `compress`; 0 is done.
        message: What it said went wrong, one line; "" where it is done.
        reached: Share of the original's cost that is left, 0..1; None where it is not done, as in all that follows.
        before, after: Metric of the original and of the result on the test role, percent; None without data.
        latency_ratio: Median latency of the result over that of the original.
        file_ratio: File size likewise.
        wall_s: Seconds it took.
        found: Whether an earlier run had done it.
    """

    model: str
    exit_code: int
    message: str = ""
    reached: float | None = None
    before: float | None = None
    after: float | None = None
    latency_ratio: float | None = None
    file_ratio: float | None = None
    wall_s: float = 0.0
    found: bool = False


@dataclass(frozen=True)
class Job:
    """One model to compress.

    Attributes:
        model: The file.
        name: Its path below the folder, as in the summary.
        output: Where the result goes.
        command: Words of the process that does it.
    """

    model: Path
    name: str
    output: Path
    command: tuple[str, ...]


class _Processes(Protocol):
    """Runs commands side by side."""

    def start(self, job: Job) -> Any: ...

    def done(self, handle: Any) -> tuple[int, str] | None:
        """Return the exit code and what was said on stderr, or None while it runs."""
        ...

    def stop(self, handle: Any, is_told: bool, is_term: bool) -> None:
        """End it; one that Ctrl-C has reached already gets time to write what it has, and SIGTERM is passed on to it first."""
        ...


@documented
def batch(
    folder: str | Path,
    output: str | Path,
    *,
    data: str | Path | None = None,
    jobs: int = 1,
    force: bool = False,
    progress: Callable[[Row, int, int], None] | None = None,
    flops: float | None = Budget.flops,
    params: float | None = Budget.params,
    latency: float | None = Budget.latency,
    max_drop: float | None = Budget.max_drop,
    minimise: str = Budget.minimise,
    latency_table: str | Path | None = Budget.latency_table,
    stages: int = Budget.stages,
    judge: str = Data.judge,
    reward_samples: int = Data.reward_samples,
    racing: bool = Data.racing,
    search_samples: int = Data.search_samples,
    input_shape: tuple[str, ...] = Data.input_shape,
    policy: str = Search.policy,
    episodes: int = Search.episodes,
    patience: int = Search.patience,
    reward: str = Search.reward,
    finalists: int = Search.finalists,
    importance: str | None = Search.importance,
    round_to: int | str | None = Search.round_to,
    floor: float = Search.floor,
    exclude: str | None = Search.exclude,
    keep_layers: bool = Search.keep_layers,
    batch: int | None = Search.batch,
    recover: str | None = Recovery.recover,
    search_positions: int = Recovery.search_positions,
    distill_steps: int = Recovery.distill_steps,
    precision: str = Sparsity.precision,
    sparsity: float | None = Sparsity.sparsity,
    sparse_pattern: str | None = Sparsity.sparse_pattern,
    sparse_method: str | None = Sparsity.sparse_method,
    sparse_layers: str = Sparsity.sparse_layers,
    sparse_decide: str = Sparsity.sparse_decide,
    sparse_storage: str = Sparsity.sparse_storage,
    minutes: float | None = Execution.minutes,
    seed: int = Execution.seed,
    resume: bool = Execution.resume,
    workers: int = Execution.workers,
    ray: str | None = Execution.ray,
    threads: int = Execution.threads,
    provider: str = Execution.provider,
    custom_ops: tuple[str, ...] = Execution.custom_ops,
    latency_seconds: float = Execution.latency_seconds,
) -> list[Row]:
    """Compress every .onnx file below a folder; one that fails costs itself, not the others.

    A model whose result lies there already, made with the same options, is not made again, and an interrupted one goes
    on where it was. So the same call again finishes what is left.

    Args:
        folder: Searched with all folders below it. A card NAME.toml beside NAME.onnx is its data.
        output: Folder for the results, under the same names, and `summary.json`.
        data: Card, .npz, folder or "digits" of the models that have no card of their own; None: they have no data.
        jobs: Models at a time.
        force: Write over files at the outputs that are not ours; inputs are never written over.
        progress: Called with the row of every model that is done, how many are, and how many there are.

    Returns:
        One row for each model, by name.

    Raises:
        UsageError: If an option cannot be used, or there are no models.
    """
    options = options_in(locals())
    CompressOptions.of(**options)
    options.pop("ray", None)  # models run there, not the candidates of each
    if jobs < 1:
        raise UsageError(f"--jobs: too small, got {jobs}; expected at least 1.")
    if Path(output).is_dir():
        check_output(Path(output) / SUMMARY, {}, force, alone=True)
    made = _jobs(Path(folder), Path(output), data, options, force)
    models = {job.model.resolve() for job in made}
    clash = next((job.output for job in made if job.output.resolve() in models), None)
    if clash is not None:
        raise UsageError(f"{clash}: is one of the models themselves; expected another folder. Choose another with -o.")
    rows: dict[str, Row] = {}

    def tell(row: Row) -> None:
        rows[row.model] = row
        _write_summary(Path(output), list(rows.values()), options)
        if progress is not None:
            progress(row, len(rows), len(made))

    left = []
    for job in made:
        row = _found(job, options)
        if row is None:
            left.append(job)
        else:
            tell(row)
    with _processes(ray, threads * workers) as processes:
        for row in _run(left, processes, jobs if ray is None else len(left)):
            tell(row)
    return [rows[job.name] for job in made]


def _jobs(folder: Path, output: Path, data: str | Path | None, options: dict[str, Any], force: bool) -> list[Job]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected one with .onnx files. Name the folder.")
    inside = output.resolve()
    files = sorted(p for p in folder.rglob("*.onnx") if inside not in p.resolve().parents)
    if not files:
        raise UsageError(f"{folder}: no models, got no .onnx file; expected at least one. Name another folder.")
    words = [word for name, value in options.items() if value is not None for word in _words(name, value)]
    words += ["--force"] if force else []
    made = []
    for file in files:
        name = file.relative_to(folder)
        card = file.with_suffix(".toml")
        source = card if card.is_file() else data
        command = [
            sys.executable,
            "-m",
            "agmc_onnx",
            "compress",
            str(file.absolute()),
            "-o",
            str((output / name).absolute()),
        ]
        if source is not None:
            command += ["--data", str(Path(source).absolute() if Path(source).exists() else source)]
        made.append(
            Job(
                file,
                str(name),
                output / name,
                (*command, *words, *(["--force"] if force else []), "--resume", "--quiet"),
            )
        )
    return made


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name)] if value else []
    return [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag(name), str(one))]


def _found(job: Job, options: dict[str, Any]) -> Row | None:
    """Return the row of a result that an earlier run left, if it is of the same model and options."""
    try:
        report = read_report(output_files(job.output)["report"])
        is_same = all(
            report.settings.get(name) == (list(value) if isinstance(value, tuple) else value)
            for name, value in options.items()
            if name not in ("workers", "resume")
        )
        if not is_same or report.interrupted or report.model.sha256 != _digest(job.model):
            return None
        return _row(job, report, 0.0, found=True)
    except (OSError, UsageError):  # no model to take the digest of, or no report that can be read
        return None


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def _row(job: Job, report: Report, wall_s: float, found: bool = False) -> Row:
    before, after = report.original, report.compressed
    _, (before_ms, after_ms) = shown_ms([before.latency_ms, after.latency_ms])
    return Row(
        job.name, 0, "", report.target.reached,
        before.metric.value if report.accuracy_measured else None, after.metric.value if report.accuracy_measured else None,
        after_ms / before_ms, after.file_bytes / before.file_bytes,
        round(wall_s, 3), found,
    )  # fmt: skip


def _run(jobs: Sequence[Job], processes: _Processes, n_at_once: int) -> Iterator[Row]:
    """Yield the row of every job as it ends; Ctrl-C lets the running ones end as they do, and no new one begin."""
    waiting, stopped, is_term = list(jobs)[::-1], False, False
    running: list[tuple[Job, Any, float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < n_at_once:
                job = waiting.pop()
                job.output.parent.mkdir(parents=True, exist_ok=True)
                running.append((job, processes.start(job), time.perf_counter()))
            time.sleep(_POLL_S)
            for entry in list(running):
                job, handle, start = entry
                ended = processes.done(handle)
                if ended is not None:
                    running.remove(entry)
                    yield _ended(job, *ended, time.perf_counter() - start)
    except KeyboardInterrupt as stop:
        stopped, is_term = True, isinstance(stop, Terminated)
        raise
    finally:
        for _, handle, _ in running:
            processes.stop(handle, stopped, is_term)


def _ended(job: Job, code: int, errors: str, wall_s: float) -> Row:
    if code == 0:
        return _row(job, read_report(output_files(job.output)["report"]), wall_s)
    said = [line for line in errors.splitlines() if line.strip()]
    message = said[-1].partition("error: ")[2] or said[-1] if said else f"ended by signal {-code}" if code < 0 else ""
    return Row(job.name, code, message, wall_s=round(wall_s, 3))


class _Local:
    """Processes on this machine; what they say goes to files, since a full pipe would stop them."""

    def start(self, job: Job) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
        log = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the process is done
        return subprocess.Popen(job.command, stdout=subprocess.DEVNULL, stderr=log, env=_environment()), log

    def done(self, handle: tuple[subprocess.Popen[bytes], IO[bytes]]) -> tuple[int, str] | None:
        process, log = handle
        code = process.poll()
        if code is None:
            return None
        log.seek(0)
        with log:
            return code, log.read().decode("utf-8", errors="replace")

    def stop(self, handle: tuple[subprocess.Popen[bytes], IO[bytes]], is_told: bool, is_term: bool) -> None:
        process, _ = handle
        if is_term:
            process.terminate()
        try:
            process.wait(timeout=60 if is_told else 0)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


class _Cluster:
    """Tasks of a Ray cluster, each a process of its own there."""

    def __init__(self, ray: Any, n_cpus: int) -> None:
        self._ray, self._task = ray, ray.remote(num_cpus=n_cpus, max_retries=2)(_remote)

    def start(self, job: Job) -> Any:
        return self._task.remote(job.command)

    def done(self, handle: Any) -> tuple[int, str] | None:
        ready, _ = self._ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            code, errors = self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            return 2, f"error: lost by the cluster ({type(error).__name__})."
        return code, errors

    def stop(self, handle: Any, is_told: bool, is_term: bool) -> None:
        self._ray.cancel(handle, force=True)


def _remote(command: Sequence[str]) -> tuple[int, str]:
    """Run a command on a machine of the cluster, with its own Python."""
    done = subprocess.run(
        [sys.executable, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        env=_environment(),
    )  # fmt: skip
    return done.returncode, done.stderr


def _environment() -> dict[str, str]:
    """Return the environment of a process that finds this package where this process does."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


@contextmanager
def _processes(ray: str | None, n_cpus: int) -> Iterator[_Processes]:
    if ray is None:
        yield _Local()
        return
    from agmc_onnx.search.cluster import connect

    module = connect(ray)
    try:
        yield _Cluster(module, n_cpus)
    finally:
        module.shutdown()


def _write_summary(output: Path, rows: Sequence[Row], options: dict[str, Any]) -> None:
    """Write the summary so far, whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: row.model)
    text = json.dumps({"format": SUMMARY_FORMAT, "options": options, "models": [asdict(r) for r in ordered]}, indent=1)
    beside = output / f".{SUMMARY}.{os.getpid()}"
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(output / SUMMARY)
