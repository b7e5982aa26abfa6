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
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [
        (row["step"], row["result"], row["last_line"]) for row in found["rows"]
    ] == [
        ("first", "ok", "all | is well"),
        ("second", "FAILED", "1 failed"),
        ("third", "ok", "1"),
    ]
    assert found["finished"] and found["quick"] and found["commit"]
    assert found["machine"]["cpu"] and found["versions"]["torch"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert re.search(
        r"^\| \[first\]\(first.log\) \| ok \| \d+ \| all \\\| is well \|$",
        text,
        re.MULTILINE,
    )
    assert text.endswith("\nFailed: second.\n")
    assert "Error 1" in (tmp_path / "second.log").read_text(encoding="utf-8")


def test_an_interrupted_run_is_not_finished(tmp_path, monkeypatch):
    def run(name, command, folder):
        if name == "second":
            raise KeyboardInterrupt
        return {"step": name, "result": "ok", "seconds": 0, "last_line": ""}

    monkeypatch.setattr(nightly, "run", run)
    assert nightly.run_steps({"only": []}, tmp_path, quick=False)
    assert "All checks passed." in (tmp_path / "report.md").read_text(
        encoding="utf-8"
    )
    with pytest.raises(KeyboardInterrupt):
        nightly.run_steps({"first": [], "second": []}, tmp_path, quick=True)
    assert not json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))[
        "finished"
    ]


def test_every_target_is_a_step_unless_it_checks_nothing():
    steps, skipped = nightly.steps(), set(nightly.NOT_CHECKS.split())
    assert set(steps) == set(nightly.targets()) - skipped and skipped <= set(
        nightly.targets()
    )
    wanted = {
        "lint",
        "book",
        "test",
        "test-slow",
        "test-kills",
        "test-properties",
        "fuzz",
        "test-colab",
    }
    assert wanted | {"audit", "vendor", "pythons"} <= set(steps)
    assert steps[-2:] == ["bench", "experiments"]


def test_main_passes_quick_on_and_fails_if_a_step_did(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        nightly, "run_steps", lambda commands, folder, quick: seen.update(commands)
    )
    monkeypatch.setattr(sys, "argv", ["nightly.py", "--quick"])
    with pytest.raises(SystemExit, match="Some checks failed"):
        nightly.main()
    assert seen["bench"] == ["make", "QUICK=1", "bench"]
