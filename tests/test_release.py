"""`make release-check`: every check can pass, and fails on its fault."""

import json
import tomllib
from datetime import UTC, datetime

import nightly
import pytest
import release
from repo import ROOT
from repositories import commit_all, git

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
ADDRESS = "https://github.com/somebody/fbt"


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A repository that passes every check."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    rows = [{"step": step, "result": "ok"} for step in nightly.steps()]
    files = {
        "pyproject.toml": f'[project]\nversion = "{VERSION}"\n'
        f'[project.urls]\nRepository = "{ADDRESS}"\n',
        "CHANGELOG.md": f"# Changelog\n\n## {VERSION} - {today}\n\n## 0.0.1\n",
        ".gitignore": "_build\n",
        "_build/report.json": json.dumps({"commit": "c0ffee", "rows": rows}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = {"commit": commit_all(tmp_path, release.BRANCH)[:12]}
    (tmp_path / "tests").mkdir()
    figures = json.dumps({"kills": {"runs": [run]}, "fuzz": run, "properties": run})
    (tmp_path / "tests" / "trust.json").write_text(figures, encoding="utf-8")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=figures")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "URL", ADDRESS)
    monkeypatch.setattr(release, "commit", lambda: "c0ffee")
    monkeypatch.setattr(
        release.distribution,
        "build",
        lambda into: (tmp_path / "a.whl", tmp_path / "a.tar.gz"),
    )
    monkeypatch.setattr(release.distribution, "differences", lambda wheel, sdist: [])
    monkeypatch.setattr(release.nightly, "FOLDER", tmp_path / "_build")
    return tmp_path


def failures() -> dict[str, str]:
    """Return the message of every check that fails."""
    messages = {}
    for check in release.CHECKS:
        try:
            check()
        except release.Missing as reason:
            messages[check.__name__] = str(reason)
    return messages


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_main_prints_how_to_release_or_what_is_missing(ready, capsys):
    assert not failures()
    release.main()
    out = capsys.readouterr().out
    assert out.count("✓") == len(release.CHECKS)
    assert f"Ready: git tag v{VERSION}" in out
    git(ready, "tag", f"v{VERSION}")
    with pytest.raises(SystemExit, match=r"1 of \d+ checks failed"):
        release.main()
    line = f"✗ The tag does not exist yet. Now: v{VERSION} already exists"
    assert line in capsys.readouterr().out


def add(path, text=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    git(path.parent, "add", path.name)


REPORT = "_build/report.json"
LEFT = f"git+https://github.com/{release.PLACEHOLDER}/fbt"
# A check, its message, and a fault, given the repository and monkeypatch. If a fault
# changes a file, `clean` fails too.
FAULTS = [
    (
        "changelog",
        f"make it '## {VERSION} - ",
        lambda at, _: replace(
            at / "CHANGELOG.md", f"{datetime.now(UTC):%Y-%m-%d}", "2020-01-01"
        ),
    ),
    ("clean", "commit or remove notes.md", lambda at, _: (at / "notes.md").touch()),
    (
        "main_branch",
        "the branch is 'draft'",
        lambda at, _: git(at, "switch", "--quiet", "--create", "draft"),
    ),
    (
        "no_tag",
        "choose the next version",
        lambda at, _: git(at, "tag", f"v{VERSION}"),
    ),
    (
        "address",
        "set it in fbt/_repository.py",
        lambda _, patch: patch.setattr(
            release, "URL", f"https://github.com/{release.PLACEHOLDER}/fbt"
        ),
    ),
    (
        "address",
        "`make repository`",
        lambda _, patch: patch.setattr(
            release, "URL", "https://github.com/another/fbt"
        ),
    ),
    ("address", "is still in README.md", lambda at, _: add(at / "README.md", LEFT)),
    (
        "packages",
        "a.whl: tests/test_a.py",
        lambda _, patch: patch.setattr(
            release.distribution,
            "differences",
            lambda wheel, sdist: ["a.whl: tests/test_a.py"],
        ),
    ),
    (
        "promises",
        "fbt/new.py has changed: run `make test-kills`",
        lambda at, _: add(at / "fbt" / "new.py"),
    ),
    ("everything", "`make nightly QUICK=1`", lambda at, _: (at / REPORT).unlink()),
    (
        "everything",
        "the report is of 0ld",
        lambda at, _: replace(at / REPORT, "c0ffee", "0ld"),
    ),
    (
        "everything",
        "failed: audit",
        lambda at, _: replace(
            at / REPORT, '"audit", "result": "ok"', '"audit", "result": "FAILED"'
        ),
    ),
    (
        "everything",
        "not run: audit",
        lambda at, _: replace(at / REPORT, '{"step": "audit", "result": "ok"}, ', ""),
    ),
]


@pytest.mark.parametrize(
    ("check", "message", "fault"), FAULTS, ids=[message for _, message, _ in FAULTS]
)
def test_a_fault_fails_its_check(ready, monkeypatch, check, message, fault):
    fault(ready, monkeypatch)
    messages = failures()
    assert message in messages[check]
    assert set(messages) <= {check, "clean"}
