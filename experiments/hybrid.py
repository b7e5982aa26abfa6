"""Is feedback needed to carry a state and look things up? An LSTM below attention.

    .venv/bin/python experiments/hybrid.py [--quick] [--workers N]

One LSTM and one layer of attention learn parity, S3 and copying with the lessons of
`tracking.py`. Its learning rate for each task is from a search with one seed, and it
may then take three times the CPU seconds of feedback. A feedback model of one layer
runs beside it with the rates of `tracking.json`, so both times are of one machine.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/hybrid.json`, in 7 CPU minutes.
"""

import json
from pathlib import Path

import torch
import tracking
from record import Job, Result, arguments, done_anew, done_once, write_record

import fbt

RESULTS = Path(fbt.__file__).parent / "measurements" / "hybrid.json"
MODEL, TASKS, SEEDS = "LSTM and attention", ("parity", "S3", "copy"), 5


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates with one seed."""
    return [
        tracking.recurrent(task, MODEL, rate=rate)
        for task in TASKS
        for rate in tracking.RATES
    ]


def main_jobs(search: list[Result]) -> list[Job]:
    """Return jobs for both models on all tasks with their best rates."""
    known = json.loads(tracking.RESULTS.read_text())["search"]
    times = {MODEL: 3, "feedback": 1}
    return [
        job | {"seed": seed, "seconds": job["seconds"] * times[job["model"]]}
        for job in tracking.main_jobs([*search, *known])
        for seed in range(SEEDS)
        if job["model"] in times and job["task"] in TASKS
        if job["layers"] == 1 and job["seed"] == 0
    ]


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(__doc__, quick="one job; writes no record")
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if quick:
        few = [tracking.recurrent("parity", MODEL, seconds=5)]
        done_anew("hybrid-quick", few, tracking.run, workers)
        return
    search = done_once("hybrid", search_jobs(), tracking.run, workers)
    runs = done_once("hybrid", main_jobs(search), tracking.run, workers)
    content = {
        "curve": ["steps", "tokens", "seconds", "accuracy"],
        "table": tracking.table(runs),
        "runs": [tracking.thinned(result) for result in runs],
        "search": [{name: r[name] for name in r if name != "curve"} for r in search],
    }
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
