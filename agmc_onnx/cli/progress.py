"""How far a run is: a bar on stderr where that is a terminal, lines where --verbose was given."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agmc_onnx.cli.words import is_verbose, note

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A progress bar with the time left, on stderr where that is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        """Show nothing where `quiet`, where stderr is no terminal, or where lines are said instead."""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._is_shown = not quiet and not is_verbose() and sys.stderr.isatty()

    def __enter__(self) -> Bar:
        """Start the bar."""
        if self._is_shown:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[best]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("reading the model", total=None, best="")
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def update(self, text: str, done: int | None = None, total: int | None = None, best: str = "") -> None:
        """Show how much of what is done; without `done` only that it is being done."""
        if self._progress is None or self._task is None:
            return
        if done is None or done <= 1:  # another stage: its speed says nothing of the one before
            self._progress.reset(self._task, total=total, description=text, completed=done or 0, best=best)
        else:
            self._progress.update(self._task, description=text, completed=done, total=total, best=best)


class Episodes(Bar):
    """The progress of a search and of what comes after it."""

    def __init__(self, quiet: bool = False, minutes: float | None = None) -> None:
        """As `Bar`; a search ends after so many minutes."""
        super().__init__(quiet)
        self.n_episodes = 0
        self._minutes = minutes
        self._best = float("-inf")
        self._metric = 0.0
        self._start = time.monotonic()

    def __enter__(self) -> Episodes:
        """Start the bar."""
        super().__enter__()
        return self

    def __call__(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Take what `compress` tells of its progress."""
        if stage == "episode":
            self.n_episodes = facts["n_episodes"]
            if facts["reward"] > self._best:
                self._best, self._metric = facts["reward"], facts["metric"]
            done = facts["episode"] + 1
            best = f"best reward {self._best:.2f}, metric {self._metric:.2f}"
            gone = time.monotonic() - self._start
            n = self.n_episodes
            if self._minutes is not None:  # as many as there will be time for
                n = max(done, min(n, round(done * 60 * self._minutes / max(gone, 1e-3))))
            self.update(f"episode {done}/{n}", done, n, best)
            left = gone / done * (n - done)
            note(
                f"episode {done}/{n}: reward {facts['reward']:.2f}, metric {facts['metric']:.2f}; {best};"
                f" about {_duration(left)} left"
            )
        elif stage == "analysed":
            self._start = time.monotonic()
            self.update(f"{facts['groups']} groups, first episode")
            note(f"analysed: {facts['groups']} groups, {facts['macs']:,} multiply-adds")
        elif stage == "distilling":
            self.update(f"distilling, step {facts['step']}/{facts['n_steps']}", facts["step"], facts["n_steps"])
            if facts["step"] % max(1, facts["n_steps"] // 10) == 0:
                note(f"distilling: step {facts['step']}/{facts['n_steps']}")
        elif stage != "done":
            self.update(stage)
            note(f"{stage}, {_duration(time.monotonic() - self._start)} after the analysis")


class Steps(Bar):
    """The progress of fine-tuning."""

    def __enter__(self) -> Steps:
        """Start the bar."""
        super().__enter__()
        return self

    def __call__(self, step: int, n_steps: int, facts: Mapping[str, float]) -> None:
        """Take what `finetune` tells of its progress."""
        words = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
        self.update(f"step {step}/{n_steps}", step, n_steps, words)
        if "reward" in facts or step % max(1, n_steps // 10) == 0:
            note(f"step {step}/{n_steps}: {words}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
