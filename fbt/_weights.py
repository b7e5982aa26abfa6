"""Read, check and write files in the safetensors format.

The format (https://huggingface.co/docs/safetensors) is eight bytes with the length of
the header, the header, and the data of the tensors, contiguous and little-endian. The
header is JSON. It gives the `dtype`, `shape` and `data_offsets` of each tensor, and
strings by name under `__metadata__`.

A file may be damaged, may be malicious, and may change while it is read. So it is
opened once, and its header is checked before memory is allocated for the tensors: the
sizes of file and header, that the tensors are contiguous and fill the file, and that
their names, shapes and types match the config. The metadata may contain the string
`sha256`, the hash of the whole file with zeros in place of that string. It shows that
header and data belong together.

The safetensors library is not used. It maps a file into memory, where truncating the
file kills the process, and the order of its metadata, hence the hash of a file,
changes between processes.
"""

import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from fbt._checks import check_choice, check_instance, check_int
from fbt._files import LARGEST, check_size, errors_about, quoted_path, reading_file
from fbt._text import parse_json

LENGTH_BYTES = 8  # of the length of the header
LONGEST_HEADER = 8_000_000  # bytes; a tokenizer of 50,000 tokens takes 2 to 4 MB
MOST_TENSORS = 10_000  # of a file; a checkpoint has three for each parameter
MOST_DIMENSIONS = 8  # of a tensor; torch allows 64
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
CHECKSUM = "sha256"  # in the metadata
NO_CHECKSUM = "0" * 64  # replaces the checksum while the file is hashed
FEW = 4  # tensors of a kind that an error lists

Shape = tuple[int, ...]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class TensorInfo:
    """The entry of a tensor in the header.

    Attributes:
        dtype, shape: of the tensor.
        start, end: positions of its bytes, relative to the end of the header.
    """

    dtype: torch.dtype
    shape: Shape
    start: int
    end: int

    def numel(self) -> int:
        """Return the number of entries, as `Tensor.numel` does."""
        return math.prod(self.shape)


class TensorFile:
    """An open safetensors file with a valid header.

    Attributes:
        metadata: strings by name.
        tensors: dtype, shape and position of each tensor, by name, in the order of
            the file.

    Args:
        file: open for reading, at the end of the header.
        header: what `header_of` returned.

    Raises:
        ValueError: if the header is invalid. The message names the tensor and the
            field.
    """

    def __init__(self, file: IO[bytes], header: bytes) -> None:
        self._file, self._header = file, header
        text, length = header[LENGTH_BYTES:], _header_length(header)
        if len(text) < length:
            raise ValueError(f"the header must have {length} bytes, got {len(text)}")
        entries = parse_json("header", text)
        check_instance("header", entries, dict)
        self.metadata: dict[str, str] = _checked_metadata(entries.pop(METADATA, {}))
        if len(entries) > MOST_TENSORS:
            raise ValueError(
                f"the header must name at most {MOST_TENSORS} tensors, "
                f"got {len(entries)}"
            )
        size = os.fstat(file.fileno()).st_size - len(header)
        self.tensors: dict[str, TensorInfo] = _contiguous(
            {name: _entry(name, value, size) for name, value in entries.items()}, size
        )

    def text(self, name: str) -> str:
        """Return a string of the metadata; raise a ValueError if it is missing."""
        if name not in self.metadata:
            raise ValueError(f"{name} is missing from the metadata")
        return self.metadata[name]

    def read(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors whose names begin with `prefix`, by the rest of the name.

        Tensors are read one by one, in the order of the file. The checksum is
        compared after the last one, so nothing may be used before the iterator ends.
        A file can be read once.

        Raises:
            ValueError: if the file ends early or does not match its checksum.
        """
        expected = self.metadata.get(CHECKSUM)
        length, header = self._header[:LENGTH_BYTES], self._header[LENGTH_BYTES:]
        if expected is not None:
            header = header.replace(
                expected.encode(errors="replace"), NO_CHECKSUM.encode(), 1
            )
        digest = hashlib.sha256(length + header)
        for name, entry in self.tensors.items():
            data: Any = torch.empty(
                entry.end - entry.start, dtype=torch.uint8, device="cpu"
            ).numpy()
            if self._file.readinto(data) < len(data):  # type: ignore[attr-defined]
                raise ValueError(f"the file ends before the end of {name!r}")
            digest.update(data)
            if name.startswith(prefix):
                tensor = torch.from_numpy(_little_endian(data, entry.dtype.itemsize))
                yield (
                    name.removeprefix(prefix),
                    tensor.view(entry.dtype).reshape(entry.shape),
                )
        if expected not in (None, digest.hexdigest()):
            raise ValueError(
                f"{CHECKSUM} in the metadata must be the hash of the other bytes, "
                f"{digest.hexdigest()}, got {expected!r}: the file was damaged or "
                "edited"
            )


def _checked_metadata(metadata: Any) -> dict[str, str]:
    check_instance(METADATA, metadata, dict)
    for name, text in metadata.items():
        check_instance(f"{name!r} of {METADATA}", text, str)
    strings: dict[str, str] = metadata
    return strings


def _entry(name: str, value: Any, size: int) -> TensorInfo:
    """Return the checked entry of a tensor, given the size of the data in bytes."""
    check_instance(f"{name!r}", value, dict)
    for field in ("dtype", "shape", "data_offsets"):
        if field not in value:
            got = ", ".join(value) or "nothing"
            raise ValueError(f"{name!r} must have a {field}, got {got}")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    check_choice(f"dtype of {name!r}", code, tuple(DTYPES))
    check_instance(f"shape of {name!r}", shape, list)
    check_instance(f"data_offsets of {name!r}", offsets, list)
    check_int(
        f"length of the shape of {name!r}", len(shape), low=0, high=MOST_DIMENSIONS
    )
    for number in shape:
        check_int(f"shape of {name!r}", number, low=1, high=LARGEST)
    check_int(f"length of the data_offsets of {name!r}", len(offsets), low=2, high=2)
    for number in offsets:
        check_int(f"data_offsets of {name!r}", number, low=0, high=size)
    entry = TensorInfo(DTYPES[code], tuple(shape), *offsets)
    if entry.end - entry.start != (needed := entry.numel() * entry.dtype.itemsize):
        raise ValueError(
            f"data_offsets of {name!r} must be {needed} bytes apart as "
            f"{code} {shape}, got {offsets}"
        )
    return entry


def _contiguous(entries: dict[str, TensorInfo], size: int) -> dict[str, TensorInfo]:
    """Return the entries by position; raise unless they fill the data exactly."""
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].start))
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            got = entry.start
            raise ValueError(
                f"data_offsets of {name!r} must begin at {end}, got {got}"
            )
        end = entry.end
    if end != size:
        raise ValueError(
            f"the tensors must fill the {size} bytes after the header, got {end}"
        )
    return ordered


def _little_endian(data: Any, itemsize: int) -> Any:
    """Convert bytes between this machine's order and the file's."""
    if sys.byteorder == "little":
        return data
    return data.view(f"u{itemsize}").byteswap().view("u1")


def without_prefix(tensors: Mapping[str, Kind], prefix: str) -> dict[str, Kind]:
    """Return the tensors whose names begin with a prefix, by the rest of the name."""
    return {
        name.removeprefix(prefix): t
        for name, t in tensors.items()
        if name.startswith(prefix)
    }


def check_tensors(
    tensors: Mapping[str, Tensor | TensorInfo],
    expected: Iterable[tuple[str, Shape]],
    prefix: str = "",
) -> None:
    """Raise a ValueError unless tensors have the expected names and shapes.

    Args:
        tensors: by name. Only names that begin with `prefix` are checked.
        expected: names without the prefix, and shapes. There may be any number of
            them, since a file may claim any number of layers: the check stops once
            more names are missing than present.
        prefix: of the names.
    """
    actual = without_prefix(tensors, prefix)
    missing, misshapen, unknown = [], [], {*actual}
    for name, shape in expected:
        if name not in actual:
            missing.append(prefix + name)
        elif actual[name].shape != shape:
            misshapen.append(
                f"{prefix}{name} {[*actual[name].shape]}, not {list(shape)}"
            )
        unknown.discard(name)
        if len(missing) > len(actual):
            unknown.clear()  # not all expected names are known
            break
    differences = {
        "missing": missing,
        "misshapen": misshapen,
        "unknown": [prefix + n for n in sorted(unknown)],
    }
    texts = [
        f"{kind} {', '.join(map(repr, names[:FEW]))}"
        f"{' and others' if len(names) > FEW else ''}"
        for kind, names in differences.items()
        if names
    ]
    if texts:
        raise ValueError(
            f"tensor names or shapes do not match the config: {'; '.join(texts)}"
        )


def check_weights(
    tensors: Mapping[str, Tensor | TensorInfo],
    expected: Iterable[tuple[str, Shape]],
    prefix: str = "",
) -> None:
    """Like `check_tensors`, and raise unless all tensors have the same dtype."""
    check_tensors(tensors, expected, prefix)
    first: dict[torch.dtype, str] = {}
    for name, tensor in without_prefix(tensors, prefix).items():
        first.setdefault(tensor.dtype, name)
    if len(first) > 1:
        got = ", ".join(
            f"{dtype} for {prefix + name!r}" for dtype, name in first.items()
        )
        raise ValueError(f"all tensors must have the same dtype, got {got}")


@contextmanager
def reading_tensors(path: Path, kind: str) -> Iterator[TensorFile]:
    """Open a safetensors file; a ValueError in the caller's block names the file.

    Args:
        path: of a regular file.
        kind: "model" or "checkpoint", for messages.

    Raises:
        ValueError: if the file is damaged or too large, changes while it is read, or
            fails a check in the caller's block.
        OSError: if it cannot be read.
    """
    with reading_file(path) as file:
        header = header_of(file)
        check_sizes(path, os.fstat(file.fileno()).st_size, header)
        with errors_about(path, kind):
            yield TensorFile(file, header)


def serialise(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> bytes:
    """Return the bytes of a safetensors file, independent of the order of tensors.

    Args:
        path: where the file will be, for messages.
        tensors: by name. A tensor with two names is written twice.
        metadata: strings by name.

    Raises:
        ValueError: if the file would be too large for `reading_tensors`, if the dtype
            of a tensor is not in `DTYPES`, or if the path is not valid UTF-8, so that
            the safetensors library could not open it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the path of a safetensors file must be valid UTF-8, got {str(path)!r}"
        ) from error
    # The largest items first, which aligns each tensor to the size of its items.
    ordered = sorted(
        tensors.items(), key=lambda item: (-item[1].element_size(), item[0])
    )
    header: dict[str, Any] = {
        METADATA: {CHECKSUM: NO_CHECKSUM, **dict(sorted(metadata.items()))}
    }
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in CODES:
            allowed = ", ".join(map(str, CODES))
            raise ValueError(
                f"{name!r} must have one of the dtypes {allowed}, got {tensor.dtype}"
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        code, shape = CODES[tensor.dtype], [*tensor.shape]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    length = len(text).to_bytes(LENGTH_BYTES, "little")
    check_sizes(path, LENGTH_BYTES + len(text) + end, length)
    file = io.BytesIO()
    file.write(length + text)
    for _, tensor in ordered:
        items = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        file.write(_little_endian(items, tensor.element_size()))
    with file.getbuffer() as data:
        start = LENGTH_BYTES + text.index(NO_CHECKSUM.encode())
        checksum = hashlib.sha256(data).hexdigest().encode()
        data[start : start + len(NO_CHECKSUM)] = checksum
    return file.getvalue()


def header_of(file: IO[bytes]) -> bytes:
    """Read the length and the text of the header, at most `LONGEST_HEADER` bytes."""
    length = file.read(LENGTH_BYTES)
    return length + file.read(min(_header_length(length), LONGEST_HEADER))


def _header_length(header: bytes) -> int:
    return int.from_bytes(header[:LENGTH_BYTES], "little")


def check_sizes(path: Path, size: int, header: bytes) -> None:
    """Raise a ValueError if a file or its header is too large.

    Args:
        path: of the file, for messages.
        size: of the file in bytes.
        header: what `header_of` returned; its length is enough.
    """
    check_size(path, size, LARGEST)
    if (length := _header_length(header)) > LONGEST_HEADER:
        raise ValueError(
            f"{quoted_path(path)} must be a safetensors file with a header of "
            f"at most {LONGEST_HEADER} bytes, got {length}"
        )
