"""The runs of several processes that `test_processes.py` compares.

    torchrun ... several.py FOLDER [NAME [RANK STEP]]

trains all of RUNS, or the one named NAME. The process of rank RANK is killed at STEP.
The word RANK in FOLDER, or in the variable FBT_CACHE, is replaced by the rank of the
process, so that each process has its own.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import small_run

from fbt.training.loop import Trainer

STEPS: dict[str, Any] = {"steps": 20, "eval_every": 8}
# A batch of 3 leaves two processes with 2 and 1 sequences.
RUNS: dict[str, dict[str, Any]] = {
    "parallel": {"variant": "parallel"},
    "reference": {"variant": "feedback", "backend": "reference"},
    "reference, shared": {"backend": "reference"},
    "sequence": {"backend": "sequence"},
    "native": {"backend": "native"},
    "sequence, curriculum": {"backend": "sequence", "curriculum": 2},
    "reference, curriculum": {
        "variant": "feedback",
        "backend": "reference",
        "curriculum": 2,
    },
    "sequence, carry": {"backend": "sequence", "carry": True, "seq_len": 5},
    "reference, carry": {
        "variant": "feedback",
        "backend": "reference",
        "carry": True,
        "seq_len": 5,
    },
    "auto": {},
}


def run(name: str, folder: Path) -> None:
    """Make or resume the run of that name, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        small_run(folder=folder / name, resume=True, **STEPS | RUNS[name])
    finally:
        torch.set_default_dtype(torch.float32)


def kill_at(rank: int, step: int) -> None:
    """Let the process of this rank be killed at the beginning of a step, from 0."""
    update = Trainer._update

    def dying(self: Trainer) -> dict[str, Any]:
        if (self.processes.rank, self.step) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self)

    Trainer._update = dying  # type: ignore[method-assign]


def main(
    folder: str, name: str | None = None, rank: str = "-1", step: str = "-1"
) -> None:
    """Make the runs that the command line asks for."""
    own_rank = os.environ["RANK"]
    if cache := os.environ.get("FBT_CACHE"):
        os.environ["FBT_CACHE"] = cache.replace("RANK", own_rank)
    kill_at(int(rank), int(step))
    for each in RUNS if name is None else [name]:
        run(each, Path(folder.replace("RANK", own_rank)))


if __name__ == "__main__":
    main(*sys.argv[1:])
