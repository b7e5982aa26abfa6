"""State tracking: feedback against parallel transformers and an LSTM, and what of feedback does it.

    .venv/bin/python experiments/tracking.py [--quick] [--workers N]

A search for each model's settings, one seed, then all models on all tasks with what was found, parallel ones
with up to half as much time again; and the ablations of one task. A run trains on one thread until it is
right at 99.5 % of the steps of held-out sequences of 64, five looks in a row, or until its CPU seconds are
spent; the weights of its best look are read at up to eight times that length. Results are kept in the cache
folder: run again after an interruption it goes on. Writes `fbt/measurements/tracking.json`, in 2 CPU hours.
"""

import copy
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from baselines import LSTM, Transformer
from record import Job, Result, arguments, done_anew, done_once, write_record
from torch import Tensor, nn

import fbt
from fbt import tasks
from fbt.tasks import Task, accuracy

RESULTS = Path(fbt.__file__).parent / "measurements" / "tracking.json"
TASKS = {
    "parity": lambda: tasks.Parity(),
    "S3": lambda: tasks.Permutations("S3"),
    "cups": lambda: tasks.ShellGame(5),
    "turns": lambda: tasks.Walk(5, facing=True, heading=True),
    "A5": lambda: tasks.Permutations("A5"),
    "copy": lambda: tasks.Copy(),
    "code": lambda: tasks.CodeExecution(),
}
SECONDS = {"parity": 20, "S3": 20, "cups": 40, "turns": 60, "A5": 120, "copy": 20}
LENGTHS = (8, 16, 32, 64)  # of the curriculum's sequences; the last is what is to be learned
TIMES = (1, 2, 4, 8)  # how much longer sequences are at the end
BATCH, TOKENS = 32, 1024  # sequences of a step, more of them while they have fewer steps than these together
EVERY, LOOK = 25, 64  # steps between two looks, and sequences of a look
SOLVED, IN_A_ROW, READY = 0.995, 5, 0.95  # accuracy at which a run ends, and at which sequences grow
SHAPE = {"d_model": 64, "n_heads": 4}
RATES, DECAY = (5e-4, 1e-3, 2e-3), 0.01
DEPTHS, DEPTH = (1, 2, 4, 8), 4
SCHEMES = ("relative", "rotary", "absolute", "none")
DEPTHS_FEEDBACK = (1, 2, 4)
MAIN = ("parity", "S3")  # the tasks with all schemes, and with all depths for feedback and the first two
KEPT = 24  # points of a curve in the record


def build(job: Job, task: Task) -> nn.Module:
    """The model of a job."""
    words, layers = len(task.words), job["layers"]
    if job["model"] == "lstm":
        return LSTM(words, SHAPE["d_model"], layers)
    if job["model"] == "parallel" and job["positions"] != "relative":
        return Transformer(
            words, **SHAPE, n_layers=layers, positions=job["positions"], longest=TIMES[-1] * LENGTHS[-1]
        )
    variant = {"parallel": "parallel", "feedback": "shared-kv"}[job["model"]]
    config = {"variant": variant, "n_layers": layers, "span": LENGTHS[-1], **SHAPE} | job.get("options", {})
    model = fbt.LanguageModel(fbt.Config(words, **config))
    return flatten(model) if job.get("flat") else model


def flatten(model: fbt.LanguageModel) -> fbt.LanguageModel:
    """Let the key biases start at zero: attention starts as a mean over the span."""
    for name, parameter in model.named_parameters():
        if name.endswith(".key_bias"):
            nn.init.zeros_(parameter)
    return model


def run(job: Job) -> Result:
    """Train and read one model.

    Sequences are short first, and grow when they are learned, or when a quarter of the time is spent on them.
    """
    torch.manual_seed(job["seed"])
    task = TASKS[job["task"]]()
    lessons = tasks.CodeExecution(ask=job["ask"]) if "ask" in job else task
    model = build(job, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["rate"], weight_decay=DECAY)
    generator = torch.Generator().manual_seed(1_000_000 + job["seed"])
    lengths = job["lengths"]
    held_out = {
        length: task.sample(LOOK, length, torch.Generator().manual_seed(length)) for length in lengths
    }
    curve: list[tuple[int, int, float, float]] = []  # steps, tokens, seconds, accuracy
    seconds, steps, tokens, lesson, since, streak = 0.0, 0, 0, 0, 0.0, 0
    best, weights = -1.0, model.state_dict()
    while streak < IN_A_ROW and seconds < job["seconds"]:
        length = lengths[lesson]
        batch = job.get("batch", max(BATCH, TOKENS // length))
        words, labels = lessons.sample(batch, length, generator)
        start = time.process_time()
        loss = F.cross_entropy(model(words).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.process_time() - start
        steps, tokens = steps + 1, tokens + words.numel()
        if steps % EVERY:
            continue
        right = read(model, *held_out[lengths[-1]])
        curve.append((steps, tokens, round(seconds, 2), right))
        streak = streak + 1 if right >= SOLVED else 0
        if right >= best:
            best, weights = right, copy.deepcopy(model.state_dict())
        if lesson + 1 < len(lengths) and (
            seconds - since > job["seconds"] / 4 or read(model, *held_out[length]) >= READY
        ):
            lesson, since = lesson + 1, seconds
    model.load_state_dict(weights)
    reached = {}
    for length in (times * lengths[-1] for times in TIMES):
        unseen = task.sample(LOOK, length, torch.Generator().manual_seed(10_000 + length))
        reached[str(length)] = read(model, *unseen)
    there = [at for _, _, at, right in curve if right >= 0.95]
    return {
        "summary": {"accuracy": reached, "seconds_to_95": there[0] if there else None},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "curve": curve,
    }


@torch.no_grad()
def read(model: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    """Accuracy on given sequences, a few at a time, since long ones take much memory."""
    logits = torch.cat([model(part) for part in tokens.split(16)])
    return round(accuracy(logits, labels), 4)


def recurrent(task: str, model: str, **changes: Any) -> Job:
    """A feedback model's or an LSTM's job."""
    job = {"task": task, "model": model, "layers": 1, "rate": 1e-3, "lengths": curriculum(task), "seed": 0}
    return job | {"seconds": SECONDS[task]} | changes


def parallel(task: str, positions: str, **changes: Any) -> Job:
    """A parallel transformer's job."""
    job = {"task": task, "model": "parallel", "positions": positions, "layers": DEPTH, "rate": 1e-3}
    job |= {"lengths": curriculum(task), "seed": 0, "seconds": min(120, 3 * SECONDS[task] // 2)}
    return job | changes


def curriculum(task: str) -> list[int]:
    """The lengths of a task's sequences, in what the task counts: copying takes two steps for each symbol."""
    return {"copy": [4, 8, 16, 32], "A5": [2, 4, *LENGTHS]}.get(task, list(LENGTHS))


def ablation_jobs() -> list[Job]:
    """The shell game with two layers and one thing changed at a time."""
    jobs: dict[str, Job] = {"as it is": {}}
    jobs |= {f"memory: {name}": {"options": {"memory": name}} for name in ("embedding", "top", "uniform")}
    jobs |= {f"span {span}": {"options": {"span": span}} for span in (1, 2, 8)}
    jobs |= {
        "memory not normalised": {"options": {"memory_norm": False}},
        # Its steps run in Python: the same number of them takes longer.
        "keys and values per layer": {"options": {"variant": "feedback"}, "seconds": 2 * SECONDS["cups"]},
        "no curriculum": {"lengths": list(LENGTHS[-1:])},
        "key biases from zero": {"flat": True},
    }
    return [
        recurrent("cups", "feedback", layers=2, name=name, **changes, seed=seed)
        for name, changes in jobs.items()
        for seed in range(3)
    ]


def search_jobs() -> list[Job]:
    """Rates for every model on every task, one seed; on the main tasks also the rest of a parallel recipe."""
    half = {task: max(20, SECONDS[task] // 2) for task in SECONDS}
    jobs = [
        recurrent(task, model, rate=rate, seconds=half[task])
        for task in SECONDS
        for model in ("feedback", "lstm")
        for rate in RATES
    ]
    for task in SECONDS:
        for scheme in SCHEMES if task in MAIN else SCHEMES[:1]:
            changes: list[dict[str, Any]] = [{"rate": rate} for rate in RATES]
            if task in MAIN:
                changes.append({"lengths": list(LENGTHS[-1:])})
                changes += [{"flat": True}] if scheme == "relative" else []
            jobs += [parallel(task, scheme, seconds=half[task], **change) for change in changes]
    return jobs


def main_jobs(search: list[Result]) -> list[Job]:
    """All models on all tasks with the settings that were best, or as good and faster."""
    best: dict[tuple[str, ...], tuple[tuple[float, float], Job]] = {}
    for result in search:
        job = result["job"]
        key = (job["task"], job["model"], job.get("positions", ""))
        score = (round(last(result), 2), -result["seconds"])
        if key not in best or score > best[key][0]:
            best[key] = (score, {name: job[name] for name in ("rate", "lengths", "flat") if name in job})
    jobs = []
    for (task, model, positions), (_, found) in best.items():
        for layers in depths(task, model, positions):
            if model == "parallel":
                job = parallel(task, positions, layers=layers, **found)
            else:
                job = recurrent(task, model, layers=layers, **found)
            seeds = 5 if (model, layers) == ("feedback", 1) and task in MAIN else 3
            jobs += [job | {"seed": seed} for seed in range(seeds)]
    return jobs


def depths(task: str, model: str, scheme: str) -> tuple[int, ...]:
    """Layers of a model; copying also with one parallel layer, as many as the feedback model has."""
    if model != "parallel":
        return DEPTHS_FEEDBACK if model == "feedback" and task in MAIN else (1,)
    if task in MAIN and scheme in SCHEMES[:2]:
        return DEPTHS
    return (1, DEPTH) if task == "copy" else (DEPTH,)


def quick_jobs() -> list[Job]:
    """A feedback model, an LSTM and a parallel transformer on the main tasks."""
    jobs = []
    for task in MAIN:
        jobs += [recurrent(task, "feedback"), recurrent(task, "lstm"), parallel(task, "relative", seconds=20)]
    return jobs


def last(result: Result) -> float:
    """Accuracy at the trained length."""
    return float(result["summary"]["accuracy"][str(result["job"]["lengths"][-1])])


def table(results: list[Result]) -> list[dict[str, Any]]:
    """Medians over the seeds of each model on each task, and the spread of the accuracies.

    "at_tokens" and "at_seconds" are the accuracies on held-out sequences with what the task's feedback runs
    took in the median.
    """
    groups: dict[tuple[str, str, str, int], list[Result]] = {}
    for result in results:
        job = result["job"]
        groups.setdefault((job["task"], job["model"], job.get("positions", ""), job["layers"]), []).append(
            result
        )
    return [row(runs, groups[task, "feedback", "", 1]) for (task, *_), runs in groups.items()]


def row(runs: list[Result], feedback: list[Result]) -> dict[str, Any]:
    """A row of the table: the runs of one model on one task, and those of feedback on the same task."""
    job, summaries = runs[0]["job"], [run["summary"] for run in runs]
    accuracies = {length: [s["accuracy"][length] for s in summaries] for length in summaries[0]["accuracy"]}
    tokens, seconds = (median(run[name] for run in feedback) for name in ("tokens", "seconds"))
    return {
        "task": job["task"],
        "model": f"{job.get('positions', '')} {job['model']}".strip(),
        "layers": job["layers"],
        "seeds": len(runs),
        "parameters": runs[0]["parameters"],
        "seconds": median(run["seconds"] for run in runs),
        "tokens": median(run["tokens"] for run in runs),
        "seconds_to_95": [summary["seconds_to_95"] for summary in summaries],
        "accuracy": {length: round(median(values), 4) for length, values in accuracies.items()},
        "spread": {length: [min(values), max(values)] for length, values in accuracies.items()},
        "at_tokens": median(reached(run, 1, tokens) for run in runs),
        "at_seconds": median(reached(run, 2, seconds) for run in runs),
    }


def reached(result: Result, column: int, most: float) -> float:
    """The best accuracy of a curve while its column, tokens (1) or seconds (2), is at most so much."""
    return max((point[-1] for point in result["curve"] if point[column] <= most), default=0.0)


def thinned(result: Result) -> Result:
    """A result with fewer points in its curve, the last one among them."""
    curve = result["curve"]
    every = -(-len(curve) // KEPT)
    return result | {"curve": curve[::-1][::every][::-1]}


def main() -> None:
    """Run what is missing, then write the record."""
    quick, workers = arguments(__doc__, quick="six jobs, two minutes; writes no record")
    torch.set_num_threads(1)  # also what the record says
    fbt.build_native()
    if quick:
        done_anew("tracking-quick", quick_jobs(), run, workers)
        return
    # Long jobs first, so that cores do not wait for the last one.
    done_once("tracking", longest_first(search_jobs() + ablation_jobs()), run, workers)
    search = done_once("tracking", search_jobs(), run, workers)
    done_once("tracking", longest_first(main_jobs(search)), run, workers)
    runs = done_once("tracking", main_jobs(search), run, workers)
    ablations = done_once("tracking", ablation_jobs(), run, workers)
    settings: dict[str, Any] = {
        "batch": BATCH,
        "tokens": TOKENS,
        "every": EVERY,
        "look": LOOK,
        "solved": SOLVED,
        "in_a_row": IN_A_ROW,
    }
    settings |= {"ready": READY, "weight_decay": DECAY, "shape": SHAPE}
    write_record(
        RESULTS,
        {
            "settings": settings,
            "curve": ["steps", "tokens", "seconds", "accuracy"],
            "table": table(runs),
            "runs": [thinned(result) for result in runs],
            "ablations": [thinned(result) for result in ablations],
            "search": [{name: r[name] for name in r if name != "curve"} for r in search],
        },
    )


def longest_first(jobs: list[Job]) -> list[Job]:
    """Jobs by the time they may take."""
    return sorted(jobs, key=lambda job: job["seconds"], reverse=True)


if __name__ == "__main__":
    main()
