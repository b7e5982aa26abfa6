"""Build the book into _build/html: run the chapters that changed, build the pages, accept no warning."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import notebooks
from jupyter_cache import get_cache
from notebooks import BUILD, ROOT, chapters, digest, executed, executed_path, files_of

HTML = BUILD / "html"
STAMP = BUILD / "book.key"
SOURCES = ("_config.yml", "_toc.yml", "CITATION.cff", "book", *notebooks.INPUTS, "tools/build_book.py")


def book_key() -> str:
    """What the built pages depend on: their sources and the runs they show."""
    return digest(files_of(*SOURCES) + [executed_path(path) for path in chapters()])


def fill_cache() -> None:
    """Give Jupyter Book's cache the runs, and nothing else, so that it never executes a notebook itself."""
    folder = BUILD / ".jupyter_cache"
    shutil.rmtree(folder, ignore_errors=True)
    cache = get_cache(folder)
    for path in chapters():
        cache.cache_notebook_file(executed_path(path), uri=str(path), check_validity=False, overwrite=True)


def build() -> None:
    """Build every page from scratch: a changed output does not make Sphinx read its page again."""
    for name in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(BUILD / name, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT)]
    command += ["--warningiserror", "--keep-going", "--nitpick", "--all"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit("The book was not built: see the warnings above.")


def main() -> None:
    """Run the notebooks, then build if anything the pages show has changed."""
    started = time.monotonic()
    if not notebooks.run_all(chapters()):
        sys.exit("The book was not built: a notebook failed, see above.")
    if any(executed(path) is None for path in chapters()):
        sys.exit("The book was not built: a file changed while the notebooks ran. Run `make book` again.")
    wanted = book_key()
    if STAMP.exists() and STAMP.read_text() == wanted and (HTML / "index.html").exists():
        print("The pages are up to date.")
    else:
        STAMP.unlink(missing_ok=True)
        fill_cache()
        build()
        notebooks.write(STAMP, wanted)
    print(f"\nThe book ({time.monotonic() - started:.0f} s): {HTML / 'index.html'}")


if __name__ == "__main__":
    main()
