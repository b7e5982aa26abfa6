"""Code execution, the paper's task in miniature, on equal terms.

    .venv/bin/python experiments/code_execution.py [--quick] [--workers N]
        [--parts compared]

Programs have three variables and 30 statements, some 130 tokens; the answer is the
output of a print. All models can see the whole program. They see the same programs
for as many updates, 32 in each. Programs grow; in the second half of the updates they
have 30 statements. Lessons ask after every statement, which is many times faster;
tests ask at prints. Weights are those after the last update, and are also tested on
longer programs, of which feedback and relative positions see the last 192 tokens. The
parts:

- compared: feedback without its last norm, an LSTM, and an LSTM below attention.
- parallel: the parallel transformer with the positions that do best, twice as deep.
- linear: DeltaNet.
- spans: feedback that sees 64 tokens back, and 192 as in the other parts.
- hybrid: the LSTM below attention without its last norm, too.
- norm: feedback with its last norm.
- prints: feedback trained at prints alone, as in the paper.
- times: the time of an update of each model, in turns, on an idle machine.

Learning rates are searched first, with a seed and programs of their own, which have
at most 15 statements; so are the positions of the parallel transformer. The search of
the first part includes that of the second.

Results are cached: run the same command again to continue after an interruption.
Each part writes a record in `fbt/measurements/`; that of the first is
`code_execution.json`, that of the second `code_execution_parallel.json`. They take
about three, two, one, one, half, one and half CPU hours, and a minute.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models import HYBRID, LAST_NORM, PARALLEL, Shape, build
from record import (
    Job,
    Result,
    choose,
    done_anew,
    done_once,
    options,
    with_seeds,
    write_parts,
)
from torch import Tensor, nn
from training import (
    best_by_model,
    best_of,
    generator_of,
    growing,
    logits_of,
    milliseconds,
    searched,
    settings_of_training,
    shown,
    train,
)

import fbt
from fbt.tasks import CodeExecution
from fbt.tasks.task import IGNORE

RESULTS = Path(fbt.__file__).parent / "measurements" / "code_execution.json"
STATEMENTS = (4, 8, 15, 30)  # of an update's programs; the last is the goal
TIMES = (1, 2, 4)  # programs of the tests, in multiples of the goal
BATCH, TESTED = 32, 128  # programs in an update and in a test
D_MODEL, UPDATES, SEEDS = 128, 3600, 3
SEARCH = {"tuning": True, "goal": 15, "updates": 2000, "seed": 100}
RATES = (1e-3, 2e-3, 4e-3)
SPAN = 192  # in tokens; hardly any program of 30 statements is longer
SPANS = (64, SPAN)
TENTHS = 10  # parts of a program
LONGEST = 1024  # tokens, more than any test has
BASE = "feedback" + LAST_NORM
PLACED = [name for name in PARALLEL if "none" not in name]  # with positions
COMPARED = [*PLACED, BASE, "LSTM and attention", "LSTM"]
LAYERS = dict.fromkeys(PLACED, 4)
LAYERS |= {BASE: 2, "LSTM and attention": 1, "LSTM": 2, "DeltaNet": 2, "feedback": 2}
LAYERS |= {HYBRID: 1}


def build_model(job: Job) -> nn.Module:
    """Build the model of a job."""
    words, span = len(CodeExecution().words), job.get("span", SPAN)
    shape = Shape(words, job["layers"], job["d_model"], span, LONGEST)
    return build(job["model"], shape)


def run(job: Job) -> Result:
    """Train and test one model."""
    tuning = job.get("tuning", False)
    torch.manual_seed(job["seed"])
    model = build_model(job)
    held_out = programs(job["goal"], seed=30_000 if tuning else 20_000)

    def look() -> float:
        return float(test(model, *held_out)["prints"])

    result = train(model, lessons(job), job["updates"], job["rate"], look)
    if not tuning:
        result["tests"] = {
            str(length): test(model, *programs(length, seed=10_000 + length))
            for length in (times * STATEMENTS[-1] for times in TIMES)
        }
    return result


def lessons(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a run; they depend on the seed, not on the model."""
    task, generator = CodeExecution(ask=job["ask"]), generator_of(job)
    lengths = [length for length in STATEMENTS if length <= job["goal"]]
    for length in growing(lengths, job["updates"]):
        yield task.sample(BATCH, length, generator)


def programs(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return programs for a test, and what their prints show."""
    generator = torch.Generator().manual_seed(seed)
    return CodeExecution().sample(TESTED, length, generator)


def test(model: nn.Module, tokens: Tensor, labels: Tensor) -> dict[str, Any]:
    """Test a model on programs.

    Returns:
        The share of right prints, the same in each tenth of the statements, and the
        share of programs with all prints right.
    """
    asked = labels != IGNORE
    right = logits_of(model, tokens).argmax(-1) == labels
    before = (tokens == CodeExecution().words.index(";")).cumsum(1) - 1
    tenth = TENTHS * before // (before.max() + 1)

    def share(which: Tensor) -> float:
        return round(right[which].double().mean().item(), 4)

    return {
        "prints": share(asked),
        "tenths": [share(asked & (tenth == number)) for number in range(TENTHS)],
        "programs": round((right | ~asked).all(1).double().mean().item(), 4),
    }


def job_of(model: str, **more: Any) -> Job:
    """Return a job."""
    job = {"model": model, "layers": LAYERS[model], "d_model": D_MODEL, "seed": 0}
    return (
        job | {"goal": STATEMENTS[-1], "ask": "statements", "updates": UPDATES} | more
    )


def search(names: list[str], workers: int) -> list[list[Result]]:
    """Return the results of each model's search, one for each rate tried."""
    jobs = [job_of(name, **SEARCH) for name in names]
    return searched("code", jobs, run, workers, RATES)


def of_seeds(jobs: list[Job], workers: int) -> list[Result]:
    """Return the results of all seeds of jobs."""
    return done_once("code", with_seeds(jobs, SEEDS), run, workers)


def chosen(found: list[list[Result]]) -> dict[str, Job]:
    """Return a job for each model of a search, with its best rate."""
    best = best_by_model(found)
    return {
        name: job_of(name, rate=result["job"]["rate"])
        for name, result in best.items()
    }


def compared(workers: int) -> dict[str, Any]:
    """Compare feedback with two LSTMs, and return a record."""
    found = search(COMPARED, workers)
    jobs = [job for name, job in chosen(found).items() if name not in PLACED]
    return content_of(of_seeds(jobs, workers), found)


def parallel(workers: int) -> dict[str, Any]:
    """Run the best of the parallel transformers, and return a record."""
    found = search(PLACED, workers)
    best = best_of([result for own in found for result in own])["job"]
    job = job_of(best["model"], rate=best["rate"])
    return content_of(of_seeds([job], workers), found)


def only(name: str, workers: int) -> dict[str, Any]:
    """Run one model, and return a record."""
    found = search([name], workers)
    return content_of(of_seeds([chosen(found)[name]], workers), found)


def spans(workers: int) -> dict[str, Any]:
    """Run feedback with different spans, and return a record."""
    found = search([BASE], workers)
    jobs = [chosen(found)[BASE] | {"span": span} for span in SPANS]
    return content_of(of_seeds(jobs, workers), found)


def prints(workers: int) -> dict[str, Any]:
    """Run feedback with lessons that ask at prints alone, and return a record."""
    found = search([BASE], workers)
    job = chosen(found)[BASE] | {"ask": "prints"}
    return content_of(of_seeds([job], workers), found)


def times(workers: int) -> dict[str, Any]:
    """Return a record of the times of updates at the final length, on one thread."""
    task = CodeExecution(ask="statements")
    inputs, labels = task.sample(
        BATCH, STATEMENTS[-1], torch.Generator().manual_seed(0)
    )
    models = {name: build_model(job_of(name)) for name in LAYERS}
    return {"milliseconds": milliseconds(models, inputs, labels)}


def content_of(runs: list[Result], found: list[list[Result]]) -> dict[str, Any]:
    """Return the content of a record."""
    settings: dict[str, Any] = {"batch": BATCH, "tested": TESTED, "span": SPAN}
    settings |= {"statements": STATEMENTS} | settings_of_training()
    return {"settings": settings, "runs": runs, "search": shown(found)}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "compared": compared,
    "parallel": parallel,
    "linear": partial(only, "DeltaNet"),
    "spans": spans,
    "hybrid": partial(only, HYBRID),
    "norm": partial(only, "feedback"),
    "prints": prints,
    "times": times,
}


def main() -> None:
    """Run the missing jobs of each part, then write its record."""
    parser = options(__doc__, quick="all models, 32 updates; no record")
    choose(parser, "--parts", list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if args.quick:
        jobs = [job_of(name, rate=1e-3, updates=32) for name in LAYERS]
        done_anew("code-quick", jobs, run, args.workers)
        return
    write_parts(RESULTS, PARTS, args.parts, args.workers)


if __name__ == "__main__":
    main()
