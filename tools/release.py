"""Check everything that a release needs; print what is missing and how to fix it.

Versions and the built book are checked by `make test`, which the report must include.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import distribution
import nightly
from record import commit
from repo import BUILD, ROOT

from fbt._repository import BRANCH, URL

OWNER = "your_name"  # a placeholder until the repository has an owner
CODE = ("fbt/*.py", "fbt/*.cpp")  # for git, * also matches /


class Missing(Exception):
    """Something that a release needs, and how to provide it."""


def text(name: str) -> str:
    """Read a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    """Return the output of a git command."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.rstrip()


def version() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads(text("pyproject.toml"))["project"]["version"])


def changelog() -> str:
    """The changelog begins with this version and today's date."""
    heading = f"## {version()} - {datetime.now(UTC):%Y-%m-%d}"
    found = re.search(r"^## .*$", text("CHANGELOG.md"), re.MULTILINE)
    if found is None or found[0] != heading:
        raise Missing(
            f"the first heading of CHANGELOG.md is {found and found[0]!r}: make it {heading!r}"
        )
    return heading


def clean() -> str:
    """There are no uncommitted changes."""
    if changed := git("status", "--porcelain"):
        raise Missing(
            f"commit or remove {', '.join(line[3:] for line in changed.splitlines()[:5])}"
        )
    return commit()


def main_branch() -> str:
    """The branch is the one that users install from."""
    if (found := git("branch", "--show-current")) != BRANCH:
        raise Missing(f"the branch is {found!r}: switch to {BRANCH}")
    return BRANCH


def no_tag() -> str:
    """The tag does not exist yet."""
    tag = f"v{version()}"
    if git("tag", "--list", tag):
        raise Missing(f"{tag} already exists: choose the next version")
    return tag


def address() -> str:
    """The repository's address is set, and the same everywhere."""
    if f"/{OWNER}/" in URL:
        raise Missing(
            f"the address is still {URL}: set it in fbt/_repository.py, then `make repository`"
        )
    there = tomllib.loads(text("pyproject.toml"))["project"]["urls"]["Repository"]
    if there != URL:
        raise Missing(
            f"pyproject.toml says {there}, fbt/_repository.py {URL}: `make repository`"
        )
    old = f"{OWNER}/" + URL.rsplit("/", 1)[1]
    command = ["git", "grep", "--files-with-matches", "--fixed-strings", old]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        raise Missing(f"git grep: {done.stderr.strip()}")
    if left := done.stdout.split():
        raise Missing(f"{old} is still in {', '.join(left)}: write the address there")
    return URL


def packages() -> str:
    """Wheel and sdist can be built, and contain the right files."""
    made = distribution.build(BUILD / "release")
    if wrong := distribution.differences(*made):
        raise Missing(
            f"unexpected or missing: {', '.join(wrong[:5])}: see pyproject.toml"
        )
    return " and ".join(str(path.relative_to(ROOT)) for path in made)


def promises() -> str:
    """The figures on the page of promises are from runs of this code."""
    found = json.loads(text("tests/trust.json"))
    runs = [*found["kills"]["runs"], found["fuzz"], found["properties"]]
    for commit_of_run in sorted({run["commit"] for run in runs}):
        if changed := git("diff", "--name-only", commit_of_run, "--", *CODE).split():
            raise Missing(
                f"since {commit_of_run} {changed[0]} has changed: run `make test-kills`, `make fuzz` "
                f"and `make test-properties`, and put the figures into tests/trust.json"
            )
    return "tests/trust.json"


def everything() -> str:
    """`make nightly` passed on this commit."""
    path = nightly.FOLDER / "report.json"
    if not path.exists():
        raise Missing("there is no report: `make nightly QUICK=1`")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["commit"] != commit():
        raise Missing(
            f"the report is of {found['commit']}, not of {commit()}: `make nightly QUICK=1`"
        )
    missing = set(nightly.steps()) - {row["step"] for row in found["rows"]}
    failed = [row["step"] for row in found["rows"] if row["result"] != "ok"]
    if missing or failed:
        raise Missing(
            f"failed: {', '.join(failed) or 'none'}; not run: {', '.join(sorted(missing)) or 'none'}"
        )
    return str(nightly.FOLDER.relative_to(ROOT))


CHECKS: tuple[Callable[[], str], ...] = (
    changelog,
    clean,
    main_branch,
    no_tag,
    address,
    packages,
    promises,
    everything,
)


def main() -> None:
    """Print a line for each check, and fail if anything is missing."""
    missing = 0
    for check in CHECKS:
        about = (check.__doc__ or "").strip()
        try:
            print(f"✓ {about} {check()}", flush=True)
        except Missing as todo:
            missing += 1
            print(f"✗ {about} Now: {todo}", flush=True)
    if missing:
        sys.exit(f"Not ready: {missing} of {len(CHECKS)} checks failed.")
    print(f"Ready: git tag v{version()} && git push origin v{version()}")


if __name__ == "__main__":
    main()
