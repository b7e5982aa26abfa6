"""The chapters: clean, run without an error, readable wherever they are opened, exercises that can be solved.

The conventions, for whoever writes a chapter:

First cells. Cell 0 is markdown with the only level-one heading. Cell 1 is the Colab badge (markdown) and
cell 2 the install cell (code); both are tagged `remove-cell`, since the book has a button for the one and
needs no other.

Figures. A cell draws at most one figure, as an SVG, and names it in its metadata, which the book reads:
{"mystnb": {"image": {"alt": "..."}, "figure": {"caption": "...", "name": "fig-..."}}}.

Exercises. At least three a chapter, numbered CHAPTER.NUMBER. Each has three cells that carry {"fbt":
{"exercise": "2.1"}}, in this order: a code cell tagged `exercise`, the stub, which runs as it stands; a
code cell tagged `exercise-check`, which never raises and prints a line that begins "Not yet:" or
"Correct:"; a markdown cell tagged `solution`, a <details> block with one ```python fence that replaces the
whole stub. Whatever the check or the solution needs lies in cells tagged `setup`, which are cheap and need
no other cell. The test makes a notebook of the setup cells and, for each exercise, the stub and its check,
which must print "Not yet", and the solution and its check, which must print "Correct".
"""

import itertools
import re
from pathlib import Path

import nbformat
import notebooks
import pytest
import yaml
from fbt_about import minutes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from notebooks import chapters, execute, executed, exercise_of, read, tags
from repo import ROOT

from fbt._repository import BRANCH, URL

CHAPTERS = chapters()
by_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LONGEST_CELL = 30
# Twice the budget: a busy machine passes, a chapter that has outgrown the book does not.
SLOWEST_RUN = 2 * notebooks.BUDGET_SECONDS
# What a first cell promises of the run, and an exercise's heading of its reader's evening.
PROMISE = re.compile(
    r"; running the page takes at most (one minute|two minutes|three minutes) on two cores\."
)
HEADING = re.compile(
    r"^### Exercise (\d\.\d) · ([A-Z].*) \((?:(\d+) minutes|an evening), (easy|medium|hard)\)$", re.M
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(source: str) -> str:
    """A markdown cell without its code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", source))


def markdown_cells(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")


def figures(path: Path) -> list:
    """The cells of the executed copy that drew a figure."""
    drawn = []
    for cell in executed_or_fail(path).cells:
        if cell.cell_type == "code":
            kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
            drawn += [cell for kind in kinds if kind.startswith("image/")]
    return drawn


def executed_or_fail(path: Path):
    notebook = executed(path)
    if notebook is None:
        pytest.fail(f"{path.name} has no run of its present code: run `make book` first")
    return notebook


def exercises(path: Path) -> dict[str, dict]:
    """Exercise number -> its cells by kind, in the notebook's order."""
    found: dict[str, dict] = {}
    for cell in read(path).cells:
        for kind in ("exercise", "exercise-check", "solution"):
            if kind in tags(cell):
                number = exercise_of(cell)
                assert number, (
                    f"a cell tagged {kind} has no fbt.exercise in its metadata: {cell.source[:60]!r}"
                )
                cells = found.setdefault(number, {})
                assert kind not in cells, f"exercise {number} has two cells tagged {kind}"
                cells[kind] = cell
    return found


def test_every_chapter_of_the_contents_exists():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    missing = [file for file in listed if not list(ROOT.glob(f"{file}.*"))]
    assert not missing
    assert sorted(CHAPTERS) == sorted((ROOT / "book").glob("*.ipynb")), "a notebook is not in _toc.yml"


@by_chapter
def test_committed_clean(path):
    notebook = read(path)
    assert notebook.metadata == NOTEBOOK_METADATA
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb", "fbt"}, cell.source[:60]
        if cell.cell_type == "code":
            assert not cell.outputs, cell.source[:60]
            assert cell.execution_count is None, cell.source[:60]


@by_chapter
def test_first_cells(path):
    title, badge, install, *rest = read(path).cells
    slug = URL.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/book/{path.name}"
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    assert (
        badge.source
        == f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
    )
    assert (
        install.source
        == f'try:\n    import fbt\nexcept ImportError:\n    %pip install -q "fbt-book @ git+{URL}@{BRANCH}"'
    )
    assert tags(badge) == tags(install) == ["remove-cell"]
    assert not any("%pip" in cell.source for cell in rest)


@by_chapter
def test_code_cells_are_short(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source[:60]


@by_chapter
def test_headings_go_down_one_level_at_a_time(path):
    levels = [
        len(marks)
        for source in markdown_cells(path)
        for marks in re.findall(r"^(#+) ", prose(source), re.MULTILINE)
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    for previous, level in itertools.pairwise(levels):
        assert level <= previous + 1, levels


@by_chapter
def test_ran_without_an_error(path):
    notebook = executed_or_fail(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None or not cell.source.strip()
            assert all(output.output_type != "error" for output in cell.outputs), cell.source[:60]
            stderr = [output.text for output in cell.outputs if output.get("name") == "stderr"]
            assert not stderr, f"{cell.source[:60]!r} wrote to stderr: {stderr}"
    assert notebook.metadata.fbt_run.seconds <= SLOWEST_RUN


@by_chapter
def test_figures_have_text_alternatives_and_captions(path):
    for cell in figures(path):
        about = cell.metadata.get("mystnb", {})
        assert len(about.get("image", {}).get("alt", "")) >= 20, f"no alt text: {cell.source[:60]!r}"
        assert about.get("figure", {}).get("caption"), f"no caption: {cell.source[:60]!r}"
        assert about.get("figure", {}).get("name", "").startswith("fig-"), f"no name: {cell.source[:60]!r}"


def test_figure_names_are_unique():
    names = [cell.metadata.mystnb.figure.name for path in CHAPTERS for cell in figures(path)]
    assert len(set(names)) == len(names), (
        f"a name is used twice, or a cell draws two figures: {sorted(names)}"
    )


@by_chapter
def test_exercises_are_complete(path):
    chapter = path.stem.split("-")[0].lstrip("0")
    found = exercises(path)
    assert len(found) >= 3
    assert list(found) == [f"{chapter}.{number}" for number in range(1, len(found) + 1)]
    for number, cells in found.items():
        assert list(cells) == ["exercise", "exercise-check", "solution"], f"{number}: {list(cells)}"
        assert len(FENCE.findall(cells["solution"].source)) == 1, number
        assert FENCE.findall(cells["solution"].source)[0][0] == "python", number
        assert cells["solution"].source.startswith("<details>\n<summary>Solution</summary>\n\n"), number
        assert cells["solution"].source.endswith("\n\n</details>"), number


@by_chapter
def test_exercises_wait_for_the_reader_and_accept_the_solution(path):
    found = exercises(path)
    setup = [cell for cell in read(path).cells if "setup" in tags(cell)]
    cells = [new_code_cell(cell.source) for cell in setup]
    for parts in found.values():
        solution = FENCE.findall(parts["solution"].source)[0][1]
        check = parts["exercise-check"].source
        cells += [new_code_cell(source) for source in (parts["exercise"].source, check, solution, check)]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), path.stem)
    assert run.error is None, run.error
    answers = [printed(cell) for cell in run.notebook.cells[len(setup) :]]
    for position, number in enumerate(found):
        _, before, _, after = answers[4 * position : 4 * position + 4]
        assert before.startswith("Not yet:"), f"{number}, stub: {before!r}"
        assert "Correct:" not in before, f"{number}, stub: {before!r}"
        assert after.startswith("Correct:"), f"{number}, solution: {after!r}"


@by_chapter
def test_exercises_say_how_long_they_take_and_how_hard_they_are(path):
    headings = [
        found for source in markdown_cells(path) for found in re.findall(r"^###? Exercise .*", source, re.M)
    ]
    found = [HEADING.fullmatch(heading) for heading in headings]
    assert all(found), headings
    assert [heading[1] for heading in found] == list(exercises(path))
    # Together they take what the first cell says, but for those of an evening.
    stated = minutes(read(path).cells[0].source)[1]
    assert abs(sum(int(heading[3] or 0) for heading in found) - stated) <= 4


def test_exercises_range_from_two_minutes_to_an_evening():
    headings = [
        found for path in CHAPTERS for source in markdown_cells(path) for found in HEADING.findall(source)
    ]
    assert min(int(minutes) for *_, minutes, _ in headings if minutes) == 2
    assert any(not minutes for *_, minutes, _ in headings)
    assert (
        "They range from two minutes to an evening, and are marked so."
        in (ROOT / "book" / "index.md").read_text()
    )


@by_chapter
def test_the_run_takes_no_longer_than_the_first_cell_says(path):
    promise = PROMISE.search(read(path).cells[0].source)
    assert promise, "the first cell must say how long the page runs"
    promised = 60 * ["one minute", "two minutes", "three minutes"].index(promise[1]) + 60
    # Twice: a machine that is busy with other things keeps no promise to the second.
    assert executed_or_fail(path).metadata.fbt_run.seconds <= 2 * promised


def test_a_failing_cell_is_shown_with_its_traceback_and_ends_the_run():
    cells = [
        new_code_cell("import os\nprint(os.listdir())"),
        new_code_cell("1 / 0"),
        new_code_cell("print('on')"),
    ]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), "failing")
    assert printed(run.notebook.cells[0]) == "[]\n"  # a folder of its own, and empty
    assert run.error is not None
    assert "1 / 0" in run.error
    assert "ZeroDivisionError" in run.error
    assert run.notebook.cells[2].execution_count is None


def test_a_run_outlives_changes_of_prose_but_not_of_code(tmp_path):
    path = tmp_path / "chapter.ipynb"
    keys = []
    for prose_text, code in (("one", "x = 1"), ("two", "x = 1"), ("two", "x = 2")):
        cells = [new_markdown_cell(prose_text), new_code_cell(code)]
        notebooks.write(path, nbformat.writes(new_notebook(cells=cells)))
        keys.append(notebooks.key(path))
    assert keys[0] == keys[1] != keys[2]
