"""How the chapters ran: the runs shown in the book.

In a page::

    ```{run-status}
    ```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# The metadata that tools/runs.py stores for each chapter's run.
Runs = dict[str, dict[str, Any]]


class RunStatus(SphinxDirective):
    """Show how long each chapter ran, when and where; see the module's docstring."""

    def run(self) -> list[nodes.Node]:
        """Return the runs as a table and a list."""
        runs: Runs = {}
        folder = Path(self.env.srcdir, "_build", "notebooks")
        for path in sorted(folder.glob("*.ipynb")):
            self.env.note_dependency(str(path))
            if f"book/{path.stem}" in self.env.found_docs:
                notebook = nbformat.read(path, as_version=4)
                runs[path.stem] = dict(notebook.metadata.fbt_run)
        return self.parse_text_to_nodes("\n".join([*table(runs), "", *places(runs)]))


def table(runs: Runs) -> list[str]:
    """Format the runs as a Markdown table; {doc} inserts a chapter's title."""
    lines = [
        "| chapter | cells | seconds | slowest cell, seconds | ended (UTC) |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        times = f"{run['seconds']:.0f} | {max(run['cell_seconds']):.1f}"
        ended = run["finished"].removesuffix("Z").replace("T", " ")
        lines.append(f"| {{doc}}`{name}` | {run['cells']} | {times} | {ended} |")
    cells = sum(run["cells"] for run in runs.values())
    seconds = sum(run["seconds"] for run in runs.values())
    return [*lines, f"| all | {cells} | {seconds:.0f} | | |"]


def places(runs: Runs) -> list[str]:
    """Describe where the chapters ran and with which versions.

    Returns:
        One sentence if that is the same for all chapters, otherwise a list.
    """
    chapters_by_setup: dict[str, list[str]] = {}
    for name, run in runs.items():
        machine = run["machine"]
        where = (
            f"{machine['system']}, {machine['processor']}, {machine['cores']} cores"
        )
        numbers = sorted(run["versions"].items())
        versions = ", ".join(f"{package} {number}" for package, number in numbers)
        number = name.split("-")[0].lstrip("0")
        chapters_by_setup.setdefault(f"{where}, with {versions}", []).append(number)
    if len(chapters_by_setup) == 1:
        return [f"All chapters ran on {next(iter(chapters_by_setup))}."]
    return [
        f"- Chapters {', '.join(chapters)} ran on {where}."
        for where, chapters in chapters_by_setup.items()
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("run-status", RunStatus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
