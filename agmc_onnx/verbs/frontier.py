"""The verb `frontier`: the whole trade of time, bytes and accuracy of a model, in widths, depth and precision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import BudgetError, ModelError, UsageError
from agmc_onnx.graph.files import model_bytes, read_model, write_atomically
from agmc_onnx.graph.outputs import is_ours, output_files, stamped, twin_of, write_files
from agmc_onnx.latency.timing import Latency, compare, ratio
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions, Execution, Search
from agmc_onnx.precision.int8 import has_vnni
from agmc_onnx.reporting.frontier import Frontier, Point, advice_of, render
from agmc_onnx.reporting.record import environment_versions, metric_facts, sizes_of
from agmc_onnx.reporting.schema import Metric, Report, read_report
from agmc_onnx.reporting.text import division_lines
from agmc_onnx.run.analysis import Analysis, analyse_model
from agmc_onnx.run.candidates import environment_of, reachable
from agmc_onnx.run.latency import latency_target
from agmc_onnx.run.precise import quantised
from agmc_onnx.run.progress import Progress
from agmc_onnx.run.samples import roles_of, with_recovery
from agmc_onnx.run.target import Target
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.journal import run_folder
from agmc_onnx.verbs.compress import NOT_IN_JOURNAL, _journal, _searched, _shown, _torch_threads
from agmc_onnx.verbs.given import Given, on_files, path_of

POINTS = 5
LEAST = 0.35  # share of the time of what is pruned, in its precision, at the last point
EPISODES, FINALISTS = 12, 2  # of every search: greedy widths for some depths, from the neighbour's result
SECONDS = 30.0  # given to timing all models in turns
INT8, MIXED = "int8.onnx", "mixed.onnx"
PRECISIONS = ("mixed", "int8")


@on_files
def frontier(
    model: Given,
    *,
    data: str | Path,
    output: str | Path,
    points: int = POINTS,
    precision: str = PRECISIONS[0],
    policy: str = "greedy",
    episodes: int = EPISODES,
    finalists: int = FINALISTS,
    exclude: str | None = Search.exclude,
    keep_layers: bool = Search.keep_layers,
    input_shape: tuple[str, ...] = (),
    minutes: float | None = None,
    seed: int = Execution.seed,
    threads: int = Execution.threads,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> Frontier:
    """Measure the original, int8 and mixed precision alone, pruned, and pruned and quantised models, and write one page.

    All points come from one analysis, one set of error curves and one table of op times; every search begins at the widths of
    its neighbour. A folder that has points of the same model and options already is gone on with.

    Args:
        model: An .onnx file.
        data: A data card, an .npz, a folder, or "digits".
        output: Folder for all models with their plans and reports, frontier.json and frontier.html.
        points: How many times are aimed at, at least 1; each gives a quantised model and its float twin.
        precision: Of what is pruned and quantised: mixed or int8.
        policy: What decides, as in `compress`.
        episodes: Candidates of every search.
        finalists: Of every search, quantised and judged so.
        exclude: Groups that stay whole.
        keep_layers: Let no layer go.
        input_shape: Texts NAME=1,3,H,W: sizes of open dims.
        minutes: The whole may take so many; points that are not begun by then are left out.
        seed: Of everything random.
        threads: Of onnxruntime, and of torch in a refit.
        seconds: Given to timing all models in turns.
        progress: As of `compress`.

    Raises:
        UsageError: If an option cannot be used, or the folder cannot be written.
        ModelError: If the model cannot be pruned.
        DataError: If the data cannot be used.
    """
    start = time.perf_counter()
    if points < 1:
        raise UsageError(f"--points: too small, got {points}; expected at least 1. Give more.")
    if precision not in PRECISIONS:
        raise UsageError(
            f"--precision: got {precision!r}; expected one of {', '.join(PRECISIONS)}. Without either use compress."
        )
    path, folder = path_of(model), Path(output)
    options: dict[str, Any] = {
        "latency": 0.5, "precision": precision, "policy": policy, "episodes": episodes, "finalists": finalists,
        "exclude": exclude, "keep_layers": keep_layers, "input_shape": tuple(input_shape), "seed": seed, "threads": threads,
        "minutes": minutes, "latency_seconds": 2.0,
    }  # fmt: skip
    settings = CompressOptions.of(**{name: value for name, value in options.items() if value is not None})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: no folder can be made there ({error.strerror}). Choose another output.") from None
    for name in ("frontier.json", "frontier.html"):
        if (folder / name).exists() and not is_ours(folder / name) and not (folder / "frontier.json").exists():
            raise UsageError(f"{folder / name}: is there already and is not ours. Choose another output.")
    with _torch_threads(settings), _shown(progress) as tell:
        run = _Run(Path(path), data, folder, settings, points, start, tell or (lambda stage, facts: None))
        return run.all(seconds)


@dataclass(frozen=True)
class _Made:
    """A model of the frontier before it is timed beside the others."""

    file: str
    path: Path
    kind: str
    precision: str
    sizes: dict[str, int]
    metric: Metric


class _Run:
    """One analysis, and the points that are made from it."""

    def __init__(
        self,
        path: Path,
        data: str | Path,
        folder: Path,
        settings: CompressOptions,
        points: int,
        start: float,
        tell: Progress,
    ) -> None:
        self.path, self.source, self.folder, self.n_points, self.start, self.tell = (
            path,
            data,
            folder,
            points,
            start,
            tell,
        )
        self.analysis: Analysis = analyse_model(path, settings.search.excluded, data, settings.data.input_shape)
        self.settings = with_recovery(self.analysis, data, settings)
        self.data: Roles = roles_of(self.analysis, data, self.settings)
        self.environment: Environment = environment_of(self.analysis, self.data, self.settings, tell=tell)
        self.notes: list[str] = []
        self.made: list[_Made] = []

    def all(self, seconds: float) -> Frontier:
        """Make all points, time them in turns, and write the page."""
        original = self.analysis.file
        score = metric_facts(self.data.evaluator("test")(original.proto).score)
        sizes = sizes_of(original.proto, self.analysis.sizes.inputs)
        self.made.append(_Made(str(self.path.name), self.path, "original", "float", sizes, score))
        self._alone(sizes)
        if self._left() > 0:
            target = latency_target(self.analysis, self.environment, self.data, self.settings, self.tell)
        begin: FloatArray | None = None
        whole = 1.0
        shares = np.geomspace(0.85, LEAST, self.n_points).tolist()
        for number, share in enumerate(shares, 1):
            if self._left() <= 0:
                n_done = number - 1 + self._earlier(shares, number)
                if n_done < self.n_points:
                    self.notes.append(
                        f"{n_done} of {self.n_points} points: --minutes ended it; run the same command again to continue"
                    )
                break
            whole = min(target.miss, 1.0) if number == 1 else whole
            begin, off = self._point(target, round(whole * share, 3), number, begin)
            target = replace(target, miss=target.miss * off)
        points = self._timed(seconds)
        found = Frontier(
            points=points,
            advice=advice_of(points),
            notes=[*self.notes, *self._about(points)],
            settings={name: value for name, value in self.settings.flat().items() if name != "latency"},
            environment=environment_versions(self.settings.execution.provider),
            wall_s=round(time.perf_counter() - self.start, 3),
        )
        write_atomically(self.folder / "frontier.json", found.to_json().encode())
        write_atomically(self.folder / "frontier.html", render(found, self.path.name).encode())
        return found

    def _left(self) -> float:
        """Return the minutes that are left."""
        minutes = self.settings.execution.minutes
        return np.inf if minutes is None else minutes - (time.perf_counter() - self.start) / 60

    def _alone(self, sizes: dict[str, int]) -> None:
        """Quantise the original; where that cannot be, all points stay float."""
        self.tell("quantising", {})
        asked = self.settings.sparsity.precision
        for precision, name in (("int8", INT8), ("mixed", MIXED)):
            if precision not in ("int8", asked):
                continue
            try:
                exact = quantised(self.analysis.file.proto, self.data, self.settings.but(precision=precision))
            except ModelError as error:
                self.notes.append(f"nothing is quantised: {error}")
                self.settings = self.settings.but(precision="float")
                return
            assert exact is not None
            self.notes += [
                f"stays float, since onnxruntime refuses it in int8: {node}"
                for node in exact.why_float
                if precision == asked
            ]
            self.notes += division_lines([asdict(one) for one in exact.tried], exact.stays)
            if any(one.is_taken and one.kind != precision for one in exact.tried):
                continue  # mixed precision is float or int8 alone
            model, _ = stamped(exact.model)
            write_files(model, {}, self.folder / name)
            score = metric_facts(self.data.evaluator("test")(model).score)
            facts = {**sizes, "file_bytes": model_bytes(model)}
            self.made.append(_Made(name, self.folder / name, f"{precision} alone", precision, facts, score))

    def _point(
        self, target: Target, share: float, number: int, begin: FloatArray | None
    ) -> tuple[FloatArray | None, float]:
        """Search within a share of the original's time; return the keep ratios found, for the next one to begin at, and what was
        measured over what was predicted."""
        path = self.folder / f"pruned-{number}.onnx"
        settings = self.settings.but(latency=share)
        self.tell("point", {"number": number, "n": self.n_points, "share": share})
        report = self._known(path, settings)
        if report is None:
            left = self._left()
            if np.isfinite(left):
                settings = settings.but(minutes=max(left / (self.n_points - number + 1), 0.01))
            journal = run_folder(path) / "journal.jsonl"
            if journal.is_file():
                settings = settings.but(resume=True)
            aim = replace(target, share=share)
            try:
                environment = reachable(self.environment, aim, self.analysis, self.data, settings, tell=self.tell)
                with _journal(self.analysis, self.data, settings, path, self.tell, aim.table) as log:
                    report = _searched(
                        self.analysis, environment, aim, self.data, settings, path, log, time.perf_counter(), self.tell,
                        begin=begin, is_settled=False,
                    ).report  # fmt: skip
            except BudgetError as error:
                self.notes.append(f"point {number}: {error}")
                return begin, 1.0
        self._note(path, report)
        kept = {group.name: group.kept / group.units for group in report.groups}
        measured, predicted = report.target.reached, report.target.predicted
        off = float(np.clip(measured / predicted, 0.5, 2.0)) if predicted else 1.0
        return np.array([kept[group.name] for group in self.environment.channels.groups]), off

    def _earlier(self, shares: Sequence[float], first: int) -> int:
        """Add the points from a number on that earlier calls made, where there is no time for others; return how many."""
        found = 0
        for number, share in enumerate(shares[first - 1 :], first):
            path = self.folder / f"pruned-{number}.onnx"
            report = self._known(path, self.settings.but(latency=share), near=1.0)
            if report is not None:
                self._note(path, report)
                found += 1
        return found

    def _known(self, path: Path, settings: CompressOptions, near: float = 0.1) -> Report | None:
        """Return the report of a point that an earlier call made of the same model, options and, about, share."""
        if not output_files(path)["report"].is_file() or not path.is_file():
            return None
        report = read_report(output_files(path)["report"])
        rest = {*NOT_IN_JOURNAL, "latency"}
        mine = {name: value for name, value in settings.flat().items() if name not in rest}
        same = all(_plain(report.settings.get(name)) == _plain(value) for name, value in mine.items())
        is_near = abs(report.settings.get("latency", 0) - settings.budget.latency) < near
        return report if same and is_near and report.model.sha256 == self.analysis.file.sha256 else None

    def _note(self, path: Path, report: Report) -> None:
        """Add a point's models."""
        side, exact = report.compressed, report.precision
        sizes = {"macs": side.macs, "params": side.params}
        if exact is not None:
            twin = twin_of(path)
            self.made.append(
                _Made(
                    twin.name,
                    twin,
                    "pruned",
                    "float",
                    {**sizes, "file_bytes": exact.twin.file_bytes},
                    exact.twin.metric,
                )
            )
        precision = "float" if exact is None else exact.asked
        kind = "pruned" if exact is None else f"pruned and {exact.asked}"
        self.made.append(_Made(path.name, path, kind, precision, {**sizes, "file_bytes": side.file_bytes}, side.metric))

    def _timed(self, seconds: float) -> list[Point]:
        """Time all models in turns."""
        self.tell("timing all", {"n": len(self.made)})
        models: list[onnx.ModelProto] = [read_model(one.path).proto for one in self.made]
        feeds = self.data.role("test").take(8).feeds(1)
        here = self.settings.execution
        times: list[Latency] = compare(models, feeds, threads=here.threads, seconds=seconds, provider=here.provider)
        first = self.made[0].metric.value
        by_cpu = ratio(times[0], times[0]).cpu is not None
        each = [one.cpu_p10 if by_cpu else one.p50 for one in times]
        return [
            Point(
                file=one.file,
                kind=one.kind,
                precision=one.precision,
                latency_ms=ms,
                time=ms / each[0],
                metric=one.metric,
                lost=first - one.metric.value,
                **one.sizes,
            )
            for one, ms in zip(self.made, each, strict=True)
        ]

    def _about(self, points: list[Point]) -> list[str]:
        """Return what has to be known of the numbers."""
        found = []
        if any(one.precision != "float" for one in points) and not has_vnni():
            found.append(
                "this processor has no int8 dot products (VNNI): int8 gains less here than on one that has them, and weights"
                " have 7 bits"
            )
        interval = points[0].metric.interval
        if interval is not None and None not in interval and interval[1] - interval[0] > 4:
            found.append(f"{points[0].metric.n:,} test samples: differences of a point or two may be chance")
        return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
