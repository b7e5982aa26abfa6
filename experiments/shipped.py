"""The two language models that ship with fbt: a feedback model and its parallel twin, on Tiny Shakespeare.

    .venv/bin/python experiments/shipped.py [--quick] [--workers N]

Both have one shape and see the same characters in the same order. A search on a twentieth of the characters
tries learning rates, of which each model takes its best, and a few other settings with feedback, which
decided what `SETTINGS` says; then each model is trained once. Two or three hours of one core: checkpoints
are kept in the cache folder, and the same command goes on from the last one. Writes the weights in float16
with a card beside each, and `fbt/measurements/shipped.json`, which has every run.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from record import (
    Job,
    Result,
    arguments,
    commit,
    done_anew,
    done_once,
    machine,
    place_of,
    trained,
    write_record,
)

import fbt
from fbt._corpus import SHA256, SIZE
from fbt._files import cache_folder, write_whole
from fbt.data import even_windows, split
from fbt.training.evaluation import evaluate

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
QUICK = {"d_model": 32, "n_heads": 2, "n_layers": 1, "span": 32, "seq_len": 32, "curriculum": 16, "steps": 20}


def train(job: Job) -> Result:
    """Do a run, or go on with it."""
    return trained(fbt.train(folder=folder_of(job), resume=True, progress=False, **job))


def folder_of(job: Job) -> Path:
    """Where a run's checkpoints and its final weights are."""
    return place_of(cache_folder() / "experiments" / "shipped", job).with_suffix("")


def search_jobs() -> list[Job]:
    """Learning rates for both; and with feedback, at one of them, what else might help."""
    changes = [{"variant": variant, "lr": rate} for variant in NAMES for rate in RATES]
    changes += [{"variant": "shared-kv", "lr": RATES[1]} | other for other in OTHERS]
    return [SEARCH | change for change in changes]


def best_jobs(search: list[Result]) -> list[Job]:
    """Both variants in full at the rate that was best."""
    jobs = []
    for variant in NAMES:
        plain = [SEARCH | {"variant": variant, "lr": rate} for rate in RATES]
        same = [result for result in search if result["job"] in plain]
        best = min(same, key=lambda result: result["summary"]["val_loss"])
        jobs.append(SETTINGS | {"variant": variant, "lr": best["job"]["lr"]})
    return jobs


def ship(result: Result) -> dict[str, float]:
    """Write a model in float16 with its card; return its loss in both precisions."""
    folder = PACKAGE / "weights" / NAMES[result["job"]["variant"]]
    model = fbt.LanguageModel.from_pretrained(folder_of(result["job"]))
    copy.deepcopy(model).half().save_pretrained(folder)
    stored = fbt.LanguageModel.from_pretrained(folder)
    encoded = fbt.CharTokenizer(fbt.load_tiny_shakespeare()).encode(fbt.load_tiny_shakespeare())
    windows = even_windows(split(encoded)[1], length=model.config.span)
    losses = {"float32": evaluate(model, windows), "float16": evaluate(stored, windows)}
    write_whole(folder / "README.md", card(result, losses).encode())
    return {name: round(loss, 5) for name, loss in losses.items()}


def card(result: Result, losses: dict[str, float]) -> str:
    """What there is to know about a model that ships."""
    config, recipe, variant = result["config"], result["recipe"], result["job"]["variant"]
    feedback = variant == "shared-kv"
    what = "Feedback Transformer with shared keys and values" if feedback else "parallel transformer"
    size = f"{config['n_layers']} layers, {config['d_model']} wide, {config['n_heads']} heads"
    batch = f"{recipe['batch_size']} sequences of {recipe['seq_len']} characters"
    rows = {
        "model": f"{size}, span {config['span']}; {result['parameters']:,} parameters",
        "data": f"Tiny Shakespeare (sha256 `{SHA256}`), the first nine tenths of {SIZE:,} characters",
        "command": f"`python experiments/shipped.py`, seed {recipe['seed']}",
        "steps": f"{recipe['steps']} of {batch}, at first more and shorter ones, from {recipe['curriculum']}",
        "optimiser": f"AdamW at {recipe['lr']:g}, then a cosine to {recipe['min_lr_ratio']:g}; "
        f"weight decay {recipe['weight_decay']:g}, dropout {config['dropout']:g}",
        "cost": f"{result['seconds'] / 3600:.1f} hours of one core: {machine()['cpu']}",
        "validation loss": f"**{losses['float16']:.4f}** nats a character, over the last tenth in windows of "
        f"{config['span']}, each from an empty memory",
        "precision": f"float16 on disk, float32 once loaded; the loss before was {losses['float32']:.4f}",
    }
    lines = [
        f"# {NAMES[variant]}\n",
        f"A {what} that predicts the next character of Shakespeare's plays:",
        f'`fbt.LanguageModel.from_pretrained("{NAMES[variant]}")`. Its twin of the same shape, which saw the',
        f"same characters, is `{NAMES['parallel' if feedback else 'shared-kv']}`.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "\nIt has seen nothing but these plays, and writes what looks like them: words, verse, speakers, no",
        "sense. Every run that was tried is in `fbt/measurements/shipped.json`.\n",
        "| step | validation loss |\n|---|---|",
        *(f"| {e['step']} | {e['val_loss']:.4f} |" for e in result["evaluations"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, then write weights, cards and the record."""
    quick, workers = arguments(__doc__, quick="two tiny models; writes nothing")
    torch.set_num_threads(1)  # also what the record says
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # once, before the workers
    if quick:
        done_anew("shipped-quick", [SETTINGS | QUICK | {"variant": v} for v in NAMES], train, workers)
        return
    search = done_once("shipped", search_jobs(), train, workers)
    runs = done_once("shipped", best_jobs(search), train, workers)
    origin = commit()  # the weights that are written next would make the tree differ from it
    losses = {NAMES[result["job"]["variant"]]: ship(result) for result in runs}
    write_record(RESULTS, {"commit": origin, "losses": losses, "runs": runs, "search": search})


if __name__ == "__main__":
    main()
