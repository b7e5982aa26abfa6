"""The tables of the page on GPUs: recorded steps, and estimates from bytes.

An estimate counts the bytes that the kernels of "triton" move between a
multiprocessor and the L2 cache, and the phases in which a program waits. It assumes
bandwidths and a time per phase. It is not a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

BATCHES = (16, 64, 256, 1024)
# Of an H100, assumed.
MULTIPROCESSORS = 132
TO_ONE = 64 * 1.7e9  # bytes per second from L2 to one of them: 64 per clock
TO_ALL = 5.5e12  # and to all of them together
PHASE = 0.5e-6  # seconds until the threads of a program have what others wrote
# Of a layer, and of a step besides: `tl.debug_barrier` in the kernels.
PHASES = {"forward": (7, 3), "backward": (8, 3)}
# Of the keys, the values and the relative table of a layer, as large as each other:
# read; and in backward read again, with sums that are read and written.
PASSES = {"forward": 3, "backward": 9}


class Model(NamedTuple):
    """Sizes of a body and of its sequences; the span is T."""

    d: int
    F: int
    L: int
    T: int

    @property
    def weights(self) -> int:
        """The numbers of all matrices."""
        return 2 * self.d * (self.L * (self.d + self.F) + self.d)

    def step_bytes(self, way: str, of_weight: int = 4) -> float:
        """Return the bytes that a sequence moves in the mean step.

        All numbers but the weights are in float32.
        """
        keys = PASSES[way] * self.L * self.d * self.T / 2
        return of_weight * self.weights + 4 * keys

    def step_phases(self, way: str) -> int:
        """Return how often a program waits in a step."""
        of_layer, of_step = PHASES[way]
        return self.L * of_layer + of_step


M, LARGE = Model(d=128, F=512, L=4, T=128), Model(d=512, F=2048, L=6, T=128)


def seconds(model: Model, batch: int, of_weight: int = 4) -> tuple[float, float]:
    """Estimate a training step, without the products for the weights' gradients.

    A program takes one sequence at a time, and a multiprocessor one program. Either
    the path from L2 to a multiprocessor is the limit, or L2 itself.

    Returns:
        Seconds from bytes alone, and with the waiting of all phases added.
    """
    turns = ceil(batch / MULTIPROCESSORS)
    moving = waiting = 0.0
    for way in PASSES:
        moved = model.step_bytes(way, of_weight)
        moving += model.T * max(turns * moved / TO_ONE, batch * moved / TO_ALL)
        waiting += model.T * turns * model.step_phases(way) * PHASE
    return moving, moving + waiting


def page_numbers(
    rows: Sequence[Mapping[str, Any]], machine: Mapping[str, str]
) -> Any:
    """Return what the page quotes, from the rows of the record and from estimates."""
    measured = {
        (r["label"], r["name"], r["how"]): 1e3 * r["seconds"]
        for r in rows
        if (r["what"], r["precision"]) == ("step", "float32") and "seconds" in r
    }
    least, most = (1e3 * time for time in seconds(M, 64))
    half_least, half_most = (1e3 * time for time in seconds(M, 64, 2))
    forward = M.step_bytes("forward")
    return {
        "card": machine["gpu"],
        "torch": machine["torch"],
        "record": recorded(rows, measured),
        "batches": estimated(measured["M", "parallel (SDPA)", "graph"]),
        "weights": f"{M.weights:,}",
        "megabytes": f"{4e-6 * M.weights:.2f}",
        "large": f"{4e-6 * LARGE.weights:.0f}",
        "large_ms": f"{1e3 * 4 * LARGE.weights / TO_ONE:.1f}",
        "step": f"{1e-6 * forward:.1f}",
        "back": f"{1e-6 * M.step_bytes('backward'):.1f}",
        "phases": M.step_phases("forward"),
        "phases_back": M.step_phases("backward"),
        "to_one": f"{1e6 * forward / TO_ONE:.0f}",
        "to_all": f"{1e6 * 64 * forward / TO_ALL:.0f}",
        "least": f"{least:.0f}",
        "most": f"{most:.0f}",
        "half_step": f"{1e-6 * M.step_bytes('forward', 2):.1f}",
        "half_back": f"{1e-6 * M.step_bytes('backward', 2):.1f}",
        "half_least": f"{half_least:.0f}",
        "half_most": f"{half_most:.0f}",
        "graph": f"{measured['M', 'sequence', 'graph']:.0f}",
        "launched": f"{measured['M', 'sequence', 'launched']:.0f}",
    }


def recorded(rows: Sequence[Mapping[str, Any]], measured: Mapping[Any, float]) -> str:
    """Return a table of the record: milliseconds, launched and as a graph."""
    lines = ["| size | model | launched | as a graph |", "|---|---|---:|---:|"]
    for row in rows:
        label, name = row["label"], row["name"]
        plain = (row["how"], row["precision"]) == ("launched", "float32")
        if not plain or (label, name, "graph") not in measured:
            continue
        ms = (measured[label, name, how] for how in ("launched", "graph"))
        lines.append(f"| {label} | {name} | {' | '.join(f'{t:.1f}' for t in ms)} |")
    return "\n".join(lines)


def estimated(parallel_at_64: float) -> str:
    """Return a table of estimates over the number of sequences, in milliseconds."""
    head = "| sequences | loop in the kernels | parallel (SDPA), graph | ratio |"
    lines = [head, "|---:|---:|---:|---:|"]
    for batch in BATCHES:
        least, most = (1e3 * time for time in seconds(M, batch))
        scaled = parallel_at_64 * batch / 64
        shown = f"**{scaled:.1f}**" if batch == 64 else f"{scaled:.1f}"
        ratio = f"{least / scaled:.0f} to {most / scaled:.0f}"
        lines.append(f"| {batch} | {least:.0f} to {most:.0f} | {shown} | {ratio} |")
    return "\n".join(lines)
