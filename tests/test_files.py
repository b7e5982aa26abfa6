import contextlib
import errno
import os
import shutil
import socket
import stat
import sys
from pathlib import Path
from typing import IO

import pytest

from fbt import _files
from fbt._files import (
    cache_folder,
    quoted_path,
    read_file,
    reading_file,
    replacing_file,
    sha256,
    write_file,
    writing_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_cache_folder_is_the_variable_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert names(tmp_path) == []  # asking does not create it


def test_cache_folder_expands_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBT_CACHE", "~/kept")
    assert cache_folder() == Path.home() / "kept"


@pytest.mark.parametrize("value", [None, ""])
def test_cache_folder_is_the_user_s_otherwise(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("FBT_CACHE", raising=False)
    else:
        monkeypatch.setenv("FBT_CACHE", value)
    assert cache_folder().is_absolute()
    assert "fbt" in cache_folder().parts


def test_sha256_of_a_known_text() -> None:
    # FIPS 180-2, appendix B.1.
    assert (
        sha256(b"abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_write_whole_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_file(path, b"old")
    write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


def test_nothing_has_the_name_until_everything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with writing_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_things_as_they_were(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(error), writing_file(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with writing_file(path) as first:
        first.write(b"1" * 70_000)
        with writing_file(path) as second:
            second.write(b"2" * 50_000)
        assert path.read_bytes() == b"2" * 50_000
        first.write(b"1" * 70_000)
    assert path.read_bytes() == b"1" * 140_000
    assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a [file]"
    kept = [
        ".a [file].0123456789abcdef",
        ".a [file].mine.part",
        ".other.0123456789abcdef.part",
    ]
    for name in [".a [file].0123456789abcdef.part", *kept]:
        (tmp_path / name).write_bytes(b"half")
    write_file(path, b"new")
    assert names(tmp_path) == sorted([*kept, "a [file]"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_file_taken_for_a_leftover_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, seen = _files.fcntl.flock, []

    def late(file: IO[bytes], kind: int) -> None:
        seen.append(file.name)
        if len(seen) == 1:
            # another writer came between opening and locking
            Path(file.name).unlink()
        lock(file, kind)

    monkeypatch.setattr(_files.fcntl, "flock", late)
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(set(seen)) == 2
    assert names(tmp_path) == ["file"]


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/file'") as caught,
        writing_file(path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    path.mkdir()
    with pytest.raises(OSError, match=r"'.*/file'$") as caught:
        write_file(path, b"new")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match="'another'"), writing_file(path):
        Path("another").read_bytes()
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OSError):
        write_file(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"in the way"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_the_file_has_a_new_file_s_permissions(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o666, 0o755])
def test_a_file_keeps_its_permissions(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    created, fchmod = [], os.fchmod

    def noted(descriptor: int, wanted: int) -> None:
        created.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        fchmod(descriptor, wanted)

    monkeypatch.setattr(os, "fchmod", noted)
    previous = os.umask(0o022)
    try:
        write_file(path, b"new")
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    # nobody else could open it before it had its bits
    assert created == [mode & ~0o022]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_or_a_link_among_the_leftovers_is_not_waited_for_nor_followed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / ".file.0123456789abcdef.part")
    (tmp_path / "other").write_bytes(b"kept")
    (folder / ".file.0123456789abcdee.part").symlink_to(tmp_path / "other")
    (folder / ".file.0123456789abcded.part").symlink_to(tmp_path)
    write_file(folder / "file", b"new")
    assert (folder / "file").read_bytes() == b"new"
    assert (tmp_path / "other").read_bytes() == b"kept"


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no descriptors of folders"
)
def test_a_descriptor_leads_to_its_folder_wherever_that_is(tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    (first / "file").write_bytes(b"old")
    (first / ".file.0123456789abcdef.part").write_bytes(b"half")
    descriptor = os.open(first, os.O_RDONLY)
    try:
        first.rename(moved)
        first.mkdir()
        (first / "file").write_bytes(b"another's")
        with replacing_file(first / "file", descriptor) as file:
            file.write(b"new")
        with (
            pytest.raises(RuntimeError),
            replacing_file(first / "file", descriptor) as file,
        ):
            raise RuntimeError
        assert {path.name: path.read_bytes() for path in moved.iterdir()} == {
            "file": b"new"
        }
        assert {path.name: path.read_bytes() for path in first.iterdir()} == {
            "file": b"another's"
        }
        shutil.rmtree(moved)
        with (
            pytest.raises(FileNotFoundError, match=r"'.*/first/file'$"),
            replacing_file(first / "file", descriptor),
        ):
            pass
    finally:
        os.close(descriptor)
    assert not moved.exists()


def test_the_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBT_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(
        ValueError,
        match="FBT_CACHE must name a folder, got '~nobody-of-this-name/cache'",
    ):
        cache_folder()


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_file_is_whole_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Small ones too, which a buffer could still hold; and another writer waits until the name is given."""
    import fcntl  # not on Windows

    found: list[int] = []
    replace = os.replace

    def noted(source: str, target: str, **folders: int | None) -> None:
        found.append(Path(source).stat().st_size)
        with Path(source).open("rb+") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        replace(source, target, **folders)

    monkeypatch.setattr(os, "replace", noted)
    write_file(tmp_path / "file", b"x" * size)
    assert found == [size]


# Reading.


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"", b"abc", b"x" * 10**6):
        path.write_bytes(data)
        assert read_file(path) == read_file(path, len(data)) == data
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link") == data


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(ValueError) as caught:
        read_file(path, 2)
    assert str(caught.value) == f"{path} must have at most 2 bytes, got 3"
    os.truncate(path, 2**40)  # a hole, which takes no room on the disk
    with pytest.raises(
        ValueError, match=rf"must have at most {2**32} bytes, got {2**40}"
    ):
        read_file(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize(
    "place", ["pipe", "link", "socket", ".", "/dev/zero", "/dev/full", "/dev/stdin"]
)
def test_nothing_but_a_regular_file_is_opened(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe would wait for its writer; opening a device may make it act."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    path = tmp_path / place
    with socket.socket(socket.AF_UNIX) as made:
        if place == "socket":
            monkeypatch.chdir(tmp_path)  # the path of a socket must be short
            made.bind("socket")
        elif place == "/dev/stdin":
            path.resolve().is_file() and pytest.skip("a file is what stdin is here")
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", None)
            with (
                pytest.raises(
                    OSError, match=r"Not a regular file|Is a directory"
                ) as caught,
                reading_file(path),
            ):
                pass
    assert caught.value.filename == str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes with names")
def test_a_pipe_that_comes_between_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = tmp_path / "file", tmp_path / "kept"
    kept.write_bytes(b"abc")
    os.mkfifo(path)
    seen = kept.stat()
    monkeypatch.setattr(Path, "stat", lambda self: seen)
    with (
        pytest.raises(OSError, match=r"Not a regular file: '.*/file'"),
        reading_file(path),
    ):
        pass


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="Linux has it")
def test_a_file_without_a_size_is_read_as_empty() -> None:
    """Such as /proc/kmsg, which is called regular and would be waited for."""
    assert read_file(Path("/proc/self/status")) == b""
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # of a container
            assert read_file(Path("/proc/kmsg")) == b""


@pytest.mark.parametrize("change", ["longer", "shorter", "rewritten"])
def test_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, change: str
) -> None:
    """Also in place of an error about what was read."""
    path = tmp_path / "a\nfile"
    message = (
        f"{str(path)!r} changed while it was read: try again once it is complete"
    )
    for raised in (None, ValueError("nonsense"), KeyError("nonsense")):
        path.write_bytes(b"abc")
        with pytest.raises(ValueError) as caught, reading_file(path) as file:
            assert file.read() == b"abc"
            path.write_bytes(
                {"longer": b"abcd", "shorter": b"ab", "rewritten": b"abd"}[change]
            )
            os.utime(path, ns=(0, 10**9))  # as if a moment had passed
            if raised is not None:
                raise raised
        assert str(caught.value) == message
    with pytest.raises(KeyboardInterrupt), reading_file(path) as file:
        path.write_bytes(b"")
        raise KeyboardInterrupt


def test_an_error_of_the_reader_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(KeyError, match="mine"), reading_file(path):
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a b", "a b"),
        ("日本", "日本"),
        ("a\nb", r"'a\nb'"),
        ("a\u202eb", r"'a\u202eb'"),
        ("\udcff", r"'\udcff'"),
    ],
)
def test_a_path_is_named_in_one_line(path: str, name: str) -> None:
    assert quoted_path(path) == quoted_path(Path(path)) == name
