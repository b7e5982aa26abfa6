"""Compile the library, and try it out in a process of its own."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import as_file
from importlib.resources.abc import Traversable
from pathlib import Path

INSTEAD = 'Nothing depends on it: backend="sequence" computes the same numbers without a compiler.'
SECONDS = 600.0  # for the compiler, and for the process that tries the library
MOST_PRINTED = 2**24  # bytes
QUOTED = 4000  # bytes of what a command printed

# A program that compares outputs and gradients with backend="sequence". It is a text
# because it needs the whole package, which this module must not import.
TRIAL = """
import json, pathlib, sys
sys.path[:], library = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
import torch, fbt
fbt.native.library_path = lambda: library
torch.manual_seed(0)
tokens = torch.randint(5, (3, 11))
for dtype in fbt.native.DTYPES:
    model = fbt.LanguageModel(fbt.Config(5, d_model=32, n_heads=2, n_layers=2, d_ff=8, span=7)).to(dtype)
    found = []
    for model.backend in ("sequence", "native"):
        logits = model(tokens)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
"""


def compiled(source: Traversable, flags: Sequence[str]) -> bytes:
    """Compile `source` into a shared library that is linked to torch; return its bytes.

    Raises:
        RuntimeError: this is not Linux, there is no C++ compiler, or it failed, took
            longer than `SECONDS` or printed more than `MOST_PRINTED` bytes.
        OSError: there is no room for temporary files.
    """
    if sys.platform != "linux":
        raise RuntimeError(
            f"build_native works on Linux, and this is {sys.platform!r}. {INSTEAD}"
        )
    # Takes longer to import than all of fbt, and is needed only here.
    from torch.utils import cpp_extension

    given = cpp_extension.get_cxx_compiler()
    try:
        compiler = shlex.split(given)  # with ccache before it, for one
    except ValueError as error:
        raise RuntimeError(
            f"CXX must be a command, got {given[:80]!r}: {error}. {INSTEAD}"
        ) from error
    if not compiler or shutil.which(compiler[0]) is None:
        raise RuntimeError(
            f"build_native needs a C++ compiler, and there is no {' '.join(compiler)!r} here: install one "
            f"(on Debian, Ubuntu and Colab by 'apt install g++') or name yours in the variable CXX. {INSTEAD}"
        )
    # From a package inside a zip file the source is put into a file of its own.
    with tempfile.TemporaryDirectory() as folder, as_file(source) as path:
        made = Path(folder) / "loop.so"
        libraries = [
            option
            for place in cpp_extension.library_paths()
            for option in ("-L", place)
        ]
        options = [
            *flags,
            "-shared",
            "-fPIC",
            str(path),
            "-o",
            str(made),
            *libraries,
            "-ltorch_cpu",
        ]
        command = [*compiler, *options]
        _run(" ".join(command), command)
        try:
            return made.read_bytes()
        except FileNotFoundError as error:
            name = " ".join(command)
            raise RuntimeError(
                f"build_native: {name} wrote no library. {INSTEAD}"
            ) from error


def try_out(library: Path) -> None:
    """Load a library in a process of its own and compare it with backend="sequence".

    A library that is damaged or made for another processor may end the process.

    Raises:
        RuntimeError: it does not load, crashes or computes something else.
    """
    path = json.dumps([str(place) for place in sys.path])
    command = [sys.executable, "-W", "ignore", "-c", TRIAL, path, str(library)]
    _run("the process that tried out the new library", command)


def _run(name: str, command: list[str]) -> None:
    """Run a command without input, within the limits `SECONDS` and `MOST_PRINTED`.

    Raises:
        RuntimeError: it does not start, fails, or exceeds a limit and is killed with
            all processes it has started. The message contains `name` and what was
            printed.
    """
    # A file and not a pipe, which stays open as long as any process that was started.
    with tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeError(
                f"build_native: {name} does not start: {error}. {INSTEAD}"
            ) from error
        try:
            problem = _wait(process, printed.fileno())
        except BaseException:
            _kill(process)
            raise
        if problem:
            printed.seek(0)
            text = (
                printed.read(QUOTED).decode(errors="replace").strip()
                or "It printed nothing."
            )
            raise RuntimeError(f"build_native: {name} {problem}. {INSTEAD}\n{text}")


def _wait(process: subprocess.Popen[bytes], printed: int) -> str | None:
    """Wait for a process; return what went wrong, or None."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
        size = os.fstat(printed).st_size
        if size > MOST_PRINTED:
            _kill(process)
            return f"printed more than {MOST_PRINTED} bytes"
        if time.monotonic() > deadline:
            _kill(process)
            return f"took more than {SECONDS:g} seconds"
    if process.returncode < 0:
        number = -process.returncode
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    return f"failed with status {process.returncode}" if process.returncode else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all others of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
