"""Files of tensors taken apart and put together again by hand, so that a test can make one that lies."""

import json
from typing import Any


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put_together(header: Any, numbers: bytes) -> bytes:
    """A file with this header, JSON or the bytes that stand in its place."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers
