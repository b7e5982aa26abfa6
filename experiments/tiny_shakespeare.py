"""The weights that ship with fbt and the runs chapter 5 compares: "small" preset, two variants, three seeds.

    .venv/bin/python experiments/tiny_shakespeare.py [--folder runs/tiny-shakespeare]

Needs a C++ compiler, for the native backend, and about 12 minutes on one core. Run again after an
interruption it goes on where it stopped. Writes `fbt/weights/tiny-shakespeare/runs.json` (settings, losses
and layer weights of every run, machine, versions) and `model.safetensors` beside it: the feedback model with
the median validation loss.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from record import machine

import fbt
from fbt._files import write_whole

SHIPPED = Path(fbt.__file__).parent / "weights" / "tiny-shakespeare"
VARIANTS = ("parallel", "shared-kv")
SEEDS = (0, 1, 2)


def main() -> None:
    """Train what is missing, then write the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/tiny-shakespeare"), help="where the runs are kept"
    )
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    fbt.build_native()
    runs = []
    for seed in SEEDS:
        for variant in VARIANTS:
            place = folder / f"{variant}-{seed}"
            run = fbt.train(
                preset="small", variant=variant, seed=seed, eval_every=100, folder=place, resume=True
            )
            if not run.finished:
                raise SystemExit(f"stopped in {place}; run this again to go on")
            runs.append(run)
    feedback = sorted(
        (run for run in runs if run.settings.config.variant == "shared-kv"), key=lambda run: run.val_loss
    )
    feedback[len(feedback) // 2].model.save_pretrained(SHIPPED)
    record = {"machine": machine(), "runs": [summary(run) for run in runs]}
    write_whole(SHIPPED / "runs.json", (json.dumps(record, indent=1) + "\n").encode())
    for run in runs:
        seed, seconds = run.settings.recipe.seed, run.metrics[-1]["seconds"]
        print(f"{run.settings.config.variant:<10} seed {seed}  {run.val_loss:.4f} nats  {seconds:.0f} s")


def summary(run: fbt.Run) -> dict[str, Any]:
    """What the book and the README say about a run."""
    config, recipe = run.settings.config, run.settings.recipe
    kept = ("step", "seconds", "val_loss", "layer_weights")
    return {
        "variant": config.variant,
        "seed": recipe.seed,
        "val_loss": run.val_loss,
        "parameters": run.model.num_parameters(),
        "seconds": run.metrics[-1]["seconds"],
        "config": asdict(config),
        "recipe": asdict(recipe),
        "evaluations": [{name: m[name] for name in kept if name in m} for m in run.evaluations],
    }


if __name__ == "__main__":
    main()
