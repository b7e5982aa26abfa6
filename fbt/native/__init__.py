"""Compile and call `loop.cpp`, the steps of `fbt.sequence` in C++.

`loop.cpp` does not depend on Python or torch: it takes sizes and addresses, and calls
the BLAS inside torch. So a build takes seconds and needs a compiler, but no headers.
The library is kept for this machine and this version of torch.

A build needs no lock either. `torch.utils.cpp_extension.load` creates a lock file
while it builds; if it is killed, the file stays, and every later call waits for ever.
Here each build compiles in a temporary folder of its own, and the complete library is
then renamed.
"""

import ctypes
import functools
import os
import platform
import stat
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from fbt._files import cache_folder, check_owned, sha256, writing_file
from fbt.native.build import ALTERNATIVE, compile_library, verify_library

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
# What the folder of the library depends on.
FOLDER_VARIABLES = ("FBT_CACHE", "XDG_CACHE_HOME", "HOME")
DIGEST = 64  # characters at the end of a library: the SHA-256 of the rest


class NotBuilt(RuntimeError):
    """The library has not been built on this machine."""


def build_native() -> Path:
    """Compile the library, if this version of torch has none yet.

    `fbt.engines.build_native` says more.

    Raises:
        RuntimeError: if it cannot be built here.
        OSError: if it cannot be written.
    """
    library = _library_path()
    try:
        _open(library)
    except RuntimeError:
        _build(library)
        _open(library)
    return library


def why_not(x: Tensor) -> Exception | None:
    """Return why the library cannot compute tensors like x, as an error, or None."""
    if x.device.type != "cpu":
        return ValueError(
            f'backend="native" computes on the CPU, got {x.device}. {ALTERNATIVE}'
        )
    if x.dtype not in DTYPES:
        allowed = " or ".join(DTYPES.values())
        return TypeError(
            f'backend="native" computes in {allowed}, got {x.dtype}. {ALTERNATIVE}'
        )
    if not is_plain(x):
        return TypeError(
            f'backend="native" reads plain tensors, got a {type(x).__name__}'
        )
    try:
        _open(_library_path())
    except RuntimeError as error:
        return error
    return None


def is_built() -> bool:
    """Return whether the library has been built here and can be used.

    Warns, once per reason, if there is a library that cannot be used.
    """
    reason = why_not(torch.empty(0, dtype=torch.float32, device="cpu"))
    if reason is not None:
        warn_if_refused(reason)
    return reason is None


def warn_if_refused(reason: Exception) -> None:
    """Warn, once per reason, if there is a library, or a kernel, that is refused."""
    if isinstance(reason, RuntimeError) and not isinstance(reason, NotBuilt):
        _warn(str(reason))


def has_bfloat16() -> bool:
    """Return whether the library multiplies in bfloat16 here.

    The processor needs AVX512-BF16 or AMX, and torch oneDNN's `brgemm`.
    """
    return bool(_open(_library_path()).has_bfloat16())


def run(
    name: str,
    dtype: torch.dtype,
    sizes: Iterable[int],
    tensors: Iterable[Tensor | None],
) -> None:
    """Call a function of loop.cpp, such as "forward" or "backward" of a chunk.

    Args:
        name: of the function, without the dtype.
        dtype: float32 or float64.
        sizes: the fields of its first argument, such as `ChunkLayout`.
        tensors: the fields of its second, such as `Forward`, contiguous; None is a
            null pointer.

    Raises:
        RuntimeError: if the library is not built or cannot be used.
        MemoryError: if there is not enough memory.
        TypeError: if `dtype` is another one, or a tensor has another dtype or is an
            instance of a subclass.
        ValueError: if a matrix is too large for the BLAS inside torch.
    """
    if dtype not in DTYPES:
        allowed = " or ".join(DTYPES.values())
        raise TypeError(
            f'backend="native" computes in {allowed}, got {dtype}. {ALTERNATIVE}'
        )
    fields = list(sizes)
    addresses = [None if t is None else address(t, dtype) for t in tensors]
    function = getattr(_open(_library_path()), f"{name}_{DTYPES[dtype]}")
    status = function(
        (ctypes.c_int64 * len(fields))(*fields),
        (ctypes.c_void_p * len(addresses))(*addresses),
    )
    if status:
        raise _error(status, name)


def _error(status: int, name: str) -> Exception:
    """Return the exception for a `Status` of loop.cpp other than `done`."""
    if status == 1:
        return MemoryError(f'backend="native" ran out of memory in its {name} pass')
    return ValueError(
        'backend="native" needs matrices with less than 2**31 rows and columns. '
        f"{ALTERNATIVE}"
    )


def address(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return the address of a tensor's data for loop.cpp; 0 if it is empty.

    Raises:
        TypeError, ValueError: if it has another dtype, is an instance of a subclass,
            not contiguous or not on the CPU.
    """
    if not is_plain(tensor):
        raise TypeError(
            f"tensors for loop.cpp must be plain, got a {type(tensor).__name__}"
        )
    if tensor.dtype != dtype:
        raise TypeError(
            f"all tensors for loop.cpp must be {dtype}, got {tensor.dtype}"
        )
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            "tensors for loop.cpp must be contiguous and on the CPU, got strides "
            f"{tensor.stride()} on {tensor.device}"
        )
    return tensor.data_ptr() if tensor.numel() else 0


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is not an instance of a subclass.

    The data of a subclass may be elsewhere, or nowhere.
    """
    return type(tensor) in (Tensor, torch.nn.Parameter)


def library_path() -> Path:
    """Return the path of the library for this source, torch and processor."""
    return cache_folder() / "native" / f"loop-{_key()}.so"


@functools.cache
def _key() -> str:
    """Return a hash of the source, the flags, torch's version and the processor."""
    cpu = platform.processor()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        features = ("flags", "Features")  # x86 and ARM
        lines = cpu_info.read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(features)), cpu)
    inputs = [
        SOURCE.read_text(encoding="utf-8"),
        *FLAGS,
        torch.__version__,
        platform.machine(),
        cpu,
    ]
    return sha256("\n".join(inputs).encode())[:16]


def _library_path() -> Path:
    """Return `library_path()`; raise a RuntimeError if there is no cache folder."""
    return _remembered_path(library_path, *map(os.environ.get, FOLDER_VARIABLES))


@functools.cache
def _remembered_path(find: Callable[[], Path], *environment: str | None) -> Path:
    """Return `find()`, called once per environment: it is slow next to a step."""
    try:
        return find()
    except ValueError as error:
        raise RuntimeError(
            f"could not find a folder for the native backend: {error}. {ALTERNATIVE}"
        ) from error


def _build(library: Path) -> None:
    """Compile the library, test it under another name, and rename it."""
    folders = (library.parent.parent, library.parent)
    _check_owned(f for f in folders if f.exists() or not f.is_absolute())
    code = _compile()
    for folder in folders:  # one by one: `mode` has no effect on parents
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with writing_file(library) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        os.chmod(file.fileno(), mode & ~(stat.S_IWGRP | stat.S_IWOTH))  # noqa: PTH101
        file.write(code + sha256(code).encode())
        file.flush()
        verify_library(Path(file.name))


def _compile() -> bytes:
    """Return the library as bytes, without its digest."""
    return compile_library(SOURCE, FLAGS)


def _check_owned(paths: Iterable[Path]) -> None:
    """Raise a RuntimeError if others may write to one of these files and folders."""
    for path in paths:
        try:
            check_owned(path)
        except PermissionError as error:
            raise RuntimeError(
                f"others could change the library: {error}. {ALTERNATIVE}"
            ) from error


def _is_file(path: Path) -> bool:
    """Return whether there is a file; False if this user may not read the folder."""
    try:
        return path.is_file()
    except OSError:
        return False


@functools.cache
def _open(library: Path) -> ctypes.CDLL:
    """Load the library, after checking its permissions and its digest.

    Loading runs code, and loading a truncated file can end the process.

    Raises:
        NotBuilt: if there is no library.
        RuntimeError: if it cannot be used; the message says why.
    """
    if sys.platform != "linux" or not _is_file(library):
        raise NotBuilt(
            'backend="native" is not built here: call fbt.build_native() once. '
            f"{ALTERNATIVE}"
        )
    try:
        _check_owned((library.parent.parent, library.parent, library))
        data = library.read_bytes()
        if sha256(data[:-DIGEST]).encode() != data[-DIGEST:]:
            raise RuntimeError(
                f"{library} is damaged: call fbt.build_native() again. {ALTERNATIVE}"
            )
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(
            f"{library} does not load: {error}. Call fbt.build_native() again. "
            f"{ALTERNATIVE}"
        ) from error


@functools.cache
def _warn(reason: str) -> None:
    """Warn, once per reason, that a compiled loop is not used."""
    message = f'backend="auto" does not use the compiled loop: {reason}'
    warnings.warn(message, RuntimeWarning, stacklevel=3)
