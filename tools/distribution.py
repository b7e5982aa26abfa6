"""The wheel and the sdist, built from the files that git has or would add, whatever else lies beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from notebooks import ROOT

ABOUT = {"METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE", "licenses/THIRD_PARTY.md"}
AROUND = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "THIRD_PARTY.md", "pyproject.toml", "setup.cfg"}
EGG = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt"}


def sources() -> list[str]:
    """The files of the repository, those that git does not know yet too, unless it ignores them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def copy(into: Path) -> None:
    """Copy the files of the repository."""
    for name in sources():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, into / name)


def build(into: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel.

    Args:
        into: a folder for the two, which is emptied.

    Returns:
        The wheel and the sdist.

    Raises:
        SystemExit: they could not be built; the message holds what was printed.
    """
    shutil.rmtree(into, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        copy(Path(folder))
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"The package could not be built:\n{result.stdout}{result.stderr}")
    (wheel,), (sdist,) = into.glob("*.whl"), into.glob("*.tar.gz")
    return wheel, sdist


def differences(wheel: Path, sdist: Path) -> list[str]:
    """What is in the two and should not be, or should be and is not."""
    package = {name for name in sources() if name.startswith("fbt/")}
    name = sdist.name.removesuffix(".tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as files:
        in_sdist = {m.name.removeprefix(f"{name}/") for m in files.getmembers() if m.isfile()}
    wanted = package | {f"{name}.dist-info/{part}" for part in ABOUT}
    wanted_source = package | AROUND | {f"{name.split('-')[0]}.egg-info/{part}" for part in EGG}
    return [f"{wheel.name}: {path}" for path in sorted(in_wheel ^ wanted)] + [
        f"{sdist.name}: {path}" for path in sorted(in_sdist ^ wanted_source)
    ]
