"""Whom a notebook's kernel works for: a person at a front end, or a program."""

from types import SimpleNamespace
from typing import Any

import IPython
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
# One cell for each view; together they take a kernel a few seconds.
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
    """Let the code run as in a kernel that has received a message of this content."""
    shell = SimpleNamespace(get_parent=lambda: {"content": content})
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


def shown_to_a_person() -> list[dict[str, Any]]:
    """The outputs of CELLS as a kernel sends them to JupyterLab, each format by its name."""
    manager, client = start_new_kernel(extra_arguments=["--log-level=ERROR"])
    found: list[dict[str, Any]] = []

    def hear(message: dict[str, Any]) -> None:
        assert message["msg_type"] != "error", message["content"]["traceback"]
        if message["msg_type"] == "execute_result":
            found.append(message["content"]["data"])

    try:
        for code in CELLS:
            # As every front end does that lets its user answer input().
            client.execute_interactive(
                code, allow_stdin=True, output_hook=hear, timeout=120
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return found


def run_by_a_program() -> nbformat.NotebookNode:
    """CELLS as a notebook that nbclient has run, with the state of all widgets, as it does by default."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in CELLS]
    )
    NotebookClient(
        notebook, timeout=120, extra_arguments=["--log-level=ERROR"]
    ).execute()
    return notebook
