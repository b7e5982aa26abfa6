"""A run's folder: who may write into it, and what is said and left when it cannot be written any more."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import TEXT, assert_same_run, small_command, small_run

from fbt import _files
from fbt.checkpoint import CHECKPOINT_FILE, Checkpoint, save_checkpoint
from fbt.training import loop as training_loop
from fbt.training import resume
from fbt.training import run as training_run
from fbt.training.__main__ import main
from fbt.training.folder import FolderGone, held
from fbt.training.loop import Trainer
from fbt.training.metrics import METRICS_FILE
from fbt.training.run import LOSS_FIGURE

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
    """Have something happen within a step."""
    update = Trainer._update

    def updating(self: Trainer) -> Any:
        if self.step == step - 1:
            do()
        return update(self)

    patch.setattr(Trainer, "_update", updating)


# --- one process --------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_and_free_afterwards(folder: Path) -> None:
    with held(folder) as check:
        check()
        with (
            pytest.raises(BlockingIOError, match=r"another process is training into this folder: .*a run"),
            held(folder),
        ):
            pass
    with held(folder):
        pass
    assert list(folder.iterdir()) == []  # no lock file


def test_a_second_process_is_told_in_a_line_and_disturbs_nothing(
    data: Path, folder: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_loop.Interrupt, "asked", True)
    small_run(data, folder=folder)
    before = files(folder)
    with held(folder):
        assert main(["--resume", str(folder), "--log=tensorboard"]) == 2
        assert main(small_command(data, folder)) == 2
    refused, found = capsys.readouterr().err.splitlines()
    assert refused.endswith(f"another process is training into this folder: '{folder}'")
    assert "holds a run already" in found
    assert files(folder) == before


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_ended_just_before_the_folder_was_held_is_kept(
    begun: bool, folder: Path, monkeypatch: Patch
) -> None:
    def late(place: Path) -> Any:
        monkeypatch.setattr(training_run, "held", held)
        small_run(folder=folder, resume=True)
        return held(place)

    if begun:
        with monkeypatch.context() as patch:
            patch.setattr(training_loop.Interrupt, "asked", True)
            small_run(folder=folder)
    monkeypatch.setattr(training_run, "held", late)
    with pytest.raises(FileExistsError, match=r"another process has trained into .*a run meanwhile"):
        small_run(folder=folder, resume=begun)
    assert Checkpoint.load(folder).step == 11


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_will_do(number: int, folder: Path, monkeypatch: Patch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_files.fcntl, "flock", no_locks)
    assert_same_run(small_run(folder=folder), small_run())


# --- a folder that goes away --------------------------------------------------------------------------------


def test_a_folder_moved_away_stops_the_run_which_goes_on_from_there(
    data: Path, folder: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = folder.with_name("moved")
    with monkeypatch.context() as patch:
        at_step(5, lambda: folder.rename(moved), patch)
        assert main(small_command(data, folder)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"python -m fbt.training: [Errno 2] the folder of the run was moved or removed: '{folder}'; "
        f"if it was moved, the checkpoint of step 3 is as it was; "
        f"go on with: python -m fbt.training --resume WHERE-IT-IS-NOW"
    )
    assert not folder.exists()
    assert Checkpoint.load(moved).step == 3
    assert_same_run(resume(moved, progress=False), small_run())


def test_a_folder_removed_is_not_made_again(folder: Path, monkeypatch: Patch) -> None:
    at_step(5, lambda: shutil.rmtree(folder), monkeypatch)
    with pytest.raises(FolderGone, match="the folder of the run was moved or removed"):
        small_run(folder=folder)
    assert not folder.exists()


def test_another_run_in_its_place_is_left_alone(folder: Path, monkeypatch: Patch) -> None:
    def replace() -> None:
        folder.rename(folder.with_name("moved"))
        folder.mkdir()
        (folder / CHECKPOINT_FILE).write_bytes(b"another run's")

    at_step(5, replace, monkeypatch)
    with pytest.raises(FolderGone):
        small_run(folder=folder)
    assert files(folder) == {CHECKPOINT_FILE: b"another run's"}


# --- a disk that is full, or may not be written -------------------------------------------------------------


@pytest.fixture
def room() -> Any:
    """Make every file that is written end at some size, as a quota does; the error is the system's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_checkpoint(
    data: Path,
    folder: Path,
    room: Callable[[int], None],
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full_at_step_6(place: Path, step: int, *args: Any) -> None:
        if step == 6:
            room((place / CHECKPOINT_FILE).stat().st_size // 2)
        try:
            save_checkpoint(place, step, *args)
        finally:
            room(resource.RLIM_INFINITY)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "save_checkpoint", full_at_step_6)
        assert main(small_command(data, folder)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"python -m fbt.training: [Errno 27] File too large: '{folder / CHECKPOINT_FILE}'; the checkpoint "
        f"of step 3 is as it was; go on once there is room with: python -m fbt.training --resume '{folder}'"
    )
    assert Checkpoint.load(folder).step == 3
    assert sorted(files(folder)) == [CHECKPOINT_FILE, METRICS_FILE]
    assert_same_run(resume(folder, progress=False), small_run())


@pytest.mark.parametrize(
    ("name", "number", "when"),
    [
        (METRICS_FILE, errno.ENOSPC, "there is room"),
        (CHECKPOINT_FILE, errno.ENOSPC, "there is room"),
        ("model.safetensors", errno.EDQUOT, "there is room"),
        (LOSS_FIGURE, errno.EROFS, "this is mended"),
        (CHECKPOINT_FILE, errno.EIO, "this is mended"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_and_the_checkpoint_stays(
    name: str, number: int, when: str, folder: Path, monkeypatch: Patch
) -> None:
    step = 3 if name in (METRICS_FILE, CHECKPOINT_FILE) else 11
    fsync, temporary, begun = os.fsync, _files._temporary, [""]

    def noted(target: Path) -> Any:
        begun.append(target.name)
        return temporary(target)

    def failing(descriptor: int) -> None:
        if begun[-1] == name and saved():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def saved() -> bool:
        return (folder / CHECKPOINT_FILE).exists() and Checkpoint.load(folder).step == step

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(_files, "_temporary", noted)
        with pytest.raises(OSError) as caught:
            small_run(folder=folder)
    assert (caught.value.errno, caught.value.filename) == (number, str(folder / name))
    assert caught.value.__notes__ == [
        f"the checkpoint of step {step} is as it was; go on once {when} with: "
        f"python -m fbt.training --resume '{folder}'"
    ]
    assert Checkpoint.load(folder).step == step
    assert not [left for left in files(folder) if left.endswith(".part")]
    assert_same_run(resume(folder, TEXT, progress=False), small_run())


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that not even root may write")
def test_a_folder_that_may_not_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small_command(data, Path("/sys/kernel/run"))) == 2
    line = capsys.readouterr().err
    assert line.startswith("python -m fbt.training: [Errno ")
    assert line.endswith("'/sys/kernel/run'\n")
    assert "the folder of the run cannot be written (" in line
