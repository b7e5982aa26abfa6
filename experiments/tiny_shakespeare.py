"""The runs that chapter 5 compares: the "small" preset, a parallel model and one with feedback, three seeds.

    .venv/bin/python experiments/tiny_shakespeare.py [--quick] [--workers N]

About 12 minutes of one core. Results are kept in the cache folder: run again after an interruption it goes
on. Writes `fbt/measurements/tiny_shakespeare.json`: settings, losses and layer weights of every run.
"""

from pathlib import Path

import torch
from record import Job, Result, arguments, done_anew, done_once, trained, write_record

import fbt

RESULTS = Path(fbt.__file__).parent / "measurements" / "tiny_shakespeare.json"
VARIANTS, SEEDS = ("parallel", "shared-kv"), (0, 1, 2)


def train(job: Job) -> Result:
    """Do a run."""
    return trained(fbt.train(preset="small", eval_every=100, progress=False, **job))


def main() -> None:
    """Train what is missing, then write the record."""
    quick, workers = arguments(__doc__, quick="one seed, a tenth of the steps; writes no record")
    torch.set_num_threads(1)  # also what the record says
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # once, before the workers
    if quick:
        jobs = [{"variant": variant, "seed": 0, "steps": 200} for variant in VARIANTS]
        done_anew("tiny-shakespeare-quick", jobs, train, workers)
        return
    jobs = [{"variant": variant, "seed": seed} for seed in SEEDS for variant in VARIANTS]
    write_record(RESULTS, {"runs": done_once("tiny-shakespeare", jobs, train, workers)})


if __name__ == "__main__":
    main()
