"""The folder of a run, which one process at a time writes into."""

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

from fbt._files import open_descriptor, replacing_file
from fbt._weights import header_of
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE

if sys.platform != "win32":
    import fcntl

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Whether the system can write files relative to an open folder.
RELATIVE = {
    os.open,
    os.stat,
    os.unlink,
    os.rename,
} <= os.supports_dir_fd and os.scandir in os.supports_fd
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows does not have it


class FolderGone(FileNotFoundError):
    """The folder was moved or removed while a run wrote into it."""


class FolderTaken(FileExistsError):
    """Another run was written into the folder."""


class RunFolder:
    """The folder of a run, which one process at a time locks and writes into.

    While the folder is locked, files are written relative to the open folder. If
    another folder takes its path, nothing is written there. Systems that support full
    paths only, such as Windows, check the path before each file instead.

    The lock is on the open folder and ends with the process, so it is never stale.
    Some systems (Windows, some network file systems) do not have such locks. There, a
    process stops if the checkpoint is not the one that it wrote last.

    Args:
        path: the folder, which may contain the checkpoint of a run.

    Attributes:
        path: the folder, as passed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: os.stat_result | None = None  # set while it is locked
        self._descriptor: int | None = None
        self._checkpoint = self._header()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if it does not exist, and lock it.

        Raises:
            BlockingIOError: if another process has locked the folder.
            FolderTaken: if another run wrote into the folder after this object was
                created.
            OSError: if the folder cannot be created or opened.
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
        _LOCKED.add(self)
        try:
            self._lock(self._descriptor)
            if self._header() != self._checkpoint:
                raise self._taken()
            if self._checkpoint is None and self._has(WEIGHTS_FILE):
                raise self._taken()
            yield
        finally:
            self._release()

    def check_unlocked(self) -> None:
        """Check that no process trains into the folder, before its files are read.

        The processes of one run may check it at the same time.

        Raises:
            BlockingIOError: if another process has locked the folder.
        """
        if sys.platform == "win32" or not self.path.is_dir():
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(descriptor, shared=True)
        finally:
            os.close(descriptor)  # which unlocks it

    def check(self) -> None:
        """Check that the folder has not moved and still holds this run.

        Raises:
            FolderGone: if the folder was moved or removed.
            FolderTaken: if another process has written a checkpoint.
            BlockingIOError: if this process has not locked the folder. It may be a
                fork of the process that did.
        """
        if self._identity is None:
            reason = "only the process that locked the folder may write into it"
            raise BlockingIOError(errno.EAGAIN, reason, str(self.path))
        header = self._header()
        try:
            if not os.path.samestat(self.path.stat(), self._identity):
                raise self._gone()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error
        if header not in (None, self._checkpoint):
            raise self._taken()

    def write(self, name: str, data: bytes) -> None:
        """Write a file, completely or not at all.

        Raises:
            FolderGone, FolderTaken, BlockingIOError: as in `check`.
            OSError: if the file cannot be written; the message names it.
        """
        with self.writing(name) as file:
            file.write(data)
        if name == CHECKPOINT_FILE:
            self._checkpoint = header_of(BytesIO(data))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file that replaces `name` when it is complete; see `write`."""
        self.check()
        try:
            with replacing_file(self.path / name, self._dir_fd) as file:
                yield file
        except FileNotFoundError as error:
            raise self._gone() from error

    def append(self, name: str, data: bytes, size: int) -> bool:
        """Append to a file; if the process is killed, a part of the data may remain.

        Args:
            name: the name of the file.
            data: the bytes to append.
            size: the expected size of the file before, in bytes.

        Returns:
            False if nothing was written, because the file cannot be opened, has
            another size, or has more than one hard link. Appending would then also
            change a copy of the folder.

        Raises:
            FolderGone, FolderTaken, BlockingIOError: as in `check`.
            OSError: if the file cannot be written; the message names it.
        """
        self.check()
        try:
            file = self._open(name, os.O_RDWR | NO_FOLLOW)
        except OSError:
            return False
        try:
            with file:
                info = os.fstat(file.fileno())
                is_expected = (info.st_size, info.st_nlink) == (size, 1)
                if not (stat.S_ISREG(info.st_mode) and is_expected):
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
        """Return a note that tells how to continue after an error.

        Args:
            error: the error that ended the run.
            saved: the step of its last checkpoint.
        """
        intact = f"the checkpoint of step {saved} is intact"
        if isinstance(error, FloatingPointError):
            return f"{intact} in {self.path}; for other settings use another folder"
        if isinstance(error, FolderGone):
            command = resume_command("NEW-FOLDER")
            return f"if the folder was moved, {intact}; resume with: {command}"
        if isinstance(error, FolderTaken):
            return f"this run ends; {self.path} now contains the other run"
        is_full = isinstance(error, OSError) and error.errno in DISK_FULL
        when = "once there is free space" if is_full else "once this is fixed"
        return f"{intact}; {when}, resume with: {resume_command(self.path)}"

    @property
    def _dir_fd(self) -> int | None:
        """The folder that names are relative to, or None for full paths."""
        return self._descriptor if RELATIVE else None

    def _relative(self, name: str) -> str:
        return str(self.path / name) if self._dir_fd is None else name

    def _open(self, name: str, flags: int) -> IO[bytes]:
        return open_descriptor(self._relative(name), flags, self._dir_fd)

    def _has(self, name: str) -> bool:
        with suppress(FileNotFoundError):
            os.stat(self._relative(name), dir_fd=self._dir_fd)
            return True
        return False

    def _header(self) -> bytes | None:
        """Return the header of the checkpoint, which identifies it, or None."""
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

    def _lock(self, descriptor: int | None, shared: bool = False) -> None:
        """Lock the open folder if the system has locks."""
        if sys.platform == "win32" or descriptor is None:
            return
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            reason = "another process is training into this folder"
            locked = BlockingIOError(error.errno, reason, str(self.path))
            locked.add_note(_unlock_advice(_lock_owners(descriptor)))
            raise locked from error
        except OSError:
            pass  # a file system without locks

    def _release(self) -> None:
        _LOCKED.discard(self)
        if sys.platform != "win32" and self._descriptor is not None:
            # Closing is not enough if a child process has inherited the descriptor.
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.leave()

    def leave(self) -> None:
        """Close the folder without unlocking it, in a forked child."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self._identity = None

    def _gone(self) -> FolderGone:
        reason = "the folder of the run was moved or removed"
        return FolderGone(errno.ENOENT, reason, str(self.path))

    def _taken(self) -> FolderTaken:
        return FolderTaken(
            f"another process has trained into {self.path} meanwhile: resume its run"
        )


_LOCKED: set[RunFolder] = set()


def _leave_all() -> None:
    """Close all folders in a forked child; the locks belong to its parent."""
    for folder in tuple(_LOCKED):
        folder.leave()
    _LOCKED.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_all)


def _lock_owners(descriptor: int) -> list[int]:
    """Return the processes that have locked an open folder, according to /proc."""
    owners = set()
    with suppress(OSError):
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        for process in Path("/proc").iterdir():
            with suppress(OSError):  # it has ended or belongs to another user
                for number in (process / "fd").iterdir():
                    # Compare names: stat of a network file may wait for the network.
                    if process.name.isdecimal() and number.readlink() == target:
                        details = (process / "fdinfo" / number.name).read_text()
                        if "FLOCK" in details:
                            owners.add(int(process.name))
    return sorted(owners)


def _unlock_advice(owners: list[int]) -> str:
    """Return a note about the processes that have locked a folder."""
    if os.getpid() in owners:
        return "it is this process"
    command = f" with: kill {' '.join(map(str, owners))}" if owners else ""
    return f"if it is left over, for example from a killed torchrun, end it{command}"


def resume_command(folder: str | Path) -> str:
    """Return the shell command that resumes the run in a folder."""
    name = str(folder)
    if name.startswith("-"):  # would be parsed as an option
        name = f"./{name}"
    return f"python -m fbt.training --resume {shlex.quote(name)}"
