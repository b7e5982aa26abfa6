"""The repository's folders, and how its tools write and hash files.

Standard library only: tools/environment.py runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
IGNORED = {"__pycache__", ".ipynb_checkpoints", ".mypy_cache", ".DS_Store"}


def files_of(*names: str) -> list[Path]:
    """Return all files below the given files and folders, sorted, without caches."""
    found: list[Path] = []
    for name in names:
        path = ROOT / name
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [
            file
            for file in candidates
            if file.is_file() and not IGNORED & set(file.parts)
        ]
    return found


def digest(files: Iterable[Path], *extra: str) -> str:
    """Return a hash of the names and contents of files, and of the extra strings."""
    total = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(ROOT).as_posix()}\0{content}\n".encode())
    for text in extra:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file atomically, creating its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; a built book is for everyone.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def table(rows: list[tuple[str, ...]]) -> str:
    """Format rows as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
