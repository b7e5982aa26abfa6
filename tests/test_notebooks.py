"""The chapters: committed without outputs, run without errors, exercises solvable.

The section on chapters in tools/README.md describes their cells.
"""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
import repo
import runs
from answers import ANSWERS
from cells import INSTALL, finished
from chapters import chapters, code_cells, pages, read
from executor import execute
from fbt_about import minutes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from repo import ROOT
from runs import executed

from fbt._repository import BRANCH, URL

CHAPTERS = chapters()
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
LONGEST_CELL = 30
# The tags of an exercise's cells, in order.
KINDS = ["exercise", "exercise-check", "solution"]
# The time that a first cell states, and the heading of an exercise.
MINUTES = ["one minute", "two minutes", "three minutes"]
RUNNING = re.compile(
    rf"; running the page takes at most ({'|'.join(MINUTES)}) on two cores\."
)
HEADING = re.compile(
    r"^### Exercise (\d\.\d) · [A-Z].* "
    r"\((?:(\d+) minutes|an evening), (?:easy|medium|hard)\)$",
    re.M,
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def markdown(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def tags(cell) -> list[str]:
    return list(cell.metadata.get("tags", []))


def printed(cell) -> str:
    return "".join(
        output.get("text", "")
        for output in cell.outputs
        if output.output_type == "stream"
    )


def last_run(path: Path):
    notebook = executed(path)
    if notebook is None:
        pytest.fail(f"{path.name} has no valid run: run `make book` first")
    return notebook


def exercises(path: Path) -> dict[str, list]:
    """Return the cells of each exercise, by its number."""
    cells: dict[str, list] = {}
    for cell in read(path).cells:
        if set(KINDS) & set(tags(cell)):
            number = cell.metadata.get("fbt", {}).get("exercise")
            cells.setdefault(number, []).append(cell)
    return cells


def test_contents_list_every_chapter():
    assert not [name for name in pages() if not list(ROOT.glob(f"{name}.*"))]
    assert sorted(CHAPTERS) == sorted((ROOT / "book").glob("*.ipynb")), (
        "a notebook is not in _toc.yml"
    )


def test_notebooks_are_committed_without_outputs_or_extra_metadata():
    wrong = []
    for path in CHAPTERS:
        notebook = read(path)
        version = (notebook.nbformat, notebook.nbformat_minor)
        if notebook.metadata != NOTEBOOK_METADATA or version != (4, 5):
            wrong.append((path.stem, "metadata"))
        if len({cell.id for cell in notebook.cells}) != len(notebook.cells):
            wrong.append((path.stem, "ids"))
        for cell in notebook.cells:
            extra = set(cell.metadata) - {"tags", "mystnb", "fbt", "jupyter"}
            was_run = cell.get("outputs") or cell.get("execution_count") is not None
            if extra or was_run:
                wrong.append((path.stem, cell.source[:60]))
    assert not wrong


def test_shared_cells_captions_and_folds_are_up_to_date():
    outdated = []
    for path in CHAPTERS:
        notebook = read(path)
        before = [(cell.id, cell.source, cell.metadata) for cell in notebook.cells]
        after = finished(read(path))
        if before != [(cell.id, cell.source, cell.metadata) for cell in after]:
            outdated.append(path.name)
    assert not outdated, "run `make format`"


def test_hidden_code_is_folded_and_captions_follow_their_figures():
    figure = {"figure": {"caption": "A curve.", "name": "fig-curve"}}
    hidden = {"tags": ["hide-input"], "mystnb": figure}
    cells = [
        new_code_cell("draw()", id="draw", metadata=hidden),
        new_code_cell("x = 1", id="x", metadata={"jupyter": {"source_hidden": True}}),
    ]
    notebook = new_notebook(cells=cells)
    for _ in range(2):  # the second time nothing changes
        notebook.cells = finished(notebook)
        draw, caption, plain = notebook.cells
        assert draw.metadata == {**hidden, "jupyter": {"source_hidden": True}}
        assert (caption.id, caption.source) == ("draw-caption", "*Figure.* A curve.")
        assert caption.metadata == {"tags": ["remove-cell"]}
        assert plain.metadata == {}


def test_chapters_begin_with_title_badge_and_install_cell():
    slug = URL.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/book"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    for path in CHAPTERS:
        title, *hidden, rest = *read(path).cells[:3], read(path).cells[3:]
        assert title.cell_type == "markdown", path.stem
        assert title.source.startswith("# "), path.stem
        badge = f"[![Open in Colab]({image})]({colab}/{path.name})"
        assert [cell.source for cell in hidden] == [badge, INSTALL], path.stem
        # The book has a button for the one and does not need the other.
        assert [tags(cell) for cell in hidden] == [["remove-cell"]] * 2, path.stem
        assert not any("%pip" in cell.source for cell in rest), path.stem


def test_code_cells_are_short():
    cells = [
        (path.stem, cell.source)
        for path in CHAPTERS
        for cell in code_cells(read(path))
    ]
    assert not [
        (name, source[:60])
        for name, source in cells
        if len(source.splitlines()) > LONGEST_CELL
    ]


def test_headings_go_down_one_level_at_a_time():
    wrong = {}
    for path in CHAPTERS:
        text = "\n".join(
            re.sub(r"`[^`\n]+`", "", FENCE.sub("", source))
            for source in markdown(path)
        )
        levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
        steps = [below - above for above, below in itertools.pairwise(levels)]
        if levels[0] != 1 or levels.count(1) != 1 or max(steps) > 1:
            wrong[path.stem] = levels
    assert not wrong


def test_chapters_ran_without_errors_in_the_time_they_state():
    wrong = []
    for path in CHAPTERS:
        notebook = last_run(path)
        for cell in notebook.cells:
            outputs = cell.get("outputs", [])
            failed = [
                output
                for output in outputs
                if output.output_type == "error" or output.get("name") == "stderr"
            ]
            was_run = cell.get("execution_count") is not None
            is_code = cell.cell_type == "code" and cell.source.strip()
            if failed or (is_code and not was_run):
                wrong.append((path.stem, cell.source[:60], failed))
        stated = RUNNING.search(notebook.cells[0].source)[1]
        limit = 60 * (MINUTES.index(stated) + 1)
        seconds = notebook.metadata.fbt_run.seconds
        # Twice the time, because the machine may be busy.
        if seconds > 2 * limit:
            wrong.append((path.stem, f"{seconds} s"))
    assert not wrong


def test_figures_have_alt_text_a_caption_and_a_unique_name():
    wrong, names = [], []
    for path in CHAPTERS:
        for cell in last_run(path).cells:
            kinds = [
                kind
                for output in cell.get("outputs", [])
                for kind in output.get("data", {})
            ]
            images = [kind for kind in kinds if kind.startswith("image/")]
            if images:
                about = cell.metadata.get("mystnb", {})
                alt = about.get("image", {}).get("alt", "")
                figure = about.get("figure", {})
                name = figure.get("name", "")
                names.append(name)
                is_named = figure.get("caption") and name.startswith("fig-")
                if len(alt) < 20 or not is_named or len(images) > 1:
                    wrong.append((path.stem, cell.source[:60]))
    assert not wrong
    assert not [name for name in names if names.count(name) > 1]


def test_exercises_are_complete():
    wrong = []
    for path in CHAPTERS:
        chapter, cells_by_number = (
            path.stem.split("-")[0].lstrip("0"),
            exercises(path),
        )
        count = len(cells_by_number)
        numbers = [f"{chapter}.{n}" for n in range(1, count + 1)]
        if count < 3 or list(cells_by_number) != numbers:
            wrong.append((path.stem, list(cells_by_number)))
        for number, cells in cells_by_number.items():
            kinds = [
                next(tag for tag in tags(cell) if tag in KINDS) for cell in cells
            ]
            solution = cells[-1].source
            is_folded = solution.startswith(
                "<details>\n<summary>Solution</summary>\n\n"
            ) and solution.endswith("\n\n</details>")
            if kinds != KINDS or not is_folded:
                wrong.append((number, kinds))
            elif [language for language, _ in FENCE.findall(solution)] != ["python"]:
                wrong.append((number, "needs one python fence"))
    assert not wrong


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_checks_judge_stubs_solutions_and_other_answers(path):
    setup = [cell.source for cell in read(path).cells if "setup" in tags(cell)]
    sources, expected = [], []  # how each verdict begins, and a part of it
    for number, (stub, check, solution) in exercises(path).items():
        ((_, solved),) = FENCE.findall(solution.source)
        wrong, right = ANSWERS[number]
        assert len(wrong) >= 2 and right, number
        tries = [(stub.source, "(Not yet:|$)", ""), (solved, "Correct:", "")]
        tries += [(answer, "(?!Correct)", hint) for answer, hint in wrong.items()]
        tries += [(answer, "Correct:", "") for answer in right]
        for answer, start, part in tries:
            sources += [stub.source, answer, check.source]
            expected.append((number, answer, start, part))
    cells = [new_code_cell(source) for source in [*setup, *sources]]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), path.stem)
    assert run.error is None, run.error
    verdicts = [printed(cell) for cell in run.notebook.cells[len(setup) + 2 :: 3]]
    misjudged = [
        (number, answer, part, verdict)
        for (number, answer, start, part), verdict in zip(
            expected, verdicts, strict=True
        )
        if not re.match(start, verdict) or part not in verdict
    ]
    assert not misjudged


def test_repeated_cells_are_equal():
    versions: dict[str, set[str]] = {}
    for path in CHAPTERS:
        for cell in code_cells(read(path)):
            if name := cell.metadata.get("fbt", {}).get("same"):
                versions.setdefault(name, set()).add(cell.source)
    assert versions
    assert not [name for name, sources in versions.items() if len(sources) > 1]


def test_exercises_state_minutes_and_difficulty():
    for path in CHAPTERS:
        text = "\n".join(markdown(path))
        headings = re.findall(r"^###? Exercise .*", text, re.M)
        stated = HEADING.findall(text)
        assert len(headings) == len(stated), (path.stem, headings)
        assert [number for number, _ in stated] == list(exercises(path)), path.stem
        # The first cell states the sum, without exercises that take an evening.
        total = sum(int(time or 0) for _, time in stated)
        assert abs(total - minutes(markdown(path)[0])[1]) <= 4, path.stem


def test_a_failing_cell_ends_the_run_with_its_traceback():
    sources = ("import os\nprint(os.listdir())", "1 / 0", "print('on')")
    cells = [new_code_cell(source) for source in sources]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), "failing")
    assert printed(run.notebook.cells[0]) == "[]\n"  # an empty folder
    assert run.error is not None
    assert "1 / 0" in run.error and "ZeroDivisionError" in run.error
    assert run.notebook.cells[2].execution_count is None


def test_a_run_is_reused_if_prose_changes_but_not_if_code_does(tmp_path):
    path = tmp_path / "chapter.ipynb"
    keys = []
    for prose, source in (("one", "x = 1"), ("two", "x = 1"), ("two", "x = 2")):
        cells = [new_markdown_cell(prose), new_code_cell(source)]
        repo.write(path, nbformat.writes(new_notebook(cells=cells)))
        keys.append(runs.key(path))
    assert keys[0] == keys[1] != keys[2]
