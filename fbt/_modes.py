"""Context managers that turn off modes of torch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_autocast(device: str) -> Iterator[torch.dtype | None]:
    """Turn autocast off: operations keep the dtype of their inputs.

    Yields:
        What `autocast_dtype` returned before.
    """
    autocast = autocast_dtype(device)
    if autocast is None:
        yield None
        return
    with torch.autocast(device, enabled=False):
        yield autocast


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype to which autocast converts on a device; None if it is off."""
    if not torch.amp.is_autocast_available(device):  # e.g. "meta"
        return None
    on = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


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
