"""The project's address is set in fbt/_repository.py; every file that spells it out says the same."""

import hashlib
import re
import tomllib
from importlib.metadata import version

import pytest
import vendor
import yaml
from notebooks import ROOT

from fbt._repository import BRANCH, URL

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Documents a person reads. Their links into this repository must be links into this repository.
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.ipynb")})


def test_address_has_the_form_that_colab_and_github_links_need():
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", URL)
    assert not URL.endswith((".git", "/"))
    assert re.fullmatch(r"[\w./-]+", BRANCH)


def test_book_settings_agree():
    assert CONFIG["repository"] == {"url": URL, "branch": BRANCH}


def test_packaging_agrees():
    assert PYPROJECT["project"]["urls"]["Repository"] == URL
    assert CITATION["repository-code"] == URL


def test_versions_agree():
    expected = PYPROJECT["project"]["version"]
    assert CITATION["version"] == expected
    assert version("fbt-book") == expected


def test_package_asks_only_for_lower_bounds():
    # An exact pin on torch would make Colab download a second one.
    exact = [name for name in PYPROJECT["project"]["dependencies"] if "==" in name]
    assert not exact


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_agree(path):
    text = path.read_text(encoding="utf-8")
    owner, name = URL.removeprefix("https://github.com/").split("/")
    for found in re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/([\w.-]+)/", text):
        assert found == (f"{owner}/{name}", BRANCH)
    for found in re.findall(r"git\+(https://[^@\s\"\\]+)@([\w./-]+)", text):
        assert found == (URL, BRANCH)
    for found in re.findall(rf"https://github\.com/([\w.-]+)/{re.escape(name)}\b", text):
        assert found == owner


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_nobody_is_told_to_install_somebody_elses_fbt(path):
    assert not re.search(r"pip3? install (?:-\S+ )*[\"']?fbt(?!-book)\b", path.read_text(encoding="utf-8"))


def test_a_font_that_npm_has_changed_is_not_cut(tmp_path, monkeypatch):
    row = next(row for row in vendor.listed() if row["page"])
    before = vendor.LIST.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="npm now serves"):
        vendor.check_font(row, tmp_path / "font.woff", b"another font")
    assert not [*tmp_path.iterdir()] and vendor.LIST.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("there, same", [(b"as recorded", True), (b"changed", False), (None, False)])
def test_a_file_that_had_to_be_restored_is_not_the_same(tmp_path, there, same):
    content, path = b"as recorded", tmp_path / "file"
    if there is not None:
        path.write_bytes(there)
    row = {"file": "file", "package": "p", "version": "1", "hash": hashlib.sha256(content).hexdigest()}
    assert vendor.check(row, path, content) == same
    assert path.read_bytes() == content


@pytest.mark.parametrize("row", vendor.listed(), ids=lambda row: row["file"])
def test_files_from_other_projects_are_what_third_party_lists(row):
    assert hashlib.sha256((ROOT / row["file"]).read_bytes()).hexdigest() == row["hash"]


def test_every_file_from_other_projects_is_listed():
    listed = {row["file"] for row in vendor.listed()}
    present = {str(path.relative_to(ROOT)) for path in (ROOT / "book" / "_static" / "vendor").iterdir()}
    assert listed == present
