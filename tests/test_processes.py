"""Runs of several processes equal those of one, and resume after a kill.

Torchrun starts two or three processes on this machine, which communicate with gloo.
Their shares of a batch differ: of three sequences, one process computes two.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import several
import torch
from small_runs import TEXT, small_command, untimed

import fbt
from fbt.native import library_path
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training.checkpoint import Checkpoint
from fbt.training.folder import RunFolder
from fbt.training.loop import Trainer, check_shares
from fbt.training.metrics import METRICS_FILE
from fbt.training.processes import Processes, join_processes
from fbt.training.recipe import Recipe
from fbt.training.run import _adding_advice

HERE = Path(__file__).parent
DISAGREE = (
    "all 2 processes of a run must have the same settings, text, backend and "
    "checkpoint"
)


def torchrun(count: int, *arguments: str | Path) -> list[str]:
    """Return a command that starts several processes."""
    launcher = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "torch.distributed.run",
        "--standalone",
    ]
    return [*launcher, f"--nproc-per-node={count}", *map(str, arguments)]


def run_command(
    command: list[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with one thread per process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment
    )


def metrics_in(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, without times."""
    return untimed(map(json.loads, (folder / METRICS_FILE).read_text().splitlines()))


def assert_equal_runs(folder: Path, expected: Path) -> None:
    """Check that metrics and weights agree to 1e-9."""
    actual, expected_metrics = metrics_in(folder), metrics_in(expected)
    assert len(actual) == len(expected_metrics)
    for mine, theirs in zip(actual, expected_metrics, strict=True):
        assert (mine.keys(), mine.pop("sample", "")) == (
            theirs.keys(),
            theirs.pop("sample", ""),
        )
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (
                expected.name,
                name,
            )
    weights = fbt.LanguageModel.from_pretrained(expected).state_dict()
    for name, value in fbt.LanguageModel.from_pretrained(folder).state_dict().items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(
            value, weights[name], rtol=1e-9, atol=1e-9, msg=name
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, native: None) -> Path:
    """Return the folder of all runs, each trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in several.RUNS:
        several.run(name, folder)
    return folder


def test_two_processes_equal_one(alone: Path, tmp_path: Path) -> None:
    result = run_command(torchrun(2, HERE / "several.py", tmp_path))
    assert result.returncode == 0, result.stderr
    for name in several.RUNS:
        assert_equal_runs(tmp_path / name, alone / name)
        left = sorted(path.name for path in (tmp_path / name).iterdir())
        assert left == sorted(path.name for path in (alone / name).iterdir())


@pytest.mark.parametrize("name", ["sequence, carry"])
def test_run_of_a_killed_process_resumes_with_another_number_of_processes(
    alone: Path, tmp_path: Path, name: str
) -> None:
    for count, rank, step, kept in ((2, 1, 7, 6), (3, 0, 13, 12)):
        result = run_command(
            torchrun(count, HERE / "several.py", tmp_path, name, str(rank), str(step))
        )
        assert result.returncode != 0
        assert "another process of this run has ended" in result.stderr
        assert Checkpoint.load(tmp_path / name).step == kept
    several.run(name, tmp_path)  # by this process alone
    assert_equal_runs(tmp_path / name, alone / name)


def test_signal_to_torchrun_saves_and_prints_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = small_command(tmp_path / "text.txt", tmp_path / "run", steps=100_000)
    command = torchrun(2, "-m", "fbt.training", *arguments)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / METRICS_FILE).exists() or not metrics_in(
        tmp_path / "run"
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    message, _ = process.communicate(timeout=60)
    step = Checkpoint.load(tmp_path / "run").step
    assert message.splitlines() == [
        f"stopped after step {step}; resume with: "
        f"python -m fbt.training --resume {tmp_path / 'run'}"
    ]
    assert len(metrics_in(tmp_path / "run")) == step + step // 4


def test_only_the_first_process_adds_advice() -> None:
    """The other processes do not know the last checkpoint."""
    for rank in (0, 1):
        processes = Processes(torch.device("cpu"), rank, 2)
        trainer: Any = SimpleNamespace(
            processes=processes, folder=RunFolder(Path("run")), saved_step=3
        )
        with pytest.raises(OSError) as caught, _adding_advice(trainer):
            raise OSError
        assert hasattr(caught.value, "__notes__") == (rank == 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"batch_size": 1},
            "batch_size must be at least the number of processes, 2, got 1",
        ),
        (
            {"seq_len": 1},
            "several processes need sequences of at least 2 tokens, got 1",
        ),
        (
            {"curriculum": 1},
            "several processes need sequences of at least 2 tokens, got 1",
        ),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(
    changes: dict[str, int], message: str
) -> None:
    recipe = Recipe(**{"batch_size": 3, "seq_len": 7} | changes)
    check_shares(recipe, 1)
    with pytest.raises(ValueError, match=message):
        check_shares(recipe, 2)


def test_shares_differ_by_at_most_one_row() -> None:
    rows = torch.arange(7)
    shares = [
        Processes(torch.device("cpu"), rank, 3).share(rows) for rank in range(3)
    ]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert torch.equal(torch.cat(shares), rows)


def test_single_process_returns_its_values_and_raises_its_errors() -> None:
    with join_processes("cpu") as processes:
        assert (processes.count, processes.total(0.1), processes.mean(0.1)) == (
            1,
            0.1,
            0.1,
        )
        model = torch.nn.Linear(2, 3)
        assert processes.synchronised(model) is model
        assert torch.equal(processes.gather(torch.ones(2, 3), 2), torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="mat1"), join_processes("cpu"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_processes_with_different_checkpoints_stop_before_the_first_step(
    alone: Path, tmp_path: Path
) -> None:
    """On separate disks, one process would resume and the other one begin."""
    shutil.copytree(alone / "sequence", tmp_path / "0" / "sequence")
    result = run_command(
        torchrun(2, HERE / "several.py", tmp_path / "RANK", "sequence")
    )
    assert result.returncode != 0
    assert DISAGREE in result.stderr
    assert not (tmp_path / "1" / "sequence" / CHECKPOINT_FILE).exists()
    assert_equal_runs(tmp_path / "0" / "sequence", alone / "sequence")


def test_processes_with_different_backends_stop_before_the_first_step(
    tmp_path: Path, native: None
) -> None:
    """Only the machine of the first process has the native library."""
    library = library_path()
    copy = tmp_path / "cache 0" / "native" / library.name
    copy.parent.mkdir(parents=True)
    shutil.copy(library, copy)
    command = torchrun(2, HERE / "several.py", tmp_path / "runs", "auto")
    result = run_command(command, FBT_CACHE=str(tmp_path / "cache RANK"))
    assert result.returncode != 0
    for rank, backend in enumerate(("native", "sequence")):
        message = (
            f"{DISAGREE}; process {rank} has backend '{backend}', checkpoint none"
        )
        assert message in result.stderr
    assert not (tmp_path / "runs").exists()


def test_each_process_draws_its_own_dropout() -> None:
    """The first process draws what a single process draws."""
    batch, drawn = torch.zeros(4, 3), []
    for rank in range(3):
        processes = Processes(torch.device("cpu"), rank, 3)
        noise = torch.Generator().manual_seed(0)
        trainer: Any = SimpleNamespace(
            processes=processes,
            device="cpu",
            recipe=Recipe(),
            step=5,
            dropout_generator=noise,
        )
        Trainer._share(trainer, batch)
        drawn.append(torch.rand(3, generator=noise).tolist())
    assert (
        drawn[0] == torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist()
    )
    assert len({*map(tuple, drawn)}) == 3
