"""Files that lie, made by hand, and what may be expected of who reads them: soon one clear error."""

import hashlib
import json
import math
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
    """A file with this header, JSON or the bytes that stand in its place.

    A checksum in the metadata is taken anew: whoever wants to mislead can do that sum
        too.
    """
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and "sha256" in metadata:
        metadata["sha256"] = "0" * 64
        data = _joined(json.dumps(header).encode(), numbers)
        metadata["sha256"] = hashlib.sha256(data).hexdigest()
    return _joined(
        header if isinstance(header, bytes) else json.dumps(header).encode(), numbers
    )


def _joined(text: bytes, numbers: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + numbers


def retyped(header: dict[str, Any], numbers: bytes, prefix: str, dtype: str) -> bytes:
    """Give tensors whose names begin so another type and ones for numbers.

    Returns what is then to follow the header.
    """
    one = {
        "F16": "003c",
        "BF16": "803f",
        "F32": "0000803f",
        "F64": "000000000000f03f",
    }[dtype]
    entries = {
        name: entry for name, entry in header.items() if name != "__metadata__"
    }
    found = b""
    for name, entry in sorted(
        entries.items(), key=lambda item: item[1]["data_offsets"]
    ):
        first, last = entry["data_offsets"]
        new = numbers[first:last]
        if name.startswith(prefix):
            entry["dtype"], new = (
                dtype,
                bytes.fromhex(one) * math.prod(entry["shape"]),
            )
        entry["data_offsets"] = [len(found), len(found) + len(new)]
        found += new
    return found


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
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1])
    )
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
