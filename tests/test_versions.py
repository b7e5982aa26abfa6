"""Checks with other versions of Python and torch, and the record of their results."""

import json
import re
import sys
import tomllib

import pytest
import versions
from repo import ROOT

RECORD = json.loads(versions.RECORD.read_text(encoding="utf-8"))


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "RECORD", tmp_path / "versions.json")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "state", lambda: "c0ffee")
    return lambda: json.loads(versions.RECORD.read_text(encoding="utf-8"))


def test_a_row_replaces_the_row_with_the_same_keys(record, monkeypatch):
    for python, compiled in (("3.12", "3.12.1"), ("3.11", None), ("3.11", "3.11.7")):
        versions.record_row(
            "pythons", {"python": python, "compiled": compiled}, "python"
        )
    rows = record()["pythons"]
    compiled = [(row["python"], row["compiled"]) for row in rows]
    assert compiled == [("3.11", "3.11.7"), ("3.12", "3.12.1")]
    for row in rows:
        assert row["commit"] == "c0ffee" and re.fullmatch(r"[\d-]{10}", row["date"])
    monkeypatch.setattr(versions, "state", lambda: "another")
    versions.record_row("pythons", {"python": "3.11", "compiled": "3.11.7"}, "python")
    assert record()["pythons"] == rows  # the same result keeps its date and commit


def test_a_python_that_is_not_installed_keeps_its_recorded_result(
    record, monkeypatch
):
    monkeypatch.setattr(versions, "PYTHONS", ("3.12",))
    monkeypatch.setattr(versions, "copy_code", lambda into: None)
    monkeypatch.setattr(versions, "compiled", lambda command, code: "3.12.1")
    results = [(["Linux"], "python3.12"), (["Linux", "macOS"], None)]
    systems, commands = map(iter, zip(*results, strict=True))
    monkeypatch.setattr(versions, "resolve", lambda python: next(systems))
    monkeypatch.setattr(versions, "interpreter", lambda python: next(commands))
    for _ in results:
        versions.pythons()
    (row,) = record()["pythons"]
    assert (row["wheels"], row["compiled"]) == (["Linux", "macOS"], "3.12.1")
    monkeypatch.undo()
    assert versions.interpreter("3.99") is None


def test_a_warning_fails_the_compilation(tmp_path, capfd):
    (tmp_path / "good.py").write_text("x = 1\n")
    version = ".".join(map(str, sys.version_info[:3]))
    assert versions.compiled(sys.executable, tmp_path) == version
    (tmp_path / "bad.py").write_text('x = "\\d"\n')
    assert versions.compiled(sys.executable, tmp_path) is None
    assert "invalid escape sequence" in capfd.readouterr().out
    assert not list(tmp_path.rglob("*.pyc"))


def test_all_code_is_compiled_including_the_chapters(tmp_path):
    versions.copy_code(tmp_path)
    assert (tmp_path / "fbt" / "stack.py").exists()
    assert (tmp_path / "book" / "_ext").is_dir()
    chapter = (tmp_path / "01-parallel-attention.py").read_text(encoding="utf-8")
    assert "get_ipython()" in chapter  # from %pip
    for name in versions.SKIPPED.split():
        assert (ROOT / "tests" / f"test_{name}.py").exists()


def test_the_record_covers_the_pythons_in_pyproject_and_has_no_failures():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert pythons == list(versions.PYTHONS)
    assert f">={pythons[0]}" == project["requires-python"]
    assert [row["python"] for row in RECORD["pythons"]] == pythons
    for row in RECORD["pythons"]:
        assert row["wheels"] == list(versions.SYSTEMS) and row["compiled"]
    for row in RECORD["tests"]:
        assert not row["commit"].endswith("+") and row["tests"] > 1000
        assert row["failures"] == row["errors"] == 0
    # Each Python was tested with some torch, and so was the oldest accepted torch.
    tested = {row["python"].rpartition(".")[0] for row in RECORD["tests"]}
    assert tested == set(pythons)
    oldest = re.search(r"torch>=([\d.]+)", " ".join(project["dependencies"]))[1]
    assert any(row["torch"].startswith(oldest) for row in RECORD["tests"])
