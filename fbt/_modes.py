"""Modes of torch that the package turns off for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast(device: str) -> Iterator[bool]:
    """A context in which operations keep the dtype of their inputs.

    Yields:
        Whether autocast was on.
    """
    if not torch.amp.is_autocast_available(device):  # "meta", for one
        yield False
        return
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False):
        yield autocast
