"""Parallel fixed-point iteration of the shared-KV body: convergence, cost, training.

    .venv/bin/python experiments/fixed_point.py [--quick] [PART ...]

A pass computes all steps side by side, with each layer reading the memory from the
previous pass (Jacobi iteration); the first pass reads the embeddings. After k passes
the first k steps are exact, after T passes all of them.

The parts are check, convergence, cost and training. All run by default, in about 20
minutes on one core. Writes `fbt/measurements/fixed_point.json`, where parts that were
not selected keep their content.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from record import machine
from torch import Tensor

import fbt
from fbt._files import write_file
from fbt.config import Backend
from fbt.data import even_windows, random_windows, split
from fbt.native import build_native
from fbt.parallel import ParallelBody
from fbt.shared_kv import SharedKVBody
from fbt.training.evaluation import evaluate
from fbt.training.loop import adamw, step_seed
from fbt.training.recipe import PRESETS, Recipe

RESULTS = Path(fbt.__file__).parent / "measurements" / "fixed_point.json"
SMALL = PRESETS["small"].model  # d 128, 4 heads, 4 layers
# Sequences and steps; the span equals the steps.
SIZES = {"small": (12, 64), "M": (64, 128)}
PASSES = (1, 2, 3, 4)
# The rate is constant after warm-up, so the beginning of a run is a run of its own.
RECIPE = Recipe(steps=500, warmup=50, min_lr_ratio=1.0, eval_every=50)
SWITCH = 100  # steps before "then exact"
SEEDS = (0, 1)

# Maps embeddings [B, T, d] to the top layer's outputs [B, T, d].
Run = Callable[[Tensor], Tensor]


def one_pass(body: SharedKVBody, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Compute all steps at once; step t reads the given memory of t - S to t - 1.

    Args:
        body: a body without dropout.
        x: embeddings [B, T, d], T >= 2.
        memory: the normalised memory LN(m) of the previous pass, [B, T, d].

    Returns:
        The top layer's outputs and the new memory, both [B, T, d].
    """
    keys, values = body.key_values[0](memory[:, :-1])  # no step reads the last memory
    h, outputs = x, [x]
    for l, layer in enumerate(body.layers):
        # The first step has nothing to read. The newest key of query t is t - 1: the
        # mask is strict.
        relative = body.relative[l % len(body.relative)]
        attended, _ = layer.attention(layer.norm1(h[:, 1:]), keys, values, relative)
        h = h + F.pad(attended, (0, 0, 1, 0))
        h = h + layer.feed_forward(layer.norm2(h))
        outputs.append(h)
    return h, body.memory(outputs, body.memory.layer_weights())


def iterate(
    body: SharedKVBody, x: Tensor, passes: int, recorded: int | None = None
) -> Iterator[Tensor]:
    """Yield the top layer's outputs [B, T, d] after each pass.

    Autograd records the last `recorded` passes, or all of them if it is None.
    """
    recording = torch.is_grad_enabled()
    first = 0 if recorded is None else passes - recorded
    with torch.set_grad_enabled(recording and first == 0):
        memory = body.memory(
            [x] * (len(body.layers) + 1), body.memory.layer_weights()
        )
    for number in range(passes):
        with torch.set_grad_enabled(recording and number >= first):
            top, memory = one_pass(body, x, memory)
        yield top


def fixed_point(
    body: SharedKVBody, x: Tensor, passes: int, recorded: int | None = None
) -> Tensor:
    """Return the outputs of the last pass of `iterate`."""
    *_, top = iterate(body, x, passes, recorded)
    return top


def loop(body: SharedKVBody, x: Tensor, backend: str) -> Tensor:
    """Return the exact outputs, computed step by step."""
    return body(x, backend=backend)[0]


def check() -> dict[str, float]:
    """Compare the passes with the loop in float64.

    The outputs of k steps must agree after k passes, and all gradients after T.
    """
    torch.manual_seed(0)
    worst = {"outputs": 0.0, "gradients": 0.0}
    for length, span in ((2, 13), (17, 13), (17, 3)):
        body = SharedKVBody(
            fbt.Config(1, d_model=14, n_heads=2, n_layers=3, d_ff=11, span=span)
        ).double()
        with torch.no_grad():
            for parameter in body.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        x = torch.randn(3, length, 14, dtype=torch.float64, requires_grad=True)
        exact = loop(body, x, "reference")
        for k, top in enumerate(iterate(body, x, length), start=1):
            worst["outputs"] = max(
                worst["outputs"], (top - exact)[:, :k].abs().max().item()
            )
        leaves, weights = (x, *body.parameters()), torch.randn_like(exact)
        mine = torch.autograd.grad((top * weights).sum(), leaves)
        theirs = torch.autograd.grad((exact * weights).sum(), leaves)
        for a, b in zip(mine, theirs, strict=True):
            worst["gradients"] = max(worst["gradients"], (a - b).abs().max().item())
    if max(worst.values()) > 1e-10:
        raise SystemExit(
            f"passes and loop disagree: largest differences {worst}, allowed 1e-10"
        )
    return worst


def convergence() -> dict[str, Any]:
    """Measure errors over passes on validation text, in float64.

    The models have initial weights and the weights that ship with fbt.
    """
    trained = fbt.LanguageModel.from_pretrained("tiny-shakespeare").double()
    torch.manual_seed(0)
    models = {
        "untrained": fbt.LanguageModel(trained.config).double(),
        "trained": trained,
    }
    result: dict[str, Any] = {
        "windows": 8,
        "dtype": "float64",
        "seed": 0,
        "span": trained.config.span,
    }
    for name, model in models.items():
        result[name] = {}
        for length in (64, 128, 256):
            windows = even_windows(
                split(tokens())[1], length=length, count=result["windows"]
            )
            result[name][f"T={length}"] = by_pass(
                model, windows, rows=32 if length == 64 else 0
            )
            if length == 64:
                result[name]["gradient"] = by_pass_gradient(model, windows)
    return result


@torch.no_grad()
def by_pass(model: fbt.LanguageModel, windows: Tensor, rows: int) -> dict[str, Any]:
    """Return errors after each pass, until the outputs are exact.

    They are the relative error of the outputs and the difference of the loss.
    """
    body = body_of(model)
    x = model.token_embedding(windows[:, :-1])
    exact = loop(body, x, "reference")
    loss = loss_of(model, exact, windows).item()
    errors, differences, by_step = [], [], []
    for top in iterate(body, x, x.shape[1]):
        errors.append(relative_error(top, exact))
        differences.append(loss_of(model, top, windows).item() - loss)
        of_step = (top - exact).norm(dim=(0, 2)) / exact.norm(dim=(0, 2))
        by_step.append(
            [round(math.log10(max(error, 1e-16)), 1) for error in of_step.tolist()]
        )
        if errors[-1] < 1e-12 and len(errors) >= rows:
            break
    needed = {
        bound: next(
            k for k, error in enumerate(errors, start=1) if error <= float(bound)
        )
        for bound in ("1e-2", "1e-4", "1e-6")
    }
    return {
        "loss": loss,
        "errors": rounded(errors),
        "loss_differences": rounded(differences),
        "passes_to": needed,
        "log10_error_by_pass_and_step": by_step[:rows],
    }


def by_pass_gradient(
    model: fbt.LanguageModel, windows: Tensor
) -> list[dict[str, Any]]:
    """Return the relative error of the gradient of all parameters.

    It depends on the number of passes, and on how many of them are recorded.
    """

    def gradient(run: Run) -> Tensor:
        loss = loss_of(model, run(model.token_embedding(windows[:, :-1])), windows)
        grads = torch.autograd.grad(
            loss, list(model.parameters()), materialize_grads=True
        )
        return torch.cat([grad.flatten() for grad in grads])

    body = body_of(model)
    exact = gradient(partial(loop, body, backend="reference"))
    results = []
    for passes in (1, 2, 3, 4, 8, 16):
        for recorded in sorted({1, min(2, passes), passes}):
            mine = gradient(
                partial(fixed_point, body, passes=passes, recorded=recorded)
            )
            (error,) = rounded([relative_error(mine, exact)])
            settings = {"passes": passes, "recorded": recorded}
            results.append(settings | {"error": error})
    return results


def cost(repeats: int = 7) -> dict[str, Any]:
    """Measure CPU seconds of one thread: forward alone, and a whole step.

    A step is forward, mean square and backward. For size "small" a whole training
    step of a language model is timed as well. All contestants take turns.
    """
    result: dict[str, Any] = {
        "repeats": repeats,
        "statistic": "median process CPU seconds",
    }
    for name, (batch, length) in SIZES.items():
        torch.manual_seed(0)
        config = fbt.Config(1, **{**SMALL, "span": length})
        x = torch.randn(batch, length, config.d_model)
        runs = contestants(config)
        forward = {name: partial(run_forward, run, x) for name, run in runs.items()}
        step = {name: partial(run_step, run, x) for name, run in runs.items()}
        sizes = {"batch": batch, "steps": length}
        result[name] = {
            **sizes,
            "forward": take_turns(forward, repeats),
            "step": take_turns(step, repeats),
        }
    arms = [Arm(backend, 0, backend=backend) for backend in exact_backends()]
    arms += [Arm(label(k), 0, passes=k) for k in PASSES]
    result["small"]["training_step"] = take_turns(
        {arm.name: arm.update for arm in arms}, 3 * repeats
    )
    return result


def contestants(config: fbt.Config) -> dict[str, Run]:
    """Return what is timed: our parallel body, the exact loops, and passes.

    Either all passes are recorded, or only the last one.
    """
    parallel, body = ParallelBody(config), SharedKVBody(config)
    runs: dict[str, Run] = {"parallel body": lambda x: parallel(x)[0]}
    runs |= {
        backend: partial(loop, body, backend=backend) for backend in exact_backends()
    }
    runs |= {label(k): partial(fixed_point, body, passes=k) for k in PASSES}
    return runs | {
        f"{label(k)}, 1 recorded": partial(fixed_point, body, passes=k, recorded=1)
        for k in (2, 4)
    }


@torch.no_grad()
def run_forward(run: Run, x: Tensor) -> None:
    """Run without recording."""
    run(x)


def run_step(run: Run, x: Tensor) -> None:
    """Run forward, a loss and backward."""
    run(x).square().mean().backward()


def take_turns(
    runs: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, float]:
    """Return the median CPU seconds of each, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {
        name: float(f"{median(times[1:]):.4g}") for name, times in seconds.items()
    }


class Arm:
    """One training run of a model with the small preset's shape.

    It is trained by passes, exactly, or first by passes and then exactly.

    Args:
        name: its name in the figures.
        seed: the seed of weights and batches.
        passes: number of passes per training step; 0 trains exactly.
        switch: number of steps after which exact training begins; 0 disables it.
        backend: the backend of exact training.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        passes: int = 0,
        switch: int = 0,
        backend: Backend = "sequence",
    ) -> None:
        self.name, self.seed, self.backend = name, seed, backend
        self.passes, self.switch = passes, switch
        torch.manual_seed(seed)
        self.model = fbt.LanguageModel(fbt.Config(int(tokens().max()) + 1, **SMALL))
        self.model.backend = backend
        self.body = body_of(self.model)
        self.optimizer = adamw(self.model, RECIPE)
        self.step, self.seconds = 0, 0.0
        self.evaluations: list[dict[str, Any]] = []

    def run(self, x: Tensor) -> Tensor:
        """Compute the body in the way of the current step."""
        exact = self.passes == 0 or 0 < self.switch <= self.step
        if exact:
            return loop(self.body, x, self.backend)
        return fixed_point(self.body, x, self.passes)

    def update(self) -> None:
        """Take one optimiser step."""
        began = time.process_time()
        torch.manual_seed(step_seed(self.seed, self.step))
        windows = random_windows(
            split(tokens())[0],
            length=RECIPE.seq_len,
            batch_size=RECIPE.batch_size,
            generator=torch.default_generator,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = RECIPE.learning_rate(self.step)
        self.optimizer.zero_grad()
        top = self.run(self.model.token_embedding(windows[:, :-1]))
        loss_of(self.model, top, windows).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), RECIPE.clip)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - began

    @torch.no_grad()
    def evaluate(self, windows: Tensor) -> None:
        """Record losses and the convergence of passes on validation windows."""
        x = self.model.token_embedding(windows[:, :-1])
        sample = x[::8]
        exact = loop(self.body, sample, self.backend)
        result = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "val_loss": round(evaluate(self.model, windows), 5),
            "errors": rounded(
                relative_error(top, exact) for top in iterate(self.body, sample, 16)
            ),
        }
        if self.passes and not self.switch:
            loss = loss_of(self.model, self.run(x), windows).item()
            result["val_loss_by_passes"] = round(loss, 5)
        self.evaluations.append(result)


def training() -> dict[str, Any]:
    """Train by passes and exactly, from the same weights on the same batches.

    The runs take turns.
    """
    windows = even_windows(
        split(tokens())[1], length=RECIPE.seq_len, count=RECIPE.eval_windows
    )
    runs = []
    for seed in SEEDS:
        arms = [Arm("exact", seed), *(Arm(label(k), seed, passes=k) for k in PASSES)]
        arms += [
            Arm(f"{label(k)}, then exact", seed, passes=k, switch=SWITCH)
            for k in (1, 2)
        ]
        for step in range(1, RECIPE.steps + 1):
            for arm in arms:
                arm.update()
                if step % RECIPE.eval_every == 0:
                    arm.evaluate(windows)
                    loss = arm.evaluations[-1]["val_loss"]
                    print(f"seed {seed} step {step} {arm.name:<20} {loss:.4f}")
        runs += [
            {"name": arm.name, "seed": seed, "evaluations": arm.evaluations}
            for arm in arms
        ]
    sizes = {
        "batch": RECIPE.batch_size,
        "steps": RECIPE.seq_len,
        "updates": RECIPE.steps,
        "switch": SWITCH,
    }
    return {
        **sizes,
        "lr": RECIPE.lr,
        "warmup": RECIPE.warmup,
        "exact": "sequence",
        "runs": runs,
    }


def loss_of(model: fbt.LanguageModel, top: Tensor, windows: Tensor) -> Tensor:
    """Return the next-token loss of the body's outputs [B, T, d]."""
    logits = model.head(model.norm(top))
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def body_of(model: fbt.LanguageModel) -> SharedKVBody:
    """Return the body of a shared-KV model."""
    return cast(SharedKVBody, model.body)


@cache
def tokens() -> Tensor:
    """Return the tokens of Tiny Shakespeare."""
    text = fbt.load_tiny_shakespeare()
    return fbt.CharTokenizer(text).encode(text)


@cache
def exact_backends() -> tuple[Backend, ...]:
    """Return the backends to compare passes with; "native" if it can be built."""
    try:
        build_native()
    except RuntimeError as error:
        print(error)
        return ("sequence",)
    return ("sequence", "native")


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Return |approximate - exact| / |exact|."""
    return ((approximate - exact).norm() / exact.norm()).item()


def rounded(values: Iterable[float]) -> list[float]:
    """Round values to three significant digits."""
    return [float(f"{value:.3g}") for value in values]


def label(k: int) -> str:
    """Return the name of k passes in the figures."""
    return "1 pass" if k == 1 else f"{k} passes"


PARTS = {
    "check": check,
    "convergence": convergence,
    "cost": cost,
    "training": training,
}


def main() -> None:
    """Run the selected parts and update them in the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"{', '.join(PARTS)}; default: all",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only check that the passes agree with the loop",
    )
    args = parser.parse_args()
    parts = args.parts or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"part must be one of {list(PARTS)}, got {unknown}")
    torch.set_num_threads(1)
    if args.quick:
        print(check())
        return
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts:
        began = time.process_time()
        result = PARTS[part]()
        record[part] = {
            "machine": machine(),
            "cpu_seconds": round(time.process_time() - began),
            **result,
        }
        # Put each list of numbers on one line.
        text = json.dumps(record, indent=1)
        text = re.sub(r"\[[^][{}]*\]", lambda row: " ".join(row[0].split()), text)
        write_file(RESULTS, (text + "\n").encode())


if __name__ == "__main__":
    main()
