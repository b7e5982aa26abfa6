"""Compile the Triton kernels without a card, and print what ptxas says of them.

    python tests/triton_compiled.py TYPES CAPABILITY ...

For each compute capability, such as 80, each type of the matrices in TYPES, such as
fp32,bf16, and each kernel: a line with the numbers of bytes of shared memory and of
spilled registers. The kernels are compiled with dropout and borders, and once more
without. The model is size M of the measurements.
"""

import itertools
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
from fbt.sequence.layout import MATRICES
from fbt.sequence.triton_engine import LIMITS, sizes_of_blocks

SIZES = {"L": 4, "H": 4, "D": 32, "F": 512}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compiled(
    kernel: Any, capability: int, matrices: str, absent: tuple[str, ...]
) -> tuple[int, str]:
    """Return bytes of shared memory, and the kernel as PTX.

    Tensors begin at multiples of 16 bytes, as those of PyTorch do.
    """
    d, F = SIZES["H"] * SIZES["D"], SIZES["F"]
    constants: dict[str, Any] = {"NORM_MEMORY": True, "GELU": False}
    constants |= {"SCRATCH": max(F, 3 * d), **sizes_of_blocks(**SIZES)}
    constants |= dict.fromkeys(absent)
    kinds = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in triton_kernels.VARYING
        else "*i64"
        if name == "border"
        else f"*{matrices}"
        if name in MATRICES
        else "*fp32"
        for name in kernel.arg_names
    }
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={k: v for k, v in constants.items() if k in kinds},
        attrs={
            (i,): aligned for i, kind in enumerate(kinds.values()) if kind[0] == "*"
        },
    )
    target = GPUTarget("cuda", capability, 32)
    result = triton.compile(source, target=target, options=LIMITS)
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
        for capability, kernel, matrices, absent in itertools.product(
            map(int, sys.argv[2:]),
            (triton_kernels.forward_kernel, triton_kernels.backward_kernel),
            sys.argv[1].split(","),
            ((), ("attention_mask", "output_mask", "border")),
        ):
            shared, ptx = compiled(kernel, capability, matrices, absent)
            print(capability, shared, spilled(ptx, Path(name)), flush=True)
