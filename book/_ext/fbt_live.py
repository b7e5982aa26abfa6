"""The live model on a page, and its weights beside the pages.

A page shows the model that ships with the package, and its parallel twin::

    ```{live-model}
    ```

Weights are not in the pages: a reader loads them with a click, from scripts that are
written here when the book is built.
"""

from __future__ import annotations

import os
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import fbt
from fbt.pretrained import PRETRAINED
from fbt.views.live import FOLDER_VARIABLE
from fbt.views.packing import weights_script

# Of the scripts, relative to the pages in book/, as in tools/executor.py.
FOLDER = "../_static/live"


class ShownLiveModel(SphinxDirective):
    """Show the live model; see the module's docstring."""

    def run(self) -> list[nodes.Node]:
        """Return the view as HTML."""
        view = fbt.LiveModel("tiny-shakespeare", "tiny-shakespeare-parallel")
        return [nodes.raw("", view.to_html(), format="html")]


def write_weights(app: Sphinx, exception: Exception | None) -> None:
    """Write a script with the weights of each shipped model."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, "_static", "live")
    folder.mkdir(parents=True, exist_ok=True)
    for weights in PRETRAINED.iterdir():
        if weights.is_dir():
            script = folder / f"{weights.name}.js"
            script.write_text(weights_script(weights.name), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    os.environ[FOLDER_VARIABLE] = FOLDER
    app.add_directive("live-model", ShownLiveModel)
    app.connect("build-finished", write_weights)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
