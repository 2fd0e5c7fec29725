"""How far a command is: one line on a terminal or in a notebook, a line every ten seconds elsewhere, with the time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY = 10.0  # seconds between lines where there is no terminal
LATE = 1.1  # of what was expected
IN_SECONDS = 120  # below it, a time that is left is told to the second
AGAIN = 1.0  # seconds after which a terminal shows anew what is left
STAGES = ("candidates", "finalists", "distilling", "timing", "verifying", "measuring")
Say = Callable[[str], None]


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def duration(seconds: float) -> str:
    """Return a time as it is read: "2 h 5 min", "3 min 20 s", "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Line:
    """One line of progress; a context manager.

    Attributes:
        text: What runs, and what comes next.
    """

    def __init__(self, quiet: bool = False, note: Say | None = None, stream: TextIO | None = None) -> None:
        """Show nothing where `quiet`; hand lines to `note` where one is given, else to a terminal or a stream."""
        self.text = "reading the model"
        self._quiet, self._note, self._stream = quiet, note, stream or sys.stderr
        self._is_live = not quiet and note is None and (in_notebook() or self._stream.isatty())
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stop = threading.Event()
        self._timer: threading.Thread | None = None

    def __enter__(self) -> Any:
        """Begin to show it."""
        if self._is_live:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.table import Column

            text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            columns = (SpinnerColumn(), TimeElapsedColumn(), text)  # what is narrow cuts off the end
            console = Console() if in_notebook() else Console(file=self._stream)
            self._progress = Progress(*columns, console=console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self.text, total=None)
        if not self._quiet and self._note is None:
            self._timer = threading.Thread(target=self._tick, daemon=True)
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it."""
        self._stop.set()
        if self._timer is not None:
            self._timer.join()
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Say something that stays."""
        if self._quiet:
            return
        if self._note is not None:
            self._note(text)
        elif self._progress is not None:
            self._progress.console.print(text, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    def note(self, text: str) -> None:
        """Say something where every step is wanted."""
        if self._note is not None:
            self._note(text)

    def update(self, text: str) -> None:
        """Show what runs; a terminal that is too narrow leaves out the end."""
        self.text = text
        self._shown()

    def now(self) -> str:
        """Return what is shown at this moment."""
        return self.text

    def _shown(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=self.now())

    def _tick(self) -> None:
        while not self._stop.wait(EVERY if self._progress is None else AGAIN):
            if self._progress is None:
                self._write(self.now())
            else:
                self._shown()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(f"agmc-onnx: {text}\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody is left to read it
            self._stop.set()


class Episodes(Line):
    """The progress of `compress`: the search, and all that comes after it."""

    def __init__(self, quiet: bool = False, note: Say | None = None, stream: TextIO | None = None) -> None:
        """As `Line`."""
        super().__init__(quiet, note, stream)
        self.n_episodes = 0
        self._begun = time.monotonic()
        self._stages: dict[str, list[float]] = {}  # stage -> [how many are left, seconds each]
        self._parts = ("", "")  # what is shown before and behind the time that is left
        self._since = self._begun
        self._best, self._metric = float("-inf"), 0.0
        self._point = ""  # of a frontier, which has a search for each
        self._points, self._each = 0, 0.0  # points behind it, and the seconds that one is expected to take
        self._measured = ("", 0.0)  # what is measured before candidates, and since when

    def __enter__(self) -> Episodes:
        """Begin to show it."""
        super().__enter__()
        return self

    def __call__(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Take what `compress` tells of its progress."""
        handler = {
            "analysed": self._analysed, "planned": self._planned, "episode": self._episode, "finalist": self._finalist,
            "distilling": self._distilling, "preparing": self._preparing, "point": self._point_begins,
        }.get(stage)  # fmt: skip
        if handler is not None:
            handler(facts)
        elif stage not in ("done", "journal", "recovering"):
            self._begin(stage)
            self._show(stage)
            self.note(f"{stage}, {duration(time.monotonic() - self._begun)} after the start")

    def left(self) -> float | None:
        """Return the seconds that are left over all stages; None while nothing is known.

        What runs counts down to nothing; where it takes longer than expected, what comes behind it is still to come.
        """
        coming = [(n, seconds) for n, seconds in list(self._stages.values()) if n]
        if not self._stages:
            return (self._points + 1) * self._each or None
        gone = min(time.monotonic() - self._since, coming[0][1]) if coming else 0.0
        return sum(n * seconds for n, seconds in coming) - gone + self._points * self._each

    def _point_begins(self, facts: Mapping[str, Any]) -> None:
        """Forget the search before; until the next one is planned, it is expected to take as long."""
        self._point, self._points = f"point {facts['number']} of {facts['n']}", facts["n"] - facts["number"]
        self._stages, self._best = {}, float("-inf")
        self._show("")
        self.note(self._point)

    def _analysed(self, facts: Mapping[str, Any]) -> None:
        self._parts = ("", "")
        self.update(f"{facts['groups']} groups; measuring what the search needs, then candidates")
        self.note(f"analysed: {facts['groups']} groups, {facts['macs']:,} MACs")

    def _preparing(self, facts: Mapping[str, Any]) -> None:
        """Say what is measured before candidates, how far that is, and when it ends by what it took so far."""
        what, done, n = facts["what"], facts["done"], facts["n"]
        now = time.monotonic()
        if what != self._measured[0]:
            self._measured = what, now
            self.note(f"measuring {what}")
        each = (now - self._measured[1]) / max(done, 1)
        far = f" {done}/{n}" if n else f", {done} so far" if done else ""
        left = f" ({duration(each * (n - done))} left)" if n and done else ""
        self._parts = ("", "")
        self.update(f"measuring {what}{far}{left}, then candidates")

    def _planned(self, facts: Mapping[str, Any]) -> None:
        self._stages = {name: [n, seconds] for name, (n, seconds) in facts["stages"].items()}
        self._since = time.monotonic()
        self._each = sum(n * seconds for n, seconds in self._stages.values())
        gone, left = self._since - self._begun, self.left() or 0.0
        if gone + left >= EVERY or self._note is not None:
            parts = [
                f"{n} {name} of {seconds:.1f} s" if n > 1 else f"{name} {duration(seconds)}"
                for name, (n, seconds) in facts["stages"].items()
            ]
            self.say(f"about {duration(gone + left)} in all, {duration(gone)} so far: {', '.join(parts)}")

    def _episode(self, facts: Mapping[str, Any]) -> None:
        self.n_episodes = facts["n_episodes"]
        if facts["reward"] > self._best:
            self._best, self._metric = facts["reward"], facts["metric"]
        done = facts["episode"] + 1
        self._done("candidates", facts.get("wall_s"))
        if "candidates" in self._stages:
            self._stages["candidates"][0] = facts["n_left"]
        best = f"best reward {self._best:.2f}, metric {self._metric:.2f}"
        self._show(f"candidate {done}/{self.n_episodes}", "finalists", f"best metric {self._metric:.2f}")
        now = f"reward {facts['reward']:.2f}, metric {facts['metric']:.2f}"
        self.note(f"episode {done}/{self.n_episodes}: {now}; {best}{self._left_text()}")

    def _finalist(self, facts: Mapping[str, Any]) -> None:
        if facts["place"] == 0:
            self._begin("finalists")
        else:
            self._done("finalists", None)
        if "finalists" in self._stages:
            self._stages["finalists"][0] = facts["n"] - facts["place"]
        self._show(f"finalist {facts['place'] + 1}/{facts['n']}", "verifying")
        self.note(f"finalist {facts['place'] + 1}/{facts['n']}{self._left_text()}")

    def _distilling(self, facts: Mapping[str, Any]) -> None:
        step, n = facts["step"], facts["n_steps"]
        if step <= 1:
            self._begin("distilling")
            self._step_since = time.monotonic()
        elif self._stages:
            each = (time.monotonic() - self._step_since) / (step - 1)
            self._stages["distilling"], self._since = [n - step, each], time.monotonic()
        self._show(f"distilling, step {step}/{n}", "verifying")
        if step % max(1, n // 10) == 0:
            self.note(f"distilling: step {step}/{n}{self._left_text()}")

    def _begin(self, stage: str) -> None:
        """Forget the stages before one; what they were expected to take they have taken."""
        if stage in STAGES:
            for name in STAGES[: STAGES.index(stage)]:
                self._stages.pop(name, None)
        self._since = time.monotonic()

    def _done(self, stage: str, seconds: float | None) -> None:
        """Count one of a stage as done, and expect of the others what it took."""
        if stage not in self._stages:
            return
        now = time.monotonic()
        n, each = self._stages[stage]
        took, new = (now - self._since, 0.5) if seconds is None else (seconds, 0.2)
        self._stages[stage], self._since = [max(n - 1, 0), (1 - new) * each + new * took], now

    def _left_text(self) -> str:
        left = self.left()
        if left is None:
            return ""
        about = duration(left if left < IN_SECONDS else 60 * round(left / 60)).removesuffix(" 0 s")
        if self._is_late():
            return "; it takes longer than expected" + (f", then about {about}" if left >= 1 else "")
        return f"; about {about} left"

    def _is_late(self) -> bool:
        """Whether what runs has taken longer than was expected of it."""
        seconds = next((seconds for n, seconds in list(self._stages.values()) if n), None)
        return seconds is not None and time.monotonic() - self._since > LATE * seconds + 1

    def _show(self, text: str, following: str = "", best: str = "") -> None:
        text = ": ".join(part for part in (self._point, text) if part)
        self._parts = f"{text}{f', then {following}' if following else ''}", f"; {best}" if best else ""
        self.update(self.now())

    def now(self) -> str:
        """Return what is shown at this moment, with the time that is left now."""
        text, best = self._parts
        return f"{text}{self._left_text()}{best}" if text else self.text


class Steps(Line):
    """The progress of fine-tuning."""

    def __enter__(self) -> Steps:
        """Begin to show it."""
        self._begun = time.monotonic()
        super().__enter__()
        return self

    def __call__(self, step: int, n_steps: int, facts: Mapping[str, float]) -> None:
        """Take what `finetune` tells of its progress."""
        words = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
        left = (time.monotonic() - self._begun) / max(step, 1) * (n_steps - step)
        self.update(f"step {step}/{n_steps}, {words}; about {duration(left)} left")
        if "reward" in facts or step % max(1, n_steps // 10) == 0:
            self.note(f"step {step}/{n_steps}: {words}")


class Counted(Line):
    """The progress of what is so many times the same."""

    def __init__(self, what: str, quiet: bool = False, note: Say | None = None, stream: TextIO | None = None) -> None:
        """As `Line`, of what is done."""
        super().__init__(quiet, note, stream)
        self._what, self._begun = what, time.monotonic()

    def __call__(self, done: int, n: int) -> None:
        """Take how many of all are done."""
        left = (time.monotonic() - self._begun) / max(done, 1) * (n - done)
        self.update(f"{self._what} {done}/{n}; about {duration(left)} left")
        if done % max(1, n // 10) == 0:
            self.note(self.text)
