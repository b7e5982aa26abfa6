"""Make malicious files, and expect one clear error, within limited resources."""

import gc
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


def parse_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def build_file(header: Any, numbers: bytes) -> bytes:
    """Return a file with a header, JSON or bytes, and data.

    A checksum in the metadata is computed anew, as an attacker could.
    """
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and "sha256" in metadata:
        metadata["sha256"] = "0" * 64
        data = _file_bytes(json.dumps(header).encode(), numbers)
        metadata["sha256"] = hashlib.sha256(data).hexdigest()
    return _file_bytes(
        header if isinstance(header, bytes) else json.dumps(header).encode(), numbers
    )


def _file_bytes(text: bytes, numbers: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + numbers


def with_dtype(
    header: dict[str, Any], numbers: bytes, prefix: str, dtype: str
) -> bytes:
    """Replace tensors whose names begin with `prefix` by ones of another dtype.

    Returns the data of the file.
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
def limited_resources(
    seconds: float = 2.0, memory: int = 256 * 2**20
) -> Iterator[None]:
    """Limit CPU seconds and, on Linux, memory in bytes."""
    gc.freeze()  # what other tests have left is not searched for garbage meanwhile
    began = time.process_time()
    try:
        with limited_memory(memory):
            yield
        assert time.process_time() - began < seconds
    finally:
        gc.unfreeze()


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
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
    """Return the error of a loader, without the path, within limited resources."""
    with limited_resources(), pytest.raises(ValueError) as caught:
        load()
    return reason(path, caught.value)


def reason(path: Path, error: ValueError) -> str:
    """Return the message of an error, one short line, without the path."""
    message = str(error)
    assert message.startswith(f"{path} "), message
    assert len(message.splitlines()) == 1, message
    assert len(message) < len(str(path)) + 800, message
    return message.removeprefix(f"{path} ")
