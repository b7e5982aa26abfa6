"""`make release-check`: each point can be met, and each can be missed."""

import json
import subprocess
import tomllib
from datetime import UTC, datetime

import nightly
import pytest
import release
from notebooks import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
ADDRESS = "https://github.com/somebody/fbt"


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A repository in which nothing is open."""
    for name, text in {
        "pyproject.toml": f'[project]\nversion = "{VERSION}"\n[project.urls]\nRepository = "{ADDRESS}"\n',
        "CITATION.cff": f"version: {VERSION}\n",
        "CHANGELOG.md": f"# Changelog\n\n## {VERSION} - {datetime.now(UTC):%Y-%m-%d}\n\n## 0.0.1\n",
        ".gitignore": "_build\n",
        "_build/key": "today's",
        "_build/report.json": json.dumps(
            {"commit": "c0ffee", "rows": [{"step": step, "result": "ok"} for step in nightly.steps()]}
        ),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    git(tmp_path, "init", "--quiet", f"--initial-branch={release.BRANCH}")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=all")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout
    run = {"commit": head[:12]}
    (tmp_path / "tests").mkdir()
    figures = json.dumps({"kills": {"runs": [run]}, "fuzz": run, "properties": run})
    (tmp_path / "tests" / "trust.json").write_text(figures, encoding="utf-8")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=figures")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "URL", ADDRESS)
    monkeypatch.setattr(release, "commit", lambda: "c0ffee")
    monkeypatch.setattr(
        release.distribution, "build", lambda into: (tmp_path / "a.whl", tmp_path / "a.tar.gz")
    )
    monkeypatch.setattr(release.distribution, "differences", lambda wheel, sdist: [])
    monkeypatch.setattr(release.build_book, "STAMP", tmp_path / "_build" / "key")
    monkeypatch.setattr(release.build_book, "HTML", tmp_path / "_build" / "html")
    monkeypatch.setattr(release.build_book, "book_key", lambda: "today's")
    monkeypatch.setattr(release.nightly, "FOLDER", tmp_path / "_build")
    return tmp_path


def open_points() -> dict[str, str]:
    """The checks that fail, with what they say is to be done."""
    found = {}
    for check in release.CHECKS:
        try:
            check()
        except release.Open as todo:
            found[check.__name__] = str(todo)
    return found


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_with_nothing_open_it_says_how_to_go_on(ready, capsys):
    assert not open_points()
    release.main()
    out = capsys.readouterr().out
    assert out.count("✓") == len(release.CHECKS) and f"Ready: git tag v{VERSION}" in out


def test_with_anything_open_it_fails(ready, capsys):
    git(ready, "tag", f"v{VERSION}")
    with pytest.raises(SystemExit, match=r"1 of \d+ points are open"):
        release.main()
    assert f"✗ The tag is still free. Now: v{VERSION} is there already" in capsys.readouterr().out


# Each check, what makes it fail, and what it says then. What changes a file fails `clean` too.
def another_version(folder, monkeypatch):
    replace(folder / "CITATION.cff", VERSION, "0.0.9")


def another_package(folder, monkeypatch):
    monkeypatch.setattr(release.fbt, "__version__", "0.0.9")


def yesterday(folder, monkeypatch):
    replace(folder / "CHANGELOG.md", f"{datetime.now(UTC):%Y-%m-%d}", "2020-01-01")


def something_new(folder, monkeypatch):
    (folder / "notes.md").touch()


def another_branch(folder, monkeypatch):
    git(folder, "switch", "--quiet", "--create", "draft")


def the_tag(folder, monkeypatch):
    git(folder, "tag", f"v{VERSION}")


def nobodys_address(folder, monkeypatch):
    monkeypatch.setattr(release, "URL", f"https://github.com/{release.OWNER}/fbt")


def two_addresses(folder, monkeypatch):
    monkeypatch.setattr(release, "URL", "https://github.com/another/fbt")


def an_address_left(folder, monkeypatch):
    (folder / "README.md").write_text(f"git+https://github.com/{release.OWNER}/fbt", encoding="utf-8")
    git(folder, "add", "README.md")


def something_too_much(folder, monkeypatch):
    monkeypatch.setattr(release.distribution, "differences", lambda wheel, sdist: ["a.whl: tests/test_a.py"])


def an_old_book(folder, monkeypatch):
    replace(folder / "_build" / "key", "today's", "yesterday's")


def no_run(folder, monkeypatch):
    missing = lambda: (folder / "_build" / "01.ipynb").read_bytes()  # noqa: E731
    monkeypatch.setattr(release.build_book, "book_key", missing)


def other_code(folder, monkeypatch):
    (folder / "fbt").mkdir()
    (folder / "fbt" / "new.py").write_text("", encoding="utf-8")
    git(folder, "add", "fbt")


def no_report(folder, monkeypatch):
    (folder / "_build" / "report.json").unlink()


def an_old_report(folder, monkeypatch):
    replace(folder / "_build" / "report.json", "c0ffee", "0ld")


def a_failure(folder, monkeypatch):
    replace(folder / "_build" / "report.json", '"audit", "result": "ok"', '"audit", "result": "FAILED"')


def a_step_less(folder, monkeypatch):
    replace(folder / "_build" / "report.json", '{"step": "audit", "result": "ok"}, ', "")


FAULTS = [
    ("one_version", another_version, "CITATION.cff says 0.0.9"),
    ("one_version", another_package, "fbt.__version__ says 0.0.9"),
    ("changelog", yesterday, f"make it '## {VERSION} - "),
    ("clean", something_new, "commit or drop notes.md"),
    ("main_branch", another_branch, "the branch is 'draft'"),
    ("no_tag", the_tag, "choose the next version"),
    ("address", nobodys_address, "set it in fbt/_repository.py"),
    ("address", two_addresses, "`make repository`"),
    ("address", an_address_left, "is left in README.md"),
    ("packages", something_too_much, "a.whl: tests/test_a.py"),
    ("book", an_old_book, "`make book`"),
    ("book", no_run, "01.ipynb is missing: `make book`"),
    ("promises", other_code, "fbt/new.py has changed: `make test-kills`"),
    ("everything", no_report, "`make nightly QUICK=1`"),
    ("everything", an_old_report, "the report is of 0ld"),
    ("everything", a_failure, "failed: audit"),
    ("everything", a_step_less, "not run: audit"),
]


@pytest.mark.parametrize(("check", "fault", "said"), FAULTS)
def test_each_point_can_be_open(ready, monkeypatch, check, fault, said):
    fault(ready, monkeypatch)
    found = open_points()
    assert said in found[check]
    assert set(found) <= {check, "clean"}


def test_every_check_is_tried():
    assert {check for check, _, _ in FAULTS} == {check.__name__ for check in release.CHECKS}
