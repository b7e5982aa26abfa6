"""Code execution, the paper's task in miniature: feedback against twice the depth.

    .venv/bin/python experiments/code_execution.py [--quick] [--workers N]

Programs have three variables and 30 statements, some 130 tokens; the answer is the
output of a print. All models can see the whole program. They are trained on programs
with a question after every statement, which is many times faster, and evaluated at
prints. One row is trained on prints alone, as in the paper.

A run trains on one thread until the model is right at 99.5 % of the prints of
held-out programs in five evaluations in a row, or until its CPU seconds are used up;
parallel models get twice as many. Programs grow once they are learned, or once a
quarter of the time has been spent on them. The weights of the best evaluation are
then evaluated on longer programs. Learning rates were searched with one seed.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/code_execution.json`, in two CPU hours.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from record import Job, Result, arguments, done_anew, done_once, write_record
from torch import Tensor, nn
from tracking import update

import fbt
from fbt.tasks import CodeExecution, accuracy

RESULTS = Path(fbt.__file__).parent / "measurements" / "code_execution.json"
STATEMENTS = [4, 8, 15, 30]  # lengths of the curriculum's programs
BATCH = 64  # programs per step
SPAN = 192  # in tokens; hardly any program of 30 statements is longer
PAIRS = ((1, 2), (2, 4))  # layers of feedback and of parallel models
SECONDS = 240  # training time of the feedback models
SHAPE = {"d_model": 64, "n_heads": 4}
RATES, DECAY = (5e-4, 1e-3, 2e-3), 0.01
TIMES = (1, 2, 4, 8)  # final evaluations, in multiples of the trained length
EVERY, LOOK = 25, 64  # steps between evaluations; programs per evaluation
SOLVED, IN_A_ROW = 0.995, 5  # a run ends at this accuracy, so many times in a row
READY = 0.95  # accuracy at which programs grow
KEPT = 24  # maximum points per curve in the record


def run(job: Job) -> Result:
    """Train and evaluate one model."""
    torch.manual_seed(job["seed"])
    task, lessons = CodeExecution(), CodeExecution(ask=job["ask"])
    variant = {"parallel": "parallel", "feedback": "shared-kv"}[job["model"]]
    options: dict[str, Any] = SHAPE | {"variant": variant, "n_layers": job["layers"]}
    options |= job["options"]
    model = fbt.LanguageModel(fbt.Config(len(task.words), **options))
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
        inputs, labels = lessons.sample(job["batch"], length, generator)
        seconds += update(model, optimizer, inputs, labels)
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


def job(model: str, layers: int, **changes: Any) -> Job:
    """Return a job that trains a model with the given number of layers."""
    seconds = SECONDS if model == "feedback" else 2 * SECONDS
    settings = {"task": "code", "model": model, "layers": layers, "rate": 1e-3}
    settings |= {"ask": "statements", "batch": BATCH}
    settings |= {"positions": "relative"} if model == "parallel" else {}
    settings |= {"lengths": STATEMENTS, "options": {"span": SPAN}}
    return settings | {"seed": 0, "seconds": seconds} | changes


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates: one seed, half the time."""
    feedback, parallel = PAIRS[-1]
    models = (("feedback", feedback, SECONDS // 2), ("parallel", parallel, SECONDS))
    return [
        job(model, layers, rate=rate, seconds=seconds)
        for model, layers, seconds in models
        for rate in RATES
    ]


def main_jobs(search: list[Result]) -> list[Job]:
    """Return jobs for both models at all depths, with the best learning rates."""
    jobs = []
    for feedback, parallel in PAIRS:
        for model, layers in (("feedback", feedback), ("parallel", parallel)):
            best = max((r for r in search if r["job"]["model"] == model), key=last)
            rate = best["job"]["rate"]
            jobs += [job(model, layers, rate=rate, seed=seed) for seed in range(3)]
            if (model, layers) == ("feedback", PAIRS[-1][0]):
                jobs.append(job(model, layers, rate=rate, ask="prints"))
    return jobs


def last(result: Result) -> float:
    """Return the accuracy at the trained length."""
    return float(result["summary"]["accuracy"][str(result["job"]["lengths"][-1])])


def thinned(result: Result) -> Result:
    """Return a result with fewer points in its curve, including the last one."""
    curve = result["curve"]
    every = -(-len(curve) // KEPT)
    return result | {"curve": curve[::-1][::every][::-1]}


def longest_first(jobs: list[Job]) -> list[Job]:
    """Sort jobs by the time they may take, longest first."""
    return sorted(jobs, key=lambda job: job["seconds"], reverse=True)


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(
        __doc__, quick="two jobs of one minute; writes no record"
    )
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if quick:
        pair = [job("feedback", 1, seconds=60), job("parallel", 2, seconds=60)]
        done_anew("code-quick", pair, run, workers)
        return
    search = done_once("code", search_jobs(), run, workers)
    runs = done_once("code", longest_first(main_jobs(search)), run, workers)
    curve = ["steps", "tokens", "seconds", "accuracy"]
    content = {
        "curve": curve,
        "runs": [thinned(r) for r in runs],
        "search": [thinned(r) for r in search],
    }
    write_record(RESULTS, content)


if __name__ == "__main__":
    main()
