"""How long models take, measured side by side so that a busy machine slows all of them alike."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time

import numpy as np
import numpy.typing as npt
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import external_tensors
from agmc_onnx.measuring.session import Model, Run, bound, opened

ROUNDS = 100
MORE_ROUNDS = 400  # where time is limited by seconds
WARMUP = 5
SECONDS = 10.0
MIN_ROUNDS = 5

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Latency:
    """Times of one model, in milliseconds per inference of a whole batch.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        minimum: Fastest; the least noisy one on a shared machine.
        mean_cpu_ms: Processor time, all threads of the process together.
        batch: Samples per inference (the first dim of the first input; 1 where it has none).
        threads: Of onnxruntime.
        n: Number of timed inferences.
        provider: "cpu" or "cuda", as the session says.
        rounds_ms: The times in order of measuring; round i of all models of one `compare` belongs together.
        interval: (low, high) of 95 % confidence of the median, from the order of the times alone.
        cpu_p50: Median processor time.
        cpu_p10: First decile of processor time, which `ratio` compares.
        rounds_cpu_ms: Processor times in order of measuring.
    """

    p50: float
    p90: float
    minimum: float
    mean_cpu_ms: float
    batch: int
    threads: int
    n: int
    provider: str
    rounds_ms: tuple[float, ...] = field(repr=False)
    interval: tuple[float, float] = (float("nan"), float("nan"))
    cpu_p50: float = float("nan")
    cpu_p10: float = float("nan")
    rounds_cpu_ms: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Ratio:
    """Time of one model over that of another; 0.5 means half the time.

    Attributes:
        median: Of the ratios of the rounds.
        minimum: Ratio of the two fastest; on a machine with little load the steadier of the two.
        interval: (low, high) of 95 % confidence of the median.
        cpu: Ratio of the first deciles of processor time; None where that is not comparable: with more threads than one,
            whose waiting counts too, and on another processor.
    """

    median: float
    minimum: float
    interval: tuple[float, float] = (float("nan"), float("nan"))
    cpu: float | None = None

    @property
    def steady(self) -> float:
        """The ratio to decide by: of processor time where there is one thread, since other work does not count there.

        A model against itself on two cores with 15 busy processes: medians of processor time err by 1 % (2 % at most), of
        wall time by 10 % (27 %). The first decile, since on a busy machine most inferences begin with caches full of
        other things, which makes the median of one model against another too large by a tenth. Idle, all agree.
        """
        return self.median if self.cpu is None else self.cpu


def compare(
    models: Sequence[Model | Run],
    feeds: Feed | Sequence[Feed],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    seconds: float = SECONDS,
    provider: str = "cpu",
) -> list[Latency]:
    """Return the latency of each model, measured in turns: A B, then B A, then A B, ...

    A turn is two inferences, the second of which is timed: the first finds the caches full of the other model, as no model
    does that is served alone, and small models lose a larger share by that than large ones.

    Models with weights in other files (read so only where they are large) are measured one after the other, each open only
    while it is: together they would take the memory of both.

    Args:
        models: One or more that take the same feeds, or functions that run one in another runtime.
        feeds: One batch, or several of equal size that take turns; all models get the same one in a round.
        threads: Of onnxruntime; more than 1 is honest only on a machine of one's own.
        rounds: At most so many timed inferences of each model.
        warmup: Untimed inferences of each before.
        seconds: No new round starts after so much time, warm-up excluded, once `MIN_ROUNDS` (or `rounds`) are done.
        provider: As in `make_session`.

    Raises:
        UsageError: If there is no model or feed, a number is out of range, or feeds differ in size.
        ModelError: If a model cannot be loaded or run.
    """
    feeds = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    if not models or not feeds:
        raise UsageError(
            f"latency: nothing to measure, got {len(models)} models, {len(feeds)} feeds; expected 1 or more of both. "
            "Give a model and a feed."
        )
    if rounds < 1 or warmup < 0:
        raise UsageError(
            f"latency: bad rounds, got {rounds} after {warmup}; expected at least 1 after 0. Use {ROUNDS}."
        )
    batches = [_batch_of(feed) for feed in feeds]
    if len(set(batches)) > 1:
        got = ", ".join(str(batch) for batch in sorted(set(batches)))
        raise UsageError(f"latency: batches of different size, got {got}; expected one size. Leave out the last batch.")
    if any(isinstance(model, onnx.ModelProto) and any(True for _ in external_tensors(model)) for model in models):
        parts = [_in_turns(models[:1], feeds, threads, rounds, warmup, seconds / len(models), provider)]
        rounds = parts[0][1].shape[1]  # all have as many as the first
        parts += [_in_turns([one], feeds, threads, rounds, warmup, float("inf"), provider) for one in models[1:]]
        places = [place for part in parts for place in part[0]]
        wall_ms, cpu_ms = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    else:
        places, wall_ms, cpu_ms = _in_turns(models, feeds, threads, rounds, warmup, seconds, provider)
    return [
        Latency(
            p50=float(np.median(times)),
            p90=float(np.percentile(times, 90)),
            minimum=float(times.min()),
            mean_cpu_ms=float(cpu.mean()),
            batch=batches[0],
            threads=threads,
            n=len(times),
            provider=where,
            rounds_ms=tuple(times.tolist()),
            interval=median_interval(times),
            cpu_p50=float(np.median(cpu)),
            cpu_p10=float(np.percentile(cpu, 10)),
            rounds_cpu_ms=tuple(cpu.tolist()),
        )
        for where, times, cpu in zip(places, wall_ms, cpu_ms, strict=True)
    ]


def _in_turns(
    models: Sequence[Model | Run],
    feeds: Sequence[Feed],
    threads: int,
    rounds: int,
    warmup: int,
    seconds: float,
    provider: str,
) -> tuple[list[str], FloatArray, FloatArray]:
    """Return where each model ran, and its times of every round in ms: wall and processor, (n_models, n_rounds)."""
    runs = [opened(model, threads, provider) for model in models]
    runs = [(bound(run, feeds), where) for run, where in runs]
    for run, _ in runs:
        for i in range(warmup):
            run(feeds[i % len(feeds)])
    wall_ms = np.empty((len(models), rounds))
    cpu_ms = np.empty((len(models), rounds))
    was_enabled = gc.isenabled()
    gc.disable()  # a collection in the middle of an inference is not the model's time
    try:
        done, start = 0, perf_counter()
        while done < rounds and (done < MIN_ROUNDS or perf_counter() - start < seconds):
            order = range(len(runs)) if done % 2 == 0 else range(len(runs) - 1, -1, -1)
            for i in order:
                if len(runs) > 1:
                    runs[i][0](feeds[done % len(feeds)])  # not timed: it finds the caches full of the model before
                cpu, wall = process_time(), perf_counter()
                runs[i][0](feeds[done % len(feeds)])
                wall_ms[i, done] = 1000 * (perf_counter() - wall)
                cpu_ms[i, done] = 1000 * (process_time() - cpu)
            done += 1
    finally:
        if was_enabled:
            gc.enable()
    return [where for _, where in runs], wall_ms[:, :done], cpu_ms[:, :done]


def ratio(a: Latency, b: Latency) -> Ratio:
    """Return the time of `a` over that of `b`, both of one `compare`.

    Raises:
        UsageError: If they have not the same number of rounds.
    """
    if a.n != b.n or a.batch != b.batch:
        got = f"{a.n} rounds of batch {a.batch} and {b.n} of batch {b.batch}"
        raise UsageError(f"latency: not measured together, got {got}; expected one compare(). Measure them together.")
    pairs = np.array(a.rounds_ms) / np.array(b.rounds_ms)
    cpu = None
    if a.rounds_cpu_ms and b.rounds_cpu_ms and a.threads == 1 and {a.provider, b.provider} == {"cpu"}:
        cpu = a.cpu_p10 / max(b.cpu_p10, 1e-9)
    return Ratio(float(np.median(pairs)), a.minimum / b.minimum, median_interval(pairs), cpu)


def median_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Return (low, high) of 95 % confidence of the median: order statistics, whatever the distribution.

    The ranks are n/2 -+ 1.96 sqrt(n)/2 (Conover 1999, sec. 3.2); with fewer than 6 values the range of them all.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    half = 0.98 * np.sqrt(n)
    low, high = max(int(np.floor(n / 2 - half)), 0), min(int(np.ceil(n / 2 + half)), n - 1)
    return (float(ordered[low]), float(ordered[high])) if n >= 6 else (float(ordered[0]), float(ordered[-1]))


def _batch_of(feed: Feed) -> int:
    first = next(iter(feed.values()), np.empty(0))
    return int(first.shape[0]) if first.ndim else 1
