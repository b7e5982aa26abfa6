"""The wheel in unusual environments."""

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

# First steps of a user, and what the tests below check. A warning is an error.
USE = """
import json, sys
from pathlib import Path
import fbt
from fbt._files import write_file
from fbt.native import is_built, library_path

def result_of(act):
    try:
        return str(act())
    except Exception as error:
        return f"{type(error).__name__}: {error}"

run = fbt.train("to be or not to be, " * 60, preset="tiny", steps=2, progress=False)
model = fbt.LanguageModel.from_pretrained("tiny-shakespeare")
text = model.generate("ROMEO:", 8, seed=1)
weights = model.attention(model.tokenizer.encode(text)[None])[:, 0]
here = Path(fbt.__file__)
print(json.dumps({
    "path": fbt.__file__,
    "steps": run.step,
    "text": text,
    "view": len(fbt.AttentionExplorer(list(text), weights).to_html()),
    "source": fbt.show(fbt.MemoryStack).where,
    "built": is_built(),
    "native": result_of(fbt.build_native),
    "cached": result_of(lambda: write_file(library_path().with_name("cached"), b"")),
    "written": result_of(lambda: here.with_name("written").write_text("")),
    "missing": result_of(lambda: fbt.LanguageModel.from_pretrained("nobody")),
}))
"""
# For an environment without a settings folder and a screen.
PLOT = """
from fbt.views.figures import attention_maps, save_svg
save_svg(attention_maps(weights, list(text)), sys.argv[1])
"""
# Drops root's privileges to read and write all files, then runs its arguments.
UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
    for right in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, right, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Return the wheel and the sdist."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def site(built, tmp_path_factory) -> Path:
    """Install the wheel in a path with spaces and non-Latin letters."""
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
    command += ["--disable-pip-version-check", "--target", str(folder), str(built[0])]
    subprocess.run(command, check=True)
    return folder


def use(
    site: Path, cwd: Path, *arguments: str, code: str = USE, **environment: str
) -> dict:
    """Return the output of `code` with the wheel, in a small environment."""
    inherited = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    inherited |= {
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
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert Path(output["path"]).is_relative_to(site)
    assert output["steps"] == 2 and output["text"].startswith("ROMEO:")
    assert output["view"] > 1000 and output["source"].startswith(
        "fbt/stack.py, lines "
    )
    assert output["missing"].endswith(
        "names that ship with fbt: ['tiny-shakespeare', 'tiny-shakespeare-parallel']"
    )
    assert not output["built"]
    # Matplotlib reports that it creates a settings folder, and torch that there is no
    # GPU.
    lines = [line for line in done.stderr.splitlines() if "atplotlib" not in line]
    assert not [line for line in lines if "No CUDA runtime is found" not in line]
    return output


def test_wheel_and_sdist_contain_exactly_the_package(built):
    assert not differences(*built)


def test_a_superfluous_or_missing_file_is_noticed(built, tmp_path):
    wheel, sdist = built
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


def test_metadata_of_the_wheel(built):
    wheel, _ = built
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        about = message_from_bytes(archive.read(name))
    assert about.get_all("Provides-Extra") == ["views", "book", "bench"]
    assert about[
        "Requires-Python"
    ] == ">=3.11" and "Typing :: Typed" in about.get_all("Classifier")
    assert all(f", {URL}" in address for address in about.get_all("Project-URL"))


def test_without_compiler_home_settings_and_screen(site, tmp_path):
    empty, taken = tmp_path / "bin", tmp_path / "a file"
    empty.mkdir()
    taken.touch()
    nowhere = {
        name: str(taken / "x")
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    output = use(
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
        "could not find the C++ compiler" in output["native"]
        and 'backend="sequence" computes the same numbers' in output["native"]
    )
    assert output["cached"].startswith("NotADirectoryError")
    assert "<svg" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_without_write_permission(site, tmp_path):
    other = tmp_path / "other"
    other.mkdir(mode=0)
    for path in (site, *site.rglob("*")):
        path.chmod(0o555)
    try:
        output = use(site, tmp_path, FBT_CACHE=str(other / "cache"))
    finally:
        for path in (site, *site.rglob("*"), other):
            path.chmod(0o755)
    assert output["written"].startswith("PermissionError") and output[
        "cached"
    ].startswith("PermissionError")


def test_from_the_wheel_as_a_zip_file(built, tmp_path):
    output = use(built[0], tmp_path)
    assert output["written"].startswith("NotADirectoryError")
    assert output["cached"] == "None"
    assert (tmp_path / "cache" / "native" / "cached").is_file()
