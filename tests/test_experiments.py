"""Experiments: baselines, cached jobs, and what small models learn."""

import json
from pathlib import Path

import baselines
import language
import pytest
import record
import torch
import tracking
from baselines import LSTM, POSITIONS, LSTMWithAttention, Transformer

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
    ],
)
def test_lstm_is_causal(build):
    torch.manual_seed(0)
    model, tokens = build(), torch.randint(7, (3, 11))
    torch.testing.assert_close(model(tokens)[:, :6], model(tokens[:, :6]))


@pytest.mark.parametrize("layers", [2, 4, 8])
def test_wider_model_has_as_many_parameters(layers):
    def size(model):
        job = language.job_of(model, layers=layers)
        return sum(p.numel() for p in language.build(job, 65).parameters())

    assert size("feedback, as many parameters") == pytest.approx(
        size("parallel"), rel=0.001
    )
    assert size("feedback") < 0.95 * size("parallel")


# Jobs


def square(job: dict) -> dict:
    """Run a job of the test below; each call writes a file."""
    number = job["number"]
    Path(
        job["folder"], f"{number}-{len(list(Path(job['folder']).iterdir()))}"
    ).touch()
    return {"summary": {"square": number**2}}


def test_jobs_run_once_and_results_keep_their_order(tmp_path, monkeypatch, capsys):
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


def test_quick_jobs_are_not_cached(tmp_path, monkeypatch, capsys):
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_one_feedback_layer_learns_parity(seed):
    """It takes a few CPU seconds; the limit is for slow machines."""
    result = tracking.run(
        tracking.recurrent("parity", "feedback", rate=5e-4, seed=seed, seconds=120)
    )
    assert result["summary"]["accuracy"]["64"] >= tracking.SOLVED
    assert result["summary"]["accuracy"]["512"] >= 0.9


@pytest.mark.slow
def test_memory_of_embeddings_does_not_learn_parity():
    """The same model without feedback only guesses."""
    job = tracking.recurrent(
        "parity", "feedback", options={"memory": "embedding"}, seconds=10
    )
    assert tracking.run(job)["summary"]["accuracy"]["64"] < 0.75
