"""Training steps and decoding on a CUDA device.

    .venv/bin/python benchmarks/gpu.py [RECORD] [--minutes N] [--dry-run]

It writes `fbt/measurements/gpu.json`, or RECORD, when all rows are measured. Rows are
kept in `_build/benchmarks` meanwhile: a run that was interrupted, or ended after N
minutes, continues with the same command. With --dry-run tiny sizes run on the CPU,
without a CUDA graph and without the kernels of "triton", to see that all of it works.
Other implementations are installed into an environment of their own, as by run.py; if
that fails, their rows say so.

A loop consists of many small operations, so on a GPU most of its time goes into
kernel launches; a CUDA graph launches them all at once. Only parallel models are
compiled or measured in TF32. Under autocast the kernels of "triton" read matrices in
half precision; the other loops would stay in float32, and are measured there.

Look for races and for reads beyond a tensor in the kernels, once per card:

    compute-sanitizer --tool racecheck .venv/bin/python -m pytest \
        tests/test_cuda.py -k triton
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
        .venv/bin/python -m pytest tests/test_cuda.py -k triton

racecheck sees shared memory only. That the threads of a program wait for each other's
writes to global memory is shown by the same bits in every repetition, which
`fbt.sequence.proof` demands.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from contenders import (
    DIFFERENCES,
    PARALLEL,
    PEERS,
    YARDSTICK,
    Size,
    Unavailable,
    build,
    our_config,
)
from run import LARGE, MEASUREMENTS, WORK, M, heading, peers_python
from sdpa import Decoder, Transformer
from torch import Tensor

import fbt
from fbt._files import write_file
from fbt._text import one_line
from fbt.sequence import graphs
from fbt.sequence.triton_engine import TritonEngine, triton_version
from fbt.shared_kv import SharedKVBody

RECORD = MEASUREMENTS / "gpu.json"
SIZES = {"M": M, "L": LARGE, "d = 256": Size(d=256, H=8, F=1024, L=4, T=256, B=32)}
PRECISIONS = ("float32", "TF32", "bfloat16")
OF_TRITON = ("float32", "bfloat16", "float16")
# Without the one that projects all memories anew at every step.
OTHERS = tuple(name for name in PEERS if name != "labml plain")
# After the first step, which may compile: at most so many, at least so many, and no
# further ones after so many seconds.
ROUNDS, FEWEST, PATIENCE = 7, 3, 20.0

Row = dict[str, Any]


class Plan(NamedTuple):
    """What is measured: main sizes, and others along the batch and the length."""

    sizes: dict[str, Size]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    main: Size  # has the length of other batches, and the batch of other lengths
    context: int  # in view at the end of decoding

    def points(self) -> dict[Size, str]:
        """Return all sizes with their labels, the main ones first."""
        found = {size: label for label, size in self.sizes.items()}
        for label, size in self.sizes.items():
            for B in self.batches:
                point = size._replace(T=self.main.T, B=B)
                found.setdefault(point, f"{label}, B = {B}")
            for T in self.lengths:
                point = size._replace(T=T, B=self.main.B)
                found.setdefault(point, f"{label}, T = {T}")
        return found


FULL = Plan(SIZES, (16, 64, 256, 1024), (64, 128, 256, 512), M, 512)
TINY = Size(d=8, H=2, F=32, L=2, T=5, B=2)
DRY = Plan({"tiny": TINY}, (2,), (4,), TINY, 16)


class Job(NamedTuple):
    """What one row measures."""

    what: str  # "step" of training, or "decode"
    label: str  # of the size
    size: Size
    name: str
    # Or "graph", all of a step, which the benchmark captures; "compiled"; or
    # "recorded", as the package trains "sequence".
    how: str = "launched"
    precision: str = "float32"

    def fields(self) -> Row:
        """Return the fields of the row that tell it from others."""
        named = self._asdict()
        sizes = named.pop("size")._asdict()
        return named | sizes


def jobs(plan: Plan) -> list[Job]:
    """Return all jobs, those of the main sizes first.

    Launched one by one, "sequence" takes as long for any batch, so it is measured at
    the main sizes only, as is a graph of the whole step. Compiling takes half a
    minute each.
    """
    result = []
    for size, label in plan.points().items():
        is_main, many = label in plan.sizes, max(plan.batches) == size.B
        hows = ("launched", "graph", *(["compiled"] if is_main or many else []))
        ways = [(YARDSTICK, how, p) for p in PRECISIONS for how in hows]
        ways += [(PARALLEL, how, "float32") for how in ("launched", "graph")]
        ways += [("triton", "launched", p) for p in OF_TRITON]
        ways += [(name, "launched", "float32") for name in OTHERS]
        loop = ("recorded", "graph", "launched") if is_main else ("recorded",)
        ways += [("sequence", how, "float32") for how in loop]
        result += [Job("step", label, size, *way) for way in ways]
    for label, size in plan.sizes.items():
        for B in (1, plan.main.B):
            context = size._replace(T=plan.context, B=B)
            named = Job("decode", f"{label}, B = {B}", context, YARDSTICK)
            result += [named, named._replace(name="sequence")]
            result += [named._replace(name="triton", precision=p) for p in OF_TRITON]
    return result


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Compute products in TF32 or in float32, forward and backward."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast_to(precision: str, device: str) -> AbstractContextManager[object]:
    """Return the autocast of a forward pass in half precision, or nothing."""
    if precision not in ("bfloat16", "float16"):
        return nullcontext()
    # A cache of converted weights would be part of a captured graph.
    return torch.autocast(device, getattr(torch, precision), cache_enabled=False)


def training_step(job: Job, device: str) -> Callable[[], object]:
    """Return a training step of a body on random embeddings."""
    torch.manual_seed(0)
    size, contender = job.size, build(job.name, job.size)
    contender.module.to(device)
    run = contender.run
    if job.how == "compiled":
        # The dry run records the model, but compiles nothing.
        backend = "inductor" if device == "cuda" else "eager"
        run = torch.compile(contender.run, backend=backend)
    x = torch.randn(size.B, size.T, size.d, device=device, requires_grad=True)
    weights = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        contender.module.zero_grad(set_to_none=True)
        with autocast_to(job.precision, device):
            y = run(x)
        (y * weights).sum().backward()

    if job.name == "triton":
        check_triton(x)
    return graph_of(step) if job.how == "graph" and device == "cuda" else step


def check_triton(x: Tensor) -> None:
    """Check the kernels on the device of x, which takes minutes once."""
    if (error := TritonEngine.why_not(x)) is not None:
        raise Unavailable(one_line(str(error)))


def decoding(job: Job, device: str) -> Callable[[], object]:
    """Return the decoding of the last eighth of a context of T."""
    size, steps = job.size, job.size.T // 8
    past = size.T - steps
    torch.manual_seed(0)
    x = torch.randn(steps, size.B, 1, size.d, device=device)
    if job.name == YARDSTICK:
        model = Transformer(size.d, size.H, size.F, size.L).to(device)
        cached = Decoder(model, size.B, size.T)

        def through_cache() -> None:
            cached.length = past
            for token in x:
                cached.extend(token)

        return through_cache
    if job.name == "triton":
        check_triton(x)
    body = SharedKVBody(our_config(size)).to(device)
    shape = (size.B, size.H, past - 1, size.d // size.H)
    keys, values = (torch.randn(shape, device=device) for _ in range(2))
    state = fbt.State((keys,), (values,))

    @torch.no_grad()
    def step(token: Tensor, state: fbt.State) -> fbt.State:
        with autocast_to(job.precision, device):
            return body(token, state, backend=job.name)[1]

    # The first step copies the state, which it must not change, to a cache.
    copied = step(torch.randn_like(x[0]), state)

    def through_states() -> None:
        current = copied
        for token in x:
            current = step(token, current)

    return through_states


def graph_of(step: Callable[[], object]) -> Callable[[], object]:
    """Capture a step as a CUDA graph and return its replay.

    As in PyTorch's notes on CUDA graphs, three steps on a side stream come first.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> object:
        graph.replay()
        return step  # which owns the tensors that the graph reads

    return replay


def measure(job: Job, device: str) -> Row:
    """Time a job; the first round is not counted.

    The peak of memory includes weights, inputs and, for a graph, all that it keeps.
    """
    on_card = device == "cuda"
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    recordings = graphs.LARGEST_COUNT
    try:
        if job.how != "recorded":
            graphs.LARGEST_COUNT = 0
        samples: list[float] = []
        with products_in(job.precision):
            run = {"step": training_step, "decode": decoding}[job.what](job, device)
            if job.how == "recorded":
                run()  # the second call, not counted below, makes the recording
            while len(samples) <= ROUNDS and (
                len(samples) <= FEWEST or sum(samples[1:]) < PATIENCE
            ):
                if on_card:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                if on_card:
                    torch.cuda.synchronize()
                samples.append(time.perf_counter() - start)
    except (Unavailable, torch.OutOfMemoryError) as error:
        return job.fields() | {"not_run": one_line(str(error))[:200]}
    finally:
        graphs.LARGEST_COUNT = recordings
    row = job.fields() | {"seconds": median(samples[1:]), "samples": samples}
    if on_card:
        row["memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    if job.what == "decode":
        row["tokens_per_second"] = job.size.B * (job.size.T // 8) / row["seconds"]
    return row


def about(device: str) -> Row:
    """Return machine and settings, which all rows of a record share."""
    on_card = device == "cuda"
    machine = {
        "gpu": torch.cuda.get_device_name() if on_card else "none: a dry run",
        "cuda": torch.version.cuda,
        "fbt": fbt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
    }
    settings = {
        "dropout": 0.0,
        "precision": "of the products: float32, TF32, or half by autocast, which for "
        "'triton' means its matrices",
        "differences": {name: DIFFERENCES[name] for name in OTHERS},
        "seconds": f"wall time, median of {FEWEST} to {ROUNDS} steps after the first",
        "memory_mb": "peak of allocated memory, in 10^6 bytes",
    }
    return {"commit": heading()["commit"], "machine": machine, "settings": settings}


def finished_rows(store: Path, shared: Row) -> list[Row]:
    """Return the rows that an earlier run has measured here."""
    if not store.exists():
        return []
    found = json.loads(store.read_text(encoding="utf-8"))
    if {name: found[name] for name in shared} != shared:
        return []
    return [row for row in found["rows"] if "seconds" in row]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rows that are missing, then write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    device, planned = ("cpu", DRY) if options.dry_run else ("cuda", FULL)
    default = WORK / "gpu-dry-run.json" if options.dry_run else RECORD
    path, store = options.record or default, WORK / f"gpu-rows-{device}.json"
    store.parent.mkdir(parents=True, exist_ok=True)
    shared, stop = about(device), time.monotonic() + 60 * options.minutes
    rows = finished_rows(store, shared)
    missing = [
        job
        for job in jobs(planned)
        if not any(row.items() >= job.fields().items() for row in rows)
    ]
    for left, job in zip(range(len(missing), 0, -1), missing, strict=True):
        if time.monotonic() > stop:
            print(f"{left} rows are left: run this again")
            return
        row = measure(job, device)
        torch.compiler.reset()  # otherwise it stops compiling after some variants
        rows.append(row)
        write_file(store, json.dumps({**shared, "rows": rows}).encode())
        title = f"{job.what:<6} {job.label:<16} {job.name:<16} {job.how:<9}"
        shown = f"{1e3 * row['seconds']:9.2f} ms" if "seconds" in row else "not run"
        print(f"{title} {job.precision:<9} {shown}", flush=True)
    planned_rows = (job.fields().items() for job in jobs(planned))
    ordered = [row for items in planned_rows for row in rows if row.items() >= items]
    record = {"date": f"{datetime.now(UTC):%Y-%m-%d}", **shared, "rows": ordered}
    write_file(path, (json.dumps(record, indent=1) + "\n").encode())
    store.unlink()


if __name__ == "__main__":
    if find_spec("labml_nn") is None and (python := peers_python()) != sys.executable:
        os.execv(python, [python, *sys.argv])
    main()
