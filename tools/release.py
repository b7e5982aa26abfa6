"""What a release needs, each point checked: a line with a tick, or with what to do.

.venv/bin/python tools/release.py
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

import build_book
import distribution
import nightly
import yaml
from notebooks import BUILD, ROOT
from record import commit

import fbt
from fbt._repository import BRANCH, URL

OWNER = "your_name"  # until somebody says whose the repository is
CODE = ("fbt/*.py", "fbt/*.cpp")  # to git a * is any characters


class Open(Exception):
    """What is still to be done."""


def text(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def git(*arguments: str) -> str:
    """What git says."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.rstrip()


def version() -> str:
    """The version that is to be released, as pyproject.toml has it."""
    return str(tomllib.loads(text("pyproject.toml"))["project"]["version"])


def one_version() -> str:
    """CITATION.cff and the package name the same version as pyproject.toml."""
    wanted = version()
    found = {
        "CITATION.cff": yaml.safe_load(text("CITATION.cff"))["version"],
        "fbt.__version__": fbt.__version__,
    }
    if wrong := [f"{name} says {value}" for name, value in found.items() if value != wanted]:
        raise Open(f"pyproject.toml says {wanted}, but {', '.join(wrong)}: make them the same")
    return wanted


def changelog() -> str:
    """The changelog begins with this version, under today's date."""
    heading = f"## {version()} - {datetime.now(UTC):%Y-%m-%d}"
    found = re.search(r"^## .*$", text("CHANGELOG.md"), re.MULTILINE)
    if found is None or found[0] != heading:
        raise Open(f"the first heading of CHANGELOG.md is {found and found[0]!r}: make it {heading!r}")
    return heading


def clean() -> str:
    """Everything is committed."""
    if changed := git("status", "--porcelain"):
        raise Open(f"commit or drop {', '.join(line[3:] for line in changed.splitlines()[:5])}")
    return commit()


def main_branch() -> str:
    """The branch is the one that readers install from."""
    if (found := git("branch", "--show-current")) != BRANCH:
        raise Open(f"the branch is {found!r}: switch to {BRANCH}")
    return BRANCH


def no_tag() -> str:
    """The tag is still free."""
    tag = f"v{version()}"
    if git("tag", "--list", tag):
        raise Open(f"{tag} is there already: choose the next version")
    return tag


def address() -> str:
    """The repository's address is set, and spelled the same everywhere."""
    if f"/{OWNER}/" in URL:
        raise Open(f"the address is still {URL}: set it in fbt/_repository.py, then `make repository`")
    there = tomllib.loads(text("pyproject.toml"))["project"]["urls"]["Repository"]
    if there != URL:
        raise Open(f"pyproject.toml says {there}, fbt/_repository.py {URL}: `make repository`")
    old = f"{OWNER}/" + URL.rsplit("/", 1)[1]
    command = ["git", "grep", "--files-with-matches", "--fixed-strings", old]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        raise Open(f"git grep: {done.stderr.strip()}")
    if left := done.stdout.split():
        raise Open(f"{old} is left in {', '.join(left)}: put the address there")
    return URL


def packages() -> str:
    """Wheel and sdist can be built, and hold what they should."""
    made = distribution.build(BUILD / "release")
    if wrong := distribution.differences(*made):
        raise Open(f"too much or missing: {', '.join(wrong[:5])}: see pyproject.toml and MANIFEST.in")
    return " and ".join(str(path.relative_to(ROOT)) for path in made)


def book() -> str:
    """The book was built from what is here."""
    try:
        key = build_book.book_key()
    except FileNotFoundError as error:
        raise Open(f"{error.filename} is missing: `make book`") from error
    if not build_book.STAMP.exists() or build_book.STAMP.read_text(encoding="utf-8") != key:
        raise Open("the built pages are missing or of other sources: `make book`")
    return str((build_book.HTML / "index.html").relative_to(ROOT))


def promises() -> str:
    """What took longer than a test, the page on promises quotes from runs of this code."""
    found = json.loads(text("tests/trust.json"))
    runs = [*found["kills"]["runs"], found["fuzz"], found["properties"]]
    for commit_of_run in sorted({run["commit"] for run in runs}):
        if changed := git("diff", "--name-only", commit_of_run, "--", *CODE).split():
            raise Open(
                f"since {commit_of_run} {changed[0]} has changed: `make test-kills`, `make fuzz` and "
                f"`make test-properties` again, and their figures into tests/trust.json"
            )
    return "tests/trust.json"


def everything() -> str:
    """`make nightly` ran on this commit, to its end, and found nothing."""
    path = nightly.FOLDER / "report.json"
    if not path.exists():
        raise Open("there is no report: `make nightly QUICK=1`")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["commit"] != commit():
        raise Open(f"the report is of {found['commit']}, and this is {commit()}: `make nightly QUICK=1`")
    missing = set(nightly.steps()) - {row["step"] for row in found["rows"]}
    failed = [row["step"] for row in found["rows"] if row["result"] != "ok"]
    if missing or failed:
        raise Open(f"failed: {', '.join(failed) or 'none'}; not run: {', '.join(sorted(missing)) or 'none'}")
    return str(nightly.FOLDER.relative_to(ROOT))


CHECKS: tuple[Callable[[], str], ...] = (
    one_version,
    changelog,
    clean,
    main_branch,
    no_tag,
    address,
    packages,
    book,
    promises,
    everything,
)


def main() -> None:
    """Print a line for each check, and fail if anything is open."""
    still = 0
    for check in CHECKS:
        about = (check.__doc__ or "").strip()
        try:
            print(f"✓ {about} {check()}", flush=True)
        except Open as todo:
            still += 1
            print(f"✗ {about} Now: {todo}", flush=True)
    if still:
        sys.exit(f"Not ready: {still} of {len(CHECKS)} points are open.")
    print(f"Ready: git tag v{version()} && git push origin v{version()}")


if __name__ == "__main__":
    main()
