"""What experiments share: options, jobs that run once, and the records they write.

A job is a dict that says what is to be computed. Each result is stored in a file of
its own, so an interrupted experiment continues with the missing jobs, and a changed
job is a new one. A change of the code or of its constants is not noticed: delete the
cached results then, whose folder is printed. Each one names the commit that it is of.
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
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

import fbt
from fbt._files import cache_folder, write_file

Job = dict[str, Any]
Result = dict[str, Any]
WRITTEN = ("fbt/measurements", "fbt/views/players", "fbt/weights")  # by experiments


def options(about: str | None, quick: str) -> argparse.ArgumentParser:
    """Return a parser of the options --quick and --workers."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="number of jobs run in parallel, one core each",
    )
    return parser


def choose(parser: argparse.ArgumentParser, option: str, names: list[str]) -> None:
    """Add an option that runs only some of these, such as `--parts`."""
    what = option.removeprefix("--")
    parser.add_argument(
        option, nargs="+", choices=names, default=names, help=f"only these {what}"
    )


def arguments(about: str | None, quick: str) -> tuple[bool, int]:
    """Return the options --quick and --workers of the command line."""
    args = options(about, quick).parse_args()
    return args.quick, args.workers


def machine() -> dict[str, str | int]:
    """Describe the machine, the versions, and any libraries in LD_PRELOAD."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line for line in lines if line.startswith("model name"))
        cpu = next((line.split(":", 1)[1].strip() for line in names), cpu)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fbt": fbt.__version__,
    }
    paths = re.split("[ :]+", os.environ.get("LD_PRELOAD", ""))
    libraries = ", ".join(Path(path).name for path in paths if path)
    preloaded = {"preloaded": libraries} if libraries else {}
    sizes = {"cores": os.cpu_count() or 1, "threads": torch.get_num_threads()}
    return {"cpu": cpu, **sizes, **versions, **preloaded}


def commit() -> str:
    """Return the current commit, with a + if there are changes.

    What experiments write does not count.

    Outside a repository, the variable FBT_COMMIT gives the commit.
    """
    if "FBT_COMMIT" in os.environ:
        return os.environ["FBT_COMMIT"]
    git = ["git", "-C", str(Path(__file__).parent)]
    head = [*git, "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(head, capture_output=True, text=True)
    if done.returncode:
        return "unknown"
    sources = [":/", *(f":(top,exclude){folder}" for folder in WRITTEN)]
    status = [*git, "status", "--porcelain", "--", *sources]
    changes = subprocess.run(
        status, capture_output=True, text=True, check=True
    ).stdout
    return done.stdout.strip() + "+" * bool(changes)


def with_seeds(jobs: list[Job], count: int) -> list[Job]:
    """Return each job with the seeds 0 to `count` - 1."""
    return [job | {"seed": seed} for job in jobs for seed in range(count)]


def done_once(
    name: str, jobs: list[Job], run: Callable[[Job], Result], workers: int
) -> list[Result]:
    """Return the results of all jobs in order, and run those that are not cached.

    If a job fails, those that are running are finished and stored first.

    Args:
        name: of the experiment, and of the cache folder for its results.
        jobs: the jobs, all different.
        run: a module-level function that runs one job on one thread.
        workers: the number of processes that run jobs in parallel.
    """
    folder = cache_folder() / "experiments" / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {result_path(folder, job): job for job in jobs}
    missing = {path: job for path, job in paths.items() if not path.exists()}
    plan = f"{len(paths)} jobs, {len(missing)} to run, in {folder}"
    print(f"{name}: {plan}", flush=True)
    start, origin = time.perf_counter(), commit()
    # Spawn, because a fork can hang once torch has started threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), begin_worker) as pool:
        running = [
            pool.submit(stored, path, {"job": job, "commit": origin}, run)
            for path, job in missing.items()
        ]
        try:
            for number, future in enumerate(as_completed(running), start=1):
                minutes = (time.perf_counter() - start) / 60
                progress = f"[{number}/{len(missing)}, {minutes:.1f} min]"
                print(progress, describe(future.result()), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [json.loads(path.read_text()) for path in paths]


def begin_worker() -> None:
    """Use one thread for torch, and end with the process that started this one."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # a job may have hours to go

    Thread(target=follow, daemon=True).start()


def stored(path: Path, about: Result, run: Callable[[Job], Result]) -> Result:
    """Run a job, and store its result with what is known about it."""
    result = about | run(about["job"])
    write_file(path, (json.dumps(result) + "\n").encode())
    return result


def done_anew(
    name: str, jobs: list[Job], run: Callable[[Job], Result], workers: int
) -> list[Result]:
    """Delete the cached results, then run all jobs as `done_once` does.

    A quick version is there to check that the code still works.
    """
    shutil.rmtree(cache_folder() / "experiments" / name, ignore_errors=True)
    return done_once(name, jobs, run, workers)


def trained(run: fbt.Run) -> Result:
    """Return the part of a training run that is stored as a result.

    Raises:
        SystemExit: if the run was interrupted.
    """
    if not run.finished:
        raise SystemExit(
            f"stopped after step {run.step}: run the same command again to continue"
        )
    kept = ("step", "seconds", "val_loss", "layer_weights")
    return {
        "summary": {"val_loss": round(run.val_loss, 4)},
        "parameters": run.model.num_parameters(),
        "seconds": round(run.metrics[-1]["seconds"], 1),
        "config": asdict(run.settings.config),
        "recipe": asdict(run.settings.recipe),
        "evaluations": [
            {name: rounded(m[name]) for name in kept if name in m}
            for m in run.evaluations
        ],
    }


def rounded(value: Any) -> Any:
    """Round a number, or each number of a list, to four digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else round(value, 4)


def result_path(folder: Path, job: Job) -> Path:
    """Return the path of a job's result."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    return folder / f"{digest.hexdigest()[:16]}.json"


def folder_of(name: str, job: Job) -> Path:
    """Return the folder for a job's other files, such as checkpoints."""
    return result_path(cache_folder() / "experiments" / name, job).with_suffix("")


def describe(result: Result) -> str:
    """Describe a result in one line."""
    settings = [f"{key}={value}" for key, value in result["job"].items()]
    return " ".join(settings) + "  " + json.dumps(result.get("summary", {}))


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record atomically, with the machine and the commit that produced it.

    Each item of a list is on a line of its own.
    """
    record = {"machine": machine(), "commit": commit()} | content
    fields = [f"{json.dumps(key)}: {lines(value)}" for key, value in record.items()]
    write_file(path, ("{\n" + ",\n".join(fields) + "\n}\n").encode())
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


def write_parts(
    path: Path,
    parts: dict[str, Callable[[int], dict[str, Any]]],
    names: list[str],
    workers: int,
) -> None:
    """Run some parts of an experiment, and write a record for each.

    Args:
        path: of the first part's record; those of the others end in the part's name.
        parts: functions from the number of workers to the content of a record.
        names: the parts to run.
        workers: the number of processes that run jobs in parallel.
    """
    first = next(iter(parts))
    for name in names:
        suffix = "" if name == first else f"_{name.replace('-', '_')}"
        write_record(path.with_stem(path.stem + suffix), parts[name](workers))


def lines(value: Any) -> str:
    """Return compact JSON, with each item of a list on its own line."""
    if not isinstance(value, list):
        return json.dumps(value)
    items = [json.dumps(item, separators=(",", ":")) for item in value]
    return "[\n" + ",\n".join(items) + "\n]"
