"""The project's address, versions and bundled files agree everywhere."""

import hashlib
import re
import tomllib
from importlib.metadata import version

import pytest
import vendor
import yaml
from repo import ROOT

import fbt
from fbt._repository import BRANCH, URL

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Documents for people, whose links into the repository must use its address.
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *(ROOT / "book").glob("*.md"),
        *(ROOT / "book").glob("*.ipynb"),
    }
)


def test_settings_agree():
    # The form that links to Colab and GitHub need.
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)", URL)
    assert re.fullmatch(r"[\w./-]+", BRANCH)
    assert CONFIG["repository"] == {"url": URL, "branch": BRANCH}
    assert PYPROJECT["project"]["urls"]["Repository"] == URL
    assert CITATION["repository-code"] == URL
    versions = {CITATION["version"], version("fbt-book"), fbt.__version__}
    assert versions == {PYPROJECT["project"]["version"]}
    # An exact pin of torch would make Colab download a second one.
    assert not [name for name in PYPROJECT["project"]["dependencies"] if "==" in name]


def test_documents_have_the_address_and_install_this_package():
    owner, name = URL.removeprefix("https://github.com/").split("/")
    wrong = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        colab = r"colab\.research\.google\.com/github/(\S+?/\S+?)/blob/([\w.-]+)/"
        wrong += set(re.findall(colab, text)) - {(f"{owner}/{name}", BRANCH)}
        installed = re.findall(r"git\+(https://[^@\s\"\\]+)@([\w./-]+)", text)
        wrong += set(installed) - {(URL, BRANCH)}
        link = rf"https://github\.com/([\w.-]+)/{re.escape(name)}\b"
        wrong += set(re.findall(link, text)) - {owner}
        # On PyPI "fbt" is another project.
        wrong += re.findall(r"pip3? install (?:-\S+ )*[\"']?fbt(?!-book)\b.*", text)
    assert not wrong


def test_a_font_that_has_changed_on_npm_is_refused(tmp_path):
    row = next(row for row in vendor.listed() if row["page"])
    before = vendor.LIST.read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="npm now serves"):
        vendor.check_font(row, tmp_path / "font.woff", b"another font")
    assert not [*tmp_path.iterdir()]
    assert vendor.LIST.read_text(encoding="utf-8") == before


def test_a_missing_or_changed_file_is_restored(tmp_path):
    content, path = b"as recorded", tmp_path / "file"
    row = {"file": "file", "package": "p", "version": "1"}
    row["hash"] = hashlib.sha256(content).hexdigest()
    for before, is_same in ((None, False), (b"changed", False), (content, True)):
        if before is not None:
            path.write_bytes(before)
        assert vendor.check(row, path, content) == is_same
        assert path.read_bytes() == content


def test_bundled_files_are_listed_with_their_hashes():
    listed = {row["file"]: row["hash"] for row in vendor.listed()}
    hashes = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "book" / "_static" / "vendor").iterdir()
    }
    assert hashes == listed
