"""GitHub's workflow runs the Makefile's commands with the least permissions."""

import re

import yaml
from nightly import targets
from repo import ROOT

from fbt._repository import BRANCH

TEXT = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
# YAML 1.1 reads the key `on` as a truth value.
WORKFLOW = {
    ("on" if name is True else name): value
    for name, value in yaml.safe_load(TEXT).items()
}
JOBS = WORKFLOW["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]


def test_every_change_is_tested_and_only_the_main_branch_published():
    assert WORKFLOW["on"] == {
        "push": {"branches": [BRANCH]},
        "pull_request": None,
        "workflow_dispatch": None,
    }
    assert JOBS["publish"]["if"].startswith(f"github.ref == 'refs/heads/{BRANCH}'")
    assert JOBS["publish"]["needs"] == "build"


def test_commands_are_targets_or_prepare_the_machine():
    commands = [step["run"] for step in STEPS if "run" in step]
    made = [name for name in commands if name.startswith("make ")]
    names = {name.removeprefix("make ") for name in made}
    assert {"lint", "test"} <= names <= set(targets())
    rest = [name for name in commands if name not in made]
    assert all(name.startswith(("git config ", "apt-get ")) for name in rest)
    assert any("chromium" in name for name in rest)


def test_permissions_are_the_least_necessary():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "permissions" not in JOBS["build"]
    assert JOBS["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "secrets." not in TEXT


def test_actions_are_githubs_own_and_pinned_to_commits():
    actions = re.findall(r"uses: (.*)", TEXT)
    assert len(actions) == sum("uses" in step for step in STEPS)
    pinned = r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert not [action for action in actions if not re.fullmatch(pinned, action)]


def test_published_and_cached_files_are_what_the_build_makes():
    steps = [step for step in STEPS if "path" in step.get("with", {})]
    paths = {step["uses"].split("@")[0]: step["with"]["path"] for step in steps}
    assert paths["actions/upload-pages-artifact"] == "_build/html"
    assert paths["actions/upload-artifact"] == "_build/book.pdf"
    assert paths["actions/cache"] == "_build/notebooks"  # the last of two
    keys = " ".join(step["with"].get("key", "") for step in steps)
    for name in re.findall(r"'([\w./-]+)'", keys):
        assert (ROOT / name).exists(), name
