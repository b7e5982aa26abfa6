"""`make bench`: speed, memory, growth and decoding, compared with other models.

    .venv/bin/python benchmarks/run.py [--quick] [--into FOLDER] [PART ...]

The models are a parallel transformer and other implementations. The parts are speed,
corners, memory, growth and decoding. Each is written to a JSON file in
fbt/measurements (with --quick: in _build/benchmarks/quick) and printed as a table. A
part is a list of jobs, each in a process of its own. An interrupted run continues
with the missing jobs, unless code has changed. Everything takes about an hour and a
half on two quiet cores, or about four minutes with --quick.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from contenders import (
    BFLOAT16,
    COMPILED,
    DIFFERENCES,
    EVERYONE,
    FORMS,
    LABML,
    PARALLEL,
    SLOWEST,
    YARDSTICK,
    Size,
)
from report import judged, report

from fbt._files import write_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from environment import environment
from record import commit
from record import machine as machine_of_records

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "_build" / "benchmarks"
MEASUREMENTS = ROOT / "fbt" / "measurements"
Job = dict[str, Any]
Row = dict[str, Any]

M = Size(d=128, H=4, F=512, L=4, T=128, B=64)
LARGE = Size(d=512, H=8, F=2048, L=6, T=128, B=64)  # labml's published sizes
LONG = M._replace(T=512)
# Narrow models and few sequences, as for teaching and state tracking.
CORNERS = {
    "d = 32": M._replace(d=32, F=128),
    "d = 64": M._replace(d=64, F=256),
    "B = 4": M._replace(B=4),
    "B = 16": M._replace(B=16),
}
NATIVE = ("native", "native, recompute")
CORE = (YARDSTICK, "sequence", "native")
FAST = (YARDSTICK, PARALLEL, "sequence", "sequence, recompute", *NATIVE)
LEFT_OUT = "left out to keep the whole run short"

SETTINGS = {
    "dtype": "float32; names with bfloat16 run forward under autocast to it",
    "compiled": "by torch.compile for the shape, with its defaults, before the first "
    "sample; compile_seconds is the wall time of the step that does so; all other "
    "parallel models run eagerly",
    "dropout": 0.0,
    "activation": "relu",
    "span": "T",
    "step": "forward, loss, backward of a body on random embeddings [B, T, d], which "
    "require a gradient too; the loss is the sum of the outputs times fixed random "
    "numbers",
    "clock": "one thread: CPU time of the process; two threads: wall time",
    "seconds": "median of all samples but the first, if there are more; low and high "
    "are their range",
    "ratio": "to the yardstick: median of the ratios within a round; contenders take "
    "turns in one process, slow ones in another, where the yardstick takes turns too",
    "memory_mb": "peak resident memory of one step, in 10^6 bytes, above what was "
    "resident before it (model, embeddings, libraries after a tiny step), each "
    "contender in a process that did nothing else",
    "decode": "keys and values of T - steps tokens are given; the seconds are those "
    "of the next `steps` tokens",
    "yardstick": YARDSTICK,
    "differences": DIFFERENCES,
}

# The peers with hashes; `make lock` writes it from benchmarks/requirements.txt.
PINS = ROOT / "benchmarks" / "requirements.lock"


def speed(quick: bool) -> list[Job]:
    """Plan the training steps: three sizes, one thread and two."""
    if quick:
        few = (*EVERYONE, YARDSTICK + COMPILED, YARDSTICK + BFLOAT16)
        return [step("M", M, 1, few, 3, 3.0), step("L", LARGE, 1, CORE, 2, 30.0)]
    everyone = (*EVERYONE, *FORMS)
    core, long = (*CORE, PARALLEL, *FORMS), (*FAST, "stack", *LABML, *FORMS)
    return [
        step("M", M, 1, everyone, 9, 9.0),
        step("M", M, 2, everyone, 9, 9.0),
        step("M, T = 512", LONG, 1, long, 4, 12.0),
        step("M, T = 512", LONG, 2, core, 4, 12.0),
        step("L", LARGE, 1, core, 4, 60.0),
        step("L", LARGE, 2, everyone, 4, 16.0),
    ]


def corners(quick: bool) -> list[Job]:
    """Plan the training steps of small sizes."""
    rounds, names = 5 if quick else 40, [YARDSTICK, "native"]
    if not quick:
        names += [YARDSTICK + COMPILED, YARDSTICK + BFLOAT16, "native" + BFLOAT16]
    return [
        step(label, size, 1, tuple(names), rounds, 9.0)
        for label, size in CORNERS.items()
    ]


def step(
    label: str,
    size: Size,
    threads: int,
    names: tuple[str, ...],
    rounds: int,
    patience: float,
) -> Job:
    """Return a job for training steps of the named contenders."""
    return {
        "what": "steps",
        "label": label,
        "size": size._asdict(),
        "threads": threads,
        "names": names,
        "rounds": rounds,
        "patience": patience,
    }


def memory(quick: bool) -> list[Job]:
    """Plan the peak memory of one step, each contender in a process of its own."""
    if quick:
        return [peaks("M", [(M, EVERYONE)], 1)]
    large = (*FAST, "stack", "labml shared KV")
    return [peaks("M", [(M, EVERYONE)], 2), peaks("L", [(LARGE, large)], 2)]


def peaks(
    label: str, points: list[tuple[Size, tuple[str, ...]]], threads: int
) -> Job:
    """Return a job for the peak memory at some sizes, each with its contenders."""
    entries = [{"size": size._asdict(), "names": names} for size, names in points]
    return {"what": "memory", "label": label, "threads": threads, "points": entries}


def growth(quick: bool) -> list[Job]:
    """Plan steps, floor and memory while one size at a time grows, starting from M.

    Peers take part where a step takes seconds.
    """
    axes = {
        "T": [M._replace(T=T) for T in (32, 64, 128, 256, 512, 1024)],
        "B": [M._replace(B=B) for B in (1, 4, 16, 256)],
        "L": [M._replace(L=L) for L in (1, 2, 8)],
        "d": [M._replace(d=d, F=4 * d) for d in (32, 64, 256, 512)],
    }
    if quick:
        axes = {"T": axes["T"][:4], "B": axes["B"][:3]}
    jobs = []
    for axis, sizes in axes.items():
        points = []
        for size in sizes:
            names = [YARDSTICK, "sequence", "sequence, recompute", *NATIVE]
            if not quick and size.T <= 256 and size.d <= 256 and size.B <= M.B:
                names += LABML
                if size.T <= M.T and size.d <= M.d and size.L <= M.L:
                    names += SLOWEST
            points.append((size, tuple(names)))
        job = peaks(axis, points, 1)
        grow = {"what": "grow", "rounds": 4}
        jobs.append(job | grow | {"patience": 2.0 if quick else 5.0})
        if not quick:
            fewer = [
                (size, tuple(name for name in names if name not in SLOWEST))
                for size, names in points
            ]
            jobs.append(peaks(axis, fewer, 2) | grow | {"patience": 4.0})
        jobs.append(job)
    return jobs


def decoding(quick: bool) -> list[Job]:
    """Plan decoding: single steps at a context of 512, and a prompt of 512 tokens.

    Two models, two batch sizes.
    """
    jobs = []
    for label, model in (("d = 128", M), ("d = 512", LARGE))[: 1 if quick else 2]:
        for batch in (1, 64):
            for threads in (1,) if quick else (1, 2):
                size = model._replace(T=512, B=batch)
                common = {"label": label, "size": size._asdict(), "threads": threads}
                common["rounds"] = 4 if quick else 8
                common["patience"] = 3.0 if quick else 6.0
                steps = 32 if batch == 1 else 8
                jobs.append(common | {"what": "decode", "steps": steps})
                jobs.append(common | {"what": "ingest", "names": CORE})
    return jobs


def run(job: Job, python: str, store: Path, title: str) -> list[Row]:
    """Run a job and return its rows, or load those of an interrupted run."""
    if store.exists():
        print(f"{title}: loaded from an earlier run", flush=True)
        return json.loads(store.read_text())
    started = time.monotonic()
    print(title, flush=True)
    arguments = {key: value for key, value in job.items() if key != "label"}
    with tempfile.TemporaryDirectory() as empty:
        # Compile anew, and in the process itself.
        compiling = {"TORCHINDUCTOR_CACHE_DIR": empty}
        compiling |= {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        result = subprocess.run(
            [python, str(ROOT / "benchmarks" / "measure.py"), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(job["threads"])} | compiling,
        )
    if result.returncode != 0:
        sys.exit(
            f"{title}: failed, see above. Run the same command again to continue."
        )
    about = {"what": job["what"], "label": job["label"]}
    rows = [about | row for row in json.loads(result.stdout)]
    points = job.get("points", [])
    named = dict.fromkeys(name for point in points for name in point["names"])
    about = {
        "what": rows[0]["what"],
        "label": job["label"],
        "threads": job["threads"],
    }
    for point in points:
        left_out = [name for name in named if name not in point["names"]]
        common = about | point["size"] | {"not_run": LEFT_OUT}
        rows += [common | {"name": name} for name in left_out]
    write_file(store, json.dumps(rows).encode())
    print(f"    done in {time.monotonic() - started:.0f} s", flush=True)
    return rows


def store_path(job: Job) -> Path:
    """Return where a job's rows are kept until the run is complete.

    The path depends on the job, the code and the versions.
    """
    code = sorted((ROOT / "fbt").rglob("*.py"))
    code += sorted((ROOT / "fbt").rglob("*.cpp"))
    code += sorted((ROOT / "benchmarks").glob("*.py"))
    key = json.dumps([job, torch.__version__, sys.version])
    digest = hashlib.sha256(key.encode())
    for path in code:
        digest.update(path.read_bytes())
    return WORK / "jobs" / f"{digest.hexdigest()[:24]}.json"


def peers_python() -> str:
    """Return the Python of an environment with the peers and all packages of .venv.

    If it cannot be installed, return the current Python.
    """
    home = WORK / "peers"
    wanted = repr((PINS.read_text(encoding="utf-8"), sys.prefix))
    try:
        options = ["--no-deps", "--require-hashes", "-r", str(PINS)]
        python = environment(home, wanted, options)
    except subprocess.CalledProcessError:
        message = "Could not install the peers, see above: measuring without them."
        print(message, flush=True)
        return sys.executable
    packages = next(home.glob("lib/python*/site-packages"))
    ours = Path(torch.__file__).parents[1]
    line = f"import site; site.addsitedir({str(ours)!r})\n"
    (packages / "book.pth").write_text(line)
    return str(python)


def heading() -> dict[str, Any]:
    """Return what every record begins with: date, commit and machine."""
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    return {"date": date, "commit": commit(), "machine": machine()}


def machine() -> dict[str, Any]:
    """Describe the machine as every record does, without the number of threads."""
    info: dict[str, Any] = dict(machine_of_records())
    del info["threads"]
    flags: set[str] = set()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        line = next((line for line in lines if line.startswith("flags")), "")
        flags = set(line.split())
    known = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile")
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        caches[f"L{level} {kind.lower()}"] = size
    return info | {
        "flags": [flag for flag in known if flag in flags],
        "caches": caches,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


PLANS = {
    "speed": speed,
    "corners": corners,
    "memory": memory,
    "growth": growth,
    "decoding": decoding,
}
PARTS = tuple(PLANS)


def main() -> None:
    """Run the selected parts; write and print each when its jobs are done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"any of {', '.join(PARTS)}; default: all",
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--into", type=Path, help="the folder for the JSON files")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"part must be one of {PARTS}, got {sorted(unknown)}")
    folder = args.into or (WORK / "quick" if args.quick else MEASUREMENTS)
    python, stores, reports = peers_python(), [], []
    for part in args.parts or PARTS:
        started, rows = time.monotonic(), []
        jobs = PLANS[part](args.quick)
        for i, job in enumerate(jobs, start=1):
            threads = f"{job['threads']} thread{'s' if job['threads'] > 1 else ''}"
            number = f"[{part} {i}/{len(jobs)}]"
            title = f"{number} {job['what']} {job['label']}, {threads}"
            stores.append(store_path(job))
            rows += run(job, python, stores[-1], title)
        record = {"part": part, "quick": args.quick} | heading()
        record |= {"settings": SETTINGS, "rows": rows, "targets": judged(part, rows)}
        path = folder / f"{part}.json"
        write_file(path, (json.dumps(record, indent=1) + "\n").encode())
        reports.append(report(record))
        seconds = time.monotonic() - started
        print(f"\n{reports[-1]}\n\n{path}: {seconds:.0f} s\n", flush=True)
    for store in stores:
        store.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
