"""The runs of chapter 5: the "small" preset, parallel and with feedback, three seeds.

    .venv/bin/python experiments/tiny_shakespeare.py [--quick] [--workers N]

Takes about 12 minutes on one core. Results are cached: run the same command again to
continue after an interruption. Writes settings, losses and layer weights of every run
to `fbt/measurements/tiny_shakespeare.json`.
"""

from pathlib import Path

import torch
from record import Job, Result, arguments, done_anew, done_once, trained, write_record

import fbt

RESULTS = Path(fbt.__file__).parent / "measurements" / "tiny_shakespeare.json"
VARIANTS, SEEDS = ("parallel", "shared-kv"), (0, 1, 2)


def train(job: Job) -> Result:
    """Run one job."""
    return trained(fbt.train(preset="small", eval_every=100, progress=False, **job))


def main() -> None:
    """Run the missing jobs, then write the record."""
    quick, workers = arguments(
        __doc__, quick="one seed, a tenth of the steps; writes no record"
    )
    torch.set_num_threads(1)  # the record states this number
    fbt.build_native()
    fbt.load_tiny_shakespeare()  # download it once, before the workers start
    if quick:
        jobs = [{"variant": variant, "seed": 0, "steps": 200} for variant in VARIANTS]
        done_anew("tiny-shakespeare-quick", jobs, train, workers)
        return
    jobs = [
        {"variant": variant, "seed": seed} for seed in SEEDS for variant in VARIANTS
    ]
    write_record(
        RESULTS, {"runs": done_once("tiny-shakespeare", jobs, train, workers)}
    )


if __name__ == "__main__":
    main()
