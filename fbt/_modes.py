"""Context managers that turn off modes of torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast(device: str) -> Iterator[torch.dtype | None]:
    """Turn autocast off: operations keep the dtype of their inputs.

    Yields:
        The dtype of autocast if it was on, else None.
    """
    if not torch.amp.is_autocast_available(device):  # e.g. "meta"
        yield None
        return
    enabled = torch.is_autocast_enabled(device)
    autocast = torch.get_autocast_dtype(device) if enabled else None
    with torch.autocast(device, enabled=False):
        yield autocast


@contextmanager
def without_gradients() -> Iterator[None]:
    """Record no gradients, and do not cache casts under autocast.

    Autocast's cache lasts until its outermost context ends, and all threads share it.
    A cached cast could be older than the last update of a weight, and a cast made
    here would have no gradient.

    Inference mode is turned off: a stream of text that starts in it may continue
    outside.
    """
    cached = torch.is_autocast_cache_enabled()
    with torch.inference_mode(False), torch.no_grad():
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
