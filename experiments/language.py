"""Tiny Shakespeare: what feedback buys a language model at depths 1 to 8, and ways to get there sooner.

    .venv/bin/python experiments/language.py [--quick] [--workers N]

All models have the width and the recipe of the "small" preset and see the same batches for the same seed. A
search gives each its learning rate at four layers, one seed; then come all depths with three seeds, and the
shortcuts. Results are kept in the cache folder: run again after an interruption it goes on. Writes
`fbt/measurements/language.json`, in about 2 CPU hours.
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
from fbt.recipe import PRESETS, Recipe
from fbt.training.evaluation import evaluate
from fbt.training.loop import adamw, step_seed

RESULTS = Path(fbt.__file__).parent / "measurements" / "language.json"
SMALL = PRESETS["small"].model
RECIPE = Recipe(eval_every=100)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
DEPTHS, DEPTH, SEEDS = (1, 2, 4, 8), 4, 3
MODELS = ("feedback", "feedback, as many parameters", "parallel", "parallel, absolute positions")
CURRICULUM, WARM = 16, 500  # first length of a sequence; steps of a parallel model before feedback


def build(job: Job, vocabulary: int) -> nn.Module:
    """The model of a job."""
    width, layers = SMALL["d_model"], job["layers"]
    if job["model"] == "parallel, absolute positions":
        return Transformer(vocabulary, width, SMALL["n_heads"], layers, "absolute", RECIPE.seq_len)
    options = SMALL | {"n_layers": layers, "variant": job["model"].partition(",")[0]}
    if options["variant"] == "feedback":
        options["variant"] = "shared-kv"
    if job["model"] == "feedback, as many parameters":
        # One pair of key and value projections in place of L leaves 2 (L - 1) d^2 for 2 L d numbers a unit.
        options["d_ff"] = 4 * width + width * (layers - 1) // layers
    return fbt.LanguageModel(fbt.Config(vocabulary, **options))


def run(job: Job) -> Result:
    """Train a model and follow its validation loss, over tokens and CPU seconds; evaluations cost no time."""
    torch.manual_seed(job["seed"])
    tokens, held_out, vocabulary = corpus()
    recipe = replace(RECIPE, lr=job["rate"], seed=job["seed"], curriculum=job["curriculum"])
    some = even_windows(held_out, length=recipe.seq_len, count=recipe.eval_windows)
    model = build(job | ({"model": "parallel"} if job["warm"] else {}), vocabulary)
    optimizer, curve, seconds, read = (
        adamw(cast(Any, model), recipe),
        list[tuple[int, float, float]](),
        0.0,
        0,
    )
    for step, batch in enumerate(batches(tokens, recipe)):
        start = time.process_time()
        if job["warm"] and step == job["warm"]:
            model = fbt.LanguageModel.from_parallel(cast(fbt.LanguageModel, model))
            optimizer = adamw(model, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip or math.inf)
        optimizer.step()
        seconds, read = seconds + time.process_time() - start, read + batch[:, 1:].numel()
        if (step + 1) % recipe.eval_every == 0 or step + 1 == recipe.steps:
            curve.append((read, round(seconds, 2), round(evaluate(cast(Any, model), some), 4)))
    final = evaluate(cast(Any, model), even_windows(held_out, length=recipe.seq_len))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    summary = {"val_loss": round(final, 4)}
    return {"summary": summary, "parameters": parameters, "seconds": round(seconds, 2), "curve": curve}


def batches(tokens: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    """The windows [B, T + 1] of each step, the same for the same seed whatever the model."""
    for step in range(recipe.steps):
        generator = torch.Generator().manual_seed(step_seed(recipe.seed, step))
        count, length = recipe.batch_shape(step)
        yield random_windows(tokens, length=length, batch_size=count, generator=generator)


@cache
def corpus() -> tuple[Tensor, Tensor, int]:
    """Training and validation tokens of Tiny Shakespeare, and how many characters there are."""
    text = fbt.load_tiny_shakespeare()
    tokenizer = fbt.CharTokenizer(text)
    return *split(tokenizer.encode(text)), len(tokenizer.vocabulary)


def job_of(model: str, **changes: Any) -> Job:
    """A job with the usual settings."""
    usual = {"model": model, "layers": DEPTH, "rate": RECIPE.lr, "seed": 0, "curriculum": 0, "warm": 0}
    return usual | changes


def search_jobs() -> list[Job]:
    """Learning rates at four layers; a wider feed-forward block goes with that of the narrow one."""
    return [
        job_of(model, rate=rate) for model in MODELS if "," not in model or "abs" in model for rate in RATES
    ]


def best_rates(search: list[Result]) -> dict[str, float]:
    """The learning rate of each model."""
    best: dict[str, Result] = {}
    for result in search:
        name = result["job"]["model"]
        if name not in best or result["summary"]["val_loss"] < best[name]["summary"]["val_loss"]:
            best[name] = result
    rates = {name: float(result["job"]["rate"]) for name, result in best.items()}
    return {name: rates.get(name, rates["feedback"]) for name in MODELS}


def depth_jobs(rates: dict[str, float]) -> list[Job]:
    """All models at all depths; with one layer there is nothing to make as large."""
    return [
        job_of(model, layers=layers, rate=rates[model], seed=seed)
        for model in MODELS
        for layers in DEPTHS
        for seed in range(SEEDS)
        if (model, layers) != ("feedback, as many parameters", 1)
    ]


def shortcut_jobs(rates: dict[str, float]) -> list[Job]:
    """Feedback from short sequences, and from a parallel model; without either it is among the depths."""
    return [
        job_of("feedback", rate=rates["feedback"], seed=seed, **change)
        for change in ({"curriculum": CURRICULUM}, {"warm": WARM})
        for seed in range(SEEDS)
    ]


def main() -> None:
    """Run what is missing, then write the record."""
    quick, workers = arguments(__doc__, quick="one layer, one seed; writes no record")
    torch.set_num_threads(1)  # also what the record says
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # once, before the workers
    if quick:
        done_anew("language-quick", [job_of(model, layers=1) for model in MODELS[::2]], run, workers)
        return
    search = done_once("language", search_jobs(), run, workers)
    rates = best_rates(search)
    jobs = sorted(depth_jobs(rates) + shortcut_jobs(rates), key=lambda job: -job["layers"])
    done_once("language", jobs, run, workers)
    content = {
        "settings": {"model": SMALL, "recipe": vars(RECIPE), "curriculum": CURRICULUM, "warm": WARM},
        "rates": rates,
        "curve": ["tokens", "cpu_seconds", "val_loss"],
        "search": [{name: r[name] for name in r if name != "curve"} for r in search],
        "depths": done_once("language", depth_jobs(rates), run, workers),
        "shortcuts": done_once("language", shortcut_jobs(rates), run, workers),
    }
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
