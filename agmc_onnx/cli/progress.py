"""The progress bar of a search."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Episodes:
    """The progress bar of a search, on stderr where that is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        """Show nothing where `quiet`, or where stderr is no terminal."""
        self.n_episodes = 0
        self._best = float("-inf")
        self._metric = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._is_shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Episodes:
        """Start the bar."""
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            best = TextColumn("{task.fields[best]}")
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                best,
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

    def __call__(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Take what `compress` tells of its progress."""
        if stage == "episode":
            self.n_episodes = facts["n_episodes"]
            if facts["reward"] > self._best:
                self._best, self._metric = facts["reward"], facts["metric"]
        if self._progress is None or self._task is None:
            return
        best = f"best reward {self._best:.2f}, metric {self._metric:.2f}"
        if stage == "episode":
            done = facts["episode"] + 1
            text = f"episode {done}/{self.n_episodes}"
            self._progress.update(self._task, description=text, completed=done, total=self.n_episodes, best=best)
        elif stage == "analysed":
            self._progress.update(self._task, description=f"{facts['groups']} groups, first episode")
        elif stage != "done":
            self._progress.update(self._task, description=stage, best=best if self.n_episodes else "")
