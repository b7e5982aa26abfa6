"""What experiments share: their options, jobs that are done once, and what a record says of the machine.

A job is a dict of numbers and words, and its result depends on nothing else. Results are kept one file a
job, so an interrupted experiment goes on with the jobs it lacks, and a changed job is a new one.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import fbt
from fbt._files import cache_folder, write_whole

Job = dict[str, Any]
Result = dict[str, Any]


def arguments(about: str | None, quick: str) -> tuple[bool, int]:
    """Read the command line: whether to do the quick version, and how many jobs to run side by side."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--workers", type=int, default=2, help="jobs side by side, a core each")
    found = parser.parse_args()
    return found.quick, found.workers


def machine() -> dict[str, str | int]:
    """What times were measured on, and the libraries that LD_PRELOAD put before others, where it did."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "fbt": fbt.__version__}
    names = [Path(place).name for place in re.split("[ :]+", os.environ.get("LD_PRELOAD", "")) if place]
    preloaded = {"preloaded": ", ".join(names)} if names else {}
    threads = torch.get_num_threads()
    return {"cpu": cpu, "cores": os.cpu_count() or 1, "threads": threads, **versions, **preloaded}


def commit() -> str:
    """The commit the code is at, with a + if something differs from it; FBT_COMMIT says it of a bare copy."""
    if "FBT_COMMIT" in os.environ:
        return os.environ["FBT_COMMIT"]
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def done_once(name: str, jobs: list[Job], run: Callable[[Job], Result], workers: int) -> list[Result]:
    """The results of all jobs, in their order; those not found in the cache folder are run.

    Args:
        name: of the experiment; a folder of this name keeps the results.
        jobs: what to run.
        run: a function of a module, that runs one of them on one thread.
        workers: how many run side by side, each in a process of its own.
    """
    folder = cache_folder() / "experiments" / name
    folder.mkdir(parents=True, exist_ok=True)
    places = {place_of(folder, job): job for job in jobs}
    missing = {place: job for place, job in places.items() if not place.exists()}
    print(f"{name}: {len(places)} jobs, {len(missing)} to run, in {folder}", flush=True)
    start = time.perf_counter()
    # Processes are spawned, since a fork after torch has started its threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(run, job): place for place, job in missing.items()}
        for number, future in enumerate(as_completed(running), start=1):
            place = running[future]
            result = {"job": missing[place]} | future.result()
            write_whole(place, (json.dumps(result) + "\n").encode())
            minutes = (time.perf_counter() - start) / 60
            print(f"[{number}/{len(missing)}, {minutes:.1f} min] {describe(result)}", flush=True)
    return [json.loads(place.read_text()) for place in places]


def done_anew(name: str, jobs: list[Job], run: Callable[[Job], Result], workers: int) -> list[Result]:
    """As `done_once`, and none of them found: a quick version is there to see that the code still works."""
    shutil.rmtree(cache_folder() / "experiments" / name, ignore_errors=True)
    return done_once(name, jobs, run, workers)


def trained(run: fbt.Run) -> Result:
    """What is kept of a training run.

    Raises:
        SystemExit: the run was interrupted.
    """
    if not run.finished:
        raise SystemExit(f"stopped after step {run.step}; run this again to go on")
    kept = ("step", "seconds", "val_loss", "layer_weights")
    return {
        "summary": {"val_loss": round(run.val_loss, 4)},
        "parameters": run.model.num_parameters(),
        "seconds": round(run.metrics[-1]["seconds"], 1),
        "config": asdict(run.settings.config),
        "recipe": asdict(run.settings.recipe),
        "evaluations": [{name: rounded(m[name]) for name in kept if name in m} for m in run.evaluations],
    }


def rounded(value: Any) -> Any:
    """A number, or each of a list, with four digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else round(value, 4)


def place_of(folder: Path, job: Job) -> Path:
    """The file of a job's result."""
    return folder / f"{hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]}.json"


def describe(result: Result) -> str:
    """A line about a result."""
    words = [f"{key}={value}" for key, value in result["job"].items()]
    return " ".join(words) + "  " + json.dumps(result.get("summary", {}))


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record whole, with the machine and the commit that made it; an item of a list is one line."""
    record = {"machine": machine(), "commit": commit()} | content
    parts = [f"{json.dumps(key)}: {lines(value)}" for key, value in record.items()]
    write_whole(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


def lines(value: Any) -> str:
    """JSON in short, the items of a list each on a line."""
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n]"
