"""The measurements of run.py, one job per process, printed as JSON.

    python benchmarks/measure.py '{"what": "steps", ...}'

A job uses a fixed number of threads. One thread is measured in CPU time of the
process, which other processes on the machine disturb least; several threads in wall
time. Contenders take turns, so that whatever slows down the machine slows down all of
them, and ratios are taken within each round.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from contenders import (
    COMPILED,
    SLOW,
    YARDSTICK,
    Contender,
    Size,
    Unavailable,
    build,
    load_native,
    our_config,
)
from sdpa import CompiledDecoder, Decoder, Transformer
from torch import Tensor

from fbt.sequence.native_engine import NativeEngine
from fbt.shared_kv import SharedKVBody
from fbt.state import State

T = TypeVar("T")
Row = dict[str, Any]
# Does what is not timed, and returns the function that is.
Prepare = Callable[[], Callable[[], object]]
RESET_PEAK = Path("/proc/self/clear_refs")


def steps(
    size: Size, threads: int, names: list[str], rounds: int, patience: float
) -> list[Row]:
    """Time training steps of a body on random embeddings: forward, loss, backward.

    Slow contenders have a process of their own, again with the yardstick. Autograd's
    thousands of small tensors leave the heap fragmented, and a contender that takes
    turns with them runs up to a sixth slower than alone.

    Args:
        size: the sizes.
        threads: the number of threads torch uses.
        names: the contenders.
        rounds: the maximum number of steps of each.
        patience: seconds after which a contender gets no more turns.

    Returns:
        A row for each name with its parameters and times, or why it was not run.
    """
    fast = [name for name in names if name not in SLOW]
    slow = [name for name in names if name in SLOW]
    rows = in_a_fork(run_in_turns, size, threads, fast, rounds, patience)
    if slow:
        names = [YARDSTICK, *slow]
        rows += in_a_fork(run_in_turns, size, threads, names, rounds, patience)[1:]
    return rows


def in_a_fork(work: Callable[..., T], *args: object) -> T:
    """Return the result of `work` in a forked process that has done nothing else.

    A fork does not have to import torch again.
    """
    with get_context("fork").Pool(1) as fresh:
        return fresh.apply(work, args)


def run_in_turns(
    size: Size, threads: int, names: list[str], rounds: int, patience: float
) -> list[Row]:
    """Time training steps of contenders that take turns in this process."""
    rows, runs = training(size, threads, names)
    return timed(rows, runs, size, threads, rounds, patience)


def training(
    size: Size, threads: int, names: list[str]
) -> tuple[list[Row], dict[str, Prepare]]:
    """Return rows for the contenders, and a training step of each that can run here.

    The loss is the sum of the outputs times fixed random numbers. The embeddings
    require a gradient too.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x = torch.randn(size.B, size.T, size.d, requires_grad=True)
    weights = torch.randn_like(x)

    def prepare(contender: Contender) -> Callable[[], object]:
        x.grad = None
        contender.module.zero_grad(set_to_none=True)
        return lambda: (contender.run(x) * weights).sum().backward()

    rows: list[Row] = []
    runs: dict[str, Prepare] = {}
    for name in names:
        rows.append({"name": name} | size._asdict() | {"threads": threads})
        try:
            contender = build(name, size)
        except Unavailable as reason:
            rows[-1]["not_run"] = str(reason)
            continue
        # One-time work of the process is not part of a step.
        if COMPILED in name:
            start = time.perf_counter()
            prepare(contender)()
            rows[-1]["compile_seconds"] = time.perf_counter() - start
        else:
            contender.run(x[:2, :2]).sum().backward()
        rows[-1]["parameters"] = sum(p.numel() for p in contender.module.parameters())
        runs[name] = partial(prepare, contender)
    return rows, runs


def memory(points: list[Row], threads: int) -> list[Row]:
    """Measure the peak memory of a training step of each contender.

    Each one runs in a process that has done nothing else.

    Args:
        points: sizes, each with the names of its contenders.
        threads: the number of threads torch uses.

    Returns:
        A row for each size and name.
    """
    return [
        in_a_fork(peak, Size(**point["size"]), threads, name)
        for point in points
        for name in point["names"]
    ]


def peak(size: Size, threads: int, name: str) -> Row:
    """Return a row with memory_mb: what one training step adds at its peak.

    The baseline is the resident memory with the model and the embeddings, after a
    tiny step whose memory has been released. Gradients of parameters and embeddings
    count as part of the step.
    """
    (row,), runs = training(size, threads, [name])
    if not RESET_PEAK.exists():
        return row | {"not_run": "only Linux tells the peak of a single step"}
    for prepare in runs.values():
        row["memory_mb"] = peak_increase(prepare())
        line = f"    {name:<30} {row['memory_mb']:8.0f} MB"
        print(line, file=sys.stderr, flush=True)
    return row


def peak_increase(run: Callable[[], object]) -> float:
    """Return how far a call raises the resident memory at its peak, in 10^6 bytes.

    Linux only.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    RESET_PEAK.write_text("5")
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1e6


def resident(name: str) -> float:
    """Return this process's resident bytes, now (VmRSS) or at their peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def grow(points: list[Row], threads: int, rounds: int, patience: float) -> list[Row]:
    """Run `steps` and `floor` at several sizes, each with its own contenders."""
    rows: list[Row] = []
    for point in points:
        size = Size(**point["size"])
        print(f"  {size}", file=sys.stderr, flush=True)
        rows += [
            {"what": "steps"} | row
            for row in steps(size, threads, point["names"], rounds, patience)
        ]
        rows += [{"what": "floor"} | row for row in in_a_fork(floor, size, threads)]
    return rows


def floor(size: Size, threads: int) -> list[Row]:
    """Measure a lower bound of a step: matrix products, and reading keys and values.

    The products are those of projections and feed-forward blocks, with all T B rows
    at once, in the three forms of a training step: forward, gradient of the input,
    gradient of the weight. Every layer of every step reads the keys and values of all
    earlier steps, forward and backward (the first layer once per chunk). The time for
    that is computed from the speed of a matrix-vector product that reads as much
    memory as the average step does.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    rows, d = size.T * size.B, size.d
    seconds = {
        (n, m): sum(products(torch.randn(rows, n), torch.randn(n, m), threads))
        for n, m in {(d, d), (d, size.F), (size.F, d), (d, 2 * d)}
    }
    block = seconds[d, d] * 2 + seconds[d, size.F] + seconds[size.F, d]
    key_values = seconds[d, 2 * d]
    step_bytes = 2 * size.B * size.d * 4  # a key and a value per sequence
    buffer = torch.ones(max(1, size.T // 2) * step_bytes // 4 // size.d, size.d)
    vector = torch.ones(size.d)
    speed = buffer.numel() * 4 / best(lambda: torch.mv(buffer, vector), threads)
    # The first layer reads once per chunk.
    passes = size.L - 1 + 1 / NativeEngine.chunk_steps
    traffic = 2 * passes * sum(range(size.T)) * step_bytes
    row = size._asdict() | {"threads": threads, "bytes_per_second": speed}
    row |= {"traffic_bytes": traffic}
    feedback = {"gemm": block * size.L + key_values, "traffic": traffic / speed}
    parallel = {"gemm": (block + key_values) * size.L, "traffic": 0.0}
    return [
        row | {"name": "floor, feedback"} | feedback,
        row | {"name": "floor, parallel"} | parallel,
    ]


def products(x: Tensor, weight: Tensor, threads: int) -> list[float]:
    """Time the three matrix products of a linear map in a training step."""
    out = x @ weight
    forms = (lambda: x @ weight, lambda: out @ weight.t(), lambda: x.t() @ out)
    return [best(form, threads) for form in forms]


@torch.no_grad()
def decode(
    size: Size, threads: int, steps: int, rounds: int, patience: float
) -> list[Row]:
    """Time the last `steps` steps of decoding up to a context of T.

    The keys and values of the steps before them are given, in a cache with room for
    more. The yardstick in eager Python starts each operation from there; compiled, it
    runs in C++ as our steps do.
    """
    with suppress(Unavailable):  # steps use C++ where available
        load_native()
    torch.manual_seed(0)
    x = torch.randn(steps + 1, size.B, size.d)
    past = size.T - steps
    transformer = Transformer(size.d, size.H, size.F, size.L)
    body = SharedKVBody(our_config(size))
    shape = (size.B, size.H, past - 1, size.d // size.H)
    keys, values = (torch.randn(shape) for _ in range(2))
    state = State((keys,), (values,))
    eager = Decoder(transformer, size.B, size.T)
    compiled = CompiledDecoder(transformer, size.B, size.T)
    for tensor in (t for pair in eager.cache + compiled.cache for t in pair):
        tensor.normal_()

    def yardstick(decoder: Decoder) -> Callable[[], object]:
        decoder.length = past
        return lambda: [decoder.extend(token[:, None]) for token in x[1:]]

    def through_states() -> Callable[[], None]:
        # The first step copies the state, which it must not change, to a cache.
        _, copied, _ = body(x[0, :, None], state)

        def run() -> None:
            current = copied
            for token in x[1:]:
                _, current, _ = body(token[:, None], current)

        return run

    runs: dict[str, Prepare] = {
        YARDSTICK: partial(yardstick, eager),
        YARDSTICK + COMPILED: partial(yardstick, compiled),
        "decoder": through_states,
    }
    start = time.perf_counter()
    runs[YARDSTICK + COMPILED]()()
    compile_seconds = time.perf_counter() - start
    per_layer = 2 * size.d * 4
    rows: list[Row] = [
        {
            "name": name,
            "steps": steps,
            "cache_bytes_per_token": per_layer * (1 if name == "decoder" else size.L),
        }
        | ({"compile_seconds": compile_seconds} if name.endswith(COMPILED) else {})
        for name in runs
    ]
    timed(rows, runs, size, threads, rounds, patience)
    tokens = size.B * steps
    return [row | {"tokens_per_second": tokens / row["seconds"]} for row in rows]


@torch.no_grad()
def ingest(
    size: Size, threads: int, names: list[str], rounds: int, patience: float
) -> list[Row]:
    """Time a prompt of T tokens read at once, forward only, including the cache."""
    torch.manual_seed(0)
    x = torch.randn(size.B, size.T, size.d)
    transformer = Transformer(size.d, size.H, size.F, size.L)

    def yardstick() -> Callable[[], object]:
        cached = Decoder(transformer, size.B, size.T)
        return lambda: cached.extend(x)

    rows: list[Row] = []
    runs: dict[str, Prepare] = {}
    for name in names:
        rows.append({"name": name})
        if name == YARDSTICK:
            runs[name] = yardstick
            continue
        try:
            contender = build(name, size)
        except Unavailable as reason:
            rows[-1]["not_run"] = str(reason)
        else:
            runs[name] = partial(lambda run: lambda: run(x), contender.run)
    timed(rows, runs, size, threads, rounds, patience)
    for row in rows:
        if "not_run" not in row:
            row["tokens_per_second"] = size.B * size.T / row["seconds"]
    return rows


def timed(
    rows: list[Row],
    runs: Mapping[str, Prepare],
    size: Size,
    threads: int,
    rounds: int,
    patience: float,
) -> list[Row]:
    """Run the contenders in turns and add their times to the rows.

    A row gains its sizes, all samples in seconds, the median, lowest and highest of
    all but the first sample (if there are more), and its ratio to the yardstick.
    """
    torch.set_num_threads(threads)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, prepare in runs.items():
            spent = samples[name]
            if spent and sum(spent) + spent[-1] > patience:
                continue
            run = prepare()
            spent.append(seconds_of(run, threads))
            prepare()  # frees the gradients
            if len(spent) == 1:
                line = f"    {name:<30} {spent[0]:8.3f} s"
                print(line, file=sys.stderr, flush=True)
    for row in rows:
        row |= size._asdict() | {"threads": threads}
        if row["name"] in samples:
            own = samples[row["name"]]
            kept = own[1:] or own
            row |= {"seconds": median(kept), "low": min(kept), "high": max(kept)}
            yardstick = samples.get(YARDSTICK)
            row["samples"] = own
            row["ratio"] = None if yardstick is None else ratio(own, yardstick)
    return rows


def ratio(own: list[float], yardstick: list[float]) -> float:
    """Return the median of the ratios of each round but the first.

    A single sample is divided by the yardstick's median.
    """
    pairs = [a / b for a, b in zip(own[1:], yardstick[1:], strict=False)]
    return median(pairs) if pairs else own[-1] / median(yardstick[1:] or yardstick)


def seconds_of(run: Callable[[], object], threads: int) -> float:
    """Return the CPU time of one thread, or the wall time of several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def best(run: Callable[[], object], threads: int, times: int = 5) -> float:
    """Return the shortest of some runs, after one that is not counted."""
    return min([seconds_of(run, threads) for _ in range(times + 1)][1:])


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if "size" in job:
        job["size"] = Size(**job["size"])
    measurements = {f.__name__: f for f in (steps, memory, grow, decode, ingest)}
    print(json.dumps(measurements[job.pop("what")](**job)))
