"""The chapters: committed without outputs, run without errors, exercises solvable.

First cells. Cell 0 is markdown with the only level-one heading. Cell 1 is the Colab
badge (markdown) and cell 2 the install cell (code); both are tagged `remove-cell`,
since the book has a button for the one and needs no other.

Figures. A cell draws at most one figure, as an SVG, and describes it in its metadata:
{"mystnb": {"image": {"alt": "..."}, "figure": {"caption": "...", "name":
"fig-..."}}}.

Exercises. At least three per chapter, numbered CHAPTER.NUMBER. Each has three cells
with {"fbt": {"exercise": "2.1"}} in their metadata, in this order: a code cell tagged
`exercise`, the stub, which runs as it is; a code cell tagged `exercise-check`, which
never raises and prints a line that begins "Not yet:" or "Correct:"; a markdown cell
tagged `solution`, a <details> block with one ```python fence that replaces the whole
stub. What the check or the solution needs is in cells tagged `setup`, which are cheap
and need no other cell. A test runs the setup cells and, for each exercise, the stub
and its check, which must print "Not yet", and the solution and its check, which must
print "Correct".
"""

import itertools
import re
from pathlib import Path

import nbformat
import pytest
import repo
import runs
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
# The time that a first cell states, and the heading of an exercise.
RUNNING = re.compile(
    r"; running the page takes at most (one minute|two minutes|three minutes) on two cores\."
)
HEADING = re.compile(
    r"^### Exercise (\d\.\d) · ([A-Z].*) \((?:(\d+) minutes|an evening), (easy|medium|hard)\)$",
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
        pytest.fail(
            f"{path.name} has no run of its present code: run `make book` first"
        )
    return notebook


def exercises(path: Path) -> dict[str, list]:
    """Return the cells of each exercise, by its number."""
    found: dict[str, list] = {}
    for cell in read(path).cells:
        if {"exercise", "exercise-check", "solution"} & set(tags(cell)):
            number = cell.metadata.get("fbt", {}).get("exercise")
            found.setdefault(number, []).append(cell)
    return found


def test_the_contents_list_every_chapter():
    assert not [name for name in pages() if not list(ROOT.glob(f"{name}.*"))]
    assert sorted(CHAPTERS) == sorted((ROOT / "book").glob("*.ipynb")), (
        "a notebook is not in _toc.yml"
    )


def test_notebooks_are_committed_without_outputs_or_extra_metadata():
    wrong = []
    for path in CHAPTERS:
        notebook = read(path)
        if notebook.metadata != NOTEBOOK_METADATA or (
            notebook.nbformat,
            notebook.nbformat_minor,
        ) != (4, 5):
            wrong.append((path.stem, "metadata"))
        if len({cell.id for cell in notebook.cells}) != len(notebook.cells):
            wrong.append((path.stem, "ids"))
        for cell in notebook.cells:
            extra = set(cell.metadata) - {"tags", "mystnb", "fbt"}
            if (
                extra
                or cell.get("outputs")
                or cell.get("execution_count") is not None
            ):
                wrong.append((path.stem, cell.source[:60]))
    assert not wrong


def test_chapters_begin_with_title_badge_and_install_cell():
    slug = URL.removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/{BRANCH}/book"
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    pip = f'%pip install -q "fbt-book @ git+{URL}@{BRANCH}"'
    install = f"try:\n    import fbt\nexcept ImportError:\n    {pip}"
    for path in CHAPTERS:
        title, *two, rest = *read(path).cells[:3], read(path).cells[3:]
        assert title.cell_type == "markdown" and title.source.startswith("# "), (
            path.stem
        )
        badge = f"[![Open in Colab]({image})]({colab}/{path.name})"
        assert [cell.source for cell in two] == [badge, install], path.stem
        assert [tags(cell) for cell in two] == [["remove-cell"]] * 2, path.stem
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
                o
                for o in outputs
                if o.output_type == "error" or o.get("name") == "stderr"
            ]
            skipped = (
                cell.cell_type == "code"
                and cell.source.strip()
                and cell.execution_count is None
            )
            if failed or skipped:
                wrong.append((path.stem, cell.source[:60], failed))
        stated = ["one minute", "two minutes", "three minutes"].index(
            RUNNING.search(notebook.cells[0].source)[1]
        )
        # Twice the time, because the machine may be busy.
        if notebook.metadata.fbt_run.seconds > 2 * 60 * (stated + 1):
            wrong.append((path.stem, f"{notebook.metadata.fbt_run.seconds} s"))
    assert not wrong


def test_figures_have_alt_text_a_caption_and_a_name_of_their_own():
    wrong, names = [], []
    for path in CHAPTERS:
        for cell in last_run(path).cells:
            kinds = [
                kind
                for output in cell.get("outputs", [])
                for kind in output.get("data", {})
            ]
            if any(kind.startswith("image/") for kind in kinds):
                about = cell.metadata.get("mystnb", {})
                alt, figure = (
                    about.get("image", {}).get("alt", ""),
                    about.get("figure", {}),
                )
                names.append(figure.get("name", ""))
                if (
                    len(alt) < 20
                    or not figure.get("caption")
                    or not names[-1].startswith("fig-")
                ):
                    wrong.append((path.stem, cell.source[:60]))
                if sum(kind.startswith("image/") for kind in kinds) > 1:
                    wrong.append((path.stem, "two figures", cell.source[:60]))
    assert not wrong
    assert not [name for name in names if names.count(name) > 1]


def test_exercises_are_complete():
    wrong = []
    for path in CHAPTERS:
        chapter, found = path.stem.split("-")[0].lstrip("0"), exercises(path)
        if len(found) < 3 or list(found) != [
            f"{chapter}.{n}" for n in range(1, len(found) + 1)
        ]:
            wrong.append((path.stem, list(found)))
        for number, cells in found.items():
            kinds = [
                next(
                    tag
                    for tag in tags(cell)
                    if tag.startswith(("exercise", "solution"))
                )
                for cell in cells
            ]
            solution = cells[-1].source
            framed = solution.startswith("<details>\n<summary>Solution</summary>\n\n")
            framed &= solution.endswith("\n\n</details>")
            if kinds != ["exercise", "exercise-check", "solution"] or not framed:
                wrong.append((number, kinds))
            elif [language for language, _ in FENCE.findall(solution)] != ["python"]:
                wrong.append((number, "needs one python fence"))
    assert not wrong


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_checks_reject_the_stubs_and_accept_the_solutions(path):
    found = exercises(path)
    setup = [cell for cell in read(path).cells if "setup" in tags(cell)]
    cells = [new_code_cell(cell.source) for cell in setup]
    for stub, check, solution in found.values():
        sources = (
            stub.source,
            check.source,
            FENCE.findall(solution.source)[0][1],
            check.source,
        )
        cells += [new_code_cell(source) for source in sources]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), path.stem)
    assert run.error is None, run.error
    answers = [printed(cell) for cell in run.notebook.cells[len(setup) :]]
    wrong = {
        number: (before, after)
        for number, before, after in zip(
            found, answers[1::4], answers[3::4], strict=True
        )
        if not before.startswith("Not yet:")
        or "Correct:" in before
        or not after.startswith("Correct:")
    }
    assert not wrong


def test_exercises_state_minutes_and_difficulty():
    stated = []
    for path in CHAPTERS:
        text = "\n".join(markdown(path))
        headings, found = (
            re.findall(r"^###? Exercise .*", text, re.M),
            HEADING.findall(text),
        )
        assert len(headings) == len(found), (path.stem, headings)
        assert [number for number, *_ in found] == list(exercises(path)), path.stem
        stated += (times := [int(time or 0) for *_, time, _ in found])
        # The first cell states their sum, without those of an evening.
        assert abs(sum(times) - minutes(markdown(path)[0])[1]) <= 4, path.stem
    assert min(filter(None, stated)) == 2 and 0 in stated
    index = " ".join((ROOT / "book" / "index.md").read_text(encoding="utf-8").split())
    sentence = "They range from two minutes to an evening, and each is marked with its length."
    assert sentence in index


def test_a_failing_cell_ends_the_run_with_its_traceback():
    sources = ("import os\nprint(os.listdir())", "1 / 0", "print('on')")
    cells = [new_code_cell(source) for source in sources]
    run = execute(new_notebook(cells=cells, metadata=NOTEBOOK_METADATA), "failing")
    assert printed(run.notebook.cells[0]) == "[]\n"  # an empty folder
    assert (
        run.error is not None
        and "1 / 0" in run.error
        and "ZeroDivisionError" in run.error
    )
    assert run.notebook.cells[2].execution_count is None


def test_a_run_is_reused_after_changes_of_prose_but_not_of_code(tmp_path):
    path = tmp_path / "chapter.ipynb"
    keys = []
    for prose, source in (("one", "x = 1"), ("two", "x = 1"), ("two", "x = 2")):
        cells = [new_markdown_cell(prose), new_code_cell(source)]
        repo.write(path, nbformat.writes(new_notebook(cells=cells)))
        keys.append(runs.key(path))
    assert keys[0] == keys[1] != keys[2]
