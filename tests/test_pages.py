"""The pages around the chapters and the other documents: what they name exists, and what they say is so."""

import ast
import importlib
import inspect
import re
from functools import partial
from pathlib import Path

import pytest
import yaml
from fbt_about import minutes
from fbt_modules import Package
from notebooks import chapters, read
from repo import ROOT

import fbt
from fbt._repository import BRANCH, URL
from fbt.language_model import BODIES
from fbt.recipe import PRESETS

BLOB = f"{URL}/blob/{BRANCH}/"
PAGES = sorted((ROOT / "book").glob("*.md"))
DOCUMENTS = sorted({*PAGES, *ROOT.glob("*.md")})
DIFFERENCES, API, INDEX, HURRY = (
    ROOT / "book" / f"{name}.md" for name in ("differences", "api", "index", "in-a-hurry")
)
# How the pages name a definition, [`name`](address of its file), and a test, by its name in words.
DEFINITION = re.compile(rf"\[`([\w.]+)`\]\({re.escape(BLOB)}(fbt/[\w/]+\.py)\)")
TEST = re.compile(rf"\[([\w ]+)\]\({re.escape(BLOB)}(tests/\w+\.py)\)")
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def table(path: Path, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has the given heading."""
    lines = iter(text(path).splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            next(lines)
            rows = []
            for row in lines:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
            return rows
    raise AssertionError(f"{path.name} has no table that begins with {first_heading!r}")


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text(path))) if isinstance(node, ast.FunctionDef)}


# The map from equations to code and tests


def test_every_equation_has_code_and_a_test():
    rows = table(DIFFERENCES, "equation")
    assert len(rows) >= 15
    for equation, code, test in rows:
        assert DEFINITION.search(code), equation
        assert TEST.search(test), equation


def test_every_silent_fault_has_a_test():
    for fault, *_, test in table(DIFFERENCES, "what one does"):
        assert TEST.search(test), fault


@pytest.mark.parametrize("name, path", sorted(set(DEFINITION.findall(text(DIFFERENCES)))))
def test_a_named_definition_is_where_the_map_says(name, path):
    found = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    assert Path(inspect.getsourcefile(inspect.unwrap(found))) == ROOT / path


@pytest.mark.parametrize("name, path", sorted(set(TEST.findall(text(DIFFERENCES)))))
def test_a_named_test_exists(name, path):
    assert f"test_{name.replace(' ', '_')}" in functions_of(ROOT / path)


# The API page


def test_every_public_name_is_on_the_api_page():
    listed = set(
        re.findall(r"^\.\. auto(?:class|function|module):: (?:fbt\.)?(\w+)$", text(API), re.MULTILINE)
    )
    assert set(fbt.__all__) <= listed


def test_what_else_the_api_page_lists_exists():
    for name in re.findall(
        r"^\.\. auto(?:class|exception|function):: fbt\.([\w.]+)$", text(API), re.MULTILINE
    ):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"fbt.{module}"), attribute), name


def test_the_table_of_backends_is_what_the_bodies_serve():
    said = [
        (variant.strip('"'), body.strip("`"), tuple(re.findall(r'"([\w-]+)"', backends)))
        for variant, body, backends in table(API, "variant")
    ]
    assert said == [(variant, body.__name__, body.backends) for variant, body in BODIES.items()]


def test_the_table_of_presets_is_what_there_is():
    said = {name.strip('"'): about for name, about in table(API, "preset")}
    assert said == {name: preset.about for name, preset in PRESETS.items()}


# The start page


def test_the_start_page_lists_every_chapter_with_its_title_and_minutes():
    rows = table(INDEX, "chapter")
    assert len(rows) == len(chapters())
    for number, (row, path) in enumerate(zip(rows, chapters(), strict=True), start=1):
        first = read(path).cells[0].source
        title = first.splitlines()[0].removeprefix("# ")
        assert row[0] == f"{number} · [{title}]({path.name})"
        assert row[-1] == str(sum(minutes(first))), path.name


# The page for people in a hurry


def fences(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(path), re.MULTILINE | re.DOTALL)


def test_each_row_of_the_table_for_people_in_a_hurry_has_a_section_with_code():
    links = re.findall(r"\(#([a-z-]+)\)", " ".join(row[0] for row in table(HURRY, "you want to")))
    sections = re.findall(r"^## (\w+)\n[^#]*?^```python$", text(HURRY), re.MULTILINE)
    assert links == [section.lower() for section in sections]
    assert len(links) == len(fences(HURRY))


@pytest.mark.parametrize("code", fences(HURRY), ids=lambda code: code.splitlines()[-1])
def test_the_code_for_people_in_a_hurry_runs(code, tmp_path, monkeypatch, capsys):
    assert len([line for line in code.splitlines() if line]) <= 5
    # Two steps instead of two thousand.
    shorter = partial(fbt.train, steps=2, warmup=1, sample=0, progress=False)
    monkeypatch.setattr(fbt, "train", shorter)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed or "print(" not in code


# All documents


@every_document
def test_links_into_the_repository_lead_somewhere(path):
    content = text(path)
    inside = re.findall(rf"{re.escape(URL)}/(?:blob|tree)/{re.escape(BRANCH)}/([^\s)#\"]+)", content)
    beside = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", content) + re.findall(
        r'src="(?!https?:)([^"]+)"', content
    )
    missing = [link for link in inside if not (ROOT / link).exists()]
    missing += [link for link in beside if not (path.parent / link).exists()]
    assert not missing


@every_document
def test_no_document_is_out_of_bounds(path):
    content = text(path)
    assert not re.search(r"(?<!\w)(/work/|/tmp/|/home/|\.\./shared)", content)
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", content)


# The house map


def house() -> list[str]:
    """The modules and folders of CONTRIBUTING.md's map, from the top to the bottom."""
    block = re.search(r"```text\n(fbt/.*?)```", text(ROOT / "CONTRIBUTING.md"), re.DOTALL)
    assert block is not None
    return re.findall(r"fbt/[\w/]+(?:\.py|/)", block[1])


def floor(module: Path) -> int:
    """The line of the map that a file of the package stands on."""
    name = module.relative_to(ROOT).as_posix()
    found = [
        i
        for i, entry in enumerate(house())
        if name == entry or (entry.endswith("/") and name.startswith(entry))
    ]
    assert len(found) == 1, f"CONTRIBUTING.md's map must hold {name} once"
    return found[0]


VIEWS = ROOT / "fbt" / "views" / "__init__.py"  # empty, so that its modules may stand on several floors
MODULES = sorted(path for path in (ROOT / "fbt").rglob("*.py") if path != VIEWS)
PACKAGE = Package(ROOT)


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_down_the_map(module):
    found = next(known for known in PACKAGE.modules.values() if ROOT / known.path == module)
    assert not [node for node in ast.walk(found.tree) if isinstance(node, ast.ImportFrom) and node.level]
    higher = [other.path for other in PACKAGE.imports(found) if floor(ROOT / other.path) < floor(module)]
    assert not higher


def test_the_contents_list_every_module_in_the_order_of_the_map():
    parts = yaml.safe_load(text(ROOT / "_toc.yml"))["parts"]
    (source,) = (chapter for part in parts for chapter in part["chapters"] if "sections" in chapter)
    listed = [Path(section["file"]) for section in source["sections"]]
    assert sorted(listed) == sorted(module.path for module in PACKAGE.modules.values())
    floors = [floor(ROOT / path) for path in listed if path != VIEWS.relative_to(ROOT)]
    assert floors == sorted(floors)
