"""The wheel on computers less kind than the one it was built on: what it holds, and that it works there."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from distribution import build, differences
from small_runs import WARNINGS

from fbt._repository import URL

# What a user does first, and what the conditions below ask about. A warning is an
# error.
USE = """
import json, sys
from pathlib import Path
import fbt
from fbt._files import write_file
from fbt.native import is_built, library_path

def said(act):
    try:
        return str(act())
    except Exception as error:
        return f"{type(error).__name__}: {error}"

run = fbt.train("to be or not to be, " * 60, preset="tiny", steps=2, progress=False)
model = fbt.LanguageModel.from_pretrained("tiny-shakespeare")
text = model.generate("ROMEO:", 8, seed=1)
weights = model.attention(model.tokenizer.encode(text)[None])[:, 0]
print(json.dumps({
    "place": fbt.__file__,
    "steps": run.step,
    "text": text,
    "view": len(fbt.AttentionExplorer(list(text), weights).to_html()),
    "source": fbt.show(fbt.MemoryStack).where,
    "built": is_built(),
    "native": said(fbt.build_native),
    "kept": said(lambda: write_file(library_path().with_name("kept"), b"")),
    "written": said(lambda: Path(fbt.__file__).with_name("written").write_text("")),
    "missing": said(lambda: fbt.LanguageModel.from_pretrained("nobody")),
}))
"""
# The same without a place for settings, and without a screen to draw on.
PLOT = """
from fbt.views.figures import attention_maps, save_svg
save_svg(attention_maps(weights, list(text)), sys.argv[1])
"""
# Root may read and write where nobody may. This gives that up, and goes on with what
# it is given.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
    for right in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def site(made, tmp_path_factory) -> Path:
    """Where the wheel is installed, below a path with spaces and letters of other scripts."""
    folder = tmp_path_factory.mktemp("home") / "où est la 記憶"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
    ]
    command += ["--disable-pip-version-check", "--target", str(folder), str(made[0])]
    subprocess.run(command, check=True)
    return folder


def use(
    site: Path, cwd: Path, *arguments: str, code: str = USE, **environment: str
) -> dict:
    """What a process says that has the package from `site`, and an environment with little else."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    kept |= {
        "PYTHONPATH": str(site),
        "FBT_CACHE": str(cwd / "cache"),
        "OMP_NUM_THREADS": "1",
        "CXX": "no-compiler",
    }
    command = [
        sys.executable,
        "-c",
        UNPRIVILEGED,
        "-P",
        *WARNINGS,
        "-c",
        code,
        *arguments,
    ]
    done = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["place"]).is_relative_to(site)
    assert found["steps"] == 2 and found["text"].startswith("ROMEO:")
    assert found["view"] > 1000 and found["source"].startswith("fbt/stack.py, lines ")
    assert found["missing"].endswith(
        "names that ship with fbt: ['tiny-shakespeare', 'tiny-shakespeare-parallel']"
    )
    assert not found["built"]
    # Without a folder for its settings Matplotlib says that it makes one, and torch
    # that it finds no GPU.
    said = [line for line in done.stderr.splitlines() if "atplotlib" not in line]
    assert not [line for line in said if "No CUDA runtime is found" not in line]
    return found


def test_the_wheel_and_the_sdist_hold_the_package_and_nothing_else(made):
    assert not differences(*made)


def test_a_file_too_many_or_too_few_is_seen(made, tmp_path):
    wheel, sdist = made
    more, fewer = tmp_path / wheel.name, tmp_path / sdist.name
    more.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(more, "a") as archive:
        archive.writestr("tests/test_stack.py", "")
    with tarfile.open(sdist) as whole, tarfile.open(fewer, "w") as rest:
        for member in whole.getmembers():
            if member.isfile() and not member.name.endswith("loop.cpp"):
                rest.addfile(member, whole.extractfile(member))
    assert differences(more, fewer) == [
        f"{wheel.name}: tests/test_stack.py",
        f"{sdist.name}: fbt/native/loop.cpp",
    ]


def test_the_wheel_says_what_it_is(made):
    wheel, _ = made
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = message_from_bytes(archive.read(name))
    assert about.get_all("Provides-Extra") == ["views", "book", "bench"]
    assert about[
        "Requires-Python"
    ] == ">=3.11" and "Typing :: Typed" in about.get_all("Classifier")
    assert all(f", {URL}" in address for address in about.get_all("Project-URL"))


def test_from_a_path_with_spaces_and_letters_of_other_scripts(site, tmp_path):
    found = use(site, tmp_path)
    assert Path(
        found["kept"] == "None" and tmp_path / "cache" / "native" / "kept"
    ).is_file()


def test_without_compiler_home_settings_and_screen(site, tmp_path):
    empty, taken = tmp_path / "bin", tmp_path / "a file"
    empty.mkdir()
    taken.touch()
    nowhere = {
        name: str(taken / "x")
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    found = use(
        site,
        tmp_path,
        "figure.svg",
        code=USE + PLOT,
        **nowhere,
        PATH=str(empty),
        FBT_CACHE="",
        CXX="",
    )
    assert (
        "needs a C++ compiler" in found["native"]
        and 'backend="sequence" computes the same numbers' in found["native"]
    )
    assert found["kept"].startswith("NotADirectoryError")
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_where_nothing_may_be_written_and_the_cache_is_somebody_elses(site, tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0)
    for path in (site, *site.rglob("*")):
        path.chmod(0o555)
    try:
        found = use(site, tmp_path, FBT_CACHE=str(other / "cache"))
    finally:
        for path in (site, *site.rglob("*"), other):
            path.chmod(0o755)
    assert found["written"].startswith("PermissionError") and found[
        "kept"
    ].startswith("PermissionError")


def test_from_inside_the_wheel_as_a_zip_file(made, tmp_path):
    found = use(made[0], tmp_path)
    assert found["written"].startswith("NotADirectoryError")
