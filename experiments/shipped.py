"""The two language models that ship with fbt: a feedback model and its parallel twin, on Tiny Shakespeare.

    .venv/bin/python experiments/shipped.py [--threads N] [feedback] [parallel]

Both have one shape and see the same tokens. Hours on a core: checkpoints are kept in the cache folder, and
the same command goes on from the last one.
"""

import argparse
from typing import Any

import torch

import fbt
from fbt._files import cache_folder

VARIANTS = {"feedback": "shared-kv", "parallel": "parallel"}
SETTINGS: dict[str, Any] = {
    "preset": "base",
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 8,
    "span": 256,
    "dropout": 0.2,
    "steps": 3000,
    "batch_size": 32,
    "seq_len": 256,
    "curriculum": 64,
    "lr": 1.5e-3,
    "weight_decay": 0.1,
    "warmup": 100,
    "eval_every": 250,
    "checkpoint_every": 50,
    "sample": 200,
}


def main() -> None:
    """Train what is asked for, or go on with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", choices=[[], *VARIANTS], help="both if none is named")
    parser.add_argument("--threads", type=int, default=1, help="cores for one run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fbt.build_native()
    for name in arguments.models or VARIANTS:
        folder = cache_folder() / "experiments" / "shipped" / name
        run = fbt.train(variant=VARIANTS[name], folder=folder, resume=True, **SETTINGS)
        print(run)


if __name__ == "__main__":
    main()
