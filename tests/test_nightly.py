"""`make nightly`: every step runs and is reported, even after a failure."""

import json
import re
import sys

import nightly
import pytest


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_a_failed_step_is_reported_and_the_rest_runs(tmp_path):
    commands = {
        "first": python("print('all | is well')"),
        "second": python(
            "import sys; print('1 failed\\n\\n===='); sys.exit('make: *** Error 1')"
        ),
        "third": python("import os; print(os.environ['FBT_NEEDS_BROWSER'])"),
    }
    assert not nightly.run_steps(commands, tmp_path, quick=True)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = [(row["step"], row["result"], row["last_line"]) for row in report["rows"]]
    assert rows == [
        ("first", "ok", "all | is well"),
        ("second", "FAILED", "1 failed"),
        ("third", "ok", "1"),
    ]
    assert report["finished"] and report["quick"] and report["commit"]
    assert report["machine"]["cpu"] and report["versions"]["torch"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    row = r"^\| \[first\]\(first.log\) \| ok \| \d+ \| all \\\| is well \|$"
    assert re.search(row, text, re.MULTILINE)
    assert text.endswith("\nFailed: second.\n")
    assert "Error 1" in (tmp_path / "second.log").read_text(encoding="utf-8")


def test_an_interrupted_run_is_not_finished(tmp_path, monkeypatch):
    def run(name, command, folder):
        if name == "second":
            raise KeyboardInterrupt
        return {"step": name, "result": "ok", "seconds": 0, "last_line": ""}

    monkeypatch.setattr(nightly, "run", run)
    assert nightly.run_steps({"only": []}, tmp_path, quick=False)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "All checks passed." in text
    with pytest.raises(KeyboardInterrupt):
        nightly.run_steps({"first": [], "second": []}, tmp_path, quick=True)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert not report["finished"]


def test_every_check_is_a_step_and_measurements_come_last():
    assert set(nightly.NOT_CHECKS.split()) <= set(nightly.targets())
    checks = "lint book test test-slow test-kills test-properties fuzz test-colab"
    checks += " audit vendor pythons"
    assert set(checks.split()) <= set(nightly.steps())
    assert nightly.steps()[-2:] == ["bench", "experiments"]


def test_main_passes_quick_to_make_and_fails_if_a_step_fails(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        nightly, "run_steps", lambda commands, folder, quick: seen.update(commands)
    )
    monkeypatch.setattr(sys, "argv", ["nightly.py", "--quick"])
    with pytest.raises(SystemExit, match="Some checks failed"):
        nightly.main()
    assert seen["bench"] == ["make", "QUICK=1", "bench"]
