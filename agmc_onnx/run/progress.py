"""What a run tells while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from agmc_onnx.refit.options import Counting, Each

T = TypeVar("T")
Progress = Callable[[str, Mapping[str, Any]], None]  # the stage that has begun, and its facts
PREPARING = (
    "preparing"  # the stage of what is measured before candidates, with `what`, `done` and `n`, None where not known
)


def silent(stage: str, facts: Mapping[str, Any]) -> None:
    """Tell nobody."""


def counting(tell: Progress) -> Counting:
    """Return what tells, by what they measure, how far the loops are that come before candidates."""

    def of(what: str) -> Each:
        def each(items: Sequence[T], /) -> Iterable[T]:
            for done, item in enumerate(items):
                tell(PREPARING, {"what": what, "done": done, "n": len(items)})
                yield item

        return each

    return of
