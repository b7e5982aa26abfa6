"""Parse JSON, and clean text from files and servers."""

import json
from dataclasses import MISSING, fields
from typing import Any, TypeVar

LONGEST_LINE = 600  # characters of a message

Kind = TypeVar("Kind")


def one_line(message: str) -> str:
    """Return a message as one short line without control characters."""
    printable = "".join(
        character if character.isprintable() else " " for character in message
    )
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parse_json(name: str, text: str | bytes) -> Any:
    """Return the value of a JSON text, a str or bytes in UTF-8.

    Raises:
        ValueError: if the text is not valid JSON, or an object has a name twice. No
            other error is raised.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_without_duplicates,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} occurs twice in an object")
        values[name] = value
    return values


def dataclass_from(name: str, kind: type[Kind], values: Any) -> Kind:
    """Return a dataclass instance made from a JSON object.

    Args:
        name: of the object in messages.
        kind: the dataclass, which checks the values of its fields.
        values: the parsed JSON object.

    Raises:
        TypeError: if `values` is not a dict, or `kind` raises one.
        ValueError: if a field is missing or unknown, or `kind` raises one.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{name} must be a JSON object, got {type(values).__name__}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for field in values:
        if field not in known:
            allowed = ", ".join(known)
            raise ValueError(
                f"{name} must only have the fields {allowed}, got {field!r}"
            )
    for field in known.values():
        if field.name not in values and field.default is MISSING:
            got = ", ".join(values) or "none"
            raise ValueError(f"{name} must have the field {field.name!r}, got {got}")
    return kind(**values)
