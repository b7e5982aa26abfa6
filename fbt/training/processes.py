"""The processes of a run: one, or as many as torchrun has started, each with its share of every batch.

All take the same steps on the same weights. DistributedDataParallel adds up the
gradients, and what else must be known of all, losses, carried memory and the wish to
stop, is a sum too, of tensors that one process after another has filled in. So the
run is the same as one process would make, up to the order of summation, but for
dropout, which each process draws for itself.
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fbt._checks import shorten
from fbt._text import one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are; alone, it has the whole share, and sums are what they were.

    Attributes:
        device: where this process computes.
        rank: its number, from 0.
        count: the number of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files, shows progress and generates samples."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """The rows [b, ...] of [B, ...] that are this process's: as even as can be, a view."""
        return rows.tensor_split(self.count)[self.rank]

    def gather(self, share: Tensor, rows: int) -> Tensor:
        """All rows [B, ...] of what each process has its share [b, ...] of."""
        whole = share.new_zeros(rows, *share.shape[1:])
        self.share(whole).copy_(share)
        return self.sum(whole)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, which all receive and all wait for."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.count == 1:
            return value
        return self.sum(
            torch.tensor(value, dtype=torch.float64, device=self.device)
        ).item()

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        return self.total(value) / self.count

    def wait(self) -> None:
        """Go on when all are here."""
        self.total(0.0)

    def agree(self, what: str) -> None:
        """See that all processes are about to do the same; numbers of different runs would be added up.

        Raises:
            ValueError: in each process, if they are not.
        """
        number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:5], "big")
        other = (
            self.sum(torch.tensor(number, device=self.device)).item()
            != self.count * number
        )
        if self.total(other):
            raise ValueError(
                f"all {self.count} processes of a run must have the same settings, text, "
                f"backend and checkpoint; process {self.rank} has {one_line(what)}"
            )

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Do something in every process, but in the first one before the others: these find its files."""
        if not self.is_first:
            self.wait()
        result = work()
        if self.is_first:
            self.wait()
        return result

    def replica(self, model: nn.Module) -> nn.Module:
        """The model with the first process's weights; `backward` averages gradients over all processes."""
        return model if self.count == 1 else DistributedDataParallel(model)


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def join_processes(device: str | torch.device | None) -> Iterator[Processes]:
    """Join the processes that torchrun started beside this one, or those whose group exists already.

    Args:
        device: where to compute; None takes a CUDA GPU if there is one. Of several
            GPUs, "cuda" is the one that has the process's number on its machine.

    Raises:
        ValueError: torch cannot use the device.
        ConnectionError: another process ended before this one.
    """
    grouped = dist.is_available() and dist.is_initialized()
    started = not grouped and by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1
    place = _device(device, int(os.environ["LOCAL_RANK"]) if started else None)
    if not (started or grouped):
        yield Processes(place)
        return
    try:
        if started:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
            # Not before: torch cannot make the group that torchrun provides for a
            # second time.
            atexit.register(dist.destroy_process_group)
        yield Processes(place, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ConnectionError(
            "another process of this run has ended, and what it printed says why; the run can be resumed "
            "from its last checkpoint, by any number of processes"
        ) from error


def _device(name: str | torch.device | None, number: int | None) -> torch.device:
    """The device of that name; `number` is this process's on its machine if it has several."""
    device: Any = (
        ("cuda" if torch.cuda.is_available() else "cpu") if name is None else name
    )
    try:
        if number is not None and torch.device(device).type == "cuda":
            torch.cuda.set_device(
                number if torch.device(device).index is None else device
            )
        return torch.empty(0, device=device).device
    # torch built without CUDA asserts
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"device must be one that torch can use here, got {shorten(name)}: {reason}"
        ) from error
