"""Prove on a device that an engine computes what another one computes there.

A kernel can be right on one card and wrong on another: compilers differ, and a
missing barrier shows only where threads really run at the same time. So an engine
that is compiled for a card computes small examples there, forward and backward,
before it is used: outputs and every gradient must be near those of an engine that is
trusted, and a repetition must give the same bits. It is also timed against that
engine, on models of several widths.

The verdict is remembered in the cache folder, for this version of everything it
depends on.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fbt._files import cache_folder, check_owned, read_file, sha256, write_file
from fbt._modes import without_autocast
from fbt.sequence.backward import Backward
from fbt.sequence.engine import Engine
from fbt.sequence.forward import Forward, prepare
from fbt.sequence.layout import Sizes, Weights, round_matrices

# Allowed difference in float32, relative to the largest number of a tensor. Sums in
# another order differ by about 1e-6. No more is allowed in half precision: both
# engines have the same rounded matrices, and both compute in float32.
TOLERANCE = 1e-4
REPETITIONS = 3
TIMED_WIDTHS = (128, 256, 512)
TIMED_LAYERS, TIMED_BATCH, TIMED_STEPS = 4, 64, 128
LARGEST = 10_000  # bytes of a verdict


class Example(NamedTuple):
    """Sizes and options of a body, and of the block that it computes."""

    heads: int
    width: int  # of a head
    layers: int
    inner: int  # width of the feed-forward
    batch: int
    steps: int
    past: int
    span: int
    gelu: bool = False
    norm_memory: bool = True
    dropout: float = 0.0
    recompute: bool = False
    # Steps of a document in the first row, one more in each row below; 0 for no
    # borders.
    documents: int = 0
    matrices: torch.dtype | None = None  # see `Sizes`


# Many widths are not powers of two. Two examples read more than a block of keys.
EXAMPLES = (
    Example(1, 3, 1, 5, 2, 1, 0, 4),
    Example(2, 5, 2, 17, 300, 9, 0, 4),  # more sequences than programs
    Example(3, 4, 2, 7, 5, 6, 5, 7, gelu=True, norm_memory=False),
    Example(2, 3, 3, 9, 3, 7, 3, 40, dropout=0.3, recompute=True),
    Example(3, 5, 2, 9, 7, 11, 4, 6, documents=1),
    Example(2, 32, 2, 300, 70, 90, 10, 80, dropout=0.1, documents=20),
    Example(4, 32, 2, 512, 5, 150, 0, 150),
    Example(3, 5, 2, 17, 9, 7, 3, 6, gelu=True, matrices=torch.float16),
    Example(2, 32, 2, 300, 5, 40, 0, 30, matrices=torch.bfloat16),
)


class Verdict(NamedTuple):
    """What was found on a device."""

    problem: str  # "" if all numbers agreed
    # For each of TIMED_WIDTHS, seconds of the engine and of the trusted one.
    seconds: tuple[tuple[float, float], ...]

    def seconds_at(self, d_model: int) -> tuple[float, float] | None:
        """Return the seconds at the next timed width, or None if there is none."""
        times = zip(TIMED_WIDTHS, self.seconds, strict=False)
        return next((pair for width, pair in times if d_model <= width), None)

    def is_faster(self, d_model: int) -> bool:
        """Return whether the engine was faster at the next timed width."""
        engine, trusted = self.seconds_at(d_model) or (0.0, 0.0)
        return engine < trusted


def prove(
    engine: type[Engine],
    trusted: type[Engine],
    device: torch.device,
    time_trusted: Callable[[int, torch.device], float],
    examples: Iterable[Example] = EXAMPLES,
    widths: Iterable[int] = TIMED_WIDTHS,
) -> Verdict:
    """Compare two engines on a device, and time them if they agree.

    Args:
        engine: the engine to check.
        trusted: the engine to compare it with.
        device: where both compute, in float32.
        time_trusted: returns the seconds of a forward and a backward of the trusted
            engine at a width, as `best_time`.
        examples: what they compute.
        widths: those at which they are timed.
    """
    if problem := difference(engine, trusted, device, examples):
        return Verdict(problem, ())
    return Verdict(
        "",
        tuple(
            (best_time(engine, width, device), time_trusted(width, device))
            for width in widths
        ),
    )


def verdict_path(engine: str, versions: Iterable[str]) -> Path:
    """Return where the verdict on an engine is remembered.

    Args:
        engine: its name, for the folder.
        versions: everything that the verdict depends on.

    Raises:
        ValueError: if there is no cache folder.
    """
    key = sha256("\n".join(versions).encode())[:16]
    return cache_folder() / engine / f"verdict-{key}.json"


def remembered(path: Path) -> Verdict | None:
    """Return the verdict in a file; None if it is missing, damaged or foreign."""
    try:
        for owned in (path.parent.parent, path.parent, path):
            check_owned(owned)
        problem, seconds = json.loads(read_file(path, LARGEST))
        pairs = tuple((float(a), float(b)) for a, b in seconds)
    except (OSError, TypeError, ValueError, RecursionError):
        return None
    expected = 0 if problem else len(TIMED_WIDTHS)
    if not isinstance(problem, str) or len(pairs) != expected:
        return None
    return Verdict(problem, pairs)


def remember(path: Path, verdict: Verdict) -> None:
    """Write a verdict; warn if that fails, since the proof is then repeated."""
    try:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file(path, json.dumps(verdict).encode())
    except OSError as error:
        warnings.warn(
            f"each process will check the kernels again: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def difference(
    engine: type[Engine],
    trusted: type[Engine],
    device: torch.device,
    examples: Iterable[Example] = EXAMPLES,
) -> str:
    """Return where an engine's numbers differ from those of another engine.

    Args:
        engine: the engine to check.
        trusted: the engine to compare it with.
        device: where both compute, in float32, also with matrices in half precision.
        examples: what they compute.

    Returns:
        A description; "" if all numbers agree and repetitions have the same bits.
    """
    for number, example in enumerate(examples):
        expected = computed(trusted, example, device)
        first = computed(engine, example, device)
        if problem := first_error(first, expected):
            return f"in example {number}, {problem}"
        for _ in range(REPETITIONS - 1):
            for name, value in computed(engine, example, device).items():
                if not torch.equal(first[name], value):
                    return f"in example {number}, {name} changes from run to run"
    return ""


def first_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return which tensor is not within the tolerance, and by how much; or ""."""
    for name, value in found.items():
        # NaN is never within the tolerance.
        largest = max(1.0, expected[name].abs().max().item())
        error = (value - expected[name]).abs().max().item()
        if not error <= TOLERANCE * largest:
            return f"{name} is off by {error:.2g}"
    return ""


def best_time(engine: type[Engine], d_model: int, device: torch.device) -> float:
    """Return the seconds of a forward and a backward at one of `TIMED_WIDTHS`."""
    with unrecorded(device):
        inputs = timed_inputs(d_model, device)
        return fastest(lambda: dict(inputs.run(engine))["gradient of x"])


def timed_inputs(d_model: int, device: torch.device) -> "Inputs":
    """Return the inputs with which engines are timed."""
    sizes = (TIMED_LAYERS, 4 * d_model, TIMED_BATCH, TIMED_STEPS)
    example = Example(d_model // 32, 32, *sizes, past=0, span=TIMED_STEPS)
    return Inputs(example, device)


def fastest(run: Callable[[], Tensor]) -> float:
    """Return the seconds of the fastest repetition."""
    times = []
    for _ in range(REPETITIONS):
        run().sum().item()  # also waits for the device
        started = time.perf_counter()
        run().sum().item()
        times.append(time.perf_counter() - started)
    return min(times)


def computed(
    engine: type[Engine], example: Example, device: torch.device
) -> dict[str, Tensor]:
    """Return all outputs and gradients of an example that are not empty."""
    with unrecorded(device):
        values = dict(Inputs(example, device).run(engine))
    return {name: value for name, value in values.items() if value.numel()}


@contextlib.contextmanager
def unrecorded(device: torch.device) -> Iterator[None]:
    """Turn off gradients, autocast and products of reduced precision."""
    before = torch.get_float32_matmul_precision()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        without_autocast(device.type),
    ):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def oldest(example: Example) -> Tensor:
    """Return the oldest key [B, T] that each row of an example may see."""
    steps = torch.arange(example.steps, device="cpu")
    rows = torch.arange(example.batch, device="cpu")[:, None]
    every = rows + example.documents
    return example.past + steps // every * every


class Inputs:
    """The random weights and inputs of an example, the same on every device."""

    def __init__(self, example: Example, device: torch.device) -> None:
        heads, width, layers, inner, batch, steps, past, span = example[:8]
        d, rows = heads * width, min(span, past + steps - 1)
        numbers = torch.Generator().manual_seed(0)

        def new(*shape: int, scale: float = 0.5) -> Tensor:
            drawn = torch.randn(
                shape, generator=numbers, dtype=torch.float32, device="cpu"
            )
            return (scale * drawn).to(device)

        def matrix(*shape: int) -> Tensor:
            return new(*shape, scale=shape[-1] ** -0.5)

        weights = Weights(
            w_q=matrix(layers, d, d),
            b_q=new(layers, d),
            u=new(layers, heads, width),
            table=new(layers, heads, rows, width),
            s=new(layers, heads, rows),
            w_o=matrix(layers, d, d),
            b_o=new(layers, d),
            w_1=matrix(layers, inner, d),
            b_1=new(layers, inner),
            w_2=matrix(layers, d, inner),
            b_2=new(layers, d),
            mix=new(layers + 1),
            w_kv=matrix(2 * d, d),
            b_kv=new(2 * d),
        )
        self.weights = round_matrices(weights, example.matrices)
        self.sizes = Sizes(
            heads=heads,
            span=span,
            past=past,
            norm_memory=example.norm_memory,
            gelu=example.gelu,
            dropout=example.dropout,
            generator=torch.Generator(device).manual_seed(0),
            recompute=example.recompute,
            needs_backward=True,
            kept=span,
            oldest=oldest(example).to(device) if example.documents else None,
            matrices=example.matrices,
        )
        self.x, self.d_top = new(steps, batch, d), new(steps, batch, d)
        self.keys, self.values = (new(heads * batch, past, width) for _ in range(2))
        newest = min(span, past + steps)
        self.d_state = [new(batch, heads, newest, width) for _ in range(2)]

    def run(self, engine: type[Engine]) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and values of all outputs and gradients."""
        sizes, weights = self.sizes, self.weights
        prepared = prepare(engine, weights)
        loop = Forward(engine, sizes, prepared, self.x, self.keys, self.values)
        chunks, outputs = loop.run(), loop.outputs
        yield from ((f"output {name}", v) for name, v in outputs._asdict().items())
        wanted = {"x", "keys", "values", *Weights._fields}
        backward = Backward(engine, sizes, weights, outputs, chunks, wanted)
        gradients = backward.run(self.d_top, *self.d_state)
        yield from ((f"gradient of {name}", v) for name, v in gradients.items())
