"""Text from elsewhere: read where it is JSON, and made fit to be passed on."""

import json
from typing import Any

LONGEST_LINE = 600  # characters of a message


def in_a_line(message: str) -> str:
    """A message that may quote a file or a server: no line ends, nothing a terminal obeys, not too long."""
    printable = "".join(character if character.isprintable() else " " for character in message)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def well_formed(text: str) -> str:
    """The text with U+FFFD for each half of a character: no page and no message of a kernel can hold one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def parsed(name: str, text: str) -> Any:
    """What a JSON text holds; raises a ValueError and nothing else where Python cannot read it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON that can be read: {error}") from error
