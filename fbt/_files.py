"""Read and write files, and find the cache folder.

A file is written completely or not at all. A path may come from an untrusted file: a
checkpoint contains the path of its run's text. So every file is opened for reading by
`reading_file`, which accepts only a regular file that does not change meanwhile.
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
LARGEST = 2**32  # size of a file in bytes


def cache_folder() -> Path:
    """Return the folder for downloads and builds, without creating it.

    Returns:
        The folder named by the environment variable `FBT_CACHE`, with a leading `~`
        expanded. If it is not set or empty, the user's cache folder for `fbt` on this
        operating system.

    Raises:
        ValueError: if the variable refers to the home of an unknown user, or is not
            set and the user has no home.
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
    if folder.parts[0] == "~":  # not expanded
        reason = "since this user has no home folder"
        raise ValueError(f"{CACHE_VARIABLE} must name a folder, {reason}")
    return folder


def check_owned(path: Path) -> None:
    """Raise unless this user or root owns a path and nobody else may write to it.

    A file that is executed must pass this check, and so must its folder. A symbolic
    link is checked as well as its target. Others may write to a folder with the
    sticky bit, like /tmp, where users can rename and remove only their own files.

    Raises:
        PermissionError: if the path is relative, someone else owns it, or others may
            write to it. The message gives the path and the reason.
        OSError: if the path does not exist.
    """
    if sys.platform == "win32":
        raise PermissionError(f"cannot tell who may write to {path} on this system")
    if not path.is_absolute():
        raise PermissionError(
            f"{path} depends on the current folder: {CACHE_VARIABLE} must be an "
            "absolute path"
        )
    for info in (path.lstat(), path.stat()):
        if info.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to the user with id {info.st_uid}")
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(info.st_mode) or sticky:
            continue
        if info.st_mode & stat.S_IWOTH:
            raise PermissionError(f"{path} is writable by everyone: use 'chmod go-w'")
        private = _is_private(info.st_gid) and not _has_acl(path)
        if info.st_mode & stat.S_IWGRP and not private:
            raise PermissionError(f"{path} is writable by its group: use 'chmod g-w'")


def _is_private(group: int) -> bool:
    """Return whether this user is the only member of a group."""
    try:
        user, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    if user.pw_gid != group or not set(members) <= {user.pw_name}:
        return False
    return all(u.pw_uid == user.pw_uid for u in pwd.getpwall() if u.pw_gid == group)


def _has_acl(path: Path) -> bool:
    """Return whether a path has an access control list.

    Its group permissions are then an upper bound for all users in the list.
    """
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:  # no list, or not supported by the file system
        return False


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Create missing parent folders, then proceed as `replacing_file`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(Path(path)) as file:
        yield file


@contextmanager
def replacing_file(target: Path, dir_fd: int | None = None) -> Iterator[IO[bytes]]:
    """Replace a file atomically.

    The data is written to a temporary file in the same folder, which replaces
    `target` once it is safely on disk. Readers and other writers see the old file or
    the new one, never a part. A process killed while writing leaves its temporary
    file behind; the next writer of `target` removes it.

    Args:
        target: the file to write. An existing file keeps its permission bits; a new
            file follows the umask.
        dir_fd: descriptor of the folder to write into, which may have moved. Only the
            name of `target` is then used, except in messages. None uses the path.

    Yields:
        A binary file, open for writing.

    Raises:
        OSError: if the folder does not exist or the file cannot be written; the
            message names `target`. After any error, also in the caller's block, the
            temporary file is removed and `target` is unchanged.
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
                # before closing the file releases the lock
                _rename(temporary, target, dir_fd)
        if sys.platform == "win32":
            # Windows refuses to rename an open file.
            _rename(temporary, target, dir_fd)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
        # Name the target in errors about the temporary file.
        if (
            isinstance(error, OSError)
            and error.errno
            and error.filename in (None, temporary)
        ):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def _relative(target: Path, dir_fd: int | None) -> str:
    """Return the path of `target` for a system call with `dir_fd`."""
    return str(target) if dir_fd is None else target.name


def _rename(temporary: str, target: Path, dir_fd: int | None) -> None:
    os.replace(
        temporary, _relative(target, dir_fd), src_dir_fd=dir_fd, dst_dir_fd=dir_fd
    )


def _permissions(target: Path, dir_fd: int | None) -> int | None:
    """Return the permission bits of a regular file; None otherwise and on Windows."""
    if sys.platform == "win32":
        return None
    try:
        info = os.stat(
            _relative(target, dir_fd), dir_fd=dir_fd, follow_symlinks=False
        )
    except OSError:
        return None
    return info.st_mode & 0o777 if stat.S_ISREG(info.st_mode) else None


def _temporary(target: Path, dir_fd: int | None) -> IO[bytes]:
    """Create a file beside `target`, locked so that `_remove_leftovers` keeps it."""
    mode = _permissions(target, dir_fd)

    def create(path: str, flags: int) -> int:
        # Never readable by more users than `target`, not even while it is empty.
        return os.open(path, flags, 0o666 if mode is None else mode, dir_fd=dir_fd)

    while True:
        # Not with tempfile, whose files only their owner may read.
        name = f".{target.name}.{secrets.token_hex(8)}.part"
        path = _relative(target.with_name(name), dir_fd)
        try:
            file = open(path, "xb", opener=create)  # noqa: SIM115
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        if sys.platform != "win32":
            if mode is not None:
                with suppress(OSError):  # a file system without permissions
                    os.fchmod(file.fileno(), mode)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            os.stat(path, dir_fd=dir_fd)
            return file
        file.close()  # another process removed it before it was locked


def _remove_leftovers(target: Path, dir_fd: int | None) -> None:
    """Remove the temporary files of killed writers, which are not locked.

    On Windows, which has no such locks, the files remain.
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
        # It may be anything: do not follow a link or wait for a pipe.
        descriptor = os.open(
            path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path, dir_fd=dir_fd)
        finally:
            os.close(descriptor)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, completely or not at all.

    Args:
        path: the file to write. Missing parent folders are created.
        data: the content of the file.

    Raises:
        OSError: as for `replacing_file`.
    """
    with writing_file(path) as file:
        file.write(data)


def open_descriptor(
    path: str | Path, flags: int, dir_fd: int | None = None
) -> IO[bytes]:
    """Open a file that may have become a pipe or a terminal.

    This does not wait for the writer of a pipe, nor make a terminal control this
    process. Flags are those of `os.open`.
    """
    names = ("O_NONBLOCK", "O_NOCTTY", "O_BINARY")  # not all systems have them
    flags |= sum(getattr(os, name, 0) for name in names)
    descriptor = os.open(path, flags, dir_fd=dir_fd)
    return os.fdopen(descriptor, "rb+" if flags & os.O_RDWR else "rb")


@contextmanager
def reading_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading, and raise if it changes meanwhile.

    If another file takes its name, the old file is read.

    Args:
        path: the file. Anything but a regular file is refused without opening it,
            since opening a device may have an effect.

    Yields:
        The file, open for reading bytes.

    Raises:
        ValueError: if its size or time of modification changes within the block. This
            replaces any error of the block.
        OSError: if the file does not exist, cannot be read or is not a regular file.
    """
    _check_regular(path, path.stat())
    with open_descriptor(path, os.O_RDONLY) as file:
        before = os.fstat(file.fileno())
        _check_regular(path, before)

        def check_unchanged() -> None:
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (
                before.st_size,
                before.st_mtime_ns,
            ):
                raise ValueError(
                    f"{quoted_path(path)} changed while it was read: try again once "
                    "it is complete"
                )

        try:
            yield file
        except Exception:
            check_unchanged()
            raise
        check_unchanged()


def _check_regular(path: Path, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        largest: largest size in bytes, checked before memory is allocated. A file
            whose size is given as 0, as under /proc, is not read.

    Raises:
        ValueError: if the file is larger, or changes while it is read.
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
    """Return a path for a message, in one line."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)


@contextmanager
def errors_about(path: Path, kind: str) -> Iterator[None]:
    """Name the file in errors of the caller's block.

    Args:
        path: of the file.
        kind: of the file, such as "model".

    Raises:
        ValueError: instead of a TypeError or ValueError of the block.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = one_line(str(error))
        raise ValueError(
            f"{quoted_path(path)} is not a valid {kind} of this version of fbt: "
            f"{reason}"
        ) from error
