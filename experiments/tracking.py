"""State tracking: feedback beside recurrences and transformers, on equal terms.

    .venv/bin/python experiments/tracking.py [--quick] [--workers N] [--tasks S3 A5]
    .venv/bin/python experiments/tracking.py --times

For a task every model sees the same lessons: as many updates, 1,024 tokens in each
(2,048 in copying, whose symbols take two), in the same order. Sequences grow, and
have their final length in half of all updates. Weights are those after the last one.

Each model's learning rate for each task is searched first, with a seed and sequences
of its own and half the updates: three rates, and further ones while the best lies at
an edge. The best kind of positions for parallel transformers is found likewise, with
four layers; other depths take over both. Then all models run with five seeds, and are
tested on sequences of up to eight times the length.

Results are cached: run the same command again to continue after an interruption.
Writes a record for each task, such as `fbt/measurements/tracking_S3.json`. The shell
game's also has ablations. The seconds in them are of a machine that may have been
busy; `--times` measures updates in turns and writes `tracking_times.json`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from baselines import LSTM, POSITIONS, LSTMWithAttention, Transformer
from record import Job, Result, done_anew, done_once, options, write_record
from recurrences import BlockRecurrent, LinearRecurrence
from torch import Tensor, nn

import fbt
from fbt import tasks
from fbt.tasks.task import IGNORE

RESULTS = Path(fbt.__file__).parent / "measurements"
TASKS = {
    "S3": lambda: tasks.Permutations("S3"),
    "parity": lambda: tasks.Parity(),
    "copy": lambda: tasks.Copy(),
    "cups": lambda: tasks.ShellGame(5),
    "A5": lambda: tasks.Permutations("A5"),
    "turns": lambda: tasks.Walk(5, facing=True, heading=True),
}
UPDATES = {"S3": 800, "parity": 800, "cups": 1200, "copy": 800}
UPDATES |= {"A5": 4000, "turns": 3000}
# Lengths of sequences, in the unit that the task counts: copying takes two steps per
# symbol. The last one is the goal.
LESSONS = {"copy": (4, 8, 16, 32), "A5": (2, 4, 8, 16, 32, 64)}
LESSON, TOKENS = (8, 16, 32, 64), 1024  # lengths of an update's sequences, summed
TIMES = (1, 2, 4, 8)  # lengths of the tests, in multiples of the goal
WARMUP, FALL, DECAY = 0.05, 0.4, 0.01  # parts of training; weight decay
RATES, LOWEST, HIGHEST = (5e-4, 1e-3, 2e-3), 6e-5, 3.3e-2  # the search doubles them
SEEDS, POINTS = 5, 16  # points of a curve
TESTED = 64  # sequences in a test
ROUNDS = 25  # of timing
SHAPE = {"d_model": 64, "n_heads": 4}
SPAN = 64  # of feedback models
DEPTHS, DEPTH = (1, 4, 8), 4
SCHEMES = ("relative", *POSITIONS)

# Maps a vocabulary's size and a number of layers to a model.
Build = Callable[[int, int], nn.Module]


def feedback(**options: Any) -> Build:
    """Return what builds fbt's feedback model with some options."""

    def build(vocab_size: int, layers: int) -> nn.Module:
        sizes: dict[str, Any] = SHAPE | {"n_layers": layers, "span": SPAN}
        return fbt.LanguageModel(fbt.Config(vocab_size, **sizes | options))

    return build


def parallel(positions: str, loops: int = 1) -> Build:
    """Return what builds a parallel transformer with a kind of positions."""
    if positions == "relative":
        return feedback(variant="parallel")
    return lambda vocab_size, layers: Transformer(
        vocab_size,
        **SHAPE,
        n_layers=layers,
        positions=positions,
        longest=TIMES[-1] * LESSON[-1],
        loops=loops,
    )


def linear(writes: int) -> Build:
    """Return what builds a linear recurrence."""
    return lambda vocab_size, layers: LinearRecurrence(
        vocab_size, **SHAPE, n_layers=layers, writes=writes
    )


def without_last_norm(build: Build) -> Build:
    """Return what builds the same model without the norm before its head."""

    def changed(vocab_size: int, layers: int) -> nn.Module:
        model = build(vocab_size, layers)
        model.norm = nn.Identity()
        return model

    return changed


# What builds each model, and its number of layers.
MODELS: dict[str, tuple[Build, int]] = {
    "feedback": (feedback(), 1),
    "feedback, no last norm": (without_last_norm(feedback()), 1),
    "LSTM": (lambda vocab, layers: LSTM(vocab, SHAPE["d_model"], layers), 1),
    "LSTM and attention": (lambda vocab, _: LSTMWithAttention(vocab, **SHAPE), 1),
    "DeltaNet": (linear(writes=1), 1),
    "DeltaProduct": (linear(writes=2), 1),
    "scalar SSM": (linear(writes=0), 2),
    "block-recurrent": (
        lambda v, layers: BlockRecurrent(v, **SHAPE, n_layers=layers),
        2,
    ),
    "looped": (parallel("rotary", loops=2), 2),
}
KINDS = {f"parallel, {kind}": parallel(kind) for kind in SCHEMES}
MODELS |= {name: (build, DEPTH) for name, build in KINDS.items()}
LAST_NORM = "{}, no last norm"
BASE = LAST_NORM.format("feedback")
PER_LAYER = "keys and values per layer"
# One change each to the base, which keeps its learning rate: options of the model,
# and by name two changes of training and start, and three things in place of the last
# norm. The first ones run on all tasks.
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
    "last norm, times 4": {},
    "one scale for all": {},
    "one scale for all, times 4": {},
}
EVERYWHERE = 2
# The longest tasks have fewer models.
FEW = ["feedback", BASE, "LSTM", "LSTM and attention", "DeltaProduct"]
FEW += ["parallel, relative", "parallel, absolute"]
LONG = ("A5", "turns")


class Rescaled(nn.Module):
    """What may stand in place of the last norm: a norm or one scale, times a number.

    Args:
        norm: a module, or None to divide all outputs of a batch by the same number,
            the root of their mean square.
        factor: multiplies the result.
    """

    def __init__(self, norm: nn.Module | None, factor: float) -> None:
        super().__init__()
        self.norm, self.factor = norm, factor

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        if self.norm is None:
            return self.factor * x / x.square().mean().sqrt().detach()
        return self.factor * self.norm(x)


def build(job: Job, vocab_size: int) -> nn.Module:
    """Build the model of a job."""
    name, layers, change = job["model"], job["layers"], job.get("change")
    if change is not None:
        model = without_last_norm(feedback(**CHANGES[change]))(vocab_size, layers)
        if change == "key biases from zero":
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(".key_bias"):
                    nn.init.zeros_(parameter)
        if change.startswith("one scale"):
            model.norm = Rescaled(None, 4.0 if "times" in change else 1.0)
        if change.startswith("last norm"):
            model.norm = Rescaled(nn.LayerNorm(SHAPE["d_model"]), 4.0)
        return model
    if name in MODELS:
        return MODELS[name][0](vocab_size, layers)
    kind = name.removesuffix(LAST_NORM.format(""))
    return without_last_norm(MODELS[kind][0])(vocab_size, layers)


def run(job: Job) -> Result:
    """Train and test one model."""
    task, tuning = TASKS[job["task"]](), job.get("tuning", False)
    torch.manual_seed(job["seed"])
    model = build(job, len(task.words))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY)
    goal = LESSONS.get(job["task"], LESSON)[-1]
    drawn = torch.Generator().manual_seed(30_000 if tuning else 20_000)
    held_out = task.sample(TESTED, goal, drawn)
    curve: list[tuple[int, float]] = []
    seconds, updates = 0.0, job["updates"]
    for step, (inputs, labels) in enumerate(lessons(job), start=1):
        for group in optimizer.param_groups:
            group["lr"] = job["rate"] * share_of_rate(step / updates)
        seconds += update(model, optimizer, inputs, labels)
        if step % (updates // POINTS) == 0:
            right = answers(model, *held_out)
            curve.append((step, round(mean(map(mean, right)), 4)))
    solved = next((step for step, score in curve if score >= 0.95), None)
    result: Result = {
        "summary": {"accuracy": curve[-1][1], "updates_to_95": solved},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 2),
        "curve": curve,
    }
    if not tuning:
        result["tests"] = {
            str(times * goal): test(model, task, times * goal) for times in TIMES
        }
    return result


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> float:
    """Update a model, and return the CPU seconds that it took."""
    start = time.process_time()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.process_time() - start


def lessons(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a task; they depend on the seed, not on the model."""
    task, lengths = TASKS[job["task"]](), LESSONS.get(job["task"], LESSON)
    offset = 2_000_000 if job.get("tuning") else 1_000_000
    generator = torch.Generator().manual_seed(offset + job["seed"])
    *short, goal = lengths
    short_updates = 0 if job.get("change") == "no curriculum" else job["updates"] // 2
    for number in range(short_updates):
        length = short[number * len(short) // short_updates]
        yield task.sample(TOKENS // length, length, generator)
    for _ in range(short_updates, job["updates"]):
        yield task.sample(TOKENS // goal, goal, generator)


def share_of_rate(time: float) -> float:
    """Return the factor of the learning rate at a time in (0, 1]: up, level, down."""
    return min(1.0, time / WARMUP, (1 + 1e-9 - time) / FALL)


@torch.no_grad()
def answers(model: nn.Module, tokens: Tensor, labels: Tensor) -> list[list[bool]]:
    """Return whether each labelled step is right, a list for each sequence.

    Sequences go a few at a time, since long ones take much memory.
    """
    logits = torch.cat([model(part) for part in tokens.split(16)])
    right = logits.argmax(-1) == labels
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


def job_of(task: str, model: str, layers: int, rate: float, **more: Any) -> Job:
    """Return a job."""
    job = {"task": task, "model": model, "layers": layers, "rate": rate}
    return job | {"updates": UPDATES[task], "seed": 0} | more


def models_for(task: str) -> list[str]:
    """Return the models that are tuned for a task."""
    return [name for name in MODELS if task not in LONG or name in FEW]


def searched(task: str, workers: int) -> dict[str, list[Result]]:
    """Search learning rates: return each model's results on a task.

    A search goes on while the best rate is the lowest or the highest one tried.
    """
    rates = {name: list(RATES) for name in models_for(task)}
    while True:
        jobs = [
            job_of(task, name, MODELS[name][1], rate) | {"tuning": True}
            for name in rates
            for rate in rates[name]
        ]
        jobs = [job | {"updates": job["updates"] // 2, "seed": 100} for job in jobs]
        found: dict[str, list[Result]] = {}
        for result in done_once("tracking", jobs, run, workers):
            found.setdefault(result["job"]["model"], []).append(result)
        growing = False
        for name, tried in rates.items():
            rate = best_of(found[name])["job"]["rate"]
            if rate == max(tried) and 2 * rate < HIGHEST:
                tried.append(2 * rate)
                growing = True
            if rate == min(tried) and rate / 2 > LOWEST:
                tried.append(rate / 2)
                growing = True
        if not growing:
            return found


def best_of(results: list[Result]) -> Result:
    """Return the best result of a search: accurate at the end, and sooner so."""
    return max(
        results,
        key=lambda r: (
            round(r["summary"]["accuracy"], 2),
            mean(score for _, score in r["curve"]),
        ),
    )


def main_jobs(task: str, found: dict[str, list[Result]]) -> list[Job]:
    """Return the jobs of a task with the best settings, for all seeds."""
    best = {name: best_of(results) for name, results in found.items()}
    rates = {name: result["job"]["rate"] for name, result in best.items()}
    kinds = [name for name in best if name.startswith("parallel")]
    kind = best_of([best[name] for name in kinds])["job"]["model"]
    jobs = [
        job_of(task, name, MODELS[name][1], rates[name])
        for name in best
        if name not in kinds
    ]
    if task in LONG:
        jobs.append(job_of(task, kind, DEPTH, rates[kind]))
    else:
        jobs += [
            changed(task, 1, rates[BASE], name) for name in [*CHANGES][:EVERYWHERE]
        ]
        jobs += [job_of(task, kind, layers, rates[kind]) for layers in DEPTHS]
        jobs.append(job_of(task, LAST_NORM.format(kind), DEPTH, rates[kind]))
    return [job | {"seed": seed} for job in jobs for seed in range(SEEDS)]


def changed(task: str, layers: int, rate: float, change: str) -> Job:
    """Return a job for the base with a change."""
    return job_of(task, BASE, layers, rate, change=change)


def ablation_jobs(found: dict[str, list[Result]]) -> list[Job]:
    """Return the jobs of ablations: the shell game, with one layer.

    Keys and values per layer need two; for comparison there is the base with two.
    """
    rate = best_of(found[BASE])["job"]["rate"]
    layers = dict.fromkeys(CHANGES, 1) | {PER_LAYER: 2}
    jobs = [job_of("cups", BASE, n, rate) for n in (1, 2)]
    jobs += [changed("cups", n, rate, name) for name, n in layers.items()]
    return [job | {"seed": seed} for job in jobs for seed in range(SEEDS)]


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
    models = {(name, layers): build for name, (build, layers) in MODELS.items()}
    models |= {(name, n): models[name, DEPTH] for name in KINDS for n in DEPTHS}
    built = {key: build(len(task.words), key[1]) for key, build in models.items()}
    optimizers = {key: torch.optim.AdamW(built[key].parameters()) for key in built}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in built}
    for _ in range(ROUNDS):
        for key, model in built.items():
            taken[key].append(update(model, optimizers[key], inputs, labels))
    return [
        {"model": name, "layers": layers, "milliseconds": round(1000 * median(t), 2)}
        for (name, layers), t in taken.items()
    ]


def main() -> None:
    """Run the missing jobs of each task, then write its record."""
    parser = options(
        __doc__, quick="all models on S3, 32 updates each; writes no record"
    )
    names = list(TASKS)
    parser.add_argument(
        "--tasks", nargs="+", choices=names, default=names, help="only these tasks"
    )
    parser.add_argument(
        "--times", action="store_true", help="only time updates, on an idle machine"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    if args.quick:
        few = [(name, MODELS[name][1]) for name in MODELS]
        jobs = [job_of("S3", *model, rate=1e-3, updates=32) for model in few]
        jobs += [changed("S3", 1, 1e-3, name) | {"updates": 32} for name in CHANGES]
        done_anew("tracking-quick", jobs, run, args.workers)
        return
    if args.times:
        write_record(RESULTS / "tracking_times.json", {"table": times()})
        return
    for task in args.tasks:
        found = searched(task, args.workers)
        runs = done_once("tracking", main_jobs(task, found), run, args.workers)
        content: dict[str, Any] = {"tokens": TOKENS, "tested": TESTED, "span": SPAN}
        content |= SHAPE | {"weight_decay": DECAY, "warmup": WARMUP, "fall": FALL}
        content = {"settings": content, "table": table(runs), "runs": runs}
        if task == "cups":
            runs = done_once("tracking", ablation_jobs(found), run, args.workers)
            content |= {"ablations": table(runs), "ablation_runs": runs}
        kept = ("job", "summary", "seconds")
        search = [result for results in found.values() for result in results]
        content["search"] = [{name: r[name] for name in kept} for r in search]
        write_record(RESULTS / f"tracking_{task}.json", content)


if __name__ == "__main__":
    main()
