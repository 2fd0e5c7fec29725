"""Candidates measured side by side, in processes that each hold their own copy of the evaluator."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.search.journal import Errors
from agmc_onnx.search.problem import Outcome

MAX_TRIES = 3  # of a candidate whose worker died

Evaluate = Callable[..., Outcome]  # of a candidate and, in a race, the errors of the best


class Workers:
    """Processes that evaluate candidates; one that dies costs the candidates in flight a second evaluation, no more.

    Processes are started afresh (spawn), so they share nothing with this one: no threads, no open files. They ignore
    Ctrl-C, which is this process's to handle, and end when this process is gone, however it ended.
    """

    def __init__(self, n_workers: int, prepare: Callable[[], Evaluate]) -> None:
        """Start nothing yet.

        Args:
            n_workers: Processes, at least 1.
            prepare: Makes the evaluator, once in every process; must be picklable.
        """
        self.n_workers, self._prepare = n_workers, prepare
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, candidates: Sequence[IntArray], *best: Errors) -> Iterator[tuple[int, Outcome]]:
        """Yield (place, outcome) of every candidate, in the order they are done; `best` goes to the evaluator.

        Raises:
            UsageError: If workers die again and again.
        """
        left, n_tries = set(range(len(candidates))), 0
        while left:
            pool = self._started()
            places: dict[Future[Outcome], int] = {}
            try:
                with _ctrl_c_later():  # submitting starts processes, which inherit what is held back, and keep it so
                    for place in sorted(left):
                        places[pool.submit(_evaluate, candidates[place], *best)] = place
                waiting = set(places)
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcome = future.result()
                        left.discard(places[future])
                        yield places[future], outcome
            except BrokenProcessPool:
                self.close()
                n_tries += 1
                if n_tries == MAX_TRIES:
                    raise UsageError(
                        f"--workers: a worker process died {MAX_TRIES} times over the same candidates; expected it to live."
                        " Is there memory for all of them? Use fewer --workers (from Python, start from under"
                        ' `if __name__ == "__main__":`).'
                    ) from None

    def close(self) -> None:
        """End the processes at once; what they were measuring is lost."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with suppress(OSError, ValueError):
                process.kill()
        for process in processes:
            with suppress(OSError, ValueError, AssertionError):
                process.join(5)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.n_workers, context, _start, (self._prepare,))
        return self._pool


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back for a moment, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_prepare: Callable[[], Evaluate] | None = None
_evaluator: Evaluate | None = None


def _start(prepare: Callable[[], Evaluate]) -> None:
    """Begin the life of a worker process; the evaluator is made with the first candidate, so that its errors are told."""
    global _prepare  # noqa: PLW0603 - the state of a worker process
    _prepare = prepare
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and follow it: nobody is left to take a result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _evaluate(kept: IntArray, *best: Errors) -> Outcome:
    """Measure one candidate in a worker process."""
    global _evaluator  # noqa: PLW0603 - the state of a worker process
    if _evaluator is None:
        assert _prepare is not None
        _evaluator = _prepare()
    return _evaluator(kept, *best)
