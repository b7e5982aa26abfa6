"""`make nightly`: every step runs, whatever became of the one before it, and the report says so."""

import json
import re
import sys

import nightly
import pytest


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.fixture
def reported(tmp_path):
    """A run of three steps, the second of which fails."""
    commands = {
        "first": python("print('all | is well')"),
        "second": python("import sys; print('1 failed\\n\\n===='); sys.exit('make: *** [second] Error 1')"),
        "third": python("import os; print(os.environ['FBT_NEEDS_BROWSER'])"),
    }
    assert not nightly.everything(commands, tmp_path, quick=True)
    return tmp_path


def test_a_failure_does_not_stop_the_rest(reported):
    found = json.loads((reported / "report.json").read_text(encoding="utf-8"))
    assert [(row["step"], row["result"], row["said"]) for row in found["rows"]] == [
        ("first", "ok", "all | is well"),
        ("second", "FAILED", "1 failed"),
        ("third", "ok", "1"),
    ]
    assert found["finished"] and found["quick"] and found["commit"]
    assert found["machine"]["cpu"] and found["versions"]["torch"]


def test_the_report_is_a_table_with_a_log_for_each_step(reported):
    text = (reported / "report.md").read_text(encoding="utf-8")
    assert re.search(r"^\| \[first\]\(first.log\) \| ok \| \d+ \| all \\\| is well \|$", text, re.MULTILINE)
    assert text.endswith("\nFailed: second.\n")
    assert "Error 1" in (reported / "second.log").read_text(encoding="utf-8")


def test_nothing_failed(tmp_path):
    assert nightly.everything({"only": python("")}, tmp_path, quick=False)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").endswith("\nAll is well.\n")


def test_an_interrupted_run_is_not_a_finished_one(tmp_path, monkeypatch):
    def run(name, command, folder):
        if name == "second":
            raise KeyboardInterrupt
        return {"step": name, "result": "ok", "seconds": 0, "said": ""}

    monkeypatch.setattr(nightly, "run", run)
    with pytest.raises(KeyboardInterrupt):
        nightly.everything({"first": [], "second": []}, tmp_path, quick=True)
    assert not json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["finished"]


def test_every_target_is_a_step_unless_it_checks_nothing():
    assert set(nightly.CHECK_NOTHING.split()) <= set(nightly.targets())
    steps = nightly.steps()
    assert set(steps) == set(nightly.targets()) - set(nightly.CHECK_NOTHING.split())
    assert {"lint", "book", "test", "test-slow", "test-colab", "audit", "vendor", "pythons"} <= set(steps)
    assert steps[-2:] == ["bench", "experiments"]


def test_it_fails_and_passes_quick_on(monkeypatch):
    seen = {}

    def everything(commands, folder, quick):
        seen.update(commands)
        return False

    monkeypatch.setattr(nightly, "everything", everything)
    monkeypatch.setattr(sys, "argv", ["nightly.py", "--quick"])
    with pytest.raises(SystemExit, match="Not all is well"):
        nightly.main()
    assert seen["bench"] == ["make", "QUICK=1", "bench"]
