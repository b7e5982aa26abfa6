"""Write into every chapter the cells and metadata that follow from the rest.

    .venv/bin/python tools/cells.py

The install cell is the same everywhere. JupyterLab does not know the book's tags, so
cells tagged `hide-input` get its own setting as well. Nor does it show captions of
figures, so each is repeated in a cell below its figure, which the book leaves out.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from chapters import chapters, read
from nbformat import NotebookNode
from repo import write

from fbt._repository import BRANCH, URL

INSTALL = f"""try:
    import fbt
except ImportError:
    # If the address below does not exist yet: upload the "Package for Colab", which
    # lies beside the page, next to this notebook (in Colab by the folder symbol on
    # the left), and run this cell again.
    from pathlib import Path

    wheels = [str(path) for path in Path().glob("fbt_book-*.whl")]
    package = [*wheels, "fbt-book @ git+{URL}@{BRANCH}"][0]
    %pip install -q "{{package}}"
""".rstrip()
FOLDED = {"source_hidden": True}
CAPTION = "-caption"  # the end of the ids of cells with captions


def caption_below(cell: NotebookNode) -> list[NotebookNode]:
    """Return the cell that repeats the caption of a figure, if the cell draws one."""
    caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
    if not caption:
        return []
    metadata = {"tags": ["remove-cell"]}
    below = nbformat.v4.new_markdown_cell(f"*Figure.* {caption}", metadata=metadata)
    below.id = f"{cell.id}{CAPTION}"
    return [below]


def finished(notebook: NotebookNode) -> list[NotebookNode]:
    """Return a notebook's cells as they must be; their order stays."""
    cells = []
    for cell in notebook.cells:
        if cell.id.endswith(CAPTION):
            continue
        if "%pip" in cell.source:
            cell.source = INSTALL
        cell.metadata.pop("jupyter", None)
        if "hide-input" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = dict(FOLDED)
        cells += [cell, *caption_below(cell)]
    return cells


def finish(path: Path) -> None:
    """Rewrite a notebook if a cell is missing or out of date."""
    notebook = read(path)
    notebook.cells = finished(notebook)
    text = nbformat.writes(notebook) + "\n"
    if text != path.read_text(encoding="utf-8"):
        write(path, text)
        print(f"{path.name}: cells updated")


def main() -> None:
    """Finish every chapter."""
    for path in chapters():
        finish(path)


if __name__ == "__main__":
    main()
