"""Files on disk: where downloads are kept, and how a file is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

CACHE_VARIABLE = "FBT_CACHE"


def cache_folder() -> Path:
    """Return the folder in which downloads are kept, without creating it.

    Returns:
        The folder named by the environment variable `FBT_CACHE` where that is set and not empty (a leading
        `~` is expanded); otherwise the user's cache folder for `fbt` on this operating system.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("fbt", appauthor=False))


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def writing_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only once everything in it is safe on disk.

    The bytes go to a temporary file in the same folder, which then replaces `path` in one step. A reader, or
    another process writing the same file, sees the old file or the new one, never a part of either.

    Args:
        path: the file to write; missing parent folders are created.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: the folder cannot be created or the file cannot be written. Whatever is raised, here or in
            the caller's block, the temporary file is removed and `path` is left as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Opened by name rather than with tempfile, whose files nobody but their owner may read.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Args:
        path: the file to write; missing parent folders are created.
        data: everything the file is to hold.

    Raises:
        OSError: as for `writing_whole`.
    """
    with writing_whole(path) as file:
        file.write(data)
