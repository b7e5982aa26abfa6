"""What torchrun starts in `test_processes.py`: all of RUNS, or one of them in which a process is killed.

several.py FOLDER [NAME RANK STEP]       RANK in FOLDER: each process its own
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import small_run

import fbt
from fbt.training.loop import Trainer

STEPS: dict[str, Any] = {"steps": 20, "eval_every": 8}
# A batch of 3 leaves two processes with 2 and 1 sequences.
RUNS: dict[str, dict[str, Any]] = {
    "parallel": {"variant": "parallel"},
    "reference": {"variant": "feedback"},
    "reference, shared": {"variant": "shared-kv"},
    "sequence": {"variant": "shared-kv"},
    "native": {"variant": "shared-kv"},
    "sequence, curriculum": {"variant": "shared-kv", "curriculum": 2},
    "reference, curriculum": {"variant": "feedback", "curriculum": 2},
    "sequence, carry": {"variant": "shared-kv", "carry": True, "seq_len": 5},
    "reference, carry": {"variant": "feedback", "carry": True, "seq_len": 5},
}


def run(name: str, folder: Path) -> None:
    """Make the run of that name, in float64 and with the backend it begins with."""
    backend = name.partition(",")[0]
    initial = fbt.LanguageModel.__init__

    def with_backend(self: fbt.LanguageModel, *args: Any, **kwargs: Any) -> None:
        initial(self, *args, **kwargs)
        if backend != "parallel":
            self.backend = backend

    fbt.LanguageModel.__init__ = with_backend  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float64)
    try:
        small_run(folder=folder / name, resume=True, **STEPS | RUNS[name])
    finally:
        fbt.LanguageModel.__init__ = initial  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)


def killed_at(rank: int, step: int) -> None:
    """Kill the process of that rank when it is about to take that step, counted from 0."""
    update = Trainer._update

    def dying(self: Trainer) -> dict[str, Any]:
        if (self.processes.rank, self.step) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self)

    Trainer._update = dying  # type: ignore[method-assign]


def main(
    folder: str, name: str | None = None, rank: str = "-1", step: str = "-1"
) -> None:
    """Do as the command line says."""
    killed_at(int(rank), int(step))
    for each in RUNS if name is None else [name]:
        run(each, Path(folder.replace("RANK", os.environ["RANK"])))


if __name__ == "__main__":
    main(*sys.argv[1:])
