"""Tiny Shakespeare: what feedback gains at depths 1 to 8, and training shortcuts.

    .venv/bin/python experiments/language.py [--quick] [--workers N]

All models have the width and the recipe of the "small" preset, and see the same
batches for the same seed. First, a search at four layers with one seed gives each
model its learning rate. Then come all depths with three seeds, and the shortcuts.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/language.json`, in about 2 CPU hours.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from baselines import Transformer
from record import Job, Result, arguments, done_anew, done_once, write_record
from torch import Tensor, nn

import fbt
from fbt.data import even_windows, random_windows, split
from fbt.training.evaluation import evaluate
from fbt.training.loop import adamw, step_seed
from fbt.training.recipe import PRESETS, Recipe

RESULTS = Path(fbt.__file__).parent / "measurements" / "language.json"
SMALL = PRESETS["small"].model
RECIPE = Recipe(eval_every=100)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DEPTHS, DEPTH, SEEDS = (1, 2, 4, 8), 4, 3
MODELS = (
    "feedback",
    "feedback, as many parameters",
    "parallel",
    "parallel, absolute positions",
)
CURRICULUM = 16  # length of the first sequences
WARM = 500  # steps of a parallel model before the switch to feedback


def build(job: Job, vocabulary: int) -> nn.Module:
    """Build the model of a job."""
    width, layers = SMALL["d_model"], job["layers"]
    if job["model"] == "parallel, absolute positions":
        return Transformer(
            vocabulary, width, SMALL["n_heads"], layers, "absolute", RECIPE.seq_len
        )
    options = SMALL | {"n_layers": layers, "variant": job["model"].partition(",")[0]}
    if options["variant"] == "feedback":
        options["variant"] = "shared-kv"
    if job["model"] == "feedback, as many parameters":
        # One key and value projection instead of L saves 2 (L - 1) d^2 numbers; a
        # unit of the feed-forward block has 2 d numbers in each of L layers.
        options["d_ff"] = 4 * width + width * (layers - 1) // layers
    return fbt.LanguageModel(fbt.Config(vocabulary, **options))


def run(job: Job) -> Result:
    """Train a model and record its validation loss over tokens and CPU seconds.

    The time of evaluations is not counted.
    """
    torch.manual_seed(job["seed"])
    tokens, held_out, vocabulary = corpus()
    recipe = replace(
        RECIPE, lr=job["rate"], seed=job["seed"], curriculum=job["curriculum"]
    )
    windows = even_windows(held_out, length=recipe.seq_len, count=recipe.eval_windows)
    model = build(job | ({"model": "parallel"} if job["warm"] else {}), vocabulary)
    optimizer = adamw(cast(Any, model), recipe)
    curve: list[tuple[int, float, float]] = []  # tokens, seconds, validation loss
    seconds, count = 0.0, 0
    for step, batch in enumerate(batches(tokens, recipe)):
        start = time.process_time()
        if job["warm"] and step == job["warm"]:
            model = fbt.LanguageModel.from_parallel(cast(fbt.LanguageModel, model))
            optimizer = adamw(model, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip or math.inf)
        optimizer.step()
        seconds += time.process_time() - start
        count += batch[:, 1:].numel()
        if (step + 1) % recipe.eval_every == 0 or step + 1 == recipe.steps:
            val_loss = evaluate(cast(Any, model), windows)
            curve.append((count, round(seconds, 2), round(val_loss, 4)))
    final = evaluate(cast(Any, model), even_windows(held_out, length=recipe.seq_len))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "summary": {"val_loss": round(final, 4)},
        "parameters": parameters,
        "seconds": round(seconds, 2),
        "curve": curve,
    }


def batches(tokens: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """Yield the windows [B, T + 1] of each step; they depend on the seed only."""
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(step_seed(recipe.seed, step))
        count, length = recipe.batch_shape(step)
        yield random_windows(
            tokens, length=length, batch_size=count, generator=generator
        )


@cache
def corpus() -> tuple[Tensor, Tensor, int]:
    """Return training tokens, validation tokens and the vocabulary size."""
    text = fbt.load_tiny_shakespeare()
    tokenizer = fbt.CharTokenizer(text)
    return *split(tokenizer.encode(text)), len(tokenizer.vocabulary)


def job_of(model: str, **changes: Any) -> Job:
    """Return a job with the default settings and some changes."""
    defaults = {
        "model": model,
        "layers": DEPTH,
        "rate": RECIPE.lr,
        "seed": 0,
        "curriculum": 0,
        "warm": 0,
    }
    return defaults | changes


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates at four layers.

    The model with a wider feed-forward block takes the rate of the narrow one.
    """
    return [
        job_of(model, rate=rate)
        for model in MODELS
        if "," not in model or "abs" in model
        for rate in RATES
    ]


def best_rates(search: list[Result]) -> dict[str, float]:
    """Return the best learning rate of each model."""
    best: dict[str, Result] = {}
    for result in search:
        name, loss = result["job"]["model"], result["summary"]["val_loss"]
        if name not in best or loss < best[name]["summary"]["val_loss"]:
            best[name] = result
    rates = {name: float(result["job"]["rate"]) for name, result in best.items()}
    return {name: rates.get(name, rates["feedback"]) for name in MODELS}


def depth_jobs(rates: dict[str, float]) -> list[Job]:
    """Return jobs for all models at all depths.

    With one layer there are no parameters to make up for.
    """
    return [
        job_of(model, layers=layers, rate=rates[model], seed=seed)
        for model in MODELS
        for layers in DEPTHS
        for seed in range(SEEDS)
        if (model, layers) != ("feedback, as many parameters", 1)
    ]


def shortcut_jobs(rates: dict[str, float]) -> list[Job]:
    """Return jobs that start from short sequences or from a parallel model.

    The runs without a shortcut are among those of `depth_jobs`.
    """
    return [
        job_of("feedback", rate=rates["feedback"], seed=seed, **change)
        for change in ({"curriculum": CURRICULUM}, {"warm": WARM})
        for seed in range(SEEDS)
    ]


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(__doc__, quick="one layer, one seed; writes no record")
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # download it once, before the workers start
    if quick:
        jobs = [job_of(model, layers=1) for model in MODELS[::2]]
        done_anew("language-quick", jobs, run, workers)
        return
    search = done_once("language", search_jobs(), run, workers)
    rates = best_rates(search)
    jobs = depth_jobs(rates) + shortcut_jobs(rates)
    jobs.sort(key=lambda job: -job["layers"])
    done_once("language", jobs, run, workers)
    content = {
        "settings": {
            "model": SMALL,
            "recipe": vars(RECIPE),
            "curriculum": CURRICULUM,
            "warm": WARM,
        },
        "rates": rates,
        "curve": ["tokens", "cpu_seconds", "val_loss"],
        "search": [{name: r[name] for name in r if name != "curve"} for r in search],
        "depths": done_once("language", depth_jobs(rates), run, workers),
        "shortcuts": done_once("language", shortcut_jobs(rates), run, workers),
    }
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
