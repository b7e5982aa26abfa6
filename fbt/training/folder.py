"""The folder of a run: one process writes into it, never over files of another run."""

import errno
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO

from fbt._files import replacing_file
from fbt._weights import header_of
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE

if sys.platform != "win32":
    import fcntl

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Whether files can be written relative to an open folder, wherever that is now.
RELATIVE = {
    os.open,
    os.stat,
    os.unlink,
    os.rename,
} <= os.supports_dir_fd and os.scandir in os.supports_fd
# Flags of `os.open` that Windows does not have, or that only Windows has.
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)
WITHOUT_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)
BINARY = getattr(os, "O_BINARY", 0)


class FolderGone(FileNotFoundError):
    """The folder was moved or removed while a run wrote into it."""


class FolderTaken(FileExistsError):
    """Another run was written into the folder."""


class RunFolder:
    """The folder of a run, written by one process at a time.

    While it is held, files are written relative to the open folder: none of them can
    end up in another folder that was put in its place. Where the system only knows
    whole paths, as Windows does, the path is checked before each file.

    The lock is on the open folder itself and ends with the process, so that it cannot
    be stale. Some systems (Windows, some network file systems) have no such locks.
    There a process that finds another checkpoint than the one it wrote last stops.

    Args:
        path: the folder. The checkpoint in it, if there is one, is the state of the
            run.

    Attributes:
        path: the folder, as given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: os.stat_result | None = None  # set while the folder is held
        self._descriptor: int | None = None
        self._checkpoint = self._header()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is created if it does not exist.

        Raises:
            BlockingIOError: if another process holds it.
            FolderTaken: if another run was written into it since this object was
                made.
            OSError: if it cannot be created or opened.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if sys.platform != "win32":
                self._descriptor = os.open(self.path, os.O_RDONLY)
                self._identity = os.fstat(self._descriptor)
            else:
                self._identity = self.path.stat()
        except OSError as error:
            self._release()
            reason = f"the folder of the run cannot be written ({error.strerror})"
            raise OSError(error.errno, reason, str(self.path)) from error
        _HELD.add(self)
        try:
            self._lock()
            if self._header() != self._checkpoint:
                raise self._taken()
            if self._checkpoint is None and self._has(WEIGHTS_FILE):
                raise self._taken()
            yield
        finally:
            self._release()

    def check(self) -> None:
        """Raise unless the path leads to the folder and its checkpoint is this run's.

        Raises:
            FolderGone: if the folder was moved or removed.
            FolderTaken: if another process has written a checkpoint there.
            BlockingIOError: if this process does not hold the folder, as a fork of
                the one that does.
        """
        if self._identity is None:
            reason = "only the process that began the run may write into its folder"
            raise BlockingIOError(errno.EAGAIN, reason, str(self.path))
        found = self._header()
        try:
            if not os.path.samestat(self.path.stat(), self._identity):
                raise self._gone()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error
        if found not in (None, self._checkpoint):
            raise self._taken()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            FolderGone, FolderTaken, BlockingIOError: as in `check`.
            OSError: if it cannot be written; the message names the file.
        """
        with self.writing(name) as file:
            file.write(data)
        if name == CHECKPOINT_FILE:
            self._checkpoint = header_of(BytesIO(data))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that takes its name when it is complete; raises as `write` does."""
        self.check()
        try:
            with replacing_file(self.path / name, self._dir_fd) as file:
                yield file
        except FileNotFoundError as error:
            raise self._gone() from error

    def append(self, name: str, data: bytes, size: int) -> bool:
        """Append to a file of that size; a kill meanwhile may leave a part of the data.

        Args:
            name: the file.
            data: what to append.
            size: its length so far, in bytes.

        Returns:
            False if nothing was written, because the file cannot be opened, has
            another size, or has a second name: a copy of the folder made with links
            would change.

        Raises:
            FolderGone, FolderTaken, BlockingIOError: as in `check`.
            OSError: if it cannot be written; the message names the file.
        """
        self.check()
        try:
            file = self._open(name, os.O_RDWR | WITHOUT_FOLLOWING)
        except OSError:
            return False
        try:
            with file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or (
                    found.st_size,
                    found.st_nlink,
                ) != (size, 1):
                    return False
                file.seek(size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, str(self.path / name)
            ) from error
        return True

    def advice(self, error: Exception, saved: int) -> str:
        """Return what is left of a run that an error stopped, and how to go on.

        Args:
            error: what stopped the run.
            saved: the step of its last checkpoint.
        """
        kept = f"the checkpoint of step {saved} is as it was"
        if isinstance(error, FloatingPointError):
            other = (
                "a run with other settings is another one and needs another folder"
            )
            return f"in {self.path} {kept}; {other}"
        if isinstance(error, FolderGone):
            return f"if it was moved, {kept}; go on with: {resume_command('WHERE-IT-IS-NOW')}"
        if isinstance(error, FolderTaken):
            return (
                f"this run ends here; what is in {self.path} now is the other run's"
            )
        full = isinstance(error, OSError) and error.errno in FULL
        when = "once there is room" if full else "once this is mended"
        return f"{kept}; go on {when} with: {resume_command(self.path)}"

    @property
    def _dir_fd(self) -> int | None:
        """What names are relative to, or None for whole paths."""
        return self._descriptor if RELATIVE else None

    def _relative(self, name: str) -> str:
        return str(self.path / name) if self._dir_fd is None else name

    def _open(self, name: str, flags: int) -> IO[bytes]:
        descriptor = os.open(
            self._relative(name),
            flags | WITHOUT_WAITING | BINARY,
            dir_fd=self._dir_fd,
        )
        return os.fdopen(descriptor, "rb+" if flags & os.O_RDWR else "rb")

    def _has(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            os.stat(self._relative(name), dir_fd=self._dir_fd)
            return True
        return False

    def _header(self) -> bytes | None:
        """The header of the checkpoint, which tells it from any other; None without one."""
        try:
            with self._open(CHECKPOINT_FILE, os.O_RDONLY) as file:
                is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
                return header_of(file) if is_regular else None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, str(self.path / CHECKPOINT_FILE)
            ) from error

    def _lock(self) -> None:
        if sys.platform == "win32" or self._descriptor is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another process is training into this folder"
            refused = BlockingIOError(error.errno, reason, str(self.path))
            refused.add_note(_way_on(_holders(self._descriptor)))
            raise refused from error
        except OSError:
            pass  # a file system without locks

    def _release(self) -> None:
        _HELD.discard(self)
        if sys.platform != "win32" and self._descriptor is not None:
            # to close it is not enough where a child has it too
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.leave()

    def leave(self) -> None:
        """Close the folder but not unlock it: in a forked child, whose parent goes on."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None

    def _gone(self) -> FolderGone:
        reason = "the folder of the run was moved or removed"
        return FolderGone(errno.ENOENT, reason, str(self.path))

    def _taken(self) -> FolderTaken:
        return FolderTaken(
            f"another process has trained into {self.path} meanwhile: resume that run"
        )


_HELD: set[RunFolder] = set()


def _leave_all() -> None:
    """In a forked child: the lock on a folder belongs to the process that trains."""
    for folder in tuple(_HELD):
        folder.leave()
    _HELD.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_all)


def _holders(descriptor: int) -> list[int]:
    """The processes that have locked an open folder, as far as /proc tells."""
    found = set()
    with suppress(OSError):
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # it has ended, or is another user's
                for number in (process / "fd").iterdir():
                    # By name: to look at what else is open may wait for a network.
                    if process.name.isdecimal() and number.readlink() == place:
                        details = (process / "fdinfo" / number.name).read_text()
                        if "FLOCK" in details:
                            found.add(int(process.name))
    return sorted(found)


def _way_on(holders: list[int]) -> str:
    """What can be done about the processes that hold a folder."""
    if os.getpid() in holders:
        return "it is this process itself"
    found = " ".join(map(str, holders))
    command = f" with: kill {found}" if found else ""
    return f"if it was left behind, as by a torchrun that was killed, end it{command}"


def resume_command(folder: str | Path) -> str:
    """What to type to go on with the run in a folder."""
    name = str(folder)
    if name.startswith("-"):  # which would be taken for an option
        name = f"./{name}"
    return f"python -m fbt.training --resume {shlex.quote(name)}"
