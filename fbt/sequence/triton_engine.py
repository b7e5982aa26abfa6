"""The engine "triton": the steps of a chunk in one launch on a GPU."""

import functools
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fbt import native
from fbt._files import sha256
from fbt._text import one_line
from fbt.native.build import ALTERNATIVE
from fbt.sequence import graphs, proof
from fbt.sequence.engine import Engine
from fbt.sequence.layout import (
    Chunk,
    ChunkGradients,
    Layout,
    MatrixInputs,
    Outputs,
    SequenceGradients,
    Weights,
    map_matrices,
)
from fbt.sequence.norm import plain_norm
from fbt.sequence.python_engine import PythonEngine

LARGEST_WIDTH = 512  # the widest for which the kernels were compiled and looked at
# Rows and columns of a block of a matrix; and numbers of a block of keys, which are
# in registers together with as many values and rows of the relative table.
BLOCKS = {"BK": 16, "BN": 256}
KEYS = 1024
# Of a program and of a thread. Without the second, the largest there is, the compiler
# stores registers in memory, so that twice as many programs may run at once.
LIMITS = {"num_warps": 8, "maxnreg": 255}
# With more sequences, a program takes several. In backward each program has a sum of
# the gradients of relative tables: more programs than a card runs at once are waste.
MAX_PROGRAMS = 256
# What the verdict on the kernels depends on besides versions and the card.
SOURCES = ("triton_kernels.py", "triton_engine.py", "graphs.py", "proof.py")


class TritonEngine(Engine):
    """Computes a chunk in a Triton kernel, a sequence per program at a time."""

    chunk_steps = sys.maxsize
    keeps_weights = False

    def __init__(self, layout: Layout, weights: Weights) -> None:
        if (half := layout.sizes.matrices) is not None:  # exact: they are rounded
            weights = map_matrices(weights, lambda matrix: matrix.to(half))
        super().__init__(layout, weights)

    @classmethod
    def half_for(cls, x: Tensor, autocast: torch.dtype) -> torch.dtype | None:
        """Return in which half precision it multiplies by matrices under autocast."""
        return autocast

    @classmethod
    def why_not(cls, x: Tensor) -> Exception | None:
        """Return why tensors like x cannot be computed, as an error, or None.

        If the kernels were never tried on this device, they are now: see
        `fbt.sequence.proof`. It takes minutes, once.
        """
        if (error := why_not_tensor(x)) is not None:
            return error
        verdict = verdict_on(x.device)
        if verdict is None:
            verdict = prove_on(x.device)
        return refusal(verdict, x.device)

    @classmethod
    def why_not_chosen(cls, x: Tensor) -> Exception | None:
        """Return why backend="auto" does not take this engine, or None.

        It is taken where it was faster than "sequence". Nothing is tried here.
        """
        if (error := why_not_tensor(x)) is not None:
            return error
        if (verdict := verdict_on(x.device)) is None:
            return native.NotBuilt(
                'backend="triton" has not been checked and timed on this device: '
                "call fbt.build_native() once, and it is used where it is faster"
            )
        if (error := refusal(verdict, x.device)) is not None:
            return error
        if not verdict.is_faster(x.shape[-1]):
            return ValueError(
                f'backend="triton" was slower than "sequence" on this device for '
                f"models {x.shape[-1]} wide"
            )
        return None

    @classmethod
    def seconds(cls, x: Tensor) -> tuple[float, float] | None:
        """Return what a step and layer took, here and in a graph of "sequence".

        None if the kernels were not timed on the device of x. The batch was
        `proof.TIMED_BATCH`.
        """
        verdict = None if why_not_tensor(x) else verdict_on(x.device)
        found = None if verdict is None else verdict.seconds_at(x.shape[-1])
        if found is None:
            return None
        count = proof.TIMED_STEPS * proof.TIMED_LAYERS
        return found[0] / count, found[1] / count

    def forward_chunk(self, steps: range, outputs: Outputs, chunk: Chunk) -> None:
        """Compute the steps of a chunk."""
        scratch = max(self.layout.F, 3 * self.layout.d)
        self.launch(
            "forward_kernel",
            *outputs,
            *self.activations(chunk),
            *self.weights,
            self.layout.new(self.programs, scratch),
            steps=steps,
            outputs=outputs,
            SCRATCH=scratch,
        )

    def backward_chunk(
        self,
        steps: range,
        outputs: Outputs,
        chunk: Chunk,
        grads: ChunkGradients,
        total: SequenceGradients,
    ) -> MatrixInputs:
        """Compute the gradients of the steps of a chunk, after all later chunks."""
        layout, w = self.layout, self.weights
        # Each program adds to a table of its own, so that sums have one order.
        tables: list[Tensor | None] = [
            None if sum is None else sum.new_zeros(self.programs, *sum.shape)
            for sum in (total.table, total.s)
        ]
        self.launch(
            "backward_kernel",
            *outputs,
            *self.activations(chunk),
            *(w.w_q, w.u, w.table, w.s, w.w_o, w.w_1, w.w_2, w.mix, w.w_kv),
            *(grads.f, grads.y, grads.q, grads.a, grads.kv, grads.m),
            *(total.top, total.x, total.keys, total.values),
            *tables,
            layout.new(self.programs, layout.d),
            steps=steps,
            outputs=outputs,
        )
        for sum, of_programs in zip((total.table, total.s), tables, strict=True):
            if sum is not None and of_programs is not None:
                sum += of_programs.sum(0)
        total.add_biases(grads)
        memories = outputs.m[steps.start : steps.stop]
        a = chunk.a
        return MatrixInputs(
            w_q=plain_norm(outputs.x[: layout.L, steps.start : steps.stop])[0],
            w_o=chunk.o,
            w_1=plain_norm(chunk.y)[0],
            w_2=torch.nn.functional.gelu(a) if layout.sizes.gelu else a,
            w_kv=plain_norm(memories)[0] if layout.sizes.norm_memory else memories,
        )

    @property
    def programs(self) -> int:
        """The number of programs, each with sequences of its own."""
        return min(self.layout.B, MAX_PROGRAMS)

    def activations(self, chunk: Chunk) -> tuple[Tensor | None, ...]:
        """Return a chunk's tensors; None for masks and borders that there are not."""
        masks = (chunk.attention_dropout, chunk.output_dropout)
        dropout = masks if self.layout.sizes.dropout else (None, None)
        border = self.layout.sizes.oldest
        return chunk.q, chunk.o, chunk.y, chunk.a, chunk.p, *dropout, border

    def launch(
        self,
        kernel: str,
        *tensors: Tensor | None,
        steps: range,
        outputs: Outputs,
        **constants: int,
    ) -> None:
        """Run a kernel over the steps of a chunk."""
        layout = self.layout
        low, high = layout.keys_of_chunk(steps)
        compiled: Any = getattr(kernels(), kernel)
        compiled[(self.programs,)](
            *tensors,
            *(layout.T, layout.B, layout.past, layout.span, steps.start, steps.stop),
            *(layout.R, outputs.keys.shape[1], high - low),
            NORM_MEMORY=layout.sizes.norm_memory,
            GELU=layout.sizes.gelu,
            **constants,
            **sizes_of_blocks(layout.L, layout.H, layout.D, layout.F),
            **LIMITS,
        )


def sizes_of_blocks(L: int, H: int, D: int, F: int) -> dict[str, int]:
    """Return sizes of a model, and of the blocks that its kernels compute with."""

    def power(count: int) -> int:
        return 1 << (count - 1).bit_length()

    by_head = power(H) * power(D)
    sizes = {"L": L, "H": H, "D": D, "F": F, "PD": power(H * D)}
    sizes |= {"PH": power(H), "PW": power(D), "PF": power(F)}
    return sizes | {"BJ": min(64, max(2, KEYS // by_head)), **BLOCKS}


def kernels() -> Any:
    """Import and return the module of the kernels."""
    from fbt.sequence import triton_kernels

    return triton_kernels


def why_not_tensor(x: Tensor) -> Exception | None:
    """Return why tensors like x cannot be computed on any device of this machine."""
    if x.device.type != "cuda":
        return ValueError(
            f'backend="triton" computes on CUDA, got {x.device}. {ALTERNATIVE}'
        )
    if x.dtype != torch.float32:
        advice = ALTERNATIVE
        if x.dtype in (torch.float16, torch.bfloat16):
            advice = f"Under autocast, it reads float32 matrices in {x.dtype}."
        return TypeError(
            f'backend="triton" computes in float32, got {x.dtype}. {advice}'
        )
    if not native.is_plain(x):
        return TypeError(
            f'backend="triton" reads plain tensors, got a {type(x).__name__}'
        )
    if x.shape[-1] > LARGEST_WIDTH:
        return ValueError(
            f'backend="triton" needs d_model <= {LARGEST_WIDTH}, since a program '
            f"keeps vectors in registers, got {x.shape[-1]}. {ALTERNATIVE}"
        )
    if triton_version() is None:
        return native.NotBuilt(
            'backend="triton" needs the package triton, which torch for CUDA on '
            f"Linux brings along. {ALTERNATIVE}"
        )
    try:
        verdict_file(x.device)
    except ValueError as error:  # no cache folder
        return error
    return None


@functools.cache
def triton_version() -> str | None:
    """Return the version of triton, without importing it; None if it is missing."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


@functools.cache
def card(device: torch.device) -> str:
    """Return the name and the compute capability of a device."""
    found = torch.cuda.get_device_properties(device)
    return f"{found.name} {found.major}.{found.minor}"


# Verdicts by the file in which they are remembered.
_verdicts: dict[Path, proof.Verdict] = {}


def verdict_file(device: torch.device) -> Path:
    """Return where the verdict on the kernels on a device is remembered."""
    return proof.verdict_path(
        "triton",
        (source(), torch.__version__, str(triton_version()), card(device)),
    )


@functools.cache
def source() -> str:
    """Return a hash of the kernels, of this module and of the proof."""
    folder = files("fbt.sequence")
    return sha256(b"\n".join((folder / name).read_bytes() for name in SOURCES))


def verdict_on(device: torch.device) -> proof.Verdict | None:
    """Return what was found on a device; None if nothing was tried there."""
    path = verdict_file(device)
    if path not in _verdicts and (found := proof.remembered(path)) is not None:
        _verdicts[path] = found
    return _verdicts.get(path)


def prove_on(device: torch.device) -> proof.Verdict:
    """Try the kernels on a device, and remember the verdict.

    A kernel that cannot be compiled or launched there is refused like one that gives
    wrong numbers.
    """
    path = verdict_file(device)
    try:
        verdict = proof.prove(TritonEngine, PythonEngine, device, graphs.best_time)
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # of any class: the compiler is not ours
        verdict = proof.Verdict(f"{type(error).__name__}: {one_line(str(error))}", ())
    _verdicts[path] = verdict
    proof.remember(path, verdict)
    return verdict


def refusal(verdict: proof.Verdict, device: torch.device) -> Exception | None:
    """Return the error of a device on which the kernels were wrong, or None."""
    if not verdict.problem:
        return None
    return RuntimeError(
        f'backend="triton" is refused on {card(device)}, where it does not compute '
        f'the numbers of "sequence": {verdict.problem}. {ALTERNATIVE}'
    )
