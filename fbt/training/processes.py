"""The processes of a run: one, or those of torchrun, which share every batch.

All processes take the same steps with the same weights. DistributedDataParallel
averages the gradients. Losses, carried memory and requests to stop are summed over
the processes too. The run therefore equals that of a single process up to the order
of summation. Only dropout differs, since each process draws its own masks.
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fbt._checks import shorten
from fbt._text import one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process and the number of processes.

    A single process takes whole batches, and its sums return their argument.

    Attributes:
        device: the device of this process.
        rank: the number of this process, from 0.
        count: the number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, shows progress and generates samples."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return the rows [b, ...] of [B, ...] that this process computes, as a view.

        The shares of the processes differ by at most one row.
        """
        return rows.tensor_split(self.count)[self.rank]

    def gather(self, share: Tensor, rows: int) -> Tensor:
        """Return all rows [B, ...] when each process passes its share [b, ...]."""
        gathered = share.new_zeros(rows, *share.shape[1:])
        self.share(gathered).copy_(share)
        return self.sum(gathered)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; all wait for the result."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        if self.count == 1:
            return value
        return self.sum(
            torch.tensor(value, dtype=torch.float64, device=self.device)
        ).item()

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        return self.total(value) / self.count

    def wait(self) -> None:
        """Wait until all processes have called this method."""
        self.total(0.0)

    def agree(self, description: str) -> None:
        """Check that all processes pass the same description of the run.

        Raises:
            ValueError: in every process, if the descriptions differ.
        """
        digest = hashlib.sha256(description.encode()).digest()
        number = int.from_bytes(digest[:5], "big")
        total = self.sum(torch.tensor(number, device=self.device)).item()
        if self.total(total != self.count * number):
            found = one_line(description)
            raise ValueError(
                f"all {self.count} processes of a run must have the same settings, "
                f"text, backend and checkpoint; process {self.rank} has {found}"
            )

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Call a function in the first process, then in the others.

        The others find the files that the first one has written, such as a download.
        """
        if not self.is_first:
            self.wait()
        result = work()
        if self.is_first:
            self.wait()
        return result

    def synchronised(self, model: nn.Module) -> nn.Module:
        """Return a module whose `backward` averages gradients over all processes.

        All processes take the weights of the first one.
        """
        return model if self.count == 1 else DistributedDataParallel(model)


def by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def join_processes(device: str | torch.device | None) -> Iterator[Processes]:
    """Join the processes of torchrun, or those of an existing process group.

    Args:
        device: the device. None is the CPU, on which a single process remains until
            its model is known, and with a process group a CUDA GPU if there is one.
            With several GPUs, "cuda" is the one whose index is the local rank of this
            process.

    Raises:
        ValueError: if torch cannot use the device.
        ConnectionError: if another process ended before this one.
    """
    grouped = dist.is_available() and dist.is_initialized()
    started = not grouped and by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1
    if device is None:
        has_gpu = (started or grouped) and torch.cuda.is_available()
        device = "cuda" if has_gpu else "cpu"
    chosen = usable(device, int(os.environ["LOCAL_RANK"]) if started else None)
    if not (started or grouped):
        yield Processes(chosen)
        return
    try:
        if started:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
            # Destroyed at exit only: under torchrun, torch cannot create the group
            # a second time.
            atexit.register(dist.destroy_process_group)
        yield Processes(chosen, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError(
            "another process of this run has ended; see its output for the reason. "
            "Any number of processes can resume the run from its last checkpoint"
        ) from error


def usable(device: str | torch.device, local_rank: int | None = None) -> torch.device:
    """Return a device with its index; a ValueError if torch cannot use it."""
    try:
        if local_rank is not None and torch.device(device).type == "cuda":
            has_index = torch.device(device).index is not None
            torch.cuda.set_device(device if has_index else local_rank)
        return torch.empty(0, device=device).device
    # A torch built without CUDA raises an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            "device must be a device that torch can use here, got "
            f"{shorten(device)}: {reason}"
        ) from error
