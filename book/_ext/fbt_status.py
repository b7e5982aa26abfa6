"""How the chapters ran, from the runs that the book shows.

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

Runs = dict[str, dict[str, Any]]  # what tools/notebooks.py notes of each run, by chapter


class RunStatus(SphinxDirective):
    """Shows how long each chapter ran, where and with what; see the head of this module."""

    def run(self) -> list[nodes.Node]:
        """Read the runs and show them as a table and a list."""
        runs: Runs = {}
        for path in sorted(Path(self.env.srcdir, "_build", "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(path))
            if f"book/{path.stem}" in self.env.found_docs:
                runs[path.stem] = dict(nbformat.read(path, as_version=4).metadata.fbt_run)
        return self.parse_text_to_nodes("\n".join([*table(runs), "", *places(runs)]))


def table(runs: Runs) -> list[str]:
    """The runs as a Markdown table; {doc} gives a chapter its title."""
    lines = ["| chapter | cells | seconds | slowest cell, seconds | ended (UTC) |", "|---|---|---|---|---|"]
    for name, run in runs.items():
        times = f"{run['seconds']:.0f} | {max(run['cell_seconds']):.1f}"
        ended = run["finished"].removesuffix("Z").replace("T", " ")
        lines.append(f"| {{doc}}`{name}` | {run['cells']} | {times} | {ended} |")
    total = sum(run["seconds"] for run in runs.values())
    return [*lines, f"| all | {sum(run['cells'] for run in runs.values())} | {total:.0f} | | |"]


def places(runs: Runs) -> list[str]:
    """Where and with which versions chapters ran: a sentence, or a list if that was not the same for all."""
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        machine = run["machine"]
        where = f"{machine['system']}, {machine['processor']}, {machine['cores']} cores"
        versions = ", ".join(f"{package} {number}" for package, number in sorted(run["versions"].items()))
        found.setdefault(f"{where}, with {versions}", []).append(name.split("-")[0].lstrip("0"))
    if len(found) == 1:
        return [f"All chapters ran on {next(iter(found))}."]
    return [f"- Chapters {', '.join(chapters)} ran on {place}." for place, chapters in found.items()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("run-status", RunStatus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
