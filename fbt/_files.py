"""Files on disk: where downloads are kept, how one is written whole or not at all, how a bad one is named."""

from __future__ import annotations

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
    import grp
    import pwd

CACHE_VARIABLE = "FBT_CACHE"


def cache_folder() -> Path:
    """Return the folder in which downloads are kept, without creating it.

    Returns:
        The folder named by the environment variable `FBT_CACHE` where that is set and not empty (a leading
        `~` is expanded); otherwise the user's cache folder for `fbt` on this operating system.

    Raises:
        ValueError: the variable names the home of a user who is not there, or it is not
            set and this user has no home.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{CACHE_VARIABLE} must name a folder, got {chosen!r}: {error}") from error
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
        PermissionError: the path is relative, the owner is someone else, or others have
            the permission to write; the message names the path and the reason.
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
            raise PermissionError(f"{path} belongs to the user with number {info.st_uid}")
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(info.st_mode) or sticky:
            continue
        if info.st_mode & stat.S_IWOTH:
            raise PermissionError(f"{path} is writable for everyone: use 'chmod go-w'")
        private = _is_private(info.st_gid) and not _has_acl(path)
        if info.st_mode & stat.S_IWGRP and not private:
            raise PermissionError(f"{path} is writable for its group: use 'chmod g-w'")


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
def naming(path: Path, kind: str) -> Iterator[None]:
    """Say of whatever turns out to be wrong in the caller's block that this file is no `kind`.

    Raises:
        ValueError: in place of the TypeError or ValueError that the block raised.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        reason = in_a_line(str(error))
        raise ValueError(f"{path} is not a whole {kind} of this version of fbt: {reason}") from error
