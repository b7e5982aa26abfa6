"""Text from elsewhere: read where it is JSON, and made fit to be passed on."""

import json
from dataclasses import MISSING, fields
from typing import Any, TypeVar

LONGEST_LINE = 600  # characters of a message

Kind = TypeVar("Kind")


def one_line(message: str) -> str:
    """A message that may quote a file or a server: no line ends, nothing a terminal obeys, not too long."""
    printable = "".join(
        character if character.isprintable() else " " for character in message
    )
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a character: no page and no message of a kernel can hold one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parse_json(name: str, text: str | bytes) -> Any:
    """What a JSON text holds, as bytes in UTF-8.

    Raises:
        ValueError: if Python cannot read it, and nothing else, or if an object in it
            has a name twice.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(), object_pairs_hook=_once
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} occurs twice in an object")
        found[name] = value
    return found


def dataclass_from(name: str, kind: type[Kind], values: Any) -> Kind:
    """An object of a dataclass from what JSON says of its fields.

    Args:
        name: what the object is called in messages.
        kind: the dataclass, which checks its fields itself.
        values: the JSON object, parsed.

    Raises:
        TypeError: if `values` is not a dict, or as `kind` does.
        ValueError: if a field is missing or unknown, or as `kind` does.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{name} must be a JSON object, got {type(values).__name__}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for field in values:
        if field not in known:
            allowed = ", ".join(known)
            raise ValueError(
                f"{name} must have no fields but {allowed}, got {field!r}"
            )
    for field in known.values():
        if field.name not in values and field.default is MISSING:
            got = ", ".join(values) or "none"
            raise ValueError(f"{name} must have the field {field.name!r}, got {got}")
    return kind(**values)
