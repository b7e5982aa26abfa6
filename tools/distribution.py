"""Build wheel and sdist from the files that git tracks or would add."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from repo import ROOT

ABOUT = {"METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE"}
AROUND = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
EGG_FILES = "PKG-INFO SOURCES.txt dependency_links.txt requires.txt top_level.txt"


def sources() -> list[str]:
    """Return the repository's files, tracked or new, without ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = set(done.stdout.split("\0")) - {""}
    return sorted(name for name in names if (ROOT / name).is_file())


def copy(into: Path, names: list[str] | None = None) -> None:
    """Copy the repository's files, or the given ones."""
    for name in names or sources():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, into / name)


def build(into: Path, names: list[str] | None = None) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel.

    Args:
        into: the folder for both, which is emptied.
        names: the files to build from; by default the repository's.

    Returns:
        The paths of wheel and sdist.

    Raises:
        SystemExit: if the build fails; the message contains its output.
    """
    shutil.rmtree(into, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        # setuptools would add tests/test_*.py, which need the whole repository.
        names = names or [n for n in sources() if not n.startswith("tests/")]
        copy(Path(folder), names)
        command = [sys.executable, "-m", "build", "--no-isolation", folder]
        command += ["--outdir", str(into)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"Could not build the package:\n{result.stdout}{result.stderr}")
    (wheel,), (sdist,) = into.glob("*.whl"), into.glob("*.tar.gz")
    return wheel, sdist


def differences(wheel: Path, sdist: Path) -> list[str]:
    """Return the unexpected and the missing files of wheel and sdist."""
    package = {name for name in sources() if name.startswith("fbt/")}
    name = sdist.name.removesuffix(".tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as files:
        in_sdist = {
            file.name.removeprefix(f"{name}/")
            for file in files.getmembers()
            if file.isfile()
        }
    about = {f"{name}.dist-info/{file}" for file in ABOUT}
    egg = {f"{name.split('-')[0]}.egg-info/{file}" for file in EGG_FILES.split()}
    wrong = {
        wheel.name: in_wheel ^ (package | about),
        sdist.name: in_sdist ^ (package | AROUND | egg),
    }
    return [f"{file}: {path}" for file in wrong for path in sorted(wrong[file])]
