"""The file of metrics: how it grows, and how it is checked on resume."""

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import TEXT, assert_same_run, small_run, untimed

from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import Run, resume
from fbt.training.checkpoint import Checkpoint
from fbt.training.folder import RunFolder
from fbt.training.loop import Trainer
from fbt.training.metrics import METRICS_FILE, MetricsFile, read_metrics

Patch = pytest.MonkeyPatch
METRICS = [
    {"step": step, "loss": 1 / step, "sample": "é\n", "seconds": float(step)}
    for step in range(1, 30)
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(folder=tmp_path_factory.mktemp("finished"))


@pytest.fixture
def folder(finished: Run, tmp_path: Path) -> Path:
    """Return the folder of a copy of the finished run."""
    assert finished.folder is not None
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture
def metrics_file(tmp_path: Path) -> Iterator[MetricsFile]:
    """Yield a file of metrics in a locked folder."""
    run_folder = RunFolder(tmp_path / "locked")
    with run_folder.locked():
        yield MetricsFile(run_folder)


def diverged_run(folder: Path, monkeypatch: Patch) -> None:
    """Train a run with checkpoints up to step 6 and metrics up to step 7."""
    update = Trainer._update

    def updating(self: Trainer) -> Any:
        if self.step == 7:
            raise FloatingPointError("loss nan")
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr(Trainer, "_update", updating)
        small_run(folder=folder)


def without(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [*lines[:number], *lines[number + 1 :]]


LOST: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "emptied": lambda lines: [],
    "cut at a line": lambda lines: lines[:-3],
    "cut in a line": lambda lines: [*lines[:-1], lines[-1][:-5]],
    "the last line end": lambda lines: [*lines[:-1], lines[-1].rstrip()],
    "without the first": without(0),
    "without one": without(5),
    "every line twice": lambda lines: [line for line in lines for _ in range(2)],
    "reversed": lambda lines: lines[::-1],
    "two exchanged": lambda lines: [lines[1], lines[0], *lines[2:]],
    "another number": lambda lines: [
        lines[0].replace(b'"length": 7', b'"length": 8'),
        *lines[1:],
    ],
    "another run's": lambda lines: [
        line.replace(b'"loss": ', b'"loss": 1') for line in lines
    ],
    "nothing but line ends": lambda lines: [b"\n" * len(b"".join(lines))],
}


@pytest.mark.parametrize("how", LOST)
def test_lost_or_changed_metrics_are_refused(how: str, folder: Path) -> None:
    path = folder / METRICS_FILE
    before = path.read_bytes()
    changed = b"".join(LOST[how](before.splitlines(keepends=True)))
    path.write_bytes(changed)
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    problem = (
        f"only {len(changed)} of {len(before)} bytes are left"
        if len(changed) < len(before)
        else f"its first {len(before)} bytes differ"
    )
    with pytest.raises(ValueError) as caught:
        resume(folder, TEXT, progress=False)
    assert str(caught.value) == (
        f"{path} does not match the checkpoint of step 11: {problem}. "
        "Restore the file from a copy, or train into another folder"
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept


@pytest.mark.parametrize(
    "more", [b'{"step": 12, "lo', b"\n", b"\0" * 5000, b"once more"]
)
def test_metrics_after_the_checkpoint_are_removed(
    more: bytes, folder: Path, finished: Run
) -> None:
    path = folder / METRICS_FILE
    before = path.read_bytes()
    path.write_bytes(before + (before if more == b"once more" else more))
    assert_same_run(resume(folder, TEXT, progress=False), finished)
    assert path.read_bytes() == before


def test_checkpoint_contains_size_and_hash_of_the_metrics(folder: Path) -> None:
    data = (folder / METRICS_FILE).read_bytes()
    actual = Checkpoint.load(folder).metrics
    assert (actual.size, actual.sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


def test_metrics_are_appended(
    metrics_file: MetricsFile, tmp_path: Path, monkeypatch: Patch
) -> None:
    path, appended, append = tmp_path / "locked" / METRICS_FILE, [], RunFolder.append

    def noted(self: RunFolder, name: str, data: bytes, size: int) -> bool:
        appended.append(len(data))
        return append(self, name, data, size)

    monkeypatch.setattr(RunFolder, "append", noted)
    inodes, source = set(), random.Random(0)
    ends = sorted(source.sample(range(1, len(METRICS)), 6))
    for end in [0, *ends, len(METRICS), len(METRICS)]:
        actual = metrics_file.write(METRICS[:end])
        data = path.read_bytes()
        assert [json.loads(line) for line in data.splitlines()] == METRICS[:end]
        assert (actual.size, actual.sha256) == (
            len(data),
            hashlib.sha256(data).hexdigest(),
        )
        inodes.add(path.stat().st_ino if end else None)
        assert read_metrics(path.parent, actual, end) == METRICS[:end]
    assert len(inodes - {None}) == 1  # the file was never replaced
    first = len(
        b"".join(json.dumps(metric).encode() + b"\n" for metric in METRICS[: ends[0]])
    )
    assert sum(appended) == path.stat().st_size - first


def test_copy_made_of_hard_links_is_not_changed(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    diverged_run(tmp_path / "run", monkeypatch)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=os.link)
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert resume(tmp_path / "run", TEXT, progress=False).finished
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()
    } == before


@pytest.mark.parametrize(
    "how", ["a link more", "a symbolic link", "removed", "longer"]
)
def test_changed_metrics_file_is_written_again(
    how: str, metrics_file: MetricsFile, tmp_path: Path
) -> None:
    path, other = tmp_path / "locked" / METRICS_FILE, tmp_path / "other"
    metrics_file.write(METRICS[:5])
    before = path.read_bytes()
    if how == "a link more":
        os.link(path, other)
    elif how == "longer":
        path.write_bytes(before + b"{")
    else:
        path.rename(other)
        if how == "a symbolic link":
            path.symlink_to(other)
    actual = metrics_file.write(METRICS[:7])
    data = path.read_bytes()
    assert [json.loads(line) for line in data.splitlines()] == METRICS[:7]
    assert (actual.size, actual.sha256) == (
        len(data),
        hashlib.sha256(data).hexdigest(),
    )
    assert not path.is_symlink()
    assert not other.exists() or other.read_bytes() == before


def test_no_metrics_are_lost_when_the_disk_is_full_for_a_while(
    metrics_file: MetricsFile, tmp_path: Path, monkeypatch: Patch
) -> None:
    path = tmp_path / "locked" / METRICS_FILE
    expected = metrics_file.write(METRICS[:5])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as caught:
            metrics_file.write(METRICS[:7])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert read_metrics(path.parent, expected, 5) == METRICS[:5]
    actual = metrics_file.write(METRICS[:7])
    assert read_metrics(path.parent, actual, 7) == METRICS[:7]
    assert path.stat().st_size == actual.size


def test_resumed_run_removes_the_metrics_of_a_divergence(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    diverged_run(tmp_path, monkeypatch)
    assert Checkpoint.load(tmp_path).step == 6
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 7
    expected = small_run()
    assert_same_run(resume(tmp_path, TEXT, progress=False), expected)
    actual = untimed(
        map(json.loads, (tmp_path / METRICS_FILE).read_text().splitlines())
    )
    assert actual == untimed(expected.metrics)
    assert (tmp_path / CHECKPOINT_FILE).exists()
