"""The numbers that pages quote, rendered from their records.

A page writes `{{ small.parallel.loss }}`. An unknown name, or a record that lacks the
value, fails the build, so a page cannot disagree with its record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import fbt_gpu
from sphinx.application import Sphinx

Numbers = dict[str, Any]
# Accuracy in per cent on programs with three variables, by the authors' repository.
OFFICIAL = {"parallel": "33.7", "feedback": "99.1"}


def numbers(root: Path) -> Numbers:
    """Compute all numbers from the records of a repository."""
    measured = Records(root / "fbt" / "measurements")
    return {
        "official": OFFICIAL,
        **losses(measured),
        **speeds(measured),
        "autocast": autocast(measured),
        **tracking(measured),
        **reliability(root),
        "blocks": memory_in_blocks(measured),
        "on_gpu": fbt_gpu.page_numbers(
            measured["gpu"]["rows"], measured["gpu"]["machine"]
        ),
    }


class Records:
    """The JSON files of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        """Set the folder."""
        self.folder = folder

    def __getitem__(self, name: str) -> Any:
        """Read a record."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))


def losses(measured: Records) -> Numbers:
    """Return sizes, losses and times of the small preset and the shipped models."""
    small: dict[str, dict[str, str]] = {}
    mean_losses = {}
    all_runs = measured["tiny_shakespeare"]["runs"]
    for variant in dict.fromkeys(run["job"]["variant"] for run in all_runs):
        runs = [run for run in all_runs if run["job"]["variant"] == variant]
        losses = [run["summary"]["val_loss"] for run in runs]
        seconds = mean(run["seconds"] for run in runs)
        mean_losses[variant] = mean(losses)
        small[variant.replace("-", "_")] = {
            "parameters": millions(runs[0]["parameters"]),
            "loss": f"{mean(losses):.2f}",
            "least": f"{min(losses):.3f}",
            "most": f"{max(losses):.3f}",
            "seconds": f"{seconds:.0f}",
            "minutes": f"{seconds / 60:.1f}",
        }
    record = measured["shipped"]
    models = zip(record["losses"].items(), record["runs"], strict=True)
    shipped = {
        name.removeprefix("tiny-shakespeare").lstrip("-") or "feedback": {
            "parameters": millions(run["parameters"]),
            "loss": f"{loss['float16']:.3f}",
            "minutes": f"{run['seconds'] / 60:.0f}",
        }
        for (name, loss), run in models
    }
    gain = f"{mean_losses['parallel'] - mean_losses['shared-kv']:.2f}"
    return {"small": small, "shipped": shipped, "gain": gain}


def millions(parameters: int) -> str:
    """Format a number of parameters."""
    return f"{parameters / 1e6:.2f} M"


def speeds(measured: Records) -> Numbers:
    """Return the time of a training step as a multiple of the parallel model's."""
    rows = measured["speed"]["rows"]
    ratios = {
        (row["label"], row["threads"], row["name"]): row["ratio"]
        for row in rows
        if "ratio" in row
    }
    cases = [(label, threads) for label in ("M", "L") for threads in (1, 2)]
    long = [("M, T = 512", threads) for threads in (1, 2)]

    def in_bfloat16(cases: list[tuple[str, int]]) -> list[float]:
        """Return the ratios of cases if both models run in bfloat16."""
        ours, other = "native, bfloat16", "parallel (SDPA), bfloat16"
        return [ratios[*case, ours] / ratios[*case, other] for case in cases]

    cpu = {
        "cpu": [ratios[*case, "native"] for case in cases],
        "cpu_bfloat16": in_bfloat16(cases),
        "cpu_long": [ratios[*case, "native"] for case in long],
        "cpu_long_bfloat16": in_bfloat16(long),
    }
    gpu = {
        name: gpu_ratios(measured["gpu"]["rows"], other, how)
        for name, other, how in (
            ("gpu", "parallel body", "graph"),
            ("gpu_eager", "parallel body", "launched"),
            ("gpu_torch", "parallel (SDPA)", "launched"),
            ("gpu_torch_graph", "parallel (SDPA)", "graph"),
        )
    }
    return gpu | {
        name: {"least": f"{min(found):.1f}", "most": f"{max(found):.1f}"}
        for name, found in cpu.items()
    }


def autocast(measured: Records) -> Numbers:
    """Return times of training steps under autocast to bfloat16, by size.

    `native` and `parallel` are in per cent of the times in float32, `float32` and
    `bfloat16` the ratios of the loop to the parallel transformer.
    """
    ratios = {
        (row["label"], row["name"]): row["ratio"]
        for row in measured["speed"]["rows"]
        if row["threads"] == 1 and "ratio" in row
    }
    found = {}
    for size in ("M", "L"):
        native, native_mixed, parallel, parallel_mixed = (
            ratios[size, f"{name}{mixed}"]
            for name in ("native", "parallel (SDPA)")
            for mixed in ("", ", bfloat16")
        )
        found[size] = {
            "native": percent(native_mixed / native),
            "parallel": percent(parallel_mixed / parallel),
            "float32": f"{native / parallel:.1f}",
            "bfloat16": f"{native_mixed / parallel_mixed:.1f}",
        }
    return found


GPU_SIZES = ("M", "L", "d = 256")  # the main sizes of the record


def gpu_seconds(rows: Sequence[Mapping[str, Any]], how: str) -> dict[Any, float]:
    """Return the seconds of training steps in float32 by main size and name."""
    wanted = {"what": "step", "how": how, "precision": "float32"}
    return {
        (row["label"], row["name"]): row["seconds"]
        for row in rows
        if row["label"] in GPU_SIZES
        and row.items() >= wanted.items()
        and "seconds" in row
    }


def gpu_ratios(
    rows: Sequence[Mapping[str, Any]], other: str, how: str
) -> dict[str, str]:
    """Return the time of the loop on a GPU as a multiple of another model's."""
    seconds = gpu_seconds(rows, how)
    ratios = [seconds[size, "sequence"] / seconds[size, other] for size in GPU_SIZES]
    return {"least": f"{min(ratios):.0f}", "most": f"{max(ratios):.0f}"}


def tracking(measured: Records) -> Numbers:
    """Return how many steps of S3 are right with feedback, and without."""
    rows = {
        (re.sub(r"parallel, \w+", "parallel", row["model"]), row["layers"]): row
        for row in measured["tracking_S3"]["table"]
        if not row["change"]
    }
    feedback = rows["feedback, no last norm", 1]["worst"]["64"]["mean"]
    parallel = rows["parallel", 8]["median"]["64"]["mean"]
    return {"S3": {"feedback": percent(feedback), "parallel": percent(parallel)}}


def percent(share: float) -> str:
    """Format a fraction in per cent."""
    return f"{100 * share:.0f}"


def memory_in_blocks(measured: Records) -> Numbers:
    """Return the megabytes for training on a long text in blocks, by its length."""
    rows = measured["long"]["rows"]
    blocks = [row for row in rows if row["name"] == "native, recompute, blocks"]
    return {f"at_{row['T']}": f"{row['memory_mb']:.0f}" for row in blocks}


def reliability(root: Path) -> Numbers:
    """Return figures for the page of promises."""
    tests = Records(root / "tests")
    trust, versions = tests["trust"], tests["versions"]
    runs, inputs = trust["kills"]["runs"], trust["fuzz"]["inputs"]
    lock = (root / "tools" / "book.lock").read_text(encoding="utf-8")
    notebooks = (root / "book").glob("*.ipynb")
    exercises = [
        path.read_text(encoding="utf-8").count('"### Exercise') for path in notebooks
    ]
    compiled = [row["python"] for row in versions["pythons"] if row["compiled"]]
    torches = {row["torch"].partition("+")[0] for row in versions["tests"]}
    return {
        "kills": {
            "total": sum(sum(run["kills"].values()) for run in runs),
            "runs": len(runs),
            "unfinished": sum(run["files left unfinished"] for run in runs),
        },
        "fuzz": {
            "inputs": f"{sum(inputs.values()):,}",
            "files": f"{inputs['model'] + inputs['checkpoint']:,}",
        },
        "properties": {
            name: f"{trust['properties'][name]:,}"
            for name in ("properties", "examples", "failures")
        },
        "packages": len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)),
        "exercises": sum(exercises),
        "pythons": sentence_list(compiled),
        "torches": sentence_list(sorted(torches, key=as_numbers)),
    }


def as_numbers(version: str) -> list[int]:
    """Return a version as numbers, by which versions can be sorted."""
    return [int(part) for part in version.split(".")]


def sentence_list(names: Iterable[str]) -> str:
    """Join names as in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def set_numbers(app: Sphinx, config: Any) -> None:
    """Give the pages their numbers."""
    config.myst_substitutions = numbers(Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", set_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
