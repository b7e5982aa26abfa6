"""Files that lie, made by hand, and what may be expected of who reads them: soon one clear error."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put_together(header: Any, numbers: bytes) -> bytes:
    """A file with this header, JSON or the bytes that stand in its place."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


@contextmanager
def held_short(seconds: float = 2.0, memory: int = 256 * 2**20) -> Iterator[None]:
    """Allow no more than this time of the processor and, where that can be had, memory."""
    began = time.process_time()
    with little_memory(memory):
        yield
    assert time.process_time() - began < seconds


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(path: Path, load: Callable[[], Any]) -> str:
    """What a loader says of a file after its name, soon and without taking memory."""
    with held_short(), pytest.raises(ValueError) as caught:
        load()
    return reason(path, caught.value)


def reason(path: Path, error: ValueError) -> str:
    """What is said after the name of the file, in a line that a reader takes in."""
    message = str(error)
    assert message.startswith(f"{path} "), message
    assert len(message.splitlines()) == 1, message
    assert len(message) < len(str(path)) + 800, message
    return message.removeprefix(f"{path} ")
