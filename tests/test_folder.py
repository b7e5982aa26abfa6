"""The folder of a run: locks, folders that are moved, full disks."""

import errno
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_runs import TEXT, assert_same_run, small_command, small_run

from fbt import _files
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.training import Run, resume
from fbt.training import folder as training_folder
from fbt.training.__main__ import main
from fbt.training.checkpoint import Checkpoint
from fbt.training.folder import FolderGone, FolderTaken, RunFolder
from fbt.training.interrupt import Interrupt
from fbt.training.loop import Trainer
from fbt.training.metrics import METRICS_FILE
from fbt.training.result import LOSS_FIGURE

Patch = pytest.MonkeyPatch


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a run"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def at_step(step: int, do: Callable[[], object], patch: Patch) -> None:
    """Call a function at the start of a step."""
    update = Trainer._update

    def updating(self: Trainer) -> Any:
        if self.step == step - 1:
            do()
        return update(self)

    patch.setattr(Trainer, "_update", updating)


# --- one process ---


def test_folder_is_locked_once_and_released(folder: Path) -> None:
    run_folder = RunFolder(folder)
    with run_folder.locked():
        run_folder.check()
        with (
            pytest.raises(
                BlockingIOError,
                match=r"another process is training into this folder: .*a run",
            ) as caught,
            RunFolder(folder).locked(),
        ):
            pass
        assert caught.value.__notes__ == ["it is this process"]
    with RunFolder(folder).locked():
        pass
    assert list(folder.iterdir()) == []  # no lock file


def test_second_process_is_refused_in_one_line(
    data: Path, folder: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Interrupt, "requested", True)
    small_run(data, folder=folder)
    before = files(folder)
    with RunFolder(folder).locked():
        assert main(["--resume", str(folder), "--log=tensorboard"]) == 2
        assert main(small_command(data, folder)) == 2
    locked, existing = capsys.readouterr().err.splitlines()
    assert locked.endswith(
        f"another process is training into this folder: '{folder}'; "
        "it is this process"
    )
    assert "already contains a run" in existing
    assert files(folder) == before


def test_folder_is_not_read_while_another_process_writes(
    data: Path, folder: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Interrupt, "requested", True)
    small_run(data, folder=folder)
    for path in files(folder):
        (folder / path).write_bytes(b"half")
    with RunFolder(folder).locked():
        with pytest.raises(BlockingIOError, match="another process is training"):
            resume(folder)
        with pytest.raises(BlockingIOError, match="another process is training"):
            small_run(data, folder=folder, resume=True)


@pytest.mark.parametrize("begun", [False, True])
def test_run_that_ended_just_before_locking_is_kept(
    begun: bool, folder: Path, monkeypatch: Patch
) -> None:
    if begun:
        with monkeypatch.context() as patch:
            patch.setattr(Interrupt, "requested", True)
            small_run(folder=folder)
    just_before_locking(lambda: small_run(folder=folder, resume=True), monkeypatch)
    with pytest.raises(
        FolderTaken, match=r"another process has trained into .*a run meanwhile"
    ):
        small_run(folder=folder, resume=begun)
    assert Checkpoint.load(folder).step == 11


def just_before_locking(do: Callable[[], object], monkeypatch: Patch) -> None:
    """Call a function when the next run has read its folder but not locked it."""
    hold = RunFolder.locked

    def late(self: RunFolder) -> Any:
        monkeypatch.setattr(RunFolder, "locked", hold)
        do()
        return hold(self)

    monkeypatch.setattr(RunFolder, "locked", late)


@pytest.mark.parametrize("name", [CHECKPOINT_FILE, WEIGHTS_FILE])
def test_folder_swapped_just_before_locking_is_kept(
    name: str, folder: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The other folder is at the same step, or contains only weights."""
    other = tmp_path / "other"
    for path in (folder, other):
        with monkeypatch.context() as patch:
            patch.setattr(Interrupt, "requested", True)
            small_run(folder=path, seed=int(path == other))
    if name == WEIGHTS_FILE:
        shutil.rmtree(folder)
        (other / CHECKPOINT_FILE).rename(other / WEIGHTS_FILE)
    before = files(other)

    def swap() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        other.rename(folder)

    just_before_locking(swap, monkeypatch)
    with pytest.raises(FolderTaken):
        small_run(folder=folder, resume=True)
    assert files(folder) == before


def test_without_locks_one_of_two_runs_stops(
    folder: Path, monkeypatch: Patch
) -> None:
    """Each run checks before it writes that the checkpoint is its own."""

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    expected = small_run()
    monkeypatch.setattr(_files.fcntl, "flock", no_locks)
    other: list[Run] = []
    began: list[str] = []

    def resumed() -> None:
        if not began:
            began.append("the other run")  # it also reaches its fifth step
            other.append(resume(folder, TEXT, progress=False))

    at_step(5, resumed, monkeypatch)
    with pytest.raises(
        FolderTaken, match=r"another process has trained into .*a run meanwhile"
    ) as caught:
        small_run(folder=folder)
    assert caught.value.__notes__ == [
        f"this run ends; {folder} now contains the other run"
    ]
    assert_same_run(other[0], expected)
    before = files(folder)
    assert sorted(before) == [
        CHECKPOINT_FILE,
        LOSS_FIGURE,
        METRICS_FILE,
        WEIGHTS_FILE,
    ]
    assert_same_run(resume(folder, TEXT, progress=False), expected)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_file_system_without_locks_is_accepted(
    number: int, folder: Path, monkeypatch: Patch
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_files.fcntl, "flock", no_locks)
    assert_same_run(small_run(folder=folder), small_run())


# --- folders that are moved or removed ---


def test_moved_folder_stops_the_run_which_resumes_there(
    data: Path, folder: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = folder.with_name("moved")
    with monkeypatch.context() as patch:
        at_step(5, lambda: folder.rename(moved), patch)
        assert main(small_command(data, folder)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "python -m fbt.training: [Errno 2] the folder of the run was moved or "
        f"removed: '{folder}'; "
        f"if the folder was moved, the checkpoint of step 3 is intact; "
        f"resume with: python -m fbt.training --resume NEW-FOLDER"
    )
    assert not folder.exists()
    assert Checkpoint.load(moved).step == 3
    assert_same_run(resume(moved, progress=False), small_run())


def test_removed_folder_is_not_created_again(
    folder: Path, monkeypatch: Patch
) -> None:
    at_step(5, lambda: shutil.rmtree(folder), monkeypatch)
    with pytest.raises(
        FolderGone, match="the folder of the run was moved or removed"
    ):
        small_run(folder=folder)
    assert not folder.exists()


def test_another_run_at_the_path_is_left_alone(
    folder: Path, monkeypatch: Patch
) -> None:
    def replace() -> None:
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / CHECKPOINT_FILE).write_bytes(b"another run's")

    at_step(5, replace, monkeypatch)
    with pytest.raises(FolderGone):
        small_run(folder=folder)
    assert files(folder) == {CHECKPOINT_FILE: b"another run's"}


# --- folders that are moved between two system calls ---

CALLS = [
    "open",
    "stat",
    "lstat",
    "fstat",
    "fsync",
    "replace",
    "rename",
    "unlink",
    "mkdir",
]
CALLS += ["scandir", "listdir"]


class Calls:
    """Counts system calls while a run saves, and calls `do` before one of them."""

    def __init__(self, monkeypatch: Patch) -> None:
        self.active, self.count, self.at, self.do = False, 0, -1, lambda: None
        for name in CALLS:
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))
        for method in ("save", "save_metrics"):
            monkeypatch.setattr(
                Trainer, method, self.within(getattr(Trainer, method))
            )
        for method in ("write", "check"):
            monkeypatch.setattr(
                RunFolder, method, self.within(getattr(RunFolder, method))
            )

    def counted(self, function: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                self.count += 1
                if self.count - 1 == self.at:
                    self.active = False
                    self.do()
                    self.active = True
            return function(*args, **kwargs)

        return counting

    def within(self, function: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            before, self.active = self.active, True
            try:
                return function(*args, **kwargs)
            finally:
                self.active = before

        return counting


TINY: dict[str, Any] = {
    "steps": 2,
    "checkpoint_every": 1,
    "eval_every": 2,
    "sample": 0,
    "eval_windows": 1,
}


def tiny_run(folder: Path, **changes: Any) -> Run:
    return small_run(folder=folder, **TINY | changes)


@pytest.fixture
def another(tmp_path: Path) -> dict[str, bytes]:
    """Return the files of a run with another seed."""
    tiny_run(tmp_path / "another", seed=1)
    return files(tmp_path / "another")


@contextmanager
def moving(
    how: str, folder: Path, moved: Path, another: dict[str, bytes]
) -> Iterator[Callable[[], None]]:
    def move() -> None:
        if how == "removed":
            shutil.rmtree(folder)
            return
        folder.rename(moved)
        if how == "swapped":
            folder.mkdir()
            for name, data in another.items():
                (folder / name).write_bytes(data)

    yield move
    assert folder.exists() == (how == "swapped")
    if how == "swapped":
        assert files(folder) == another
    if how == "removed":
        assert not moved.exists()


@pytest.mark.parametrize("how", ["moved", "swapped", "removed"])
def test_folder_that_goes_between_any_two_system_calls(
    how: str, tmp_path: Path, another: dict[str, bytes], monkeypatch: Patch
) -> None:
    saves = Calls(monkeypatch)
    monkeypatch.setattr(
        "fbt.training.result._save_loss_curve",
        lambda run, folder: folder.write(LOSS_FIGURE, b"<svg/>"),
    )
    expected = tiny_run(tmp_path / "undisturbed")
    total, steps_in_notes = saves.count, set()
    assert total > 60
    first = {"moved": 0, "swapped": 1, "removed": 2}[how]
    for saves.at in range(first, total, 1 if how == "moved" else 3):
        saves.count = 0
        folder, moved = tmp_path / f"run {saves.at}", tmp_path / f"moved {saves.at}"
        with (
            moving(how, folder, moved, another) as saves.do,
            pytest.raises(FolderGone) as caught,
        ):
            tiny_run(folder)
        saves.do = lambda: None
        assert caught.value.filename == str(folder)
        if how == "removed":
            continue
        written = files(moved)
        assert {name for name in written if name.endswith(".part")} == set()
        notes = getattr(caught.value, "__notes__", [])
        step = re.findall("the checkpoint of step (\\d+) is intact", "".join(notes))
        steps_in_notes.update(step)
        # The checkpoint that the note mentions exists; without a note there is none.
        assert (
            [str(Checkpoint.load(moved).step)] == step
            if step
            else CHECKPOINT_FILE not in written
        )
        if step:
            assert notes[0].startswith("if the folder was moved, ")
            if saves.at % 7 == 0:
                assert_same_run(resume(moved, TEXT, progress=False), expected)
    assert how == "removed" or steps_in_notes == {"0", "1", "2"}


@pytest.mark.parametrize("how", ["moved", "swapped", "removed"])
def test_without_dir_fd_the_path_is_checked_before_each_file(
    how: str, tmp_path: Path, another: dict[str, bytes], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(training_folder, "RELATIVE", False)
    write = RunFolder.write
    assert_same_run(tiny_run(tmp_path / "undisturbed"), small_run(**TINY))
    for last in range(1, 6):
        folder, moved = tmp_path / f"run {last}", tmp_path / f"moved {last}"
        order = iter(range(1, 100))
        with (
            moving(how, folder, moved, another) as move,
            monkeypatch.context() as patch,
        ):

            def late(
                self: RunFolder,
                name: str,
                data: bytes,
                move: Any = move,
                left: Any = order,
                last: int = last,
            ) -> None:
                if next(left) == last:
                    move()
                write(self, name, data)

            patch.setattr(RunFolder, "write", late)
            with pytest.raises(FolderGone):
                tiny_run(folder)


# --- forked processes, and a killed torchrun ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_does_not_keep_the_lock(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    run_folder = RunFolder(folder)

    def child() -> None:
        with pytest.raises(
            BlockingIOError, match="only the process that locked the folder may write"
        ):
            run_folder.write("file", b"")
        ready.set()
        done.wait(60)

    with run_folder.locked():
        process = context.Process(target=child)
        process.start()
        assert ready.wait(60)
        with pytest.raises(BlockingIOError), RunFolder(folder).locked():
            pass
    try:
        with RunFolder(folder).locked():  # although the child is alive
            assert process.is_alive()
    finally:
        done.set()
        process.join(60)
    assert process.exitcode == 0
    assert files(folder) == {}


LEFT_BEHIND = "if it is left over, for example from a killed torchrun, end it"
HOLDER = """
import os, sys, time
from pathlib import Path
from fbt.training.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    if os.fork() == 0:
        try:
            raise SystemExit  # leaves the block that has locked the folder
        finally:
            os.write(1, b"left\\n")
            time.sleep(60)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_neither_releases_nor_keeps_the_lock_of_its_parent(
    folder: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"left\n"
        with pytest.raises(BlockingIOError) as caught, RunFolder(folder).locked():
            pass
        if sys.platform == "linux":
            assert caught.value.__notes__ == [
                f"{LEFT_BEHIND} with: kill {process.pid}"
            ]
        process.kill()
        process.wait()
        with RunFolder(folder).locked():
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the child
        process.stdout.close()


def test_owner_of_the_lock_may_be_unknown(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(training_folder, "_lock_owners", lambda descriptor: [])
    with (
        RunFolder(folder).locked(),
        pytest.raises(BlockingIOError) as caught,
        RunFolder(folder).locked(),
    ):
        pass
    assert caught.value.__notes__ == [LEFT_BEHIND]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_process_left_by_a_killed_torchrun_can_be_ended(
    data: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small_command(data, folder, steps=100_000)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    process = subprocess.Popen(
        [*torchrun, "-m", "fbt.training", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path, deadline = folder / CHECKPOINT_FILE, time.monotonic() + 120
    while not path.exists() or Checkpoint.load(folder).step == 0:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert main(["--resume", str(folder)]) == 2
    message = capsys.readouterr().err
    command = re.search(rf"; {LEFT_BEHIND} with: kill (\d+)$", message)
    assert command is not None, message
    os.kill(int(command[1]), signal.SIGTERM)
    while True:
        try:
            with RunFolder(folder).locked():
                break
        except (BlockingIOError, FolderTaken):  # it still saves
            assert time.monotonic() < deadline
            time.sleep(0.1)
    step = Checkpoint.load(folder).step
    lines = (folder / METRICS_FILE).read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step  # the process saved before it ended


# --- full and read-only disks ---


@pytest.fixture
def limit_file_size() -> Any:
    """Return a function that limits the size of files, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_the_last_checkpoint(
    data: Path,
    folder: Path,
    limit_file_size: Callable[[int], None],
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, number = RunFolder.write, itertools.count()

    def full_at_step_6(self: RunFolder, name: str, data: bytes) -> None:
        if name == CHECKPOINT_FILE and next(number) == 2:
            limit_file_size(len(data) // 2)
        try:
            write(self, name, data)
        finally:
            limit_file_size(resource.RLIM_INFINITY)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", full_at_step_6)
        assert main(small_command(data, folder)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "python -m fbt.training: [Errno 27] File too large: "
        f"'{folder / CHECKPOINT_FILE}'; the checkpoint of step 3 is intact; once "
        f"there is free space, resume with: "
        f"python -m fbt.training --resume '{folder}'"
    )
    assert Checkpoint.load(folder).step == 3
    assert sorted(files(folder)) == [CHECKPOINT_FILE, METRICS_FILE]
    assert_same_run(resume(folder, progress=False), small_run())


@pytest.mark.parametrize(
    ("name", "number", "when"),
    [
        (METRICS_FILE, errno.ENOSPC, "there is free space"),
        (CHECKPOINT_FILE, errno.ENOSPC, "there is free space"),
        ("model.safetensors", errno.EDQUOT, "there is free space"),
        (LOSS_FIGURE, errno.EROFS, "this is fixed"),
        (CHECKPOINT_FILE, errno.EIO, "this is fixed"),
    ],
)
def test_failed_write_is_named_and_keeps_the_checkpoint(
    name: str, number: int, when: str, folder: Path, monkeypatch: Patch
) -> None:
    step = 3 if name in (METRICS_FILE, CHECKPOINT_FILE) else 11
    fsync, temporary, append, begun = (
        os.fsync,
        _files._temporary,
        RunFolder.append,
        [""],
    )

    def noted(target: Path, dir_fd: int | None) -> Any:
        begun.append(target.name)
        return temporary(target, dir_fd)

    def noted_too(self: RunFolder, wanted: str, data: bytes, size: int) -> bool:
        begun.append(wanted)
        return append(self, wanted, data, size)

    def failing(descriptor: int) -> None:
        if begun[-1] == name and saved():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def saved() -> bool:
        return (folder / CHECKPOINT_FILE).exists() and Checkpoint.load(
            folder
        ).step == step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(_files, "_temporary", noted)
        patch.setattr(RunFolder, "append", noted_too)
        with pytest.raises(OSError) as caught:
            small_run(folder=folder)
    assert (caught.value.errno, caught.value.filename) == (number, str(folder / name))
    assert caught.value.__notes__ == [
        f"the checkpoint of step {step} is intact; once {when}, resume with: "
        f"python -m fbt.training --resume '{folder}'"
    ]
    assert Checkpoint.load(folder).step == step
    assert not [left for left in files(folder) if left.endswith(".part")]
    assert_same_run(resume(folder, TEXT, progress=False), small_run())


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(),
    reason="needs a folder that not even root may write",
)
def test_read_only_folder_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_command(data, Path("/sys/kernel/run"))) == 2
    line = capsys.readouterr().err
    assert line.startswith("python -m fbt.training: [Errno ")
    assert line.endswith("'/sys/kernel/run'\n")
    assert "the folder of the run cannot be written (" in line
