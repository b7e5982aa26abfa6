"""How to cite the book and the paper, from CITATION.cff.

In a page::

    ```{citation}
    ```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Citation(SphinxDirective):
    """Show the entries of CITATION.cff as BibTeX; see the module's docstring."""

    def run(self) -> list[nodes.Node]:
        """Return the preferred citation, then the references."""
        path = Path(self.env.srcdir, "CITATION.cff")
        self.env.note_dependency(str(path))
        cited = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = (cited["preferred-citation"], *cited["references"])
        text = "\n\n".join(map(bibtex, entries))
        block = nodes.literal_block(text, text)
        block["language"] = "bibtex"
        return [block]


def bibtex(entry: dict[str, Any]) -> str:
    """Format an entry of CITATION.cff as BibTeX."""
    # Our own entry has a group as its author.
    first = entry["authors"][0].get("family-names", "fbt")
    fields = {
        "author": " and ".join(map(author, entry["authors"])),
        "title": f"{{{entry['title']}}}",
        "year": entry["year"],
    }
    fields |= {name: entry[name] for name in ("journal", "url") if name in entry}
    width = max(map(len, fields))
    # One author per line: lines of code on a page are not long.
    fields["author"] = fields["author"].replace(" and ", f" and\n{' ' * (width + 6)}")
    lines = ",\n".join(
        f"  {name.ljust(width)} = {{{value}}}" for name, value in fields.items()
    )
    return f"@{entry['type']}{{{first.lower()}{entry['year']},\n{lines}\n}}"


def author(person: dict[str, str]) -> str:
    """Format an author for BibTeX; braces keep the name of a group together."""
    if "family-names" in person:
        return f"{person['family-names']}, {person['given-names']}"
    return f"{{{person['name']}}}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.add_directive("citation", Citation)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
