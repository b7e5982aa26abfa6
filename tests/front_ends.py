"""Run notebooks as a front end with a user does, and as a program does."""

from types import SimpleNamespace
from typing import Any

import IPython
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
# The first cell prepares a model; each of the others displays a view.
CELLS = """
import torch, fbt
from fbt.views.choices import Choices
from fbt.views.memory import MemoryExplorer, snapshot
from fbt.views.recurrence import RecurrenceExplorer
from fbt.views.trace import trace
model = fbt.LanguageModel(fbt.Config(5, d_model=8, n_heads=2, n_layers=2))
tokens = torch.tensor([0, 1, 2])
read = trace(model, tokens)
#
fbt.AttentionExplorer(list("abc"), read.weights)
#
MemoryExplorer(list("abc"), {0: snapshot(model, tokens)})
#
RecurrenceExplorer(list("abc"), read)
#
Choices(lambda span: f"a span of {span}", span=[1, 2, 4])
""".strip().split("\n#\n")


def attach(monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]) -> None:
    """Simulate a kernel that received a message with this content."""
    shell = SimpleNamespace(get_parent=lambda: {"content": content})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


def outputs_for_user() -> list[dict[str, Any]]:
    """Return the MIME bundles that a kernel sends to JupyterLab for CELLS."""
    manager, client = start_new_kernel(extra_arguments=["--log-level=ERROR"])
    outputs: list[dict[str, Any]] = []

    def collect(message: dict[str, Any]) -> None:
        assert message["msg_type"] != "error", message["content"]["traceback"]
        if message["msg_type"] == "execute_result":
            outputs.append(message["content"]["data"])

    try:
        for code in CELLS:
            # allow_stdin=True, like all front ends whose user can answer input().
            client.execute_interactive(
                code, allow_stdin=True, output_hook=collect, timeout=120
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return outputs


def run_by_program() -> nbformat.NotebookNode:
    """Return a notebook of CELLS that nbclient has run, with the state of widgets."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in CELLS]
    )
    NotebookClient(
        notebook, timeout=120, extra_arguments=["--log-level=ERROR"]
    ).execute()
    return notebook
