"""The pages that _toc.yml lists, and the notebooks among them."""

from __future__ import annotations

from pathlib import Path

import nbformat
import yaml
from repo import ROOT


def pages() -> list[str]:
    """Return the names of the book's pages in order, such as "book/index"."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    entries = [entry for part in contents["parts"] for entry in part["chapters"]]
    return [contents["root"], *(entry["file"] for entry in entries)]


def chapters() -> list[Path]:
    """Return the notebooks among the pages."""
    paths = [ROOT / f"{name}.ipynb" for name in pages()]
    return [path for path in paths if path.exists()]


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as format 4."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
