"""The command line, `python -m fbt.training`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import (
    TEXT,
    WARNINGS,
    assert_same_run,
    small_command,
    small_run,
    untimed,
)

from fbt import Config, LanguageModel, views
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import Run, resume
from fbt.training.__main__ import main
from fbt.training.checkpoint import Checkpoint
from fbt.training.metrics import METRICS_FILE, read_metrics
from fbt.training.recipe import PRESETS, Recipe

# Results depend on the number of threads, so both processes use the same.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
COMMAND = [sys.executable, *WARNINGS, "-m", "fbt.training"]
LONG: dict[str, Any] = {
    "steps": 150,
    "eval_every": 40,
    "checkpoint_every": 7,
    "dropout": 0.2,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def steps_in(folder: Path) -> list[int]:
    """Return the steps of all complete lines of metrics."""
    path = folder / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def begin(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start a process and wait until it has saved a random step."""
    step = random.randint(7, 60)
    process = subprocess.Popen(
        COMMAND + arguments,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not any(written >= step for written in steps_in(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.03))
    return process


@cache
def uninterrupted(**kind: Any) -> Run:
    return small_run(**LONG, **kind)


@pytest.mark.parametrize(
    "kind", [{"carry": True}, {"curriculum": 2}], ids=["carry", "curriculum"]
)
def test_killed_command_resumes_with_equal_bits(
    kind: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = begin(small_command(data, folder, **LONG, **kind), folder)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    checkpoint = Checkpoint.load(folder)
    step = checkpoint.step
    assert 0 <= step < 150
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.endswith(".part")} == {
        CHECKPOINT_FILE,
        METRICS_FILE,
    }
    # Wherever the kill fell, the metrics reach the checkpoint.
    assert [
        m["step"]
        for m in read_metrics(folder, checkpoint.metrics, step)
        if "loss" in m
    ] == [*range(1, step + 1)]
    run = resume(folder, progress=False)
    assert_same_run(run, uninterrupted(**kind))
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]


def test_ctrl_c_saves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = begin(small_command(data, folder, **LONG), folder)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    step = Checkpoint.load(folder).step
    assert (
        out == f"stopped after step {step}; resume with: "
        f"python -m fbt.training --resume {folder}\n"
    )
    assert "Traceback" not in err
    assert f"{step}/150" in err
    assert {path.name for path in folder.iterdir()} == {CHECKPOINT_FILE, METRICS_FILE}
    assert_same_run(resume(folder, progress=False), uninterrupted())


def test_signals_ignored_by_the_parent_stay_ignored(
    data: Path, tmp_path: Path
) -> None:
    """As for background commands of scripts, and under nohup."""
    folder = tmp_path / "run"
    before = {
        kind: signal.signal(kind, signal.SIG_IGN)
        for kind in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        process = begin(small_command(data, folder, **LONG), folder)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("validation loss ")
    assert Checkpoint.load(folder).step == LONG["steps"]


def test_command_equals_function(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(small_command(data, tmp_path / "run", carry=True, no_memory_norm=True))
        == 0
    )
    run = small_run(carry=True, memory_norm=False)
    assert untimed(resume(tmp_path / "run", progress=False).metrics) == untimed(
        run.metrics
    )
    out, err = capsys.readouterr()
    assert out.startswith(
        f"validation loss {run.val_loss:.4f}{run.when}; "
        "weights, metrics and loss curve are in "
    )
    assert "11/11" in err
    assert run.evaluations[-1]["sample"].strip() in err


def test_resume_on_the_command_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(small_command(data, folder)) == 0
    first = capsys.readouterr().out
    assert main(["--resume", str(folder)]) == 0
    assert capsys.readouterr().out == first
    data.rename(tmp_path / "moved.txt")
    assert main(["--resume", str(folder)]) == 2
    assert "text.txt" in capsys.readouterr().err
    assert main(["--resume", str(folder), "--data", str(tmp_path / "moved.txt")]) == 0
    assert main(["--resume", str(folder), "--lr", "5"]) == 2
    assert "cannot be combined with --lr" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "nowhere")]) == 2
    assert "cannot resume a run" in capsys.readouterr().err


def test_tokens_and_more_steps_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, folder = tmp_path / "tokens.npy", tmp_path / "run"
    np.save(tokens, np.arange(900, dtype=np.uint16) % 7)
    arguments = small_command(tokens, folder)
    assert main([f"--tokens={tokens}", *arguments[1:]]) == 0
    assert main(["--resume", str(folder), "--steps=13"]) == 0
    assert Checkpoint.load(folder).step == 13
    assert "13/13" in capsys.readouterr().err


def test_without_matplotlib_no_loss_curve_is_named(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other tests may have imported the figures: without matplotlib nobody can.
    monkeypatch.delattr(views, "figures", raising=False)
    monkeypatch.delitem(sys.modules, "fbt.views.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(small_command(data, tmp_path / "run")) == 0
    out, err = capsys.readouterr()
    assert "weights and metrics are in" in out and "loss curve" not in out
    assert "no loss.svg" in err


def test_init_from_a_parallel_run(data: Path, tmp_path: Path) -> None:
    assert main(small_command(data, tmp_path / "first", variant="parallel")) == 0
    arguments = [
        f"--data={data}",
        "--preset=tiny",
        "--variant=feedback",
        "--steps=3",
        "--sample=0",
        "--dropout=0.1",
    ]
    assert (
        main(
            [
                *arguments,
                f"--init-from={tmp_path / 'first'}",
                f"--folder={tmp_path / 'second'}",
            ]
        )
        == 0
    )
    model = LanguageModel.from_pretrained(tmp_path / "second")
    assert (model.config.variant, model.config.d_model, model.config.dropout) == (
        "feedback",
        16,
        0.1,
    )


def test_default_folder_is_named_after_variant_and_preset(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = small_command(data, tmp_path, variant="feedback")
    assert main([word for word in arguments if not word.startswith("--folder")]) == 0
    assert (tmp_path / "runs" / "feedback-tiny" / "model.safetensors").is_file()


def test_help_lists_every_option_and_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in [*fields(Config), *fields(Recipe)]:
        if field.name != "vocab_size":
            flag = "--" + field.name.replace("_", "-")
            assert text.count(f" {flag} ") + text.count(f" {flag}, ") >= 1, flag
    for name, preset in PRESETS.items():
        assert f"{name} {preset.about}" in text
    for option in (
        "--data",
        "--folder",
        "--resume",
        "--init-from",
        "--log",
        "--device",
        "--preset",
    ):
        assert f" {option} " in text
    # The meaning of an option, and its default in each preset or in all.
    assert "--steps INT optimiser steps [tiny 600, small 2000, base 5000]" in text
    assert (
        '--activation {relu,gelu} "relu" or "gelu", inside the feed-forward block '
        "[relu]" in text
    )


def test_every_option_has_a_help_text() -> None:
    from fbt.training.__main__ import _parser

    assert all(action.help for action in _parser()._actions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=missing.txt"], "No such file or directory: 'missing.txt'"),
        (["--data=."], "Is a directory"),
        (
            ["--seq-len=1000"],
            "last tenth of the text must have more than seq_len=1000 tokens",
        ),
        (["--n-heads=3"], "n_heads must divide d_model"),
        (["--dropout=1"], "dropout must be a number in [0.0, 1.0), got 1.0"),
        (["--folder=text.txt/run"], "the folder of the run cannot be written"),
        (["--device=abacus"], "device must be a device that torch can use here"),
        (["--init-from=nowhere"], "no model.safetensors in 'nowhere'"),
        (["--lr=1e30", "--warmup=0"], "must be finite"),
        (
            ["--variant=parallel", "--backend=native"],
            "backend of a 'parallel' model must be one of 'auto', 'reference', got",
        ),
        (["--d-model=1000000"], "not enough memory: "),
    ],
)
def test_errors_are_printed_in_one_line(
    arguments: list[str],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*small_command(data, tmp_path / "run"), *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m fbt.training: ")
    assert message in last


def test_existing_run_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_command(data, tmp_path / "run")) == 0
    assert main(small_command(data, tmp_path / "run")) == 2
    assert (
        "already contains a run. Pass resume=True to continue it"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments",
    [["--stepz=3"], ["--steps=three"], ["--variant=serial"], ["--log=wandb"]],
)
def test_unknown_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m fbt.training" in capsys.readouterr().err


def test_second_ctrl_c_does_not_print_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fbt.training.__main__.train", stopped)
    assert main([]) == 130
    assert "stopped; the last checkpoint is intact" in capsys.readouterr().err


def test_notebook_without_widgets_shows_a_bar_without_a_warning() -> None:
    program = """
import sys, types
kernel = types.SimpleNamespace(config={"IPKernelApp": True})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: kernel)
sys.modules["ipywidgets"] = None
import tqdm, fbt.training.loop as loop
assert issubclass(loop.tqdm, tqdm.tqdm)
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, env=ENVIRONMENT
    )
