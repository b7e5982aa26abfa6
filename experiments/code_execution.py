"""Code execution, the paper's task in miniature: feedback against twice the depth.

    .venv/bin/python experiments/code_execution.py [--quick] [--workers N]

Programs have three variables and 30 statements, some 130 tokens; the answer is the
output of a print. All models can see the whole program. They are trained on programs
with a question after every statement, which is many times faster, and evaluated at
prints. One row is trained on prints alone, as in the paper. Training works as in
`tracking.py`; parallel models get twice the time, and learning rates were searched
with one seed.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/code_execution.json`, in two CPU hours.
"""

from pathlib import Path
from typing import Any

import torch
from record import Job, Result, arguments, done_anew, done_once, write_record
from tracking import RATES, last, longest_first, run, thinned

import fbt

RESULTS = Path(fbt.__file__).parent / "measurements" / "code_execution.json"
STATEMENTS = [4, 8, 15, 30]  # lengths of the curriculum's programs
BATCH = 64  # programs per step
SPAN = 192  # in tokens; hardly any program of 30 statements is longer
PAIRS = ((1, 2), (2, 4))  # layers of feedback and of parallel models
SECONDS = 240  # training time of the feedback models


def job(model: str, layers: int, **changes: Any) -> Job:
    """Return a job that trains a model with the given number of layers."""
    seconds = SECONDS if model == "feedback" else 2 * SECONDS
    settings = {"task": "code", "model": model, "layers": layers, "rate": 1e-3}
    settings |= {"ask": "statements", "batch": BATCH}
    settings |= {"positions": "relative"} if model == "parallel" else {}
    settings |= {"lengths": STATEMENTS, "options": {"span": SPAN}}
    return settings | {"seed": 0, "seconds": seconds} | changes


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates: one seed, half the time."""
    feedback, parallel = PAIRS[-1]
    models = (("feedback", feedback, SECONDS // 2), ("parallel", parallel, SECONDS))
    return [
        job(model, layers, rate=rate, seconds=seconds)
        for model, layers, seconds in models
        for rate in RATES
    ]


def main_jobs(search: list[Result]) -> list[Job]:
    """Return jobs for both models at all depths, with the best learning rates."""
    jobs = []
    for feedback, parallel in PAIRS:
        for model, layers in (("feedback", feedback), ("parallel", parallel)):
            best = max((r for r in search if r["job"]["model"] == model), key=last)
            rate = best["job"]["rate"]
            jobs += [job(model, layers, rate=rate, seed=seed) for seed in range(3)]
            if (model, layers) == ("feedback", PAIRS[-1][0]):
                jobs.append(job(model, layers, rate=rate, ask="prints"))
    return jobs


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(
        __doc__, quick="two jobs of one minute; writes no record"
    )
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if quick:
        pair = [job("feedback", 1, seconds=60), job("parallel", 2, seconds=60)]
        done_anew("code-quick", pair, run, workers)
        return
    search = done_once("code", search_jobs(), run, workers)
    runs = done_once("code", longest_first(main_jobs(search)), run, workers)
    curve = ["steps", "tokens", "seconds", "accuracy"]
    content = {
        "curve": curve,
        "runs": [thinned(r) for r in runs],
        "search": [thinned(r) for r in search],
    }
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
