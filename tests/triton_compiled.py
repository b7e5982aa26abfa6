"""Compile the Triton kernels without a card, and print what ptxas says of them.

    python tests/triton_compiled.py CAPABILITY ...

For each compute capability, such as 80, and each kernel: a line with the numbers of
bytes of shared memory and of spilled registers. The model is size M of the
measurements.
"""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fbt.sequence import triton_kernels
from fbt.sequence.triton_engine import WARPS, sizes_of_blocks

SIZES = {"L": 4, "H": 4, "D": 32, "F": 512}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compiled(kernel: Any, capability: int) -> tuple[int, str]:
    """Return bytes of shared memory, and the kernel as PTX."""
    d, F = SIZES["H"] * SIZES["D"], SIZES["F"]
    constants = {"NORM_MEMORY": True, "GELU": False, "SCRATCH": max(F, 3 * d)}
    constants |= sizes_of_blocks(**SIZES)
    kinds = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in triton_kernels.VARYING
        else "*i64"
        if name == "border"
        else "*fp32"
        for name in kernel.arg_names
    }
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={k: v for k, v in constants.items() if k in kinds},
    )
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(source, target=target, options={"num_warps": WARPS})
    return result.metadata.shared, result.asm["ptx"]


def spilled(ptx: str, folder: Path) -> int:
    """Return the bytes that a thread stores outside its registers."""
    (source := folder / "kernel.ptx").write_text(ptx, encoding="utf-8")
    # Triton chooses the PTX version of the newer of its two assemblers.
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    for tool in ("ptxas", "ptxas-blackwell"):
        done = subprocess.run(
            [
                TOOLS / tool,
                "-v",
                "--gpu-name",
                target,
                source,
                "-o",
                folder / "cubin",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return max(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    raise RuntimeError(done.stderr)


if __name__ == "__main__":
    with TemporaryDirectory() as name:
        for capability in map(int, sys.argv[1:]):
            for kernel in (
                triton_kernels.forward_kernel,
                triton_kernels.backward_kernel,
            ):
                shared, ptx = compiled(kernel, capability)
                print(capability, shared, spilled(ptx, Path(name)), flush=True)
