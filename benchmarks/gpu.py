"""Training steps on a CUDA device: one kernel launch at a time, and as a CUDA graph.

    .venv/bin/python benchmarks/gpu.py [RECORD]

The loop consists of many small operations, so on a GPU most of its time goes into
kernel launches; a CUDA graph launches them all at once. This script is separate from
run.py because it needs a CUDA device. It writes `fbt/measurements/gpu.json`.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import PARALLEL, YARDSTICK, Size, build
from run import LARGE, MEASUREMENTS, M

import fbt
from fbt._files import write_file

SIZES = {"M": M, "L": LARGE, "d = 256": Size(d=256, H=8, F=1024, L=4, T=256, B=32)}
NAMES = (YARDSTICK, PARALLEL, "sequence")
ROUNDS = 7


def training_step(name: str, size: Size) -> Callable[[], None]:
    """Return a training step of a body on random embeddings."""
    torch.manual_seed(0)
    contender = build(name, size)
    contender.module.cuda()
    x = torch.randn(size.B, size.T, size.d, device="cuda", requires_grad=True)
    weights = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        contender.module.zero_grad(set_to_none=True)
        (contender.run(x) * weights).sum().backward()

    return step


def graph_of(step: Callable[[], None]) -> Callable[[], None]:
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
    return graph.replay


def row(label: str, size: Size, name: str, graph: bool) -> dict[str, Any]:
    """Time one contender; the first round is not counted."""
    step = training_step(name, size)
    run = graph_of(step) if graph else step
    samples = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    seconds = median(samples[1:])
    title = f"{label:<8} {name:<16} {'graph' if graph else '':<6}"
    print(f"{title} {seconds * 1e3:9.2f} ms", flush=True)
    fields = {"label": label, **size._asdict(), "name": name, "graph": graph}
    return fields | {"seconds": seconds, "samples": samples}


def main() -> None:
    """Measure everything, then write the record."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else MEASUREMENTS / "gpu.json"
    rows = [
        row(label, size, name, graph)
        for label, size in SIZES.items()
        for name in NAMES
        for graph in (False, True)
    ]
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "fbt": fbt.__version__,
    }
    machine |= {"python": platform.python_version(), "torch": torch.__version__}
    settings = {
        "dtype": "float32",
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "dropout": 0.0,
    }
    settings["seconds"] = f"median of {ROUNDS} steps, wall time, after one warm-up"
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine,
        "settings": settings,
        "rows": rows,
    }
    write_file(path, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
