"""The workflow that publishes the book: it does what the Makefile does, and may do nothing else."""

import re

import pytest
import yaml
from notebooks import ROOT

from fbt._repository import BRANCH

TEXT = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
# YAML 1.1 reads the key `on` as a truth value.
WORKFLOW = {("on" if name is True else name): value for name, value in yaml.safe_load(TEXT).items()}
JOBS = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_it_runs_on_every_change_and_publishes_only_the_main_branch():
    assert WORKFLOW["on"] == {"push": {"branches": [BRANCH]}, "pull_request": None, "workflow_dispatch": None}
    assert JOBS["publish"]["if"].startswith(f"github.ref == 'refs/heads/{BRANCH}'")
    assert JOBS["publish"]["needs"] == "build"


def test_each_command_prepares_the_machine_or_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [step["run"] for step in STEPS if "run" in step]
    made = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    assert made == ["lint", "book", "test", "pdf"]
    assert set(made) <= targets
    rest = [command for command in commands if not command.startswith("make ")]
    assert all(command.startswith(("git config ", "apt-get ")) for command in rest)
    assert any("chromium" in command for command in rest)


def test_each_job_may_do_only_what_it_must():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOBS["build"]
    assert JOBS["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "secrets." not in TEXT


@pytest.mark.parametrize("action", re.findall(r"uses: (.*)", TEXT))
def test_each_action_is_of_github_and_of_one_commit_whose_version_is_said(action):
    assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_all_actions_are_looked_at():
    assert len(re.findall(r"uses: ", TEXT)) == sum("uses" in step for step in STEPS)


def test_what_it_publishes_and_keeps_is_what_the_build_makes():
    paths = {
        step["uses"].split("@")[0]: step["with"]["path"] for step in STEPS if "path" in step.get("with", {})
    }
    assert paths["actions/upload-pages-artifact"] == "_build/html"
    assert paths["actions/upload-artifact"] == "_build/book.pdf"
    assert paths["actions/cache"] == "_build/notebooks"  # the last of two
