"""Compile the library, and test it in a process of its own."""

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

ALTERNATIVE = (
    'backend="sequence" computes the same numbers and does not need a compiler.'
)
TIME_LIMIT = 600.0  # seconds, for the compiler, and for the test of the library
OUTPUT_LIMIT = 2**24  # bytes that a command may print
QUOTED_BYTES = 4000  # of the output, in an error message

# A program that compares outputs and gradients with backend="sequence". It is a
# string because it needs the whole package, which this module must not import.
TEST = """
import json, pathlib, sys
sys.path[:], library = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])
import torch, fbt
fbt.native.library_path = lambda: library
torch.manual_seed(0)
tokens = torch.randint(5, (3, 11))
sizes = dict(d_model=32, n_heads=2, n_layers=2, d_ff=8, span=7)
for dtype in fbt.native.DTYPES:
    model = fbt.LanguageModel(fbt.Config(5, **sizes)).to(dtype)
    results = []
    for model.backend in ("sequence", "native"):
        logits = model(tokens)
        loss = logits.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([logits, *gradients])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
body = fbt.SharedKVBody(fbt.Config(5, **sizes, activation="gelu"))
x, results = torch.randn(3, 11, 32), []
for autocast in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = body(x, backend="native")[0]
    results.append([y, *torch.autograd.grad(y.square().sum(), [*body.parameters()])])
for exact, rounded in zip(*results, strict=True):
    assert (exact - rounded).norm() <= 0.1 * exact.norm() + 1e-3
"""


def compile_library(source: Traversable, flags: Sequence[str]) -> bytes:
    """Compile `source` into a shared library linked to torch, and return its bytes.

    Raises:
        RuntimeError: if this is not Linux, there is no C++ compiler, or it fails,
            takes longer than `TIME_LIMIT` or prints more than `OUTPUT_LIMIT` bytes.
        OSError: if temporary files cannot be written.
    """
    if sys.platform != "linux":
        raise RuntimeError(
            f"build_native works on Linux, got {sys.platform!r}. {ALTERNATIVE}"
        )
    # Imported here because it takes longer to import than all of fbt.
    from torch.utils import cpp_extension

    value = cpp_extension.get_cxx_compiler()
    try:
        compiler = shlex.split(value)  # such as "ccache g++"
    except ValueError as error:
        raise RuntimeError(
            f"CXX must be a command, got {value[:80]!r}: {error}. {ALTERNATIVE}"
        ) from error
    if not compiler or shutil.which(compiler[0]) is None:
        raise RuntimeError(
            f"build_native could not find the C++ compiler {' '.join(compiler)!r}: "
            "install one (on Debian, Ubuntu and Colab with 'apt install g++') or set "
            f"CXX to the command of yours. {ALTERNATIVE}"
        )
    # If the package is in a zip file, `as_file` extracts the source.
    with tempfile.TemporaryDirectory() as folder, as_file(source) as source_path:
        library = Path(folder) / "loop.so"
        search_paths = [
            option
            for path in cpp_extension.library_paths()
            for option in ("-L", path)
        ]
        options = [
            *flags,
            "-shared",
            "-fPIC",
            str(source_path),
            "-o",
            str(library),
            *search_paths,
            "-ltorch_cpu",
        ]
        command = [*compiler, *options]
        _run(" ".join(command), command)
        try:
            return library.read_bytes()
        except FileNotFoundError as error:
            raise RuntimeError(
                f"build_native: {' '.join(command)} wrote no library. {ALTERNATIVE}"
            ) from error


def verify_library(library: Path) -> None:
    """Load a library in a process of its own and compare it with backend="sequence".

    A library that is damaged or built for another processor may end the process.

    Raises:
        RuntimeError: if it does not load, crashes or computes other numbers.
    """
    path = json.dumps([str(entry) for entry in sys.path])
    command = [sys.executable, "-W", "ignore", "-c", TEST, path, str(library)]
    _run("the process that tested the new library", command)


def _run(name: str, command: list[str]) -> None:
    """Run a command without input, within `TIME_LIMIT` and `OUTPUT_LIMIT`.

    Raises:
        RuntimeError: if it does not start, fails, or exceeds a limit; it is then
            killed with all processes it has started. The message contains `name` and
            the output.
    """
    # Not a pipe, which stays open as long as any process that was started.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeError(
                f"build_native: {name} does not start: {error}. {ALTERNATIVE}"
            ) from error
        try:
            problem = _wait(process, output.fileno())
        except BaseException:
            _kill(process)
            raise
        if problem:
            output.seek(0)
            text = (
                output.read(QUOTED_BYTES).decode(errors="replace").strip()
                or "It printed nothing."
            )
            raise RuntimeError(
                f"build_native: {name} {problem}. {ALTERNATIVE}\n{text}"
            )


def _wait(process: subprocess.Popen[bytes], output: int) -> str | None:
    """Wait for a process; return what went wrong, or None.

    Args:
        process: the process.
        output: the file descriptor of its output.
    """
    deadline = time.monotonic() + TIME_LIMIT
    while process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
        size = os.fstat(output).st_size
        if size > OUTPUT_LIMIT:
            _kill(process)
            return f"printed more than {OUTPUT_LIMIT} bytes"
        if time.monotonic() > deadline:
            _kill(process)
            return f"did not finish within {TIME_LIMIT:g} seconds"
    if process.returncode < 0:
        number = -process.returncode
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    return f"failed with status {process.returncode}" if process.returncode else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all others in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
