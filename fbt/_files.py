"""Files on disk: where downloads are kept, and how files are written and read.

A file is written whole or not at all. A path may come from a stranger: a checkpoint
says where the text of its run was. So whatever is read is opened by `reading_file`, which
takes nothing but a regular file that stays as it is while it is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import platformdirs

from fbt._text import one_line

if sys.platform != "win32":
    import fcntl
    import grp
    import pwd

CACHE_VARIABLE = "FBT_CACHE"
LARGEST = 2**32  # bytes of a file


def cache_folder() -> Path:
    """Return the folder in which downloads are kept, without creating it.

    Returns:
        The folder named by the environment variable `FBT_CACHE` where that is set and
        not empty (a leading `~` is expanded); otherwise the user's cache folder for
        `fbt` on this operating system.

    Raises:
        ValueError: the variable names the home of a user who is not there, or it is
            not set and this user has no home.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise ValueError(
                f"{CACHE_VARIABLE} must name a folder, got {chosen!r}: {error}"
            ) from error
    folder = Path(platformdirs.user_cache_dir("fbt", appauthor=False))
    if folder.parts[0] == "~":  # would be a folder of that name in the current one
        reason = "since this user has no home folder"
        raise ValueError(f"{CACHE_VARIABLE} must name a folder, {reason}")
    return folder


def check_owned(path: Path) -> None:
    """Raise unless a file or folder is this user's or root's and no one else may write.

    A file that is run must pass this check, and so must its folder. A symbolic link
    counts as well as what it points to. Others may write to a folder that has the
    sticky bit, like /tmp: there each user can rename and remove only their own files.

    Raises:
        PermissionError: the path is relative, the owner is someone else, or others
            have the permission to write; the message names the path and the reason.
        OSError: there is nothing at this path.
    """
    if sys.platform == "win32":
        raise PermissionError(f"who may write to {path} is not known on this system")
    if not path.is_absolute():
        raise PermissionError(
            f"{path} depends on the current folder: {CACHE_VARIABLE} must be an absolute path here"
        )
    for info in (path.lstat(), path.stat()):
        if info.st_uid not in (0, os.geteuid()):
            raise PermissionError(
                f"{path} belongs to the user with number {info.st_uid}"
            )
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(info.st_mode) or sticky:
            continue
        if info.st_mode & stat.S_IWOTH:
            raise PermissionError(
                f"{path} is writable for everyone: use 'chmod go-w'"
            )
        private = _is_private(info.st_gid) and not _has_acl(path)
        if info.st_mode & stat.S_IWGRP and not private:
            raise PermissionError(
                f"{path} is writable for its group: use 'chmod g-w'"
            )


def _is_private(group: int) -> bool:
    """Whether a group is this user's own: many systems create a group for each user."""
    try:
        user, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    if user.pw_gid != group or not set(members) <= {user.pw_name}:
        return False
    return all(u.pw_uid == user.pw_uid for u in pwd.getpwall() if u.pw_gid == group)


def _has_acl(path: Path) -> bool:
    """Whether there is an access control list.

    The permission of the group is then the most that any user named in the list has.
    """
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:  # there is none, or the file system has no such lists
        return False


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """As `replacing_file`, after creating missing parent folders."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(Path(path)) as file:
        yield file


@contextmanager
def replacing_file(target: Path, dir_fd: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only once everything in it is safe on disk.

    The bytes go to a temporary file in the same folder, which then replaces `target`
    in one step. A reader, or another process writing the same file, sees the old file
    or the new one, never a part of either. A process killed while writing leaves its
    temporary file behind; the next one to write `target` removes it first.

    Args:
        target: the file to write. If it exists its permission bits are kept; those of
            a new file follow the umask.
        dir_fd: descriptor of the folder to write into, wherever that is now; the rest
            of `target` is then for messages alone. None uses the whole path.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: if there is no such folder or the file cannot be written; the message
            names `target`. Whatever is raised, here or in the caller's block, the
            temporary file is removed and `target` is left as it was.
    """
    _remove_leftovers(target, dir_fd)
    temporary: str | None = None
    try:
        with _temporary(target, dir_fd) as file:
            temporary = file.name
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                # before the lock goes with the open file
                _rename(temporary, target, dir_fd)
        if sys.platform == "win32":
            # which Windows refuses for an open file
            _rename(temporary, target, dir_fd)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
        # What the system says of a write, or of the temporary file, is said of the
        # file that was wanted.
        if (
            isinstance(error, OSError)
            and error.errno
            and error.filename in (None, temporary)
        ):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _relative(target: Path, dir_fd: int | None) -> str:
    """The path of `target` for a call to the system that also takes `dir_fd`."""
    return str(target) if dir_fd is None else target.name


def _rename(temporary: str, target: Path, dir_fd: int | None) -> None:
    os.replace(
        temporary, _relative(target, dir_fd), src_dir_fd=dir_fd, dst_dir_fd=dir_fd
    )


def _permissions(target: Path, dir_fd: int | None) -> int | None:
    """The permission bits of a regular file, or None if there is none, as on Windows."""
    if sys.platform == "win32":
        return None
    try:
        found = os.stat(
            _relative(target, dir_fd), dir_fd=dir_fd, follow_symlinks=False
        )
    except OSError:
        return None
    return found.st_mode & 0o777 if stat.S_ISREG(found.st_mode) else None


def _temporary(target: Path, dir_fd: int | None) -> IO[bytes]:
    """A new file beside `target`, locked as long as its writer lives: `_remove_leftovers` lets it be."""
    kept = _permissions(target, dir_fd)

    def create(path: str, flags: int) -> int:
        # Never open to more readers than `target`, not even while it is empty.
        return os.open(path, flags, 0o666 if kept is None else kept, dir_fd=dir_fd)

    while True:
        # Opened by name rather than with tempfile, whose files nobody but their owner
        # may read.
        name = f".{target.name}.{secrets.token_hex(8)}.part"
        path = _relative(target.with_name(name), dir_fd)
        try:
            file = open(path, "xb", opener=create)  # noqa: SIM115
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        if sys.platform != "win32":
            if kept is not None:
                with suppress(OSError):  # a file system without permissions
                    os.fchmod(file.fileno(), kept)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            os.stat(path, dir_fd=dir_fd)
            return file
        file.close()  # taken for a leftover in the moment before it was locked


def _remove_leftovers(target: Path, dir_fd: int | None) -> None:
    """Remove the temporary files of writers that were killed; one that lives has locked its own.

    Where there are no such locks, as on Windows, they stay.
    """
    if sys.platform == "win32":
        return
    pattern = re.compile(rf"\.{re.escape(target.name)}\..{{16}}\.part", re.DOTALL)
    with suppress(OSError):
        with os.scandir(target.parent if dir_fd is None else dir_fd) as entries:
            names = [entry.name for entry in entries]
        for name in filter(pattern.fullmatch, names):
            _remove_leftover(_relative(target.with_name(name), dir_fd), dir_fd)


def _remove_leftover(path: str, dir_fd: int | None) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):
        # It may be anything: a link is not followed, a pipe is not waited for.
        descriptor = os.open(
            path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path, dir_fd=dir_fd)
        finally:
            os.close(descriptor)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Args:
        path: the file to write; missing parent folders are created.
        data: everything the file is to hold.

    Raises:
        OSError: as for `replacing_file`.
    """
    with writing_file(path) as file:
        file.write(data)


@contextmanager
def reading_file(path: Path) -> Iterator[IO[bytes]]:
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
            if (after.st_size, after.st_mtime_ns) != (
                before.st_size,
                before.st_mtime_ns,
            ):
                raise ValueError(
                    f"{quoted_path(path)} was changed while it was read: read it again once it is whole"
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


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """Return what a regular file holds.

    Args:
        path: the file.
        largest: the number of bytes it may have, checked before memory is taken. Of a
            file of the system whose size is said to be 0, as under /proc, nothing is
            read.

    Raises:
        ValueError: if it is larger, or was changed while it was read.
        OSError: as for `reading_file`.
    """
    with reading_file(path) as file:
        check_size(path, size := os.fstat(file.fileno()).st_size, largest)
        return file.read(size)


def check_size(path: Path, size: int, largest: int) -> None:
    """Raise a ValueError unless a file of this size may be read."""
    if size > largest:
        raise ValueError(
            f"{quoted_path(path)} must have at most {largest} bytes, got {size}"
        )


def quoted_path(path: str | os.PathLike[str]) -> str:
    """The path as a message gives it, in one line whatever characters it has."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)


@contextmanager
def errors_about(path: Path, kind: str) -> Iterator[None]:
    """Say of whatever turns out to be wrong in the caller's block that this file is no `kind`.

    Raises:
        ValueError: in place of the TypeError or ValueError that the block raised.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = one_line(str(error))
        raise ValueError(
            f"{quoted_path(path)} is not a valid {kind} of this version of fbt: {reason}"
        ) from error
