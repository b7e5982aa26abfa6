"""State tracking: feedback against parallel transformers and an LSTM, with ablations.

    .venv/bin/python experiments/tracking.py [--quick] [--workers N]

First, a search with one seed finds each model's settings. Then all models are trained
on all tasks with the best settings, parallel ones for up to 1.5 times as long, and
one task is used for ablations.

A run trains on one thread until the model is right at 99.5 % of the steps of held-out
sequences of 64 in five evaluations in a row, or until its CPU seconds are used up.
The weights of the best evaluation are then evaluated at up to eight times that
length.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/tracking.json`, in 2 CPU hours.
"""

import copy
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from baselines import LSTM, LSTMWithAttention, Transformer
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
LENGTHS = (8, 16, 32, 64)  # the curriculum's sequences; the last is the goal
TIMES = (1, 2, 4, 8)  # final evaluations, in multiples of the trained length
BATCH, TOKENS = 32, 1024  # minimum sequences per step; minimum tokens per step
EVERY, LOOK = 25, 64  # steps between evaluations; sequences per evaluation
SOLVED, IN_A_ROW = 0.995, 5  # a run ends at this accuracy, so many times in a row
READY = 0.95  # accuracy at which sequences grow
SHAPE = {"d_model": 64, "n_heads": 4}
RATES, DECAY = (5e-4, 1e-3, 2e-3), 0.01
DEPTHS, DEPTH = (1, 2, 4, 8), 4
SCHEMES = ("relative", "rotary", "absolute", "none")
DEPTHS_FEEDBACK = (1, 2, 4)
# Tasks with all schemes, and with all depths for feedback and the first two schemes.
MAIN = ("parity", "S3")
KEPT = 24  # maximum points per curve in the record


def build(job: Job, task: Task) -> nn.Module:
    """Build the model of a job."""
    vocab_size, layers = len(task.words), job["layers"]
    if job["model"] == "lstm":
        return LSTM(vocab_size, SHAPE["d_model"], layers)
    if job["model"] == "LSTM and attention":
        return LSTMWithAttention(vocab_size, **SHAPE)
    if job["model"] == "parallel" and job["positions"] != "relative":
        longest = TIMES[-1] * LENGTHS[-1]
        scheme = job["positions"]
        return Transformer(
            vocab_size, **SHAPE, n_layers=layers, positions=scheme, longest=longest
        )
    variant = {"parallel": "parallel", "feedback": "shared-kv"}[job["model"]]
    options: dict[str, Any] = SHAPE | {"variant": variant, "n_layers": layers}
    options |= {"span": LENGTHS[-1]} | job.get("options", {})
    model = fbt.LanguageModel(fbt.Config(vocab_size, **options))
    return zero_key_biases(model) if job.get("flat") else model


def zero_key_biases(model: fbt.LanguageModel) -> fbt.LanguageModel:
    """Set the key biases to zero: attention starts as a mean over the span."""
    for name, parameter in model.named_parameters():
        if name.endswith(".key_bias"):
            nn.init.zeros_(parameter)
    return model


def run(job: Job) -> Result:
    """Train and evaluate one model.

    Sequences are short at first. They grow once they are learned, or once a quarter
    of the time has been spent on them.
    """
    torch.manual_seed(job["seed"])
    task = TASKS[job["task"]]()
    lessons = tasks.CodeExecution(ask=job["ask"]) if "ask" in job else task
    model = build(job, task)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=job["rate"], weight_decay=DECAY
    )
    generator = torch.Generator().manual_seed(1_000_000 + job["seed"])
    lengths = job["lengths"]
    held_out = {
        length: task.sample(LOOK, length, torch.Generator().manual_seed(length))
        for length in lengths
    }
    # Steps, tokens, seconds, accuracy.
    curve: list[tuple[int, int, float, float]] = []
    seconds, steps, tokens, lesson, lesson_start, streak = 0.0, 0, 0, 0, 0.0, 0
    best, weights = -1.0, model.state_dict()
    while streak < IN_A_ROW and seconds < job["seconds"]:
        length = lengths[lesson]
        batch = job.get("batch", max(BATCH, TOKENS // length))
        inputs, labels = lessons.sample(batch, length, generator)
        start = time.process_time()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.process_time() - start
        steps, tokens = steps + 1, tokens + inputs.numel()
        if steps % EVERY:
            continue
        score = evaluate(model, *held_out[lengths[-1]])
        curve.append((steps, tokens, round(seconds, 2), score))
        streak = streak + 1 if score >= SOLVED else 0
        if score >= best:
            best, weights = score, copy.deepcopy(model.state_dict())
        if lesson + 1 < len(lengths) and (
            seconds - lesson_start > job["seconds"] / 4
            or evaluate(model, *held_out[length]) >= READY
        ):
            lesson, lesson_start = lesson + 1, seconds
    model.load_state_dict(weights)
    accuracies = {}
    for length in (times * lengths[-1] for times in TIMES):
        unseen = torch.Generator().manual_seed(10_000 + length)
        score = evaluate(model, *task.sample(LOOK, length, unseen))
        accuracies[str(length)] = score
    seconds_to_95 = next((at for _, _, at, score in curve if score >= 0.95), None)
    return {
        "summary": {"accuracy": accuracies, "seconds_to_95": seconds_to_95},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "curve": curve,
    }


@torch.no_grad()
def evaluate(model: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    """Return the accuracy on given sequences.

    Sequences are evaluated a few at a time, since long ones take much memory.
    """
    logits = torch.cat([model(part) for part in tokens.split(16)])
    return round(accuracy(logits, labels), 4)


def recurrent(task: str, model: str, **changes: Any) -> Job:
    """Return a job for a feedback model or an LSTM."""
    job = {"task": task, "model": model, "layers": 1, "rate": 1e-3}
    job |= {"lengths": curriculum(task), "seed": 0, "seconds": SECONDS[task]}
    return job | changes


def parallel(task: str, positions: str, **changes: Any) -> Job:
    """Return a job for a parallel transformer."""
    job: Job = {"task": task, "model": "parallel", "positions": positions}
    job |= {"layers": DEPTH, "rate": 1e-3, "lengths": curriculum(task), "seed": 0}
    return job | {"seconds": min(120, 3 * SECONDS[task] // 2)} | changes


def curriculum(task: str) -> list[int]:
    """Return the lengths of a task's sequences, in the unit that the task counts.

    Copying takes two steps per symbol.
    """
    return {"copy": [4, 8, 16, 32], "A5": [2, 4, *LENGTHS]}.get(task, list(LENGTHS))


def ablation_jobs() -> list[Job]:
    """Return jobs for the shell game with two layers and one change at a time."""
    jobs: dict[str, Job] = {"as it is": {}}
    jobs |= {
        f"memory: {name}": {"options": {"memory": name}}
        for name in ("embedding", "top", "uniform")
    }
    jobs |= {f"span {span}": {"options": {"span": span}} for span in (1, 2, 8)}
    jobs |= {
        "memory not normalised": {"options": {"memory_norm": False}},
        # Its steps run in Python, so the same number of them takes longer.
        "keys and values per layer": {
            "options": {"variant": "feedback"},
            "seconds": 2 * SECONDS["cups"],
        },
        "no curriculum": {"lengths": list(LENGTHS[-1:])},
        "key biases from zero": {"flat": True},
    }
    return [
        recurrent("cups", "feedback", layers=2, name=name, **changes, seed=seed)
        for name, changes in jobs.items()
        for seed in range(3)
    ]


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates: every model on every task, one seed.

    On the main tasks they also vary the other settings of parallel models.
    """
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
            jobs += [
                parallel(task, scheme, seconds=half[task], **change)
                for change in changes
            ]
    return jobs


def main_jobs(search: list[Result]) -> list[Job]:
    """Return jobs for all models on all tasks with the best settings.

    Among settings with equal accuracy the fastest is best.
    """
    best: dict[tuple[str, ...], tuple[tuple[float, float], Job]] = {}
    for result in search:
        job = result["job"]
        key = (job["task"], job["model"], job.get("positions", ""))
        score = (round(last(result), 2), -result["seconds"])
        if key not in best or score > best[key][0]:
            names = ("rate", "lengths", "flat")
            best[key] = (score, {name: job[name] for name in names if name in job})
    jobs = []
    for (task, model, positions), (_, settings) in best.items():
        for layers in depths(task, model, positions):
            if model == "parallel":
                job = parallel(task, positions, layers=layers, **settings)
            else:
                job = recurrent(task, model, layers=layers, **settings)
            seeds = 5 if (model, layers) == ("feedback", 1) and task in MAIN else 3
            jobs += [job | {"seed": seed} for seed in range(seeds)]
    return jobs


def depths(task: str, model: str, scheme: str) -> tuple[int, ...]:
    """Return the numbers of layers to train a model with.

    Copying also uses one parallel layer, as many as the feedback model has.
    """
    if model != "parallel":
        return DEPTHS_FEEDBACK if model == "feedback" and task in MAIN else (1,)
    if task in MAIN and scheme in SCHEMES[:2]:
        return DEPTHS
    return (1, DEPTH) if task == "copy" else (DEPTH,)


def quick_jobs() -> list[Job]:
    """Return a job per main task for feedback, LSTM and parallel transformer."""
    jobs = []
    for task in MAIN:
        jobs += [
            recurrent(task, "feedback"),
            recurrent(task, "lstm"),
            parallel(task, "relative", seconds=20),
        ]
    return jobs


def last(result: Result) -> float:
    """Return the accuracy at the trained length."""
    return float(result["summary"]["accuracy"][str(result["job"]["lengths"][-1])])


def table(results: list[Result]) -> list[dict[str, Any]]:
    """Return medians over the seeds of each model on each task, and their spread.

    "at_tokens" and "at_seconds" are the accuracies on held-out sequences after as
    many tokens or seconds as the task's feedback runs took, in the median.
    """
    groups: dict[tuple[str, str, str, int], list[Result]] = {}
    for result in results:
        job = result["job"]
        key = (job["task"], job["model"], job.get("positions", ""), job["layers"])
        groups.setdefault(key, []).append(result)
    return [
        row(runs, groups[task, "feedback", "", 1])
        for (task, *_), runs in groups.items()
    ]


def row(runs: list[Result], feedback: list[Result]) -> dict[str, Any]:
    """Return a row of the table, from runs of a model and of feedback on one task."""
    job, summaries = runs[0]["job"], [run["summary"] for run in runs]
    accuracies = {
        length: [s["accuracy"][length] for s in summaries]
        for length in summaries[0]["accuracy"]
    }
    tokens, seconds = (
        median(run[name] for run in feedback) for name in ("tokens", "seconds")
    )
    return {
        "task": job["task"],
        "model": f"{job.get('positions', '')} {job['model']}".strip(),
        "layers": job["layers"],
        "seeds": len(runs),
        "parameters": runs[0]["parameters"],
        "seconds": median(run["seconds"] for run in runs),
        "tokens": median(run["tokens"] for run in runs),
        "seconds_to_95": [summary["seconds_to_95"] for summary in summaries],
        "accuracy": {
            length: round(median(values), 4) for length, values in accuracies.items()
        },
        "spread": {
            length: [min(values), max(values)]
            for length, values in accuracies.items()
        },
        "at_tokens": median(reached(run, 1, tokens) for run in runs),
        "at_seconds": median(reached(run, 2, seconds) for run in runs),
    }


def reached(result: Result, column: int, limit: float) -> float:
    """Return the best accuracy of a curve up to a limit.

    The limit is one of tokens (column 1) or of seconds (column 2).
    """
    points = [point for point in result["curve"] if point[column] <= limit]
    return max((point[-1] for point in points), default=0.0)


def thinned(result: Result) -> Result:
    """Return a result with fewer points in its curve, including the last one."""
    curve = result["curve"]
    every = -(-len(curve) // KEPT)
    return result | {"curve": curve[::-1][::every][::-1]}


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(
        __doc__, quick="six jobs, two minutes; writes no record"
    )
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if quick:
        done_anew("tracking-quick", quick_jobs(), run, workers)
        return
    # Run long jobs first, so that no core waits for the last one.
    first = longest_first(search_jobs() + ablation_jobs())
    done_once("tracking", first, run, workers)
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
            "search": [
                {name: r[name] for name in r if name != "curve"} for r in search
            ],
        },
    )


def longest_first(jobs: list[Job]) -> list[Job]:
    """Sort jobs by the time they may take, longest first."""
    return sorted(jobs, key=lambda job: job["seconds"], reverse=True)


if __name__ == "__main__":
    main()
