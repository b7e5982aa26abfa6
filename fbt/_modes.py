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


@contextmanager
def without_gradients() -> Iterator[None]:
    """A context for reading a model: no gradients are recorded, and autocast does not cache its casts.

    The cache lives until the outermost autocast context ends, and all threads share
    it. A cast made before the last update of a weight would be out of date, and one
    made here would have no gradient.

    The caller's inference mode is off, since a stream that starts inside it may go on
    outside.
    """
    cached = torch.is_autocast_cache_enabled()
    with torch.inference_mode(False), torch.no_grad():
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
