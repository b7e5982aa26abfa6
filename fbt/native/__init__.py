"""The loop of `fbt.sequence` in C++: built once by whoever wants it, kept for this machine and this torch.

`loop.cpp` knows nothing of Python or torch: it takes sizes and addresses, and calls
the matrix product that torch brings along. So a build takes seconds, and needs a
compiler but no headers.

Nor does it need a lock. `torch.utils.cpp_extension.load` makes a file named `lock`
while it builds; if it is killed the file stays, and every later call waits for it to
go. Here two builds at once each compile in a temporary folder of their own, and each
library takes its name whole.
"""

import ctypes
import functools
import os
import platform
import stat
import sys
import warnings
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from fbt._files import cache_folder, check_owned, sha256, writing_file
from fbt.native.build import INSTEAD, compiled, try_out

SOURCE = files("fbt.native") / "loop.cpp"
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
)
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
DIGEST = 64  # hexadecimal digits at the end of a library: the SHA-256 of the rest


class NotBuilt(RuntimeError):
    """There is no library for this machine yet."""


def build_native() -> Path:
    """Compile the native backend, unless this machine has it already for this version of torch.

    Takes seconds. Afterwards backend="auto" of a shared-KV model takes it on the CPU,
    in float32 and float64, in this process and in later ones, and text is generated
    by it. A damaged library is replaced. A new one takes its place only after another
    process has loaded it and compared its numbers with those of backend="sequence".

    Returns:
        The library, in the folder that `FBT_CACHE` names or in the user's cache
        folder.

    Raises:
        RuntimeError: this is not Linux, there is no C++ compiler, it failed, or the
            cache folder is relative or may be written by others; the message says
            what to do.
        OSError: the library cannot be written.
    """
    library = _place()
    try:
        _open(library)
    except RuntimeError:
        _build(library)
        _open(library)
    return library


def why_not(x: Tensor) -> Exception | None:
    """Return why tensors like x cannot be computed here, as an error, or None."""
    if x.device.type != "cpu":
        return ValueError(
            f'backend="native" computes on the CPU, got {x.device}. {INSTEAD}'
        )
    if x.dtype not in DTYPES:
        allowed = " or ".join(DTYPES.values())
        return TypeError(
            f'backend="native" computes in {allowed}, got {x.dtype}. {INSTEAD}'
        )
    if not is_plain(x):
        return TypeError(
            f'backend="native" reads plain tensors, got a {type(x).__name__}'
        )
    try:
        _open(_place())
    except RuntimeError as error:
        return error
    return None


def is_built() -> bool:
    """Whether `build_native` has run here and its library can be used.

    Warns, once for each reason, of a library that is there but cannot be used.
    """
    reason = why_not(torch.empty(0, dtype=torch.float32, device="cpu"))
    if reason is not None:
        warn_if_refused(reason)
    return reason is None


def warn_if_refused(reason: Exception) -> None:
    """Warn, once for each reason, of a library that is there but cannot be used."""
    if isinstance(reason, RuntimeError) and not isinstance(reason, NotBuilt):
        _warn(str(reason))


def run(
    direction: str,
    dtype: torch.dtype,
    sizes: Iterable[int],
    tensors: Iterable[Tensor | None],
) -> None:
    """Run the steps of a chunk.

    Args:
        direction: "forward" or "backward".
        dtype: float32 or float64, that of all tensors.
        sizes: the fields of `Sizes` in loop.cpp.
        tensors: those of `Forward` or `Backward` in loop.cpp, contiguous; None is a
            null pointer.

    Raises:
        RuntimeError: there is no library that can be used; the message names
            `build_native`.
        MemoryError: the loop needs more memory than there is.
        TypeError: there is nothing for this dtype, or a tensor has another one or is
            of a subclass.
        ValueError: a matrix is too large for the BLAS that torch comes with.
    """
    if dtype not in DTYPES:
        allowed = " or ".join(DTYPES.values())
        raise TypeError(
            f'backend="native" computes in {allowed}, got {dtype}. {INSTEAD}'
        )
    numbers = list(sizes)
    addresses = [None if t is None else _address(t, dtype) for t in tensors]
    function = getattr(_open(_place()), f"{direction}_{DTYPES[dtype]}")
    status = function(
        (ctypes.c_int64 * len(numbers))(*numbers),
        (ctypes.c_void_p * len(addresses))(*addresses),
    )
    if status:
        raise _error(status, direction)


def _error(status: int, direction: str) -> Exception:
    """The exception for a `Status` of loop.cpp other than `done`."""
    if status == 1:
        return MemoryError(
            f'backend="native" ran out of memory in its {direction} pass'
        )
    return ValueError(
        f'backend="native" needs matrices with less than 2**31 rows and columns. {INSTEAD}'
    )


def _address(tensor: Tensor, dtype: torch.dtype) -> int | None:
    """Where the numbers of a tensor begin; None if it has none."""
    if not is_plain(tensor):
        raise TypeError(
            f"loop.cpp reads plain tensors, got a {type(tensor).__name__}"
        )
    if tensor.dtype != dtype:
        raise TypeError(
            f"loop.cpp reads tensors of one dtype, {dtype} here, got {tensor.dtype}"
        )
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"loop.cpp reads contiguous tensors on the CPU, got strides {tensor.stride()}"
        )
    return tensor.data_ptr() if tensor.numel() else None


def is_plain(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor are in memory: those of a subclass may be elsewhere, or nowhere."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def library_path() -> Path:
    """Where the library for this source, this torch and this processor is, or would be."""
    return cache_folder() / "native" / f"loop-{_key()}.so"


@functools.cache
def _key() -> str:
    """What a library must have been built for: the source, the flags, the version of torch, the processor."""
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        features = ("flags", "Features")  # x86 and ARM
        lines = information.read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(features)), cpu)
    parts = [
        SOURCE.read_text(encoding="utf-8"),
        *FLAGS,
        torch.__version__,
        platform.machine(),
        cpu,
    ]
    return sha256("\n".join(parts).encode())[:16]


def _place() -> Path:
    """`library_path()`, or a RuntimeError where there is no cache folder."""
    try:
        return library_path()
    except ValueError as error:
        raise RuntimeError(
            f"the native backend has no folder: {error}. {INSTEAD}"
        ) from error


def _build(library: Path) -> None:
    """Compile the library, try it out under another name, and give it its own."""
    folders = (library.parent.parent, library.parent)
    _check_owned(f for f in folders if f.exists() or not f.is_absolute())
    code = _compile()
    for folder in folders:  # one by one: `mode` does not count for parents
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with writing_file(library) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        os.chmod(file.fileno(), mode & ~(stat.S_IWGRP | stat.S_IWOTH))  # noqa: PTH101
        file.write(code + sha256(code).encode())
        file.flush()
        try_out(Path(file.name))


def _compile() -> bytes:
    """The library as bytes, without its digest."""
    return compiled(SOURCE, FLAGS)


def _check_owned(places: Iterable[Path]) -> None:
    """Raise a RuntimeError if others may write to one of these files and folders."""
    for place in places:
        try:
            check_owned(place)
        except PermissionError as error:
            raise RuntimeError(
                f"others could change the library: {error}. {INSTEAD}"
            ) from error


def _is_file(path: Path) -> bool:
    """Whether there is a file; False also in a folder that this user may not read."""
    try:
        return path.is_file()
    except OSError:
        return False


@functools.cache
def _open(library: Path) -> ctypes.CDLL:
    """Load the library, after checking who may have written it and its digest.

    Loading runs code, and loading a file that was cut short can end the process.

    Raises:
        NotBuilt: there is no library.
        RuntimeError: it cannot be used; the message says why.
    """
    if sys.platform != "linux" or not _is_file(library):
        raise NotBuilt(
            f'backend="native" is not built here: call fbt.build_native() once. {INSTEAD}'
        )
    try:
        _check_owned((library.parent.parent, library.parent, library))
        data = library.read_bytes()
        if sha256(data[:-DIGEST]).encode() != data[-DIGEST:]:
            raise RuntimeError(
                f"{library} is damaged: call fbt.build_native() again. {INSTEAD}"
            )
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(
            f"{library} does not load: {error}. Call fbt.build_native() again. {INSTEAD}"
        ) from error


@functools.cache
def _warn(reason: str) -> None:
    """Say once why the native backend is not used."""
    message = f'backend="auto" does without the native loop: {reason}'
    warnings.warn(message, RuntimeWarning, stacklevel=3)
