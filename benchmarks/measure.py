"""What a job of run.py measures: `python benchmarks/measure.py '{"what": "steps", ...}'` prints JSON.

A job has one number of threads. One thread is measured by the CPU time of the process, which others on the
machine disturb least; several threads by wall time. Contenders take turns, so that whatever slows the machine
slows all of them, and a ratio is taken within each round.
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
from contenders import SLOW, YARDSTICK, Contender, Size, Unavailable, build, compiled, our_config
from sdpa import Decoder, Transformer
from torch import Tensor

from fbt.sequence.parts import CHUNK
from fbt.shared_kv import SharedKVBody
from fbt.state import State

T = TypeVar("T")
Row = dict[str, Any]
Prepare = Callable[[], Callable[[], object]]  # what is not timed; returns what is
RESET_PEAK = Path("/proc/self/clear_refs")


def steps(size: Size, threads: int, names: list[str], rounds: int, patience: float) -> list[Row]:
    """Training steps of a body on random embeddings: forward, loss, backward.

    The slow ones have a process of their own, with the yardstick again: what autograd leaves of thousands of
    small tensors is a heap in pieces, and whoever takes turns with them is up to a sixth slower than alone.

    Args:
        size: the sizes.
        threads: how many threads torch uses.
        names: the contenders.
        rounds: the most steps of each.
        patience: seconds after which a contender has no more turns.

    Returns:
        A row for each name: its parameters and times, or why it was not run.
    """
    fast = [name for name in names if name not in SLOW]
    slow = [name for name in names if name in SLOW]
    rows = in_a_fork(turns, size, threads, fast, rounds, patience)
    if slow:
        rows += in_a_fork(turns, size, threads, [YARDSTICK, *slow], rounds, patience)[1:]
    return rows


def in_a_fork(work: Callable[..., T], *given: object) -> T:
    """What `work` returns in a process that has done nothing else; a fork need not import torch again."""
    with get_context("fork").Pool(1) as fresh:
        return fresh.apply(work, given)


def turns(size: Size, threads: int, names: list[str], rounds: int, patience: float) -> list[Row]:
    """Training steps of contenders that take turns in this process."""
    rows, runs = training(size, threads, names)
    return timed(rows, runs, size, threads, rounds, patience)


def training(size: Size, threads: int, names: list[str]) -> tuple[list[Row], dict[str, Prepare]]:
    """Rows for contenders, and a training step of each that can run here.

    The loss is the sum of the outputs times fixed random numbers; the embeddings need a gradient too.
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
        contender.run(x[:2, :2]).sum().backward()  # what a process does once is not part of a step
        rows[-1]["parameters"] = sum(p.numel() for p in contender.module.parameters())
        runs[name] = partial(prepare, contender)
    return rows, runs


def memory(points: list[Row], threads: int) -> list[Row]:
    """The peak of a training step of each contender, alone in a process that has done nothing else.

    Args:
        points: sizes, each with the names of the contenders there.
        threads: how many threads torch uses.

    Returns:
        A row for each size and name.
    """
    return [
        in_a_fork(peak, Size(**point["size"]), threads, name) for point in points for name in point["names"]
    ]


def peak(size: Size, threads: int, name: str) -> Row:
    """A row with memory_mb: how far one training step raises the resident memory above what it was before.

    What was before is the model and the embeddings, after a tiny step; memory freed since is given back. The
    gradients of parameters and embeddings belong to the step.
    """
    (row,), runs = training(size, threads, [name])
    if not RESET_PEAK.exists():
        return row | {"not_run": "only Linux tells the peak of a single step"}
    for prepare in runs.values():
        row["memory_mb"] = raised(prepare())
        print(f"    {name:<30} {row['memory_mb']:8.0f} MB", file=sys.stderr, flush=True)
    return row


def raised(run: Callable[[], object]) -> float:
    """How far a call raises the resident memory at its peak, in 10^6 bytes; Linux alone tells."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    RESET_PEAK.write_text("5")
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1e6


def resident(name: str) -> float:
    """Resident bytes of this process, now (VmRSS) or at their peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def grow(points: list[Row], threads: int, rounds: int, patience: float) -> list[Row]:
    """`steps` and `floor` at several sizes, each with its own names."""
    rows: list[Row] = []
    for point in points:
        size = Size(**point["size"])
        print(f"  {size}", file=sys.stderr, flush=True)
        rows += [{"what": "steps"} | row for row in steps(size, threads, point["names"], rounds, patience)]
        rows += [{"what": "floor"} | row for row in in_a_fork(floor, size, threads)]
    return rows


def floor(size: Size, threads: int) -> list[Row]:
    """What a step cannot go below: its matrix products alone, and the reading of keys and values.

    The products are those of projections and feed-forward blocks, all T B rows at once, in the three forms
    of a training step: forward, gradient of the input, gradient of the weight. Every layer of every step
    reads the keys and values of all earlier steps, forward and backward (the first layer once a chunk), at
    the speed with which one product with a vector reads as much memory as the average step does.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    rows = size.T * size.B
    seconds = {
        (n, m): sum(products(torch.randn(rows, n), torch.randn(n, m), threads))
        for n, m in {(size.d, size.d), (size.d, size.F), (size.F, size.d), (size.d, 2 * size.d)}
    }
    block = seconds[size.d, size.d] * 2 + seconds[size.d, size.F] + seconds[size.F, size.d]
    key_values = seconds[size.d, 2 * size.d]
    step_bytes = 2 * size.B * size.d * 4  # a key and a value of every sequence
    buffer = torch.ones(max(1, size.T // 2) * step_bytes // 4 // size.d, size.d)
    vector = torch.ones(size.d)
    speed = buffer.numel() * 4 / best(lambda: torch.mv(buffer, vector), threads)
    passes = size.L - 1 + 1 / CHUNK  # the first layer reads once a chunk
    traffic = 2 * passes * sum(range(size.T)) * step_bytes
    row = size._asdict() | {"threads": threads, "bytes_per_second": speed, "traffic_bytes": traffic}
    return [
        row | {"name": "floor, feedback", "gemm": block * size.L + key_values, "traffic": traffic / speed},
        row | {"name": "floor, parallel", "gemm": (block + key_values) * size.L, "traffic": 0.0},
    ]


def products(x: Tensor, weight: Tensor, threads: int) -> list[float]:
    """Seconds of the three matrix products of a linear map in a training step."""
    out = x @ weight
    forms = (lambda: x @ weight, lambda: out @ weight.t(), lambda: x.t() @ out)
    return [best(form, threads) for form in forms]


@torch.no_grad()
def decode(size: Size, threads: int, steps: int, rounds: int, patience: float) -> list[Row]:
    """Decoding: `steps` steps that end at a context of T, keys and values of the steps before them given."""
    with suppress(Unavailable):  # the decoder's steps are in C++ where they can be
        compiled()
    torch.manual_seed(0)
    x = torch.randn(steps, size.B, size.d)
    past = size.T - steps
    transformer = Transformer(size.d, size.H, size.F, size.L)
    body = SharedKVBody(our_config(size))
    state = State(*((torch.randn(size.B, size.H, past, size.d // size.H),) for _ in range(2)))
    cached = Decoder(transformer, size.B, size.T)
    for part in (part for pair in cached.cache for part in pair):
        part.normal_()

    def yardstick() -> Callable[[], object]:
        cached.length = past
        return lambda: [cached.extend(now[:, None]) for now in x]

    def through_states() -> None:
        carried = state
        for now in x:
            _, carried, _ = body(now[:, None], carried)

    def decoder() -> Callable[[], object]:
        ours = body.decoder(state)
        return lambda: [ours.step(now) for now in x]

    runs: dict[str, Prepare] = {YARDSTICK: yardstick, "state": lambda: through_states, "decoder": decoder}
    per_layer = 2 * size.d * 4
    rows: list[Row] = [
        {
            "name": name,
            "steps": steps,
            "cache_bytes_per_token": per_layer * (size.L if name == YARDSTICK else 1),
        }
        for name in runs
    ]
    timed(rows, runs, size, threads, rounds, patience)
    return [row | {"tokens_per_second": size.B * steps / row["seconds"]} for row in rows]


@torch.no_grad()
def ingest(size: Size, threads: int, names: list[str], rounds: int, patience: float) -> list[Row]:
    """A prompt of T tokens read at once, forward only, leaving the cache for what follows."""
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
    return [r if "not_run" in r else r | {"tokens_per_second": size.B * size.T / r["seconds"]} for r in rows]


def timed(
    rows: list[Row],
    runs: Mapping[str, Prepare],
    size: Size,
    threads: int,
    rounds: int,
    patience: float,
) -> list[Row]:
    """Run the contenders in turns, and write into the rows what came of it.

    A row gains its sizes, all samples in seconds, the median, lowest and highest of all but the first (if
    there are more), and its ratio to the yardstick.
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
            prepare()  # lets gradients go
            if len(spent) == 1:
                print(f"    {name:<30} {spent[0]:8.3f} s", file=sys.stderr, flush=True)
    for row in rows:
        row |= size._asdict() | {"threads": threads}
        if row["name"] in samples:
            own = samples[row["name"]]
            kept = own[1:] or own
            row |= {"seconds": median(kept), "low": min(kept), "high": max(kept), "samples": own}
            row |= {"ratio": ratio(own, samples[YARDSTICK]) if YARDSTICK in samples else None}
    return rows


def ratio(own: list[float], yardstick: list[float]) -> float:
    """The median of the ratios of each round but the first; of a single sample, to the yardstick's median."""
    pairs = [a / b for a, b in zip(own[1:], yardstick[1:], strict=False)]
    return median(pairs) if pairs else own[-1] / median(yardstick[1:] or yardstick)


def seconds_of(run: Callable[[], object], threads: int) -> float:
    """CPU time of one thread, or wall time of several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    run()
    return clock() - start


def best(run: Callable[[], object], threads: int, times: int = 5) -> float:
    """The shortest of some runs, after one that is not counted."""
    return min([seconds_of(run, threads) for _ in range(times + 1)][1:])


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if "size" in job:
        job["size"] = Size(**job["size"])
    print(json.dumps({f.__name__: f for f in (steps, memory, grow, decode, ingest)}[job.pop("what")](**job)))
