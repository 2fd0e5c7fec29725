"""Candidates measured by actors of a Ray cluster, each with its own copy of the evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import AgmcError, UsageError
from agmc_onnx.search.journal import Errors
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.workers import MAX_TRIES, Evaluate

LOCAL = "local"  # the address that starts Ray on this machine
PATIENCE_S = 20.0  # without any outcome, before it is asked whether the cluster is still there


class RayWorkers:
    """Ray actors that evaluate candidates; one that is lost costs the candidate in its hands a second evaluation, no more.

    Same candidates, same outcomes as in one process: an actor prepares the evaluator as a worker process does. So the
    package, the model and the data must lie at the same paths on every machine of the cluster.
    """

    def __init__(self, address: str, n_workers: int, threads: int, prepare: Callable[[], Evaluate]) -> None:
        """Connect to the cluster.

        Args:
            address: "local" starts Ray on this machine; "auto" finds a running one; else host:port or ray://host:port.
            n_workers: Actors, at least 1.
            threads: Processors that each actor asks for, at least 1.
            prepare: Makes the evaluator, once in every actor; must be picklable.

        Raises:
            UsageError: If Ray is not installed, the cluster is not there, or too small.
        """
        self._ray = connect(address)
        n_free = int(self._ray.cluster_resources().get("CPU", 0))
        if n_free < n_workers * threads:
            self.close()
            raise UsageError(
                f"--ray: too few processors, got {n_free} in the cluster; expected {n_workers * threads} for --workers"
                f" {n_workers} with --threads {threads}. Use fewer --workers."
            )
        self._actor = self._ray.remote(num_cpus=threads, max_restarts=0)(_Actor)
        self._prepare = prepare
        self._idle = [self._actor.remote(prepare) for _ in range(n_workers)]

    def __call__(self, candidates: Sequence[IntArray], *best: Errors) -> Iterator[tuple[int, Outcome]]:
        """Yield (place, outcome) of every candidate, in the order they are done; `best` goes to the evaluator.

        Raises:
            UsageError: If actors are lost again and again over the same candidate, or the whole cluster is.
        """
        ray = self._ray
        left, tries = list(range(len(candidates)))[::-1], [0] * len(candidates)
        running: dict[Any, tuple[int, Any]] = {}
        while left or running:
            while left and self._idle:
                place, actor = left.pop(), self._idle.pop()
                running[actor.evaluate.remote(candidates[place], *best)] = place, actor
            finished, _ = ray.wait(list(running), num_returns=1, timeout=PATIENCE_S)
            if not finished:
                self._check_cluster()
                continue
            done = finished[0]
            place, actor = running.pop(done)
            try:
                outcome = ray.get(done)
            except (
                ray.exceptions.RayTaskError
            ) as error:  # raised by the evaluator itself, which another would raise too
                cause = getattr(error, "cause", None)
                raise (cause if isinstance(cause, AgmcError) else error) from None
            except ray.exceptions.RayError:
                tries[place] += 1
                if tries[place] == MAX_TRIES:
                    raise UsageError(
                        f"--ray: an actor was lost {MAX_TRIES} times over the same candidate; expected it to live. Is there"
                        " memory for all of them? Use fewer --workers."
                    ) from None
                left.append(place)
                self._idle.append(self._actor.remote(self._prepare))
                continue
            self._idle.append(actor)
            yield place, outcome

    def _check_cluster(self) -> None:
        """Raise if no machine of the cluster is alive: Ray would wait for another for ever."""
        try:
            is_alive = any(node["Alive"] for node in self._ray.nodes())
        except Exception:  # what knew the machines is gone too
            is_alive = False
        if not is_alive:
            raise UsageError(
                "--ray: the cluster is gone, got no machine that is alive; expected one. Start it again, and go on with --resume."
            )

    def close(self) -> None:
        """Leave the cluster; actors end, what they were measuring is lost."""
        with suppress(Exception):  # the cluster may be gone
            self._ray.shutdown()


class _Actor:
    """The evaluator, somewhere in the cluster; it is made with the first candidate, so that its errors are told."""

    def __init__(self, prepare: Callable[[], Evaluate]) -> None:
        self._prepare = prepare
        self._evaluate: Evaluate | None = None

    def evaluate(self, kept: IntArray, *best: Errors) -> Outcome:
        if self._evaluate is None:
            self._evaluate = self._prepare()
        return self._evaluate(kept.copy(), *best)  # what Ray hands over is read-only


def connect(address: str) -> Any:
    """Return the `ray` module, connected.

    Raises:
        UsageError: If Ray is not installed or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            f"--ray: got {address!r}, but Ray is not installed; expected the package ray. pip install 'agmc-onnx[ray]'."
        ) from None
    where = {} if address == LOCAL else {"address": address}
    try:
        ray.init(**where, include_dashboard=False if address == LOCAL else None, logging_level=logging.ERROR)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--ray: cannot connect, got {address!r} ({what}); expected 'local', 'auto', host:port or ray://host:port of a"
            " running cluster. Start one with: ray start --head."
        ) from None
    return ray
