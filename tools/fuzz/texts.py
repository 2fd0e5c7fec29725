"""Mutations of plans, cards, journals and tables, and the strange values that are put into them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

INTS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 64, 1000, 2**16, 2**30, 2**31, 2**40, 2**62, 2**63 - 1)
WORDS = (
    "", "x", "w", "y", "a b", "é", "a\nb", "../../up", "/abs", "N" * 300, "%s", "{0}", "\x00", "\x1b[31m", "'", '"',
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 1, 3, 1.5, 1e308, float("nan"), float("inf"), 2**70, "", "x", "2024-01-01", "0:5", [], [1], [[0]],
    {}, {"a": 1},
)  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return JSON with one place changed: dropped, replaced, repeated, or of another type."""
    places: list[tuple[Any, Any]] = []
    value = json.loads(json.dumps(value))

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    what = rng.randrange(5)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node[key], int):
        node[key] = rng.choice(INTS)
    elif what == 2 and isinstance(node, list):
        node.insert(key, node[key])
    elif what == 3 and isinstance(node, dict):
        node[rng.choice(WORDS)] = node.pop(key)
    else:
        node[key] = rng.choice(VALUES)
    return value


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Return a text with a few bytes changed, a line lost or repeated, or its end cut off."""
    raw, what = bytearray(text.encode()), rng.randrange(4)
    if what == 0:
        for _ in range(rng.choice((1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif what == 1:
        del raw[rng.randrange(len(raw)) :]
    else:
        lines = bytes(raw).splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at : at + 1] = [] if what == 2 else [lines[at]] * 2
        raw = bytearray(b"".join(lines))
    return bytes(raw)


def to_toml(table: dict[str, Any]) -> str:
    """Return a table as TOML; what TOML has no word for is written as it stands in JSON."""
    rows = [f"{_key(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            rows += [f"[{_key(name)}]", *(f"{_key(k)} = {json.dumps(v)}" for k, v in inner.items())]
    return "\n".join(rows).replace("NaN", "nan").replace("Infinity", "inf") + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"\w+", name, re.ASCII) else json.dumps(name)
