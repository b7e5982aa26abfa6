"""State tracking: feedback beside recurrences and transformers, on equal terms.

    .venv/bin/python experiments/tracking.py [--quick] [--workers N] [--tasks S3 A5]
    .venv/bin/python experiments/tracking.py --times

For a task every model sees the same lessons: as many updates, 1,024 tokens in each
(2,048 in copying, whose symbols take two), in the same order. Sequences grow, and
have their final length in half of all updates. Weights are those after the last one.

Each model's learning rate for each task is searched first, with a seed and sequences
of its own and half the updates: three rates, and further ones while the best lies at
an edge. The best kind of positions for parallel transformers is found likewise, with
four layers; other depths take over both, and so does the one without its last norm.
Then all models run with five seeds, and are tested on sequences of up to eight times
the length.

Results are cached: run the same command again to continue after an interruption.
Writes a record for each task, such as `fbt/measurements/tracking_S3.json`. The shell
game's also has ablations. The seconds in records are of a machine that may have been
busy; `--times` measures updates in turns and writes `tracking_times.json`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from models import (
    HYBRID,
    LAST_NORM,
    PARALLEL,
    FixedSizes,
    Rescaled,
    Shape,
    build,
    feedback,
    without_last_norm,
)
from record import (
    Job,
    Result,
    choose,
    done_anew,
    done_once,
    options,
    with_seeds,
    write_record,
)
from torch import Tensor, nn
from training import (
    TASKS,
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
from fbt import tasks
from fbt.tasks.task import IGNORE

RESULTS = Path(fbt.__file__).parent / "measurements"
UPDATES = {"S3": 800, "parity": 800, "cups": 1200, "copy": 800}
UPDATES |= {"A5": 12_000, "turns": 3000}
# Lengths of sequences, in the unit that the task counts: copying takes two steps per
# symbol. The last one is the goal.
LESSONS = {"copy": (4, 8, 16, 32), "A5": (2, 4, 8, 16, 32, 64)}
LESSON, TOKENS = (8, 16, 32, 64), 1024  # lengths of an update's sequences, summed
TIMES = (1, 2, 4, 8)  # lengths of the tests, in multiples of the goal
SEEDS = 5
TESTED = 64  # sequences in a test
SHAPE = {"d_model": 64, "n_heads": 4}
SPAN = 64  # of feedback models
DEPTHS, DEPTH = (1, 4, 8), 4

# The layers of each model.
LAYERS = {
    "feedback": 1,
    "feedback" + LAST_NORM: 1,
    "LSTM": 1,
    "LSTM and attention": 1,
    HYBRID: 1,
    "DeltaNet": 1,
    "DeltaProduct": 1,
    "scalar SSM": 2,
    "block-recurrent": 2,
    "looped": 2,
} | dict.fromkeys(PARALLEL, DEPTH)
BASE = "feedback" + LAST_NORM
PER_LAYER = "keys and values per layer"
# What the shell game's base gets in place of the last norm.
INSTEAD: dict[str, Callable[[int], nn.Module]] = {
    "last norm": partial(Rescaled, norm=True),
    "last norm, times 4": partial(Rescaled, norm=True, factor=4.0),
    "last norm, a scale per step": partial(Rescaled, norm=True, per_step=True),
    "one scale for all": partial(Rescaled, norm=False),
    "one scale for all, times 4": partial(Rescaled, norm=False, factor=4.0),
    "sizes not trained": lambda _: FixedSizes(),
}
# One change each to the base, which keeps its learning rate: options of the model,
# and by name two changes of training and start, and what replaces the last norm. The
# first ones run on all tasks.
CHANGES: dict[str, dict[str, Any]] = {
    "memory: embedding": {"memory": "embedding"},
    "memory: top": {"memory": "top"},
    "memory: uniform": {"memory": "uniform"},
    "memory not normalised": {"memory_norm": False},
    "span 1": {"span": 1},
    "span 2": {"span": 2},
    "span 8": {"span": 8},
    PER_LAYER: {"variant": "feedback"},
    "no curriculum": {},
    "key biases from zero": {},
    **{name: {} for name in INSTEAD},
}
EVERYWHERE = 2
# The longest tasks have fewer models.
FEW = ["feedback", BASE, "LSTM", "LSTM and attention", "DeltaProduct"]
FEW += ["parallel, relative", "parallel, absolute"]
LONG = ("A5", "turns")


def build_model(job: Job, vocab_size: int) -> nn.Module:
    """Build the model of a job."""
    longest = TIMES[-1] * LESSON[-1]
    shape = Shape(vocab_size, job["layers"], **SHAPE, span=SPAN, longest=longest)
    change = job.get("change")
    if change is None:
        return build(job["model"], shape)
    model = without_last_norm(feedback(**CHANGES[change]))(shape)
    if change == "key biases from zero":
        for name, parameter in model.named_parameters():
            if name.endswith(".key_bias"):
                nn.init.zeros_(parameter)
    if change in INSTEAD:
        model.norm = INSTEAD[change](shape.d_model)
    return model


def run(job: Job) -> Result:
    """Train and test one model."""
    task, tuning = TASKS[job["task"]](), job.get("tuning", False)
    torch.manual_seed(job["seed"])
    model = build_model(job, len(task.words))
    goal = LESSONS.get(job["task"], LESSON)[-1]
    drawn = torch.Generator().manual_seed(30_000 if tuning else 20_000)
    held_out = task.sample(TESTED, goal, drawn)

    def look() -> float:
        return mean(map(mean, answers(model, *held_out)))

    result = train(model, lessons(job), job["updates"], job["rate"], look)
    if not tuning:
        result["tests"] = {
            str(times * goal): test(model, task, times * goal) for times in TIMES
        }
    return result


def lessons(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a task; they depend on the seed, not on the model."""
    task, lengths = TASKS[job["task"]](), LESSONS.get(job["task"], LESSON)
    if job.get("change") == "no curriculum":
        lengths = lengths[-1:]
    generator = generator_of(job)
    for length in growing(lengths, job["updates"]):
        yield task.sample(TOKENS // length, length, generator)


def answers(model: nn.Module, tokens: Tensor, labels: Tensor) -> list[list[bool]]:
    """Return whether each labelled step is right, a list for each sequence."""
    right = logits_of(model, tokens).argmax(-1) == labels
    return [
        row[asked].tolist()
        for row, asked in zip(right, labels != IGNORE, strict=True)
    ]


def test(model: nn.Module, task: tasks.Task, length: int) -> Result:
    """Test a model on sequences of a length.

    Returns the share of right answers; that at the last eight steps; the share of
    sequences without a wrong answer; and how many steps from the first are all right
    in at least 90 % of the sequences.
    """
    drawn = torch.Generator().manual_seed(10_000 + length)
    right = torch.tensor(answers(model, *task.sample(TESTED, length, drawn)))
    right = right.double()
    whole = right.cummin(1).values.mean(0)
    return {
        "mean": round(right.mean().item(), 4),
        "last": round(right[:, -8:].mean().item(), 4),
        "whole": round(whole[-1].item(), 4),
        "to": int((whole >= 0.9).sum()),
    }


def job_of(task: str, model: str, layers: int, **more: Any) -> Job:
    """Return a job with a task's number of updates."""
    job = {"task": task, "model": model, "layers": layers}
    return job | {"updates": UPDATES[task], "seed": 0} | more


def search_jobs(task: str) -> list[Job]:
    """Return a job without a rate for each model that is tuned for a task."""
    half = {"tuning": True, "updates": UPDATES[task] // 2, "seed": 100}
    return [
        job_of(task, name, layers, **half)
        for name, layers in LAYERS.items()
        if task not in LONG or name in FEW
    ]


def main_jobs(task: str, best: dict[str, Result]) -> list[Job]:
    """Return the jobs of a task for all seeds, with the best settings found."""
    rates = {name: result["job"]["rate"] for name, result in best.items()}
    kinds = [name for name in best if name in PARALLEL]
    kind = best_of([best[name] for name in kinds])["job"]["model"]
    wanted = [(name, LAYERS[name]) for name in best if name not in kinds]
    depths = (DEPTH,) if task in LONG else DEPTHS
    wanted += [(kind, layers) for layers in depths]
    jobs = [job_of(task, name, layers, rate=rates[name]) for name, layers in wanted]
    if task not in LONG:
        changes = list(CHANGES)[:EVERYWHERE]
        jobs += [changed(task, 1, rates[BASE], name) for name in changes]
        jobs.append(job_of(task, kind + LAST_NORM, DEPTH, rate=rates[kind]))
    return with_seeds(jobs, SEEDS)


def changed(task: str, layers: int, rate: float, change: str) -> Job:
    """Return a job for the base with a change."""
    return job_of(task, BASE, layers, rate=rate, change=change)


def ablation_jobs(rate: float) -> list[Job]:
    """Return the jobs of ablations: the shell game, with one layer.

    Keys and values per layer need two; for comparison there is the base with two.
    """
    layers = dict.fromkeys(CHANGES, 1) | {PER_LAYER: 2}
    jobs = [job_of("cups", BASE, n, rate=rate) for n in (1, 2)]
    jobs += [changed("cups", n, rate, name) for name, n in layers.items()]
    return with_seeds(jobs, SEEDS)


def table(results: list[Result]) -> list[dict[str, Any]]:
    """Return a row for each model on each task: medians over seeds, and the worst."""
    groups: dict[tuple[str, str, str, int], list[Result]] = {}
    for result in results:
        job = result["job"]
        key = (job["task"], job["model"], job.get("change", ""), job["layers"])
        groups.setdefault(key, []).append(result)
    return [row(runs) for runs in groups.values()]


def row(runs: list[Result]) -> dict[str, Any]:
    """Return a row of the table, from the runs of one model on one task."""
    job = runs[0]["job"]
    tests = {
        length: {
            name: [run["tests"][length][name] for run in runs]
            for name in ("mean", "last", "whole", "to")
        }
        for length in runs[0]["tests"]
    }
    return {
        "task": job["task"],
        "model": job["model"],
        "change": job.get("change", ""),
        "layers": job["layers"],
        "rate": job["rate"],
        "parameters": runs[0]["parameters"],
        "updates": job["updates"],
        "seconds": median(run["seconds"] for run in runs),
        "updates_to_95": [run["summary"]["updates_to_95"] for run in runs],
        "median": {
            length: {name: round(median(values), 4) for name, values in test.items()}
            for length, test in tests.items()
        },
        "worst": {
            length: {name: min(values) for name, values in test.items()}
            for length, test in tests.items()
        },
    }


def times() -> list[dict[str, Any]]:
    """Time an update of every model on S3 at its final length, in turns."""
    task, goal = TASKS["S3"](), LESSON[-1]
    inputs, labels = task.sample(
        TOKENS // goal, goal, torch.Generator().manual_seed(0)
    )
    depths = set(LAYERS.items()) | {(name, n) for name in PARALLEL for n in DEPTHS}
    built = {
        (name, layers): build_model(job_of("S3", name, layers), len(task.words))
        for name, layers in sorted(depths)
    }
    taken = milliseconds(built, inputs, labels)
    return [
        {"model": name, "layers": layers, "milliseconds": time}
        for (name, layers), time in taken.items()
    ]


def main() -> None:
    """Run the missing jobs of each task, then write its record."""
    parser = options(
        __doc__, quick="all models on S3, 32 updates each; writes no record"
    )
    choose(parser, "--tasks", list(TASKS))
    parser.add_argument(
        "--times", action="store_true", help="only time updates, on an idle machine"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if args.quick:
        jobs = [
            job_of("S3", *model, rate=1e-3, updates=32) for model in LAYERS.items()
        ]
        jobs += [changed("S3", 1, 1e-3, name) | {"updates": 32} for name in CHANGES]
        done_anew("tracking-quick", jobs, run, args.workers)
        return
    if args.times:
        write_record(RESULTS / "tracking_times.json", {"table": times()})
        return
    for task in args.tasks:
        found = searched("tracking", search_jobs(task), run, args.workers)
        best = best_by_model(found)
        runs = done_once("tracking", main_jobs(task, best), run, args.workers)
        settings: dict[str, Any] = {"tokens": TOKENS, "tested": TESTED, "span": SPAN}
        settings |= SHAPE | settings_of_training()
        content = {"settings": settings, "table": table(runs), "runs": runs}
        if task == "cups":
            jobs = ablation_jobs(best[BASE]["job"]["rate"])
            runs = done_once("tracking", jobs, run, args.workers)
            content |= {"ablations": table(runs), "ablation_runs": runs}
        content["search"] = shown(found)
        write_record(RESULTS / f"tracking_{task}.json", content)


if __name__ == "__main__":
    main()
