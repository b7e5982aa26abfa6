"""Training on equal terms: an update, a schedule, and a search of learning rates."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from record import Job, Result, done_once
from torch import Tensor, nn

from fbt import tasks

TASKS: dict[str, Callable[[], tasks.Task]] = {
    "S3": lambda: tasks.Permutations("S3"),
    "parity": lambda: tasks.Parity(),
    "copy": lambda: tasks.Copy(),
    "cups": lambda: tasks.ShellGame(5),
    "A5": lambda: tasks.Permutations("A5"),
    "turns": lambda: tasks.Walk(5, facing=True, heading=True),
}
WARMUP, FALL = 0.05, 0.4  # the rate rises and falls in these parts of training
DECAY = 0.01  # of weights
RATES, LOWEST, HIGHEST = (5e-4, 1e-3, 2e-3), 6e-5, 3.3e-2  # a search doubles them
POINTS = 16  # of a curve
ROUNDS = 25  # of timing
SOLVED = 0.95


def generator_of(job: Job) -> torch.Generator:
    """Return the generator of a job's lessons; searches have other seeds."""
    offset = 2_000_000 if job.get("tuning") else 1_000_000
    return torch.Generator().manual_seed(offset + job["seed"])


def growing(lengths: Sequence[int], updates: int) -> Iterator[int]:
    """Yield the length for each update: the last one in half of them or more."""
    *short, goal = lengths
    half = updates // 2 if short else 0
    for number in range(half):
        yield short[number * len(short) // half]
    for _ in range(half, updates):
        yield goal


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return logits [B, T, V], a few sequences at a time: long ones take memory."""
    return torch.cat([model(part) for part in tokens.split(16)])


def train(
    model: nn.Module,
    lessons: Iterable[tuple[Tensor, Tensor]],
    updates: int,
    rate: float,
    look: Callable[[], float],
) -> Result:
    """Train a model: one update for each batch of inputs and labels.

    Args:
        model: maps inputs to logits.
        lessons: the batches; labels of -100 do not count.
        updates: how many batches there are.
        rate: the highest learning rate.
        look: returns the accuracy so far.

    Returns:
        The accuracy at the end and when it passed 95 %, the number of parameters,
        CPU seconds without those of `look`, and the curve.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY)
    curve: list[tuple[int, float]] = []
    looks = {round(updates * point / POINTS) for point in range(1, POINTS + 1)}
    seconds = 0.0
    for step, (inputs, labels) in enumerate(lessons, start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * share_of_rate(step / updates)
        seconds += update(model, optimizer, inputs, labels)
        if step in looks:
            curve.append((step, round(look(), 4)))
    solved = next((step for step, score in curve if score >= SOLVED), None)
    return {
        "summary": {"accuracy": curve[-1][1], "updates_to_95": solved},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 2),
        "curve": curve,
    }


def update(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
) -> float:
    """Update the parameters of an optimizer, and return the CPU seconds it took.

    Args:
        model: maps inputs to logits.
        optimizer: has all parameters of the model.
        inputs: tokens [B, T].
        labels: [B, T]; labels of -100 do not count.
    """
    start = time.process_time()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return time.process_time() - start


def default_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with its default settings."""
    return torch.optim.AdamW(model.parameters())


def milliseconds(
    models: Mapping[Any, nn.Module],
    inputs: Tensor,
    labels: Tensor,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = default_optimizer,
) -> dict[Any, float]:
    """Return the median time of an update of each model, which take turns."""
    optimizers = {key: optimizer(model) for key, model in models.items()}
    taken: dict[Any, list[float]] = {key: [] for key in models}
    for _ in range(ROUNDS):
        for key, model in models.items():
            taken[key].append(update(model, optimizers[key], inputs, labels))
    return {key: round(1000 * median(times), 2) for key, times in taken.items()}


def share_of_rate(done: float) -> float:
    """Return the factor of the rate, where `done` of (0, 1] is: up, level, down."""
    return min(1.0, done / WARMUP, (1 + 1e-9 - done) / FALL)


def accurate(result: Result) -> tuple[float, float]:
    """Return what orders results: the accuracy at the end, then that on the way."""
    return (
        round(result["summary"]["accuracy"], 2),
        mean(score for _, score in result["curve"]),
    )


def searched(
    name: str,
    jobs: list[Job],
    run: Callable[[Job], Result],
    workers: int,
    rates: tuple[float, ...] = RATES,
    good: Callable[[Result], Any] = accurate,
) -> list[list[Result]]:
    """Search learning rates: return each job's results, one for each rate tried.

    A search goes on while the best rate is the lowest or the highest one tried, but
    not beyond `LOWEST` and `HIGHEST`.

    Args:
        name: of the experiment, as for `done_once`.
        jobs: what to run, but for the rate.
        run: runs one job, as for `done_once`.
        workers: the number of processes that run jobs in parallel.
        rates: those tried first; each is twice the one before.
        good: says how good a result is, by anything that can be compared.
    """
    tried = [list(rates) for _ in jobs]
    while True:
        trials = [
            job | {"rate": rate}
            for job, own in zip(jobs, tried, strict=True)
            for rate in own
        ]
        results = iter(done_once(name, trials, run, workers))
        found = [[next(results) for _ in own] for own in tried]
        unfinished = False
        for own, so_far in zip(tried, found, strict=True):
            rate = max(so_far, key=good)["job"]["rate"]
            if rate == max(own) and 2 * rate < HIGHEST:
                own.append(2 * rate)
                unfinished = True
            if rate == min(own) and rate / 2 > LOWEST:
                own.append(rate / 2)
                unfinished = True
        if not unfinished:
            return found


def best_of(results: list[Result]) -> Result:
    """Return the most accurate result."""
    return max(results, key=accurate)


def best_by_model(found: list[list[Result]]) -> dict[str, Result]:
    """Return the most accurate result of each model in a search."""
    return {own[0]["job"]["model"]: best_of(own) for own in found}


def settings_of_training() -> dict[str, float]:
    """Return the settings that all models share, for a record."""
    return {"weight_decay": DECAY, "warmup": WARMUP, "fall": FALL}


def shown(found: list[list[Result]]) -> list[Result]:
    """Return the results of a search without their curves, for a record."""
    kept = ("job", "summary", "seconds")
    return [{name: result[name] for name in kept} for own in found for result in own]
