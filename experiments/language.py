"""Language: what feedback is worth for text, in nats, in depth and in time.

    .venv/bin/python experiments/language.py [--quick] [--workers N] [--parts depths]

All models have the width and the recipe of the "small" preset, and see the same
batches for the same seed. The parts:

- depths: feedback and parallel models of 1 to 8 layers, and training shortcuts.
- controls-2: changes to feedback, sweeps in place of the loop, layers that run twice,
  and no last norm, with 2 layers.
- clock: feedback and parallel models trained for the same CPU time, each in the
  faster of float32 and bfloat16. The times of updates are measured first, in turns;
  the numbers of steps follow from them, and with these the schedules.
- second: another text, the King James Bible.
- controls-8, slow-8: the controls with 8 layers; the slow ones are sweeps, and keys
  and values per layer.

Each model's learning rate for each depth and text is searched first, with 1,000 steps
and a seed of its own, on a part of the training text held out for that: three
rates, and further ones while the best lies at an edge. Then come three seeds.

Results are cached: run the same command again to continue after an interruption.
Each part writes a record in `fbt/measurements/`, such as `language_clock.json`; that
of the depths is `language.json`. In this order they take about 2, 1, 2, 1, 3 and 3
CPU hours, and twice that on a busy machine.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
import torch.nn.functional as F
from models import Shape
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
from text_models import CONTROLS, MAIN, MODELS, InBfloat16
from texts import TEXTS, corpus
from torch import Tensor, nn
from training import milliseconds, searched, shown, update

import fbt
from fbt.data import random_windows, split
from fbt.training.loop import adamw, step_seed
from fbt.training.processes import Processes
from fbt.training.recipe import PRESETS, Recipe
from fbt.training.validation import Validation

RESULTS = Path(fbt.__file__).parent / "measurements" / "language.json"
RECIPE = Recipe(eval_every=100)
SMALL = PRESETS["small"].model
SIZES = {name: SMALL[name] for name in ("d_model", "n_heads", "span")}
SIZES["longest"] = RECIPE.seq_len
WARMUPS, POINTS = RECIPE.steps // RECIPE.warmup, RECIPE.steps // RECIPE.eval_every
RATES = (2e-3, 4e-3, 8e-3)
TUNING_SEED = 100
DEPTHS, DEPTH, SEEDS = (1, 2, 4, 8), 4, 3
CLOCK_DEPTHS, CLOCK = (2, 8), (1000, 2000, 4000)  # layers; steps of feedback
# What the controls are compared with; and the models of the second text.
REFERENCES = [name for name in MAIN if "as many" not in name]
SECOND = [*REFERENCES, "memory: embedding"]
SLOW = ["2 sweeps", "4 sweeps", "keys and values per layer"]
FAST = [name for name in CONTROLS if name not in SLOW]
CURRICULUM = 16  # length of the first sequences
WARM = 500  # steps of a parallel model before the switch to feedback


def build(job: Job, vocab_size: int) -> nn.Module:
    """Build the model of a job; a warm start begins with a parallel one."""
    name = "parallel" if job["warm"] else job["model"]
    model = MODELS[name](Shape(vocab_size, job["layers"], **SIZES))
    return InBfloat16(model) if job["bfloat16"] else model


def run(job: Job) -> Result:
    """Train a model and record its validation loss over tokens and CPU seconds.

    The time of evaluations is not counted.
    """
    torch.manual_seed(job["seed"])
    tokens, held_out, vocab_size = corpus(job["text"])
    if job["tuning"]:
        tokens, held_out = split(tokens)
    recipe = recipe_of(job)
    validation = Validation(held_out, recipe, Processes(torch.device("cpu")))
    model = build(job, vocab_size)
    optimizer = adamw(cast(Any, model), recipe)
    curve: list[tuple[int, float, float]] = []  # tokens, seconds, validation loss
    seconds, count = 0.0, 0
    for step, batch in enumerate(batches(tokens, recipe)):
        if job["warm"] and step == job["warm"]:
            model = fbt.LanguageModel.from_parallel(cast(fbt.LanguageModel, model))
            optimizer = adamw(model, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        seconds += update(model, optimizer, batch[:, :-1], batch[:, 1:])
        count += batch[:, 1:].numel()
        if (step + 1) % recipe.eval_every == 0:
            curve.append(
                (count, round(seconds, 2), loss_on(model, validation.windows))
            )
    final = loss_on(model, validation.last_windows)
    return {
        "summary": {"val_loss": final},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 2),
        "curve": curve,
    }


def recipe_of(job: Job) -> Recipe:
    """Return the recipe of a job: its schedule ends with its steps."""
    return replace(
        RECIPE,
        steps=job["steps"],
        warmup=job["steps"] // WARMUPS,
        eval_every=job["steps"] if job["tuning"] else max(1, job["steps"] // POINTS),
        lr=job["rate"],
        seed=job["seed"],
        curriculum=job["curriculum"],
    )


def batches(tokens: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Yield the windows [B, T + 1] of each step; they depend on the seed only."""
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(step_seed(recipe.seed, step))
        count, length = recipe.batch_shape(step)
        yield random_windows(
            tokens, length=length, batch_size=count, generator=generator
        )


@torch.no_grad()
def loss_on(model: nn.Module, windows: Tensor) -> float:
    """Return the mean loss on windows [N, T + 1], in nats per character."""
    total = 0.0
    for part in windows.split(128):
        logits, targets = model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()
        total += F.cross_entropy(logits, targets, reduction="sum").item()
    return round(total / windows[:, 1:].numel(), 4)


def job_of(model: str, layers: int, **changes: Any) -> Job:
    """Return a job with the default settings and some changes."""
    defaults = {
        "text": "Tiny Shakespeare",
        "model": model,
        "layers": layers,
        "rate": RECIPE.lr,
        "steps": RECIPE.steps,
        "seed": 0,
        "tuning": False,
        "bfloat16": False,
        "curriculum": 0,
        "warm": 0,
    }
    return defaults | changes


def key_of(job: Job) -> tuple[str, str, int]:
    """Return what a job's learning rate is searched for."""
    return job["text"], job["model"], job["layers"]


def low(result: Result) -> float:
    """Say how good a result is; a loss that is no number is the worst."""
    loss = result["summary"]["val_loss"]
    return -math.inf if math.isnan(loss) else -loss


def search(jobs: list[Job], workers: int) -> list[list[Result]]:
    """Search the learning rates of jobs, and return each one's results."""
    tuning = {"steps": RECIPE.steps // 2, "seed": TUNING_SEED, "tuning": True}
    trials = [job | tuning for job in jobs]
    return searched("language", trials, run, workers, RATES, low)


def tuned(jobs: list[Job], found: list[list[Result]]) -> list[Job]:
    """Return the jobs with their best learning rates."""
    best = (max(own, key=low)["job"] for own in found)
    rates = {key_of(job): job["rate"] for job in best}
    return [job | {"rate": rates[key_of(job)]} for job in jobs]


def depth_jobs() -> list[Job]:
    """Return jobs for all models at all depths.

    With one layer there are no parameters to make up for.
    """
    return [
        job_of(model, layers)
        for layers in DEPTHS
        for model in MAIN
        if (model, layers) != ("feedback, as many parameters", 1)
    ]


def shortcut_jobs() -> list[Job]:
    """Return jobs that start from short sequences or from a parallel model.

    The runs without a shortcut are among those of `depth_jobs`.
    """
    changes: list[dict[str, Any]] = [{"curriculum": CURRICULUM}, {"warm": WARM}]
    return [job_of("feedback", DEPTH, **change) for change in changes]


def depths(workers: int) -> dict[str, Any]:
    """Return the content of the record of depths and shortcuts."""
    found = search(depth_jobs(), workers)
    jobs = with_seeds(tuned(depth_jobs(), found), SEEDS)
    shortcuts = with_seeds(tuned(shortcut_jobs(), found), SEEDS)
    done = done_once("language", jobs + shortcuts, run, workers)
    rates: dict[str, dict[int, float]] = {name: {} for name in MAIN}
    for job in tuned(depth_jobs(), found):
        rates[job["model"]][job["layers"]] = job["rate"]
    return {
        "settings": settings() | {"curriculum": CURRICULUM, "warm": WARM},
        "rates": rates,
        "curve": ["tokens", "cpu_seconds", "val_loss"],
        "search": shown(found),
        "depths": done[: len(jobs)],
        "shortcuts": done[len(jobs) :],
    }


def compared(jobs: list[Job], workers: int) -> dict[str, Any]:
    """Search rates, run all seeds, and return a record with a row for each model."""
    found = search(jobs, workers)
    runs = done_once("language", with_seeds(tuned(jobs, found), SEEDS), run, workers)
    return {
        "settings": settings(),
        "table": table(runs),
        "search": shown(found),
    }


def controls(layers: int, models: list[str], workers: int) -> dict[str, Any]:
    """Return the record of models with a number of layers."""
    return compared([job_of(model, layers) for model in models], workers)


def second(workers: int) -> dict[str, Any]:
    """Return the record of the second text."""
    jobs = [
        job_of(model, layers, text="King James Bible")
        for layers in CLOCK_DEPTHS
        for model in SECOND
    ]
    return compared(jobs, workers)


def clock(workers: int) -> dict[str, Any]:
    """Return the record of models trained for the same CPU time.

    That is what feedback takes for as many steps as one of `CLOCK` says, the limit.
    """
    jobs = [job_of(name, layers) for layers in CLOCK_DEPTHS for name in REFERENCES]
    found = search(jobs, workers)
    # One at a time, so that neither slows the other down.
    measuring = [{"layers": layers, "models": REFERENCES} for layers in CLOCK_DEPTHS]
    times = done_once("language-times", measuring, times_of, workers=1)
    jobs = [
        job_of(model, time["job"]["layers"], limit=limit, bfloat16=bfloat16, steps=n)
        for limit in CLOCK
        for time in times
        for model, bfloat16, n in steps_within(limit, time["milliseconds"])
    ]
    runs = done_once("language", with_seeds(tuned(jobs, found), SEEDS), run, workers)
    return {
        "settings": settings(),
        "times": times,
        "table": table(runs),
        "search": shown(found),
    }


def times_of(job: Job) -> Result:
    """Measure an update of each model and precision, in milliseconds, in turns."""
    tokens, _, vocab_size = corpus()
    batch = next(batches(tokens, RECIPE))
    models = {
        (name, bfloat16): build(
            job_of(name, job["layers"], bfloat16=bfloat16), vocab_size
        )
        for name in REFERENCES
        for bfloat16 in (False, True)
    }
    taken = milliseconds(
        models, batch[:, :-1], batch[:, 1:], lambda net: adamw(cast(Any, net), RECIPE)
    )
    return {
        "milliseconds": {
            name: [taken[name, bfloat16] for bfloat16 in (False, True)]
            for name in REFERENCES
        }
    }


def steps_within(
    limit: int, milliseconds: dict[str, list[float]]
) -> list[tuple[str, bool, int]]:
    """Return each model's faster precision, and its steps in the same time.

    Args:
        limit: the number of steps of feedback.
        milliseconds: of an update in float32 and in bfloat16, for each model.

    Returns:
        For each model its name, whether it is faster in bfloat16, and its steps.
    """
    whole = limit * min(milliseconds["feedback"])
    return [
        (name, bfloat16 < float32, int(whole / min(float32, bfloat16)))
        for name, (float32, bfloat16) in milliseconds.items()
    ]


def table(runs: list[Result]) -> list[dict[str, Any]]:
    """Return a row for each model, depth and number of steps: all seeds' losses."""
    groups: dict[str, list[Result]] = {}
    for result in runs:
        groups.setdefault(str(result["job"] | {"seed": 0}), []).append(result)
    names = ("text", "model", "layers", "rate", "limit", "steps", "bfloat16")
    rows = []
    for group in groups.values():
        job = group[0]["job"]
        rows.append(
            {name: job[name] for name in names if name in job}
            | {
                "parameters": group[0]["parameters"],
                "seconds": round(mean(result["seconds"] for result in group), 2),
                "losses": [result["summary"]["val_loss"] for result in group],
            }
        )
    return rows


def settings() -> dict[str, Any]:
    """Return what all runs share."""
    return {"model": SMALL, "recipe": vars(RECIPE)}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "depths": depths,
    "controls-2": lambda workers: controls(2, REFERENCES + FAST + SLOW, workers),
    "clock": clock,
    "second": second,
    "controls-8": lambda workers: controls(8, REFERENCES + FAST, workers),
    "slow-8": lambda workers: controls(8, SLOW, workers),
}


def main() -> None:
    """Run the missing jobs of each part, then write its record."""
    parser = options(
        __doc__, quick="all models with one layer, 20 steps each; writes no record"
    )
    choose(parser, "--parts", list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    for load in TEXTS.values():
        load()  # download it once, before the workers start
    if args.quick:
        few = {"steps": 20, "tuning": True}
        jobs = [job_of(model, 1, **few) for model in MODELS]
        jobs += [
            job | {"steps": 40, "warm": job["warm"] and 20} for job in shortcut_jobs()
        ]
        jobs.append(job_of("feedback", 1, **few, text="King James Bible"))
        jobs.append(job_of("feedback", 1, **few, bfloat16=True))
        done_anew("language-quick", jobs, run, args.workers)
        return
    write_parts(RESULTS, PARTS, args.parts, args.workers)


if __name__ == "__main__":
    main()
