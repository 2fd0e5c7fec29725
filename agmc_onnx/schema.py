"""What files hold, said once: frozen dataclasses that read as mappings, checked by msgspec when they come from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import msgspec

from agmc_onnx.errors import AgmcError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0)]
RARE = {"rare": True}  # metadata of a field that is left out of the mapping, and so of the file, where it is None


class Record(Mapping[str, Any]):
    """Base of frozen dataclasses that read as the mapping they are written as: `report.target.keep`, `report["target"]["keep"]`.

    Make them with `@dataclass(frozen=True, eq=False)`: records are equal as mappings are.
    """

    def _names(self) -> list[str]:
        return [f.name for f in fields(self) if not (f.metadata.get("rare") and getattr(self, f.name) is None)]  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self._names():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.to_dict() == _plain(other)

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.to_dict(), **other}

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain dicts and lists, as JSON has it."""
        return {name: _plain(value) for name, value in self.items()}

    def to_json(self) -> str:
        """Return the record as the text of its file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def parse(raw: bytes, where: object, kind: str, todo: str, error: type[AgmcError]) -> dict[str, Any]:
    """Return the object of a JSON file.

    Args:
        raw: The file's bytes.
        where: How the error names the file.
        kind: What it should be ("a plan").
        todo: What to do where it is not.
        error: What is raised.

    Raises:
        AgmcError: The `error`, if it is not UTF-8, not JSON, nested too deep, or no object.
    """
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as problem:  # UnicodeDecodeError is a ValueError
        raise error(f"{where}: not JSON ({_line(problem)}); expected {kind}. {todo}") from None
    if not isinstance(found, dict):
        raise error(f"{where}: not {kind}, got {type(found).__name__}; expected a JSON object. {todo}")
    return found


def checked(found: Any, schema: type[T], where: object, kind: str, todo: str, error: type[AgmcError]) -> T:
    """Return plain data as its schema has it.

    Raises:
        AgmcError: The `error`, with the place in the file, if the data is not what the schema says.
    """
    try:
        return msgspec.convert(found, schema)
    except (msgspec.ValidationError, RecursionError) as problem:
        wrong, _, place = str(problem).partition(" - at ")
        place = place.strip("`").removeprefix("$").removeprefix(".")
        said = f"{place}: {wrong[:1].lower()}{wrong[1:]}" if place else f"{wrong[:1].lower()}{wrong[1:]}"
        raise error(f"{where}: not {kind}, {said}. {todo}") from None


def _line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:120]
