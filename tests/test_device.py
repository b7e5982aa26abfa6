"""Where a run trains if no device is named, on invented cards."""

import json
from importlib.resources import files
from statistics import mean
from typing import Any

import pytest
import torch
from small_runs import small_run

import fbt
from fbt import engines
from fbt.sequence.triton_engine import TritonEngine
from fbt.training import device, run
from fbt.training.device import Placement, faster_device
from fbt.training.recipe import PRESETS, Recipe

M = {"d": 128, "H": 4, "F": 512, "L": 4, "T": 128, "B": 64}
UNKNOWN, FAST, SLOW = None, (2e-5, 5e-4), (4e-3, 3e-3)  # seconds per step and layer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets threads, the CPU's engine and times on the card."""
    empty = torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *size, **named: empty(*size, **named | {"device": "cpu"}),
    )

    def has(
        card: tuple[float, float] | None = UNKNOWN,
        threads: int = 1,
        engine: str = "native",
    ) -> None:
        monkeypatch.setattr(TritonEngine, "seconds", lambda x: card)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(
            engines, "first_for", lambda x: engines.Choice(engine, "")
        )

    has()
    return has


def placed(
    size: dict[str, int],
    variant: Any = "shared-kv",
    backend: Any = "auto",
    dropout: float = 0.0,
) -> Placement:
    config = fbt.Config(
        65,
        variant=variant,
        d_model=size["d"],
        n_heads=size["H"],
        d_ff=size["F"],
        n_layers=size["L"],
        dropout=dropout,
    )
    return faster_device(
        config, Recipe(batch_size=size["B"], seq_len=size["T"]), backend
    )


def launched(row: dict[str, Any]) -> bool:
    """Whether a row is a training step of "sequence" as the package runs it."""
    ours = {"what": "step", "name": "sequence", "how": "launched"}
    return row.items() >= (ours | {"precision": "float32"}).items()


def rows(name: str) -> list[dict[str, Any]]:
    path = files("fbt") / "measurements" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_constants_are_those_of_the_records():
    per_step = [r["seconds"] / (r["T"] * r["L"]) for r in rows("gpu") if launched(r)]
    assert pytest.approx(mean(per_step), rel=0.1) == device.ON_GPU
    assert max(per_step) < 1.3 * min(per_step)
    weights = 2 * M["d"] * (M["L"] * (M["d"] + M["F"]) + M["d"])
    for name, expected in device.ON_CPU.items():
        (row,) = (
            r
            for r in rows("speed")
            if (r["name"], r["label"], r["threads"]) == (name, "M", 1)
            and "seconds" in r
        )
        found = row["seconds"] / (weights * M["B"] * M["T"])
        assert expected == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_agrees_with_the_records_wherever_the_difference_is_clear(
    machine, threads
):
    """The same sizes on both devices, and the CPU's others as the constants say."""
    machine(threads=threads)
    on_gpu = {r["label"]: r["seconds"] for r in rows("gpu") if launched(r)}
    compared = set()
    for row in rows("speed"):
        if (row["name"], row["threads"]) != ("native", threads) or "ratio" not in row:
            continue
        gpu = on_gpu.get(row["label"], device.ON_GPU * row["T"] * row["L"])
        if not 0.67 < gpu / row["seconds"] < 1.5:
            expected = "cuda" if gpu < row["seconds"] else "cpu"
            assert placed(row).device == expected, row
            compared.add(expected)
    assert compared == {"cuda"}


def test_parallel_models_and_named_backends(machine):
    tiny = {"d": 8, "H": 2, "F": 8, "L": 1, "T": 8, "B": 1}
    assert placed(tiny).device == "cpu"
    assert placed(tiny, variant="parallel").device == "cuda"
    large = M | {"d": 1024, "B": 256}
    assert placed(large).device == "cuda"
    assert placed(large, backend="native").device == "cpu"
    assert placed(tiny, backend="triton").device == "cuda"


@pytest.mark.parametrize(
    "engine, expected", [("native", "cpu"), ("sequence", "cuda")]
)
def test_the_engine_that_the_cpu_has_counts(machine, engine, expected):
    machine(engine=engine)
    size = M | {"B": 40}
    assert placed(size).device == expected
    # The plain loops never use the native one.
    assert placed(size, backend="stack").device == "cuda"
    assert placed(size, variant="feedback").device == "cuda"


def test_the_times_of_the_card_replace_the_record(machine):
    for card, expected in ((UNKNOWN, "cpu"), (FAST, "cuda"), (SLOW, "cpu")):
        machine(card, threads=2)
        assert placed(M).device == expected
    machine(SLOW, threads=1, engine="sequence")
    assert placed(M).device == "cpu"  # "sequence" takes 3 ms there, not 1.1
    machine(FAST, threads=12)
    assert placed(M).device == "cuda"  # the kernel
    assert placed(M, backend="sequence").device == "cpu"
    # Only "sequence" is replayed as a graph, and not with dropout.
    machine((1e-3, 4e-4), threads=3)
    assert placed(M).device == placed(M, backend="sequence").device == "cuda"
    assert placed(M, backend="stack").device == "cpu"
    assert placed(M, variant="feedback").device == "cpu"
    assert placed(M, dropout=0.1).device == "cpu"
    # Ten times as many sequences may take the kernel ten times as long.
    machine((1e-3, 1.1e-3), threads=4)
    assert placed(M).device == "cpu" and placed(M | {"B": 640}).device == "cpu"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_on_the_two_threads_that_colab_has(machine, name):
    """Beside a GPU that was not timed, with the native loop."""
    machine(threads=2)
    model, recipe = PRESETS[name].model, PRESETS[name].recipe
    config = fbt.Config(65, **model)
    assert faster_device(config, Recipe(**recipe), "auto").device == "cpu"
    parallel = config.replace(variant="parallel")
    assert faster_device(parallel, Recipe(**recipe), "auto").device == "cuda"


def test_the_reason_says_by_how_much(machine):
    machine(threads=2)
    wanted = "about 1.4 times as long on the GPU"
    assert wanted in placed(M).reason


def test_the_progress_says_where_and_why(monkeypatch, capsys):
    seen = []

    def chosen(config, recipe, backend):
        seen.append(backend)
        return Placement("cpu", "since we say so")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "faster_device", chosen)
    for named in ({}, {"device": "cpu"}):
        run_here = small_run(steps=1, **named, progress=True)
        assert run_here.model.token_embedding.weight.device.type == "cpu"
    shown = capsys.readouterr().err
    assert shown.count("training on the CPU, since we say so; to choose") == 1
    assert seen == ["auto"]  # not asked if a device is named


def test_a_resumed_run_is_placed_by_its_backend(monkeypatch, tmp_path):
    small_run(steps=1, folder=tmp_path, backend="auto", variant="feedback")
    seen = []

    def chosen(config, recipe, backend):
        seen.append(backend)
        return Placement("cpu", "")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "faster_device", chosen)
    small_run(
        steps=1, folder=tmp_path, backend="auto", variant="feedback", resume=True
    )
    assert seen == ["stack"]
