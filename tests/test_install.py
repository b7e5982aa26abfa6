"""The package as installed: from the install cell, and without matplotlib."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import build_book
import fbt_about
import pytest
from cells import INSTALL
from distribution import copy
from repo import ROOT
from repositories import commit_all

from fbt._repository import BRANCH, URL

# CPU time that `import fbt` may add to `import torch`, as a share of it: some 0.3 s.
SLOWEST_IMPORT = 0.25
RUN_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
sys.modules["fbt"] = None  # as if not installed
InteractiveShell().run_cell(sys.argv[1]).raise_error()
"""
USE_WHAT_SHIPS = """
import json, sys
from importlib.resources import files
import fbt
model = fbt.LanguageModel.from_pretrained("tiny-shakespeare")
fbt.LanguageModel.from_pretrained("tiny-shakespeare-parallel")
text = model.generate("ROMEO:", 20, seed=1)
weights = model.attention(model.tokenizer.encode(text)[None])[:, 0]
fbt.AttentionExplorer(list(text), weights).to_html()
measurements = (files("fbt") / "measurements").iterdir()
records = [file for file in measurements if file.name.endswith(".json")]
native = (files("fbt") / "native").iterdir()
print(json.dumps({
    "path": fbt.__file__,
    "text": text,
    "records": sorted(file.name for file in records if json.loads(file.read_text())),
    "native": sorted(file.name for file in native if file.name.endswith(".cpp")),
    "source": fbt.show(fbt.MemoryStack).where,
}))
"""
WITHOUT_VIEWS = """
import sys
import types
for name in ("matplotlib", "ipywidgets", "anywidget", "IPython"):
    sys.modules[name] = None
import torch
import fbt
from fbt.views.choices import Choices
from fbt.views.view import is_live
# As in a live notebook.
shell = types.SimpleNamespace(get_parent=lambda: {"content": {"allow_stdin": True}})
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
assert is_live()
explorer = fbt.AttentionExplorer(["a", "b"], torch.eye(2)[None, None])
for view in (explorer, Choices(str, object=[1, 2])):
    assert set(view._repr_mimebundle_()) == {"text/plain", "text/html"}
sys.modules["IPython"] = None
assert "class MemoryStack" in repr(fbt.show(fbt.MemoryStack))
import fbt.views.figures
"""
IMPORT_TIME = """
import time
times = [time.process_time()]
import torch
times.append(time.process_time())
import fbt
times.append(time.process_time())
print((times[2] - times[1]) / (times[1] - times[0]))
"""


def python(
    code: str, *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return a repository with the current files, as at the project's address."""
    there = tmp_path_factory.mktemp("published")
    copy(there)
    commit_all(there, BRANCH)
    return there


def install(cell: str, folder: Path) -> Path:
    """Run the install cell in a folder; return where it installed the package."""
    site = folder / "site"
    # Dependencies are already installed.
    options = {
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    installed = python(RUN_CELL, cell, cwd=folder, **options)
    assert (site / "fbt").is_dir(), installed.stdout + installed.stderr
    return site


def test_the_install_cell_installs_the_package_with_all_its_files(
    published, tmp_path
):
    assert URL in INSTALL
    here = f"file://localhost{published}"  # older versions of pip need a host
    site = install(INSTALL.replace(URL, here), tmp_path)
    used = python(USE_WHAT_SHIPS, cwd=tmp_path, PYTHONPATH=str(site))
    assert used.returncode == 0, used.stderr
    output = json.loads(used.stdout)
    assert Path(output["path"]).is_relative_to(site)
    assert output["text"].startswith("ROMEO:")
    assert output["records"] == sorted(
        p.name for p in (ROOT / "fbt" / "measurements").glob("*.json")
    )
    assert output["native"] == sorted(
        p.name for p in (ROOT / "fbt" / "native").glob("*.cpp")
    )
    assert output["source"].startswith("fbt/stack.py, lines ")


def test_the_install_cell_takes_an_uploaded_wheel(tmp_path):
    build_book.add_wheel(tmp_path)
    assert (tmp_path / fbt_about.WHEEL).exists()  # the file that pages offer
    site = install(INSTALL, tmp_path)
    assert (site / "fbt" / "native" / "loop.cpp").exists()


def test_only_plots_need_matplotlib_and_the_error_names_it(tmp_path):
    run = python(WITHOUT_VIEWS, cwd=tmp_path)
    assert run.stderr.splitlines()[-1] == (
        "ImportError: fbt.views.figures needs the package matplotlib: "
        "pip install matplotlib"
    )


def test_import_takes_little_longer_than_importing_torch(tmp_path):
    # A share of CPU time, so that a busy or slow machine does not matter.
    assert (
        median(float(python(IMPORT_TIME, cwd=tmp_path).stdout) for _ in range(3))
        < SLOWEST_IMPORT
    )
