"""The two models that ship with fbt: a feedback model and its parallel twin.

    .venv/bin/python experiments/shipped.py [--quick] [--workers N]

Both have the same shape and are trained on the same characters of Tiny Shakespeare in
the same order. A search on a twelfth of the characters gives each model its learning
rate, the best of three. It also tries a few other settings with feedback, on which
`SETTINGS` is based. Then each model is trained once.

Takes two or three hours on one core. Checkpoints are cached: run the same command
again to continue from the last one. Writes the weights in float16 with a model card,
and all runs to `fbt/measurements/shipped.json`.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import (
    Job,
    Result,
    arguments,
    done_anew,
    done_once,
    folder_of,
    machine,
    trained,
    write_record,
)

import fbt
from fbt._corpus import SHA256, SIZE
from fbt._files import write_file
from fbt.data import even_windows, split
from fbt.training.evaluation import evaluate
from fbt.views.packing import rounded

PACKAGE = Path(fbt.__file__).parent
RESULTS = PACKAGE / "measurements" / "shipped.json"
NAMES = {"shared-kv": "tiny-shakespeare", "parallel": "tiny-shakespeare-parallel"}
SETTINGS: dict[str, Any] = {
    "d_model": 224,
    "n_heads": 7,
    "n_layers": 4,
    "span": 256,
    "dropout": 0.15,
    "steps": 6000,
    "batch_size": 8,
    "seq_len": 256,
    "curriculum": 64,
    "min_lr_ratio": 0.0,
    "eval_every": 250,
    "checkpoint_every": 100,
}
SEARCH = SETTINGS | {"steps": 250, "batch_size": 16}
RATES = (1e-3, 2e-3, 4e-3)
OTHERS: tuple[dict[str, Any], ...] = (
    {"d_model": 192, "n_heads": 6, "n_layers": 6},
    {"curriculum": 0},
    {"steps": 500, "batch_size": 8},
    {"steps": 500, "batch_size": 8, "lr": RATES[2]},
)
QUICK = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 1,
    "span": 32,
    "seq_len": 32,
    "curriculum": 16,
    "steps": 20,
}


def train(job: Job, name: str = "shipped") -> Result:
    """Start a run, or continue it."""
    folder = folder_of(name, job)
    return trained(fbt.train(folder=folder, resume=True, progress=False, **job))


def search_jobs() -> list[Job]:
    """Return jobs that search learning rates and, with feedback, other settings."""
    changes = [
        {"variant": variant, "lr": rate} for variant in NAMES for rate in RATES
    ]
    changes += [{"variant": "shared-kv", "lr": RATES[1]} | other for other in OTHERS]
    return [SEARCH | change for change in changes]


def best_jobs(search: list[Result]) -> list[Job]:
    """Return full runs of both variants at their best learning rates."""
    jobs = []
    for variant in NAMES:
        plain = [SEARCH | {"variant": variant, "lr": rate} for rate in RATES]
        same = [result for result in search if result["job"] in plain]
        best = min(same, key=lambda result: result["summary"]["val_loss"])
        jobs.append(SETTINGS | {"variant": variant, "lr": best["job"]["lr"]})
    return jobs


def ship(result: Result) -> dict[str, float]:
    """Write a model in float16 with its card; return its loss in each precision.

    "int8" is the precision of the model that runs in pages, `fbt.LiveModel`, whose
    weights the book's build makes from the file that is written here.
    """
    folder = PACKAGE / "weights" / NAMES[result["job"]["variant"]]
    model = fbt.LanguageModel.from_pretrained(folder_of("shipped", result["job"]))
    copy.deepcopy(model).half().save_pretrained(folder)
    stored = fbt.LanguageModel.from_pretrained(folder)
    text = fbt.load_tiny_shakespeare()
    tokens = fbt.CharTokenizer(text).encode(text)
    windows = even_windows(split(tokens)[1], length=model.config.span)
    losses = {
        "float32": evaluate(model, windows),
        "float16": evaluate(stored, windows),
        "int8": evaluate(rounded(stored), windows),
    }
    write_file(folder / "README.md", card(result, losses).encode())
    return {name: round(loss, 5) for name, loss in losses.items()}


def card(result: Result, losses: dict[str, float]) -> str:
    """Return the text of a model card."""
    config, recipe = result["config"], result["recipe"]
    variant = result["job"]["variant"]
    other = "parallel" if variant == "shared-kv" else "shared-kv"
    kinds = {
        "shared-kv": "Feedback Transformer with shared keys and values",
        "parallel": "parallel transformer",
    }
    rows = {
        "model": f"{config['n_layers']} layers, {config['d_model']} wide, "
        f"{config['n_heads']} heads, span {config['span']}; "
        f"{result['parameters']:,} parameters",
        "data": f"Tiny Shakespeare (sha256 `{SHA256}`), the first nine tenths of "
        f"{SIZE:,} characters",
        "command": f"`python experiments/shipped.py`, seed {recipe['seed']}",
        "steps": f"{recipe['steps']} of {recipe['batch_size']} sequences of "
        f"{recipe['seq_len']} characters, at first more and shorter ones, "
        f"from {recipe['curriculum']}",
        "optimiser": f"AdamW at {recipe['lr']:g}, then a cosine to "
        f"{recipe['min_lr_ratio']:g}; weight decay {recipe['weight_decay']:g}, "
        f"dropout {config['dropout']:g}",
        "cost": f"{result['seconds'] / 3600:.1f} hours of one core: "
        f"{machine()['cpu']}",
        "validation loss": f"**{losses['float16']:.4f}** nats per character, over "
        f"the last tenth in windows of {config['span']}, each from an empty memory",
        "precision": "float16 on disk, float32 once loaded; the loss before "
        f"conversion was {losses['float32']:.4f}",
    }
    lines = [
        f"# {NAMES[variant]}\n",
        f"A {kinds[variant]} that predicts the next character",
        "of Shakespeare's plays:",
        f'`fbt.LanguageModel.from_pretrained("{NAMES[variant]}")`.',
        "Its twin of the same shape, trained on the same characters, is",
        f"`{NAMES[other]}`.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "\nThe model has seen nothing but these plays. It writes what looks like",
        "them: words, verse, speakers, no sense. Every run that was tried is",
        "recorded in `fbt/measurements/shipped.json`.\n",
        "| step | validation loss |\n|---|---|",
        *(f"| {e['step']} | {e['val_loss']:.4f} |" for e in result["evaluations"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing jobs, then write weights, cards and the record."""
    quick, workers = arguments(__doc__, quick="two tiny models; writes nothing")
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # download it once, before the workers start
    if quick:
        jobs = [SETTINGS | QUICK | {"variant": variant} for variant in NAMES]
        name = "shipped-quick"
        done_anew(name, jobs, partial(train, name=name), workers)
        return
    search = done_once("shipped", search_jobs(), train, workers)
    runs = done_once("shipped", best_jobs(search), train, workers)
    losses = {NAMES[result["job"]["variant"]]: ship(result) for result in runs}
    write_record(RESULTS, {"losses": losses, "runs": runs, "search": search})


if __name__ == "__main__":
    main()
