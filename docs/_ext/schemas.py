"""Writes the tables of fields in docs/*.md from the schemas that files are read with: `python docs/_ext/schemas.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

DOCS = Path(__file__).parents[1]
PLACE = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.S)
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", NoneType: "null", Any: "any"}


def schemas() -> dict[str, type]:
    """Return the schemas by the names that pages use."""
    from agmc_onnx.data.card import CardFile
    from agmc_onnx.latency.tables import TableFile
    from agmc_onnx.pruning.plan import PlanFile
    from agmc_onnx.reporting.frontier import Frontier
    from agmc_onnx.reporting.schema import Report
    from agmc_onnx.search.journal import Evaluation

    runs = {"report": Report, "plan": PlanFile, "journal": Evaluation, "frontier": Frontier}
    return {**runs, "table": TableFile, "card": CardFile}


def written(text: str) -> str:
    """Return a page with its tables made anew."""
    known = schemas()

    def table(match: re.Match[str]) -> str:
        rows = "\n".join(f"| {' | '.join(row)} |" for row in _rows(known[match[2]], ""))
        return f"{match[1]}\n| field | is | what |\n| --- | --- | --- |\n{rows}\n\n{match[3]}"

    return PLACE.sub(table, text)


def _rows(schema: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    hints = get_type_hints(schema, include_extras=True)
    for field in fields(schema):
        name, kind = f"{prefix}{field.name}", hints[field.name]
        is_needed = field.default is MISSING and field.default_factory is MISSING
        inner, suffix = _inner(kind)
        what = _described(kind) or (" ".join((inner.__doc__ or "").split("\n\n")[0].split()) if inner else "")
        yield f"`{name}`", _word(kind) + ("" if is_needed else ", optional"), what
        if inner:
            yield from _rows(inner, f"{name}{suffix}.")


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _inner(kind: Any) -> tuple[type | None, str]:
    """Return the schema inside of a type, and how a path leads to it."""
    kind = _bare(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return kind, ""
    for part in get_args(kind):
        found, suffix = _inner(part)
        if found:
            return found, {list: "[]", dict: ".*"}.get(get_origin(kind), "") + suffix
    return None, ""


def _described(kind: Any) -> str:
    metas = [m for m in getattr(kind, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
    text = "; ".join(m.description for m in metas if m.description)
    return text or next((_described(part) for part in get_args(kind) if _described(part)), "")


def _word(kind: Any) -> str:
    kind = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_word(part) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {_several(parts[0])}"
    if origin is tuple:
        return f"list of {_several(parts[0])}" if Ellipsis in parts else f"[{', '.join(_word(part) for part in parts)}]"
    if origin is dict:
        return "object" if parts[1] is Any else f"object of {_several(parts[1])}"
    return WORDS.get(kind, "object")


def _several(kind: Any) -> str:
    word, rest = re.fullmatch(r"(object|list|whole number|number|text|.*?)(| .*)", _word(kind)).groups()  # type: ignore[union-attr]
    return f"{word}s{rest}" if word in ("object", "list", "whole number", "number", "text") else f"{word}{rest}"


def main() -> int:
    """Write the tables of all pages."""
    for page in DOCS.glob("*.md"):
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
