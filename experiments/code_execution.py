"""Running a program in one's head, the paper's task in miniature: feedback and parallel models twice as deep.

    .venv/bin/python experiments/code_execution.py [--quick] [--workers N]

Programs of three variables and 30 statements, some 130 tokens; the answer is what a print shows. All models
can see the whole program. They learn from programs that ask after every statement, which is many times
faster, and are read where a print asks; one row has prints alone to learn from, as in the paper. Models are
trained as in `tracking.py`, parallel ones for twice the time, with a rate that was searched on one seed.
Results are kept in the cache folder: run again after an interruption it goes on. Writes
`fbt/measurements/code_execution.json`, in two CPU hours.
"""

from pathlib import Path
from typing import Any

import torch
from record import Job, Result, arguments, done_anew, done_once, write_record
from tracking import RATES, last, longest_first, run, thinned

import fbt

RESULTS = Path(fbt.__file__).parent / "measurements" / "code_execution.json"
STATEMENTS = [4, 8, 15, 30]  # of the curriculum's programs
BATCH, SPAN = 64, 192  # programs of a step; tokens, of which hardly a program of 30 statements has more
PAIRS = ((1, 2), (2, 4))  # layers of feedback and of parallel models
SECONDS = 240  # of the feedback models


def job(model: str, layers: int, **changes: Any) -> Job:
    """Train a model of so many layers."""
    seconds = SECONDS if model == "feedback" else 2 * SECONDS
    made = {
        "task": "code",
        "model": model,
        "layers": layers,
        "rate": 1e-3,
        "ask": "statements",
        "batch": BATCH,
    }
    made |= {"positions": "relative"} if model == "parallel" else {}
    return made | {"lengths": STATEMENTS, "options": {"span": SPAN}, "seed": 0, "seconds": seconds} | changes


def search_jobs() -> list[Job]:
    """Rates for both kinds of models, one seed, half the time."""
    return [
        job(model, layers, rate=rate, seconds=SECONDS // 2 * (2 if model == "parallel" else 1))
        for model, layers in (("feedback", PAIRS[-1][0]), ("parallel", PAIRS[-1][1]))
        for rate in RATES
    ]


def main_jobs(search: list[Result]) -> list[Job]:
    """Both kinds at all depths, with the rates that were best."""
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
    """Run what is missing, then write the record."""
    quick, workers = arguments(__doc__, quick="two jobs of a minute; writes no record")
    torch.set_num_threads(1)  # also what the record says
    fbt.build_native()
    if quick:
        pair = [job("feedback", 1, seconds=60), job("parallel", 2, seconds=60)]
        done_anew("code-quick", pair, run, workers)
        return
    search = done_once("code", search_jobs(), run, workers)
    runs = done_once("code", longest_first(main_jobs(search)), run, workers)
    curve = ["steps", "tokens", "seconds", "accuracy"]
    content = {"curve": curve, "runs": [thinned(r) for r in runs], "search": [thinned(r) for r in search]}
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
