"""A training process that is killed inside a given call, shortly after a given line.

    python tests/dying.py ORDERS ARGUMENT ...

builds the native backend, then runs the command line with these arguments. When the
line is reached, the process writes its position into a pipe and continues. It never
returns from the call, so that the kill falls inside it.
"""

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import fbt.training.run
import fbt.training.text
from fbt import _corpus, _files, corpus, native
from fbt.training.__main__ import main
from fbt.training.folder import RunFolder
from fbt.training.loop import Trainer

PACKAGE, OWN = Path(fbt.__file__).parent, Path(__file__)
CALLS: dict[str, tuple[Any, str]] = {
    "build": (native, "build_native"),
    "download": (fbt.training.text, "load_tiny_shakespeare"),
    "step": (Trainer, "_update"),
    "evaluation": (Trainer, "_evaluate"),
    "checkpoint": (Trainer, "save"),
    "append": (RunFolder, "append"),
    "write": (RunFolder, "write"),
    "ending": (fbt.training.run, "save_results"),
}


@dataclass(frozen=True)
class Moment:
    """When to kill a process: some seconds after a line of a call.

    Lines of the package and of this file are counted.
    """

    kind: str
    call: int
    line: int
    seconds: float


@dataclass(frozen=True)
class Orders:
    """The moment of the kill, the pipe to write into, and the corpus to download."""

    moment: Moment
    pipe: int
    url: str
    sha256: str
    size: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Orders":
        values = json.loads(text)
        return cls(**values | {"moment": Moment(**values["moment"])})


class InPieces(io.BufferedWriter):
    """A file that is written slowly, in five pieces."""

    def write(self, data: Any) -> int:
        size = len(data) // 5 + 1
        for start in range(0, len(data), size):
            super().write(data[start : start + size])
            self.flush()
            time.sleep(0.003)
        return len(data)


def in_pieces(path: str, mode: str, opener: Any) -> Any:
    """Open a file like `open`, but for writing in pieces."""
    return InPieces(io.FileIO(path, mode, opener=opener))


def appended_in_pieces(descriptor: int, mode: str) -> Any:
    """Open a descriptor like `os.fdopen`, but append in pieces."""
    if mode == "rb+":
        return InPieces(io.FileIO(descriptor, mode))
    return fdopen(descriptor, mode)


def never_left(
    function: Callable[..., Any], moment: Moment, pipe: int
) -> Callable[..., Any]:
    """Return a function whose given call reports its line and does not return."""
    calls = itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != moment.call:
            return function(*args, **kwargs)
        lines, told = 0, False

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal lines, told
            path = Path(frame.f_code.co_filename)
            if told or not (PACKAGE in path.parents or path == OWN):
                return None
            lines += event == "line"
            if lines == moment.line:
                told = True
                tell(f"{path.relative_to(PACKAGE.parent)}:{frame.f_lineno}")
            return trace

        def tell(where: str) -> None:
            os.write(pipe, f"{where}\n".encode())

        sys.settrace(trace)
        try:
            function(*args, **kwargs)
        finally:
            sys.settrace(None)
        if not told:
            tell(f"its end, after {lines} lines")
        while True:
            time.sleep(1)

    return dying


if __name__ == "__main__":
    orders = Orders.from_json(sys.argv[1])
    _files.open = in_pieces  # type: ignore[attr-defined]
    fdopen, os.fdopen = os.fdopen, appended_in_pieces  # type: ignore[assignment]
    _corpus.SHA256, _corpus.SIZE = orders.sha256, orders.size
    (corpus.load_tiny_shakespeare.__kwdefaults__ or {})["sources"] = (
        _corpus.Download(orders.url),
    )
    place, name = CALLS[orders.moment.kind]
    setattr(place, name, never_left(getattr(place, name), orders.moment, orders.pipe))
    native.build_native()
    sys.exit(main(sys.argv[2:]))
