"""Run the chapters' notebooks whose runs are missing or out of date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import notebooks


def main() -> None:
    """Run the named notebooks, or all chapters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="*", type=Path, help="notebooks to run (default: every chapter)")
    parser.add_argument("--force", action="store_true", help="run even where a good run exists")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebook] or notebooks.chapters()
    if not notebooks.run_all(paths, force=arguments.force):
        sys.exit(1)


if __name__ == "__main__":
    main()
