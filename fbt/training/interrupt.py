"""Stopping a run with Ctrl-C or a termination signal."""

import contextlib
import signal
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop during an evaluation."""


class Interrupt:
    """A context in which Ctrl-C or a termination signal requests a stop.

    The run stops after the current step. A second signal has its usual effect.

    Attributes:
        requested: whether a signal has arrived.
    """

    requested = False

    def __enter__(self) -> "Interrupt":
        self._previous: dict[signal.Signals, Any] = {}
        for kind in (signal.SIGINT, signal.SIGTERM):
            # None is a handler that Python did not set and could not restore. Shells
            # ignore SIGINT for commands that a script starts in the background.
            if signal.getsignal(kind) in (None, signal.SIG_IGN):
                continue
            # Only the main thread can set handlers; only it receives Ctrl-C.
            with contextlib.suppress(ValueError):
                self._previous[kind] = signal.signal(kind, self._request)
        return self

    def __exit__(self, *exc: object) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, self._previous[signal.Signals(number)])
