"""Code execution, the paper's task in miniature, on equal terms.

    .venv/bin/python experiments/code_execution.py [--quick] [--workers N]

Programs have three variables and 30 statements, some 130 tokens; the answer is the
output of a print. All models can see the whole program. They see the same programs
for as many updates, 64 in each. Programs grow, and have all their statements in half
of the updates. Lessons ask after every statement, which is many times faster; tests
ask at prints. One row is trained at prints alone, as in the paper. Weights are those
after the last update, and are also tested on longer programs.

Learning rates are searched first, with a seed and programs of their own and a third
of the updates; so are the positions of the parallel transformer.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/code_execution.json`, in two to three CPU hours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from models import LAST_NORM, PARALLEL, Shape, build
from record import Job, Result, arguments, done_anew, done_once, write_record
from torch import Tensor, nn
from training import (
    best_by_model,
    best_of,
    generator_of,
    growing,
    logits_of,
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
BATCH, TESTED = 64, 128  # programs in an update and in a test
UPDATES, SEARCH, SEEDS = 2400, 800, 3
SPAN = 192  # in tokens; hardly any program of 30 statements is longer
LONGEST = 1024  # tokens of the longest test
BASE = "feedback" + LAST_NORM
LAYERS = {"feedback": 2, BASE: 2, "LSTM": 2, "LSTM and attention": 1, "DeltaNet": 2}
LAYERS |= dict.fromkeys([name for name in PARALLEL if "none" not in name], 4)


def build_model(job: Job) -> nn.Module:
    """Build the model of a job."""
    words = len(CodeExecution().words)
    shape = Shape(words, job["layers"], job["d_model"], span=SPAN, longest=LONGEST)
    return build(job["model"], shape)


def run(job: Job) -> Result:
    """Train and test one model."""
    tuning = job.get("tuning", False)
    torch.manual_seed(job["seed"])
    model = build_model(job)
    held_out = programs(STATEMENTS[-1], seed=30_000 if tuning else 20_000)

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
    for length in growing(STATEMENTS, job["updates"]):
        yield task.sample(BATCH, length, generator)


def programs(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return programs for a test, and what their prints show."""
    generator = torch.Generator().manual_seed(seed)
    return CodeExecution().sample(TESTED, length, generator)


def test(model: nn.Module, tokens: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of right prints, and of programs with all prints right."""
    asked = labels != IGNORE
    right = logits_of(model, tokens).argmax(-1) == labels
    whole = (right | ~asked).all(1)
    return {
        "prints": round(right[asked].double().mean().item(), 4),
        "programs": round(whole.double().mean().item(), 4),
    }


def job_of(model: str, layers: int, **more: Any) -> Job:
    """Return a job."""
    job = {"model": model, "layers": layers, "d_model": 64, "ask": "statements"}
    return job | {"updates": UPDATES, "seed": 0} | more


def main_jobs(best: dict[str, Result]) -> list[Job]:
    """Return the jobs for all seeds, with the best settings found."""
    kinds = [name for name in best if name in PARALLEL]
    kind = best_of([best[name] for name in kinds])["job"]["model"]
    chosen = [
        job_of(name, LAYERS[name], rate=result["job"]["rate"])
        for name, result in best.items()
        if name not in kinds or name == kind
    ]
    base = chosen[[job["model"] for job in chosen].index(BASE)]
    chosen.insert(1, base | {"layers": 1})
    chosen.append(base | {"ask": "prints"})
    return [job | {"seed": seed} for job in chosen for seed in range(SEEDS)]


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(__doc__, quick="all models, 32 updates; no record")
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if quick:
        jobs = [job_of(*model, rate=1e-3, updates=32) for model in LAYERS.items()]
        done_anew("code-quick", jobs, run, workers)
        return
    tuning = {"tuning": True, "updates": SEARCH, "seed": 100}
    jobs = [job_of(name, layers, **tuning) for name, layers in LAYERS.items()]
    found = searched("code", jobs, run, workers)
    runs = done_once("code", main_jobs(best_by_model(found)), run, workers)
    settings: dict[str, Any] = {"batch": BATCH, "tested": TESTED, "span": SPAN}
    settings |= {"statements": STATEMENTS} | settings_of_training()
    write_record(
        RESULTS, {"settings": settings, "runs": runs, "search": shown(found)}
    )


if __name__ == "__main__":
    main()
