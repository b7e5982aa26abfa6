"""Files on disk: where downloads are kept, and how files are written and read.

A file is written whole or not at all. A path may come from a stranger: a checkpoint
says where the text of its run was. So whatever is read is opened by `opened`, which
takes nothing but a regular file that stays as it is while it is read.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import platformdirs

from fbt._text import in_a_line

if sys.platform != "win32":
    import fcntl

CACHE_VARIABLE = "FBT_CACHE"
LARGEST = 2**32  # bytes of a file


def cache_folder() -> Path:
    """Return the folder in which downloads are kept, without creating it.

    Returns:
        The folder named by the environment variable `FBT_CACHE` where that is set and not empty (a leading
        `~` is expanded); otherwise the user's cache folder for `fbt` on this operating system.

    Raises:
        ValueError: the variable names the home of a user who is not there.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{CACHE_VARIABLE} must name a folder, got {chosen!r}: {error}") from error
    return Path(platformdirs.user_cache_dir("fbt", appauthor=False))


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def writing_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only once everything in it is safe on disk.

    The bytes go to a temporary file in the same folder, which then replaces `path` in one step. A reader, or
    another process writing the same file, sees the old file or the new one, never a part of either. A process
    killed while writing leaves its temporary file behind; the next one to write `path` removes it first.

    Args:
        path: the file to write; missing parent folders are created.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: the folder cannot be created or the file cannot be written; the message names `path`.
            Whatever is raised, here or in the caller's block, the temporary file is removed and `path` is
            left as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary: Path | None = None
    try:
        with _temporary(target) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                temporary.replace(target)  # before the lock goes with the open file
        if sys.platform == "win32":
            temporary.replace(target)  # which Windows refuses for an open file
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        # What the system says of a write, or of the temporary file, is said of the file that was wanted.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _temporary(target: Path) -> IO[bytes]:
    """A new file beside `target`, locked as long as its writer lives: `_remove_leftovers` lets it be."""
    while True:
        # Opened by name rather than with tempfile, whose files nobody but their owner may read.
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        try:
            file = path.open("xb")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # taken for a leftover in the moment before it was locked


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of writers that were killed; one that lives has locked its own.

    Where there are no such locks, as on Windows, they stay.
    """
    if sys.platform == "win32":
        return
    for path in target.parent.glob(f".{glob.escape(target.name)}.{'?' * 16}.part"):
        with suppress(OSError), path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


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


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading, and check that nobody changes it meanwhile.

    If another file takes its name, the block reads the old one to the end.

    Args:
        path: the file. Anything else is refused and, unless it takes the file's place
            at this very moment, not even opened: opening a device may make it act.

    Yields:
        The file, open for reading bytes.

    Raises:
        ValueError: if the size or the time of the last change is another after the
            block than before it; also in place of what the block made of such a file.
        OSError: if the file does not exist, cannot be read or is not a regular file.
    """
    _check_regular(path, path.stat())
    # Without O_NONBLOCK opening a pipe waits for a writer; no terminal becomes that
    # of this process.
    extra = ("O_NONBLOCK", "O_NOCTTY", "O_BINARY")
    flags = sum(getattr(os, name, 0) for name in extra)
    with os.fdopen(os.open(path, os.O_RDONLY | flags), "rb") as file:
        before = os.fstat(file.fileno())
        _check_regular(path, before)

        def check_unchanged() -> None:
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise ValueError(
                    f"{named(path)} was changed while it was read: read it again once it is whole"
                )

        try:
            yield file
        except Exception:
            check_unchanged()
            raise
        check_unchanged()


def _check_regular(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """Return what a regular file holds.

    Args:
        path: the file.
        largest: the number of bytes it may have, checked before memory is taken. Of a
            file of the system whose size is said to be 0, as under /proc, nothing is
            read.

    Raises:
        ValueError: if it is larger, or was changed while it was read.
        OSError: as for `opened`.
    """
    with opened(path) as file:
        check_size(path, size := os.fstat(file.fileno()).st_size, largest)
        return file.read(size)


def check_size(path: Path, size: int, largest: int) -> None:
    """Raise a ValueError unless a file of this size may be read."""
    if size > largest:
        raise ValueError(f"{named(path)} must have at most {largest} bytes, got {size}")


def named(path: str | os.PathLike[str]) -> str:
    """The path as a message gives it, in one line whatever characters it has."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)


@contextmanager
def naming(path: Path, kind: str) -> Iterator[None]:
    """Say of whatever turns out to be wrong in the caller's block that this file is no `kind`.

    Raises:
        ValueError: in place of the TypeError or ValueError that the block raised.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = in_a_line(str(error))
        raise ValueError(f"{named(path)} is not a whole {kind} of this version of fbt: {reason}") from error
