"""Load the text that a run learns: Tiny Shakespeare, a file, or a string."""

import io
from pathlib import Path

from fbt._checks import shorten
from fbt._files import quoted_path, read_file
from fbt.corpus import load_tiny_shakespeare

LONGEST_NAME = 250  # characters; longer paths can be an error of the system
TINY_SHAKESPEARE = "tiny-shakespeare"


def read_text(text: str | Path | None) -> tuple[str, str | None]:
    """Return a text and its source, as in `Settings.data`."""
    if text is None:
        return load_tiny_shakespeare(), TINY_SHAKESPEARE
    if isinstance(text, str):
        if "\n" not in text and len(text) < LONGEST_NAME and Path(text).is_file():
            raise ValueError(
                "text must be the text itself, got the name of a file, "
                f"{shorten(text)}: pass its Path"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            got = f"{text[error.start]!r} at position {error.start}"
            raise ValueError(
                f"text must not contain surrogates, got {got}"
            ) from error
        return text, None
    source = str(text.resolve())
    try:
        # Skip a byte order mark, and convert line endings.
        return io.TextIOWrapper(
            io.BytesIO(read_file(text)), encoding="utf-8-sig"
        ).read(), source
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"{quoted_path(source)} must be UTF-8, got byte {byte:#04x} at position "
            f"{error.start}"
        ) from error
