"""Run changed chapters, then build the book into _build/html without warnings.

The package's wheel lies beside the pages, for notebooks in Colab.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import distribution
from chapters import chapters
from jupyter_cache import get_cache
from notebooks import run_all
from repo import BUILD, ROOT, digest, files_of, write
from runs import INPUTS, executed, executed_path

HTML = BUILD / "html"
STAMP = BUILD / "book.key"
SOURCES = ("_config.yml", "_toc.yml", "CITATION.cff", "book", "tools/build_book.py")
# What the wheel is built from.
PACKAGE = ("fbt", "pyproject.toml", "README.md", "LICENSE")
# Pages quote these records, and those in fbt.
RECORDS = ("tests/trust.json", "tests/versions.json")


def book_key() -> str:
    """Return a hash of what the built pages depend on: sources, records and runs."""
    return digest(
        files_of(*SOURCES, *PACKAGE, *RECORDS, *INPUTS)
        + [executed_path(path) for path in chapters()]
    )


def fill_cache() -> None:
    """Fill Jupyter Book's cache with the runs, so that it executes no notebook."""
    folder = BUILD / ".jupyter_cache"
    shutil.rmtree(folder, ignore_errors=True)
    cache = get_cache(folder)
    for path in chapters():
        cache.cache_notebook_file(
            executed_path(path), uri=str(path), check_validity=False, overwrite=True
        )


def build() -> None:
    """Build every page: Sphinx would not notice that an output has changed."""
    for name in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(BUILD / name, ignore_errors=True)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", str(ROOT)]
    command += ["--warningiserror", "--keep-going", "--nitpick", "--all"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit("The book was not built: see the warnings above.")


def add_wheel(folder: Path) -> None:
    """Put the package's wheel into a folder; without git, as in a download."""
    names = [path.relative_to(ROOT).as_posix() for path in files_of(*PACKAGE)]
    wheel, _ = distribution.build(BUILD / "wheel", names)
    shutil.copyfile(wheel, folder / wheel.name)


def main() -> None:
    """Run the notebooks, then build if anything that the pages show has changed."""
    started = time.monotonic()
    if not run_all(chapters()):
        sys.exit("The book was not built: a notebook failed, see above.")
    if any(executed(path) is None for path in chapters()):
        sys.exit(
            "The book was not built: a file changed while the notebooks ran. "
            "Run `make book` again."
        )
    key = book_key()
    is_current = STAMP.exists() and STAMP.read_text() == key
    if is_current and (HTML / "index.html").exists():
        print("The pages are up to date.")
    else:
        STAMP.unlink(missing_ok=True)
        fill_cache()
        build()
        add_wheel(HTML / "book")
        write(STAMP, key)
    print(f"\nThe book ({time.monotonic() - started:.0f} s): {HTML / 'index.html'}")


if __name__ == "__main__":
    main()
