"""The loop of `fbt.sequence` in C++: built once by whoever wants it, kept for this machine and this torch.

`loop.cpp` knows nothing of Python or torch: it takes sizes and addresses, and calls the matrix product that
torch brings along. So a build takes seconds, and needs a compiler but no headers.
"""

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import cpp_extension

from fbt._files import cache_folder, sha256, write_whole

SOURCE = Path(__file__).with_name("loop.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp")
DTYPES = {torch.float32: "float32", torch.float64: "float64"}
INSTEAD = 'Nothing depends on it: backend="sequence" computes the same numbers without a compiler.'


def build_native() -> Path:
    """Compile the native backend, unless this machine has it already for this version of torch.

    Takes seconds. Afterwards backend="auto" of a shared-KV model uses it on a CPU, in this process and in
    later ones.

    Returns:
        The library, in the folder that `FBT_CACHE` names or in the user's cache folder.

    Raises:
        RuntimeError: this is not Linux, there is no C++ compiler, or it failed; the message says what to do.
        OSError: the library cannot be written.
    """
    library = library_path()
    if not is_built():
        write_whole(library, _compile())
        _open.cache_clear()
        _open(library)
    return library


def is_built() -> bool:
    """Whether backend="native" can be used: `build_native` has run here, and what it left loads."""
    try:
        _open(library_path())
    except RuntimeError:
        return False
    return True


def run(direction: str, dtype: torch.dtype, sizes: Iterable[int], tensors: Iterable[Tensor | None]) -> None:
    """Run the steps of a chunk.

    Args:
        direction: "forward" or "backward".
        dtype: float32 or float64, that of all tensors.
        sizes: the fields of `Sizes` in loop.cpp.
        tensors: those of `Forward` or `Backward` in loop.cpp, contiguous; None is a null pointer.

    Raises:
        RuntimeError: there is no library; the message names `build_native`.
    """
    numbers = list(sizes)
    addresses = [None if t is None else _address(t) for t in tensors]
    function = getattr(_open(library_path()), f"{direction}_{DTYPES[dtype]}")
    function((ctypes.c_int64 * len(numbers))(*numbers), (ctypes.c_void_p * len(addresses))(*addresses))


def _address(tensor: Tensor) -> int | None:
    """Where the numbers of a tensor begin; None if it has none."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"loop.cpp reads contiguous tensors on the CPU, got strides {tensor.stride()}")
    return tensor.data_ptr() if tensor.numel() else None


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
    parts = [SOURCE.read_text(), *FLAGS, torch.__version__, platform.machine(), cpu]
    return sha256("\n".join(parts).encode())[:16]


def _compile() -> bytes:
    """The library as bytes."""
    if sys.platform != "linux":
        raise RuntimeError(f"build_native works on Linux, and this is {sys.platform!r}. {INSTEAD}")
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        raise RuntimeError(
            f"build_native needs a C++ compiler, and there is no {compiler!r} here: install one (on Debian, "
            f"Ubuntu and Colab by 'apt install g++') or name yours in the variable CXX. {INSTEAD}"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "loop.so"
        libraries = [option for path in cpp_extension.library_paths() for option in ("-L", path)]
        command = [
            compiler,
            *FLAGS,
            "-shared",
            "-fPIC",
            str(SOURCE),
            "-o",
            str(made),
            *libraries,
            "-ltorch_cpu",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"build_native: {' '.join(command)} failed with status {done.returncode}. {INSTEAD}\n"
                f"{done.stderr.strip()}"
            )
        return made.read_bytes()


@functools.cache
def _open(library: Path) -> ctypes.CDLL:
    """Load the library."""
    if not library.is_file():
        raise RuntimeError(f'backend="native" is not built here: call fbt.build_native() once. {INSTEAD}')
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise RuntimeError(f"{library} does not load: {error}. {INSTEAD}") from error
