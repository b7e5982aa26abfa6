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
AROUND = {
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
}
EGG = {
    "PKG-INFO",
    "SOURCES.txt",
    "dependency_links.txt",
    "requires.txt",
    "top_level.txt",
}


def sources() -> list[str]:
    """Return the repository's files, tracked or new, without ignored ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return sorted(
        name for name in set(listed.split("\0")) if name and (ROOT / name).is_file()
    )


def copy(into: Path) -> None:
    """Copy the repository's files."""
    for name in sources():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, into / name)


def build(into: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel.

    Args:
        into: the folder for both, which is emptied.

    Returns:
        The paths of wheel and sdist.

    Raises:
        SystemExit: if the build fails; the message contains its output.
    """
    shutil.rmtree(into, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fbt-") as folder:
        copy(Path(folder))
        command = [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            str(into),
            folder,
        ]
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
            m.name.removeprefix(f"{name}/") for m in files.getmembers() if m.isfile()
        }
    wanted = package | {f"{name}.dist-info/{part}" for part in ABOUT}
    wanted_source = (
        package | AROUND | {f"{name.split('-')[0]}.egg-info/{part}" for part in EGG}
    )
    return [f"{wheel.name}: {path}" for path in sorted(in_wheel ^ wanted)] + [
        f"{sdist.name}: {path}" for path in sorted(in_sdist ^ wanted_source)
    ]
