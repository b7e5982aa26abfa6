"""How many links of the chain does a task use? Sweeps over guessed memories.

    .venv/bin/python experiments/links.py [--quick] [--workers N]

After k sweeps a result has followed at most k links (see `sweeps.py`). Small models
learn four tasks and a text through 1, 2, 3, 4 or 8 sweeps, or exactly, which is what
as many sweeps as there are steps would compute. Each is then evaluated after 1 to T
sweeps. Exact runs have three seeds; runs through sweeps take longer and have two.

For one task and seed all runs begin with the same weights and see the same sequences.
Learning rates were chosen for the exact run of seed 0, from two per task and four for
the text; the other runs take them over.

The model that ships with fbt is evaluated after sweeps over one group of steps and
over 16, and its gradient is compared with the one that an iterated adjoint gives.

Results are cached: run the same command again to continue after an interruption.
Writes `fbt/measurements/links.json`, in 20 CPU minutes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import Job, Result, arguments, done_anew, done_once, write_record
from sweeps import body_of, first_guess, logits_after, one_sweep, sweeps, with_adjoint
from texts import corpus
from torch import Tensor
from training import TASKS, update

import fbt
from fbt.data import even_windows, random_windows
from fbt.tasks import accuracy
from fbt.training.recipe import Recipe

RESULTS = Path(fbt.__file__).parent / "measurements" / "links.json"
SWEEPS = (1, 2, 3, 4, 8, None)  # None: exact
SEEDS, SWEPT = 3, 2  # seeds of exact runs, and of runs through sweeps
SHAPE = {"d_model": 32, "n_heads": 2}
# Sequences of a lesson, in the unit that the task counts: copying takes two steps per
# symbol. The last lesson's have 32 steps.
LESSONS = {"copy": (2, 4, 8, 16)}
LESSON, STEPS, TOKENS = (4, 8, 16, 32), 32, 512
RATES = {"parity": 2e-3, "S3": 4e-3, "cups": 4e-3, "copy": 4e-3}
DECAY, LOOK = 0.01, 256  # sequences in an evaluation
TEXT = Recipe(steps=400, batch_size=8, seq_len=64, lr=1.6e-2, warmup=40)
SHIPPED = {"windows": 32, "length": 256, "sweeps": 12, "groups": 16}
ADJOINT = {"windows": 8, "length": 64, "iterations": 12}

# Maps logits [B, T, V] and labels [B, T] to a number.
Score = Callable[[Tensor, Tensor], float]


def run(job: Job) -> Result:
    """Run one job."""
    if job["task"] == "shipped":
        return shipped(job)
    return learn_text(job) if job["task"] == "text" else learn_task(job)


def learn_task(job: Job) -> Result:
    """Train a model of one layer on a task: as many updates on each lesson."""
    task, seed = TASKS[job["task"]](), job["seed"]
    lessons = LESSONS.get(job["task"], LESSON)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = SHAPE | {"n_layers": 1, "span": STEPS}
    model = fbt.LanguageModel(fbt.Config(len(task.words), **sizes))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATES[job["task"]], weight_decay=DECAY
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_000 + seed)
        for length in lessons:
            for _ in range(job["updates"]):
                yield task.sample(TOKENS // length, length, generator)

    seconds = train(model, optimizer, batches(), job["sweeps"])
    unseen = task.sample(LOOK, lessons[-1], torch.Generator().manual_seed(10_000))
    scores = by_sweeps(model, *unseen, STEPS, accuracy)
    return result(job, model, seconds, scores)


def learn_text(job: Job) -> Result:
    """Train a model of two layers on Tiny Shakespeare."""
    tokens, held_out, vocabulary = corpus()
    torch.manual_seed(job["seed"])
    sizes: dict[str, Any] = SHAPE | {"n_layers": 2, "span": TEXT.seq_len}
    model = fbt.LanguageModel(fbt.Config(vocabulary, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEXT.lr, weight_decay=DECAY)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1_000_000 + job["seed"])
        for step in range(job["updates"]):
            for group in optimizer.param_groups:
                group["lr"] = TEXT.learning_rate(step)
            windows = random_windows(
                tokens,
                length=TEXT.seq_len,
                batch_size=TEXT.batch_size,
                generator=generator,
            )
            yield windows[:, :-1], windows[:, 1:]

    seconds = train(model, optimizer, batches(), job["sweeps"])
    windows = even_windows(held_out, length=TEXT.seq_len, count=LOOK)
    unseen = windows[:, :-1], windows[:, 1:]
    return result(
        job, model, seconds, by_sweeps(model, *unseen, TEXT.seq_len, loss_of)
    )


def train(
    model: fbt.LanguageModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int | None,
) -> float:
    """Train through `count` sweeps, or exactly; return the CPU seconds of updates."""
    forward = model if count is None else partial(logits_after, model, count=count)
    return sum(update(forward, optimizer, *batch) for batch in batches)


@torch.no_grad()
def by_sweeps(
    model: fbt.LanguageModel,
    inputs: Tensor,
    labels: Tensor,
    count: int,
    score: Score,
    groups: int = 1,
) -> list[float]:
    """Return the score after 1 to `count` sweeps, 16 sequences at a time."""
    scores = []
    for tokens, wanted in zip(inputs.split(16), labels.split(16), strict=True):
        tops = sweeps(body_of(model), model.token_embedding(tokens), groups)
        logits = (model.head(model.norm(top)) for top in islice(tops, count))
        scores.append([score(each, wanted) for each in logits])
    return torch.tensor(scores, dtype=torch.float64).mean(0).tolist()


def loss_of(logits: Tensor, labels: Tensor) -> float:
    """Return the cross-entropy in nats per token."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()


def result(
    job: Job, model: fbt.LanguageModel, seconds: float, scores: list[float]
) -> Result:
    """Return what is stored of a training run.

    The scores are accuracies, or losses in nats, after 1 to T sweeps.
    """
    count = job["sweeps"] or len(scores)
    own, exact = round(scores[count - 1], 4), round(scores[-1], 4)
    return {
        "summary": {"after_its_sweeps": own, "exact": exact},
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 2),
        "by_sweeps": [round(score, 4) for score in scores],
    }


def shipped(job: Job) -> Result:
    """Evaluate the model that ships with fbt on validation text."""
    model = fbt.LanguageModel.from_pretrained("tiny-shakespeare").eval()
    held_out = corpus()[1]
    windows = even_windows(held_out, length=job["length"], count=job["windows"])
    inputs, labels = windows[:, :-1], windows[:, 1:]
    with torch.no_grad():
        exact = torch.cat([model(part) for part in inputs.split(16)])
    loss = loss_of(exact, labels)
    excess = {
        str(groups): [
            float(f"{score - loss:.3g}")
            for score in by_sweeps(model, inputs, labels, count, loss_of, groups)
        ]
        for groups, count in ((1, job["sweeps"]), (job["groups"], 2))
    }
    errors = adjoint_errors(model.double(), held_out)
    return {
        "summary": {"loss": round(loss, 4)},
        "excess": excess,
        "adjoint_errors": [float(f"{error:.3g}") for error in errors],
    }


def adjoint_errors(model: fbt.LanguageModel, held_out: Tensor) -> list[float]:
    """Return the gradient's relative error after 0, 1, ... iterations in backward."""
    windows = even_windows(
        held_out, length=ADJOINT["length"], count=ADJOINT["windows"]
    )
    body, parameters = body_of(model), list(model.parameters())

    def gradient(top: Tensor) -> Tensor:
        logits = model.head(model.norm(top))
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([each.flatten() for each in gradients])

    def embeddings() -> Tensor:
        return model.token_embedding(windows[:, :-1])

    exact = gradient(body(embeddings())[0])
    with torch.no_grad():
        memory = first_guess(body, embeddings())
        for _ in range(ADJOINT["length"]):
            memory = one_sweep(body, embeddings(), memory)[1]
    return [
        (
            (gradient(with_adjoint(body, embeddings(), memory, count)) - exact)
            .norm()
            .div(exact.norm())
            .item()
        )
        for count in range(ADJOINT["iterations"] + 1)
    ]


def job_of(task: str, count: int | None, seed: int, **changes: Any) -> Job:
    """Return a job that trains one model."""
    updates = TEXT.steps if task == "text" else 200  # on each lesson of a task
    job = {"task": task, "sweeps": count, "seed": seed, "updates": updates}
    return job | changes


def jobs() -> list[Job]:
    """Return all training jobs, a whole seed before the next one."""
    return [
        job_of(task, count, seed)
        for seed in range(SEEDS)
        for task in (*RATES, "text")
        for count in SWEEPS
        if count is None or seed < SWEPT
    ]


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(
        __doc__, quick="few updates of five jobs; writes no record"
    )
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    corpus()  # download it once, before the workers start
    if quick:
        few = [job_of(task, 2, 0, updates=5) for task in (*RATES, "text")]
        done_anew("links-quick", few, run, workers)
        return
    (of_shipped,) = done_once("links", [{"task": "shipped"} | SHIPPED], run, workers)
    runs = done_once("links", jobs(), run, workers)
    settings: dict[str, Any] = {"shape": SHAPE, "tokens": TOKENS, "look": LOOK}
    settings |= {"lessons": {task: LESSONS.get(task, LESSON) for task in RATES}}
    settings |= {"rates": RATES, "weight_decay": DECAY, "text": vars(TEXT)}
    settings |= {"adjoint": ADJOINT}
    write_record(RESULTS, {"settings": settings, "shipped": of_shipped, "runs": runs})


if __name__ == "__main__":
    main()
