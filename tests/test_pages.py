"""The pages around the chapters: names exist, and tables are complete."""

import ast
import importlib
import inspect
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from chapters import chapters, read
from fbt_about import minutes
from fbt_modules import Package
from repo import ROOT

import fbt
from fbt._repository import BRANCH, URL
from fbt.language_model import BODIES
from fbt.training.recipe import PRESETS

BLOB = f"{URL}/blob/{BRANCH}/"
PAGES = sorted((ROOT / "book").glob("*.md"))
DOCUMENTS = [
    *PAGES,
    *ROOT.glob("*.md"),
    ROOT / "tools" / "README.md",
    *ROOT.glob("book/_static/*.md"),
]
DIFFERENCES, API, INDEX, HURRY, REFERENCES = (
    ROOT / "book" / f"{name}.md"
    for name in ("differences", "api", "index", "in-a-hurry", "references")
)
# Links to a definition, [`name`](its file), and to a test, [its name](its file).
DEFINITION = re.compile(rf"\[`([\w.]+)`\]\({re.escape(BLOB)}(fbt/[\w/]+\.py)\)")
TEST = re.compile(rf"\[([\w ]+)\]\({re.escape(BLOB)}(tests/\w+\.py)\)")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def table(path: Path, first_heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has the given heading."""
    pattern = rf"^\| {re.escape(first_heading)} \|.*\n.*\n((?:\|.*\n)+)"
    match = re.search(pattern, text(path), re.MULTILINE)
    assert match, f"{path.name} has no table that begins with {first_heading!r}"
    rows = match[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


# The map from equations to code and tests


def test_equations_have_code_and_a_test_and_silent_faults_a_test():
    rows = table(DIFFERENCES, "equation")
    assert len(rows) >= 15
    for row in rows:
        assert DEFINITION.search(row[1]) and TEST.search(row[2]), row
    for row in table(DIFFERENCES, "what one does"):
        assert TEST.search(row[-1]), row


def test_named_definitions_and_tests_exist():
    missing = []
    for name, path in DEFINITION.findall(text(DIFFERENCES)):
        defined = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            defined = getattr(defined, part, None)
        file = defined and inspect.getsourcefile(inspect.unwrap(defined))
        if not file or Path(file) != ROOT / path:
            missing.append((name, path))
    for name, path in TEST.findall(text(DIFFERENCES)):
        nodes = ast.walk(ast.parse(text(ROOT / path)))
        functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        if f"test_{name.replace(' ', '_')}" not in functions:
            missing.append((name, path))
    assert not missing


# The API page


def test_api_page_lists_all_public_names_and_only_existing_ones():
    listed = re.findall(
        r"^\.\. auto(\w+):: (?:fbt\.)?([\w.]+)$", text(API), re.MULTILINE
    )
    assert set(fbt.__all__) <= {name for _, name in listed}
    for kind, name in listed:
        outer, _, last = f"fbt.{name}".rpartition(".")
        if kind == "module":
            importlib.import_module(f"fbt.{name}")
        else:
            assert hasattr(importlib.import_module(outer), last), name


def test_tables_of_backends_and_presets_are_complete():
    backends = [
        (variant.strip('"'), body.strip("`"), tuple(re.findall(r'"([\w-]+)"', names)))
        for variant, body, names in table(API, "variant")
    ]
    assert backends == [
        (variant, body.__name__, body.backends) for variant, body in BODIES.items()
    ]
    presets = {name.strip('"'): about for name, about in table(API, "preset")}
    assert presets == {name: preset.about for name, preset in PRESETS.items()}


# References


def test_papers_that_chapters_cite_are_among_the_references():
    paper = re.compile(r"\]\((https://(?:arxiv\.org/abs|doi\.org)/[^\s)]+)")
    cited = [
        (path.stem, link)
        for path in chapters()
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for link in paper.findall(cell.source)
    ]
    listed = set(paper.findall(text(REFERENCES)))
    assert len(set(cited)) >= 20
    assert not [(chapter, link) for chapter, link in cited if link not in listed]


# The start page and "In your own code"


def test_start_page_lists_chapters_with_title_and_minutes():
    first = {path: read(path).cells[0].source for path in chapters()}
    expected = [
        (
            f"{number} · [{source.splitlines()[0].removeprefix('# ')}]({path.name})",
            str(sum(minutes(source))),
        )
        for number, (path, source) in enumerate(first.items(), start=1)
    ]
    assert [(row[0], row[-1]) for row in table(INDEX, "chapter")] == expected


def fences(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text(path), re.MULTILINE | re.DOTALL)


def test_each_use_in_your_own_code_has_a_section_with_code():
    links = re.findall(
        r"\(#([a-z-]+)\)", " ".join(row[0] for row in table(HURRY, "you want to"))
    )
    sections = re.findall(r"^## (.+)\n[^#]*?^```python$", text(HURRY), re.MULTILINE)
    assert links == [section.lower() for section in sections]
    assert len(links) == len(fences(HURRY))


@pytest.mark.parametrize(
    "code", fences(HURRY), ids=lambda code: code.splitlines()[-1]
)
def test_code_of_your_own_runs(code, tmp_path, monkeypatch, capsys):
    series = "losses" in code  # the only longer one
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= (30 if series else 15)
    # Two steps instead of two thousand.
    shorter = partial(fbt.train, steps=2, warmup=1, sample=0, progress=False)
    monkeypatch.setattr(fbt, "train", shorter)
    monkeypatch.chdir(tmp_path)
    # As a module, so that a class can call super().
    exec(code, names := {"__name__": "own_code"})
    out = capsys.readouterr().out
    assert out or "print(" not in code
    if series:
        assert names["losses"][-1] < 0.2 * names["losses"][0]
    if "starts" in code:  # a document in a row is scored as it is alone
        packed, alone = map(float, out.split())
        assert packed == pytest.approx(alone, rel=1e-5)
    if "beams" in code:  # the search has added up the scores
        added = names["model"].score(names["tokens"][0])[6:].sum()
        torch.testing.assert_close(names["scores"][0], added, rtol=1e-4, atol=1e-3)


# All documents


def test_links_into_the_repository_exist():
    missing = []
    for path in DOCUMENTS:
        content = text(path)
        inside = re.findall(
            rf"{re.escape(URL)}/(?:blob|tree)/{re.escape(BRANCH)}/([^\s)#\"]+)",
            content,
        )
        beside = re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", content)
        beside += re.findall(r'(?:src|href)="(?!https?:|#)([^"]+)"', content)
        targets = [ROOT / link for link in inside]
        targets += [path.parent / link for link in beside]
        missing += [(path.name, file) for file in targets if not file.exists()]
    assert not missing


def test_documents_have_no_local_paths_or_unfinished_parts():
    wrong = r"(?<!\w)(?:/work/|/tmp/|/home/|\.\./shared)|\b(?:TODO|FIXME|XXX)\b"
    assert not [
        (path.name, match)
        for path in DOCUMENTS
        for match in re.findall(wrong, text(path))
    ]


# The map of modules in CONTRIBUTING.md

# An empty file, so the folder's modules may be on several lines of the map.
VIEWS = ROOT / "fbt" / "views" / "__init__.py"
PACKAGE = Package(ROOT)


def lines_of_map() -> list[str]:
    """Return the modules and folders of the map, from top to bottom."""
    block = re.search(
        r"```text\n(fbt/.*?)```", text(ROOT / "CONTRIBUTING.md"), re.DOTALL
    )
    assert block is not None
    return re.findall(r"fbt/[\w/]+(?:\.py|/)", block[1])


def line_of(module: Path) -> int:
    """Return the line of the map that a module is on."""
    name = module.as_posix()
    numbers = [
        number
        for number, entry in enumerate(lines_of_map())
        if name == entry or (entry.endswith("/") and name.startswith(entry))
    ]
    assert len(numbers) == 1, f"the map in CONTRIBUTING.md must have {name} once"
    return numbers[0]


def test_modules_import_only_modules_below_them_on_the_map():
    python = {path for path in (ROOT / "fbt").rglob("*.py") if path != VIEWS}
    known = {ROOT / module.path: module for module in PACKAGE.modules.values()}
    assert python <= set(known)
    wrong = []
    for module in (known[path] for path in sorted(python)):
        imports = [
            node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)
        ]
        wrong += [(module.name, "relative import") for node in imports if node.level]
        above = [
            other
            for other in PACKAGE.imports(module)
            if line_of(other.path) < line_of(module.path)
        ]
        wrong += [(module.name, other.name) for other in above]
    assert not wrong


def test_contents_list_modules_in_the_order_of_the_map():
    parts = yaml.safe_load(text(ROOT / "_toc.yml"))["parts"]
    (source,) = (
        chapter
        for part in parts
        for chapter in part["chapters"]
        if "sections" in chapter
    )
    listed = [Path(section["file"]) for section in source["sections"]]
    assert sorted(listed) == sorted(
        module.path for module in PACKAGE.modules.values()
    )
    lines = [line_of(path) for path in listed if path != VIEWS.relative_to(ROOT)]
    assert lines == sorted(lines)
