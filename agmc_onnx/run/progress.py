"""What a run tells while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Progress = Callable[[str, Mapping[str, Any]], None]  # the stage that has begun, and its facts
