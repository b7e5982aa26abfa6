"""The folder of a run: one process writes into it, it stays where it is, and an error says how to go on."""

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderGone(FileNotFoundError):
    """The folder was moved or removed while a run wrote into it."""


@contextmanager
def held(folder: Path | None) -> Iterator[Callable[[], None]]:
    """Hold a folder as the only process that writes a run into it.

    There is no lock file. The lock is on the open folder itself, and the system lets it go with the process,
    however that ends: it cannot be stale. Where there are no such locks (Windows, some network file systems)
    a second process is not refused; files are whole there too, but may be those of the other run.

    Args:
        folder: created if it does not exist; None holds nothing.

    Yields:
        A function to call before writing, which raises `FolderGone` if the path no longer leads to this
        folder: a checkpoint must neither start a new folder where the old one was moved away nor replace
        that of another run there.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be created or opened.
    """
    if folder is None:
        yield lambda: None
        return
    descriptor = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sys.platform != "win32":
            descriptor = os.open(folder, os.O_RDONLY)  # and no new folder takes its number while it is open
        own = folder.stat()
    except OSError as error:
        reason = f"the folder of the run cannot be written ({error.strerror})"
        raise OSError(error.errno, reason, str(folder)) from error

    def check() -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(folder.stat(), own):
                return
        raise FolderGone(errno.ENOENT, "the folder of the run was moved or removed", str(folder))

    try:
        if descriptor is not None:
            _lock(descriptor, folder)
        yield check
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "another process is training into this folder", str(folder)
        ) from error
    except OSError:
        pass  # a file system without locks


def resume_command(folder: str | Path) -> str:
    """What to type to go on with the run in a folder."""
    name = str(folder)
    if name.startswith("-"):  # which would be taken for an option
        name = f"./{name}"
    return f"python -m fbt.training --resume {shlex.quote(name)}"


def advice(error: Exception, folder: Path, saved: int) -> str:
    """What is left of a run that an error stopped, and how to go on.

    Args:
        error: what stopped it.
        folder: where it was saved.
        saved: the step of its last checkpoint.
    """
    kept = f"the checkpoint of step {saved} is as it was"
    if isinstance(error, FloatingPointError):
        return f"in {folder} {kept}; a run with other settings is another one and needs another folder"
    if isinstance(error, FolderGone):
        return f"if it was moved, {kept}; go on with: {resume_command('WHERE-IT-IS-NOW')}"
    full = isinstance(error, OSError) and error.errno in FULL
    when = "once there is room" if full else "once this is mended"
    return f"{kept}; go on {when} with: {resume_command(folder)}"
