"""Files of tensors: written alike by every process, checked before one is believed.

The format is that of safetensors (https://huggingface.co/docs/safetensors): eight
bytes with the length of the header, the header, and the numbers of the tensors, side
by side and little-endian. The header is JSON. It gives the `dtype`, `shape` and
`data_offsets` of each tensor, and texts by name under `__metadata__`.

A file may be damaged, may come from a stranger, and may be written to while it is
read. So it is opened once, and what its header says is checked before memory is taken
for the numbers: how large file and header may be, that the tensors lie side by side
and fill the file, and whether names, shapes and types of the tensors are those that
the config asks for. The text `sha256` of the metadata, where there is one, is the
hash of the whole file with zeros in place of that text. It shows that header and
numbers belong together.

This is not left to the safetensors library, which maps a file into memory, where a
file that is cut short ends the process, and whose order of texts, and so a file's
hash, changes from process to process.
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

LONGEST_HEADER = 2_000_000  # bytes of it
MOST_DIMENSIONS = 8  # of a tensor, of which torch takes 64
DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
METADATA = "__metadata__"
CHECKSUM = "sha256"  # in the metadata
NO_CHECKSUM = "0" * 64  # in its place while the file is hashed
FEW = 4  # tensors of a kind that an error names

Shape = tuple[int, ...]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of a tensor.

    Attributes:
        dtype, shape: of the tensor.
        start, end: of its bytes, from the end of the header.
    """

    dtype: torch.dtype
    shape: Shape
    start: int
    end: int

    def numel(self) -> int:
        """The number of its entries, by the name it has in torch."""
        return math.prod(self.shape)


class TensorFile:
    """An open file of tensors whose header is in order.

    Attributes:
        metadata: texts by name.
        tensors: what the header says of each tensor, by name; `read` reads the
            tensors themselves.

    Raises:
        ValueError: if something is wrong with the header; the message names the
            tensor and the field.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._length = file.read(8)
        length = int.from_bytes(self._length, "little")
        self._header = file.read(length)
        if len(self._header) < length:
            raise ValueError(
                f"its header must have {length} bytes, got {len(self._header)}"
            )
        entries = parse_json("header", self._header)
        check_instance("header", entries, dict)
        self.metadata: dict[str, str] = _texts(entries.pop(METADATA, {}))
        size = os.fstat(file.fileno()).st_size - len(self._length) - length
        self.tensors: dict[str, TensorInfo] = _side_by_side(
            {name: _entry(name, value, size) for name, value in entries.items()}, size
        )

    def text(self, name: str) -> str:
        """The text of that name in the metadata; raises a ValueError where there is none."""
        if name not in self.metadata:
            raise ValueError(f"there is no {name} in its metadata")
        return self.metadata[name]

    def read(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Read the tensors whose names begin with `prefix`.

        They come in the order of the file, with the rest of their names. Memory is
        taken for one after the other. After the last one the checksum is compared, so
        nothing that was read may be used before the iterator has come to its end. A
        file can be read once.

        Raises:
            ValueError: if the file ends early, or is not the one that its checksum
                was taken of.
        """
        expected = self.metadata.get(CHECKSUM)
        header = self._header
        if expected is not None:
            header = header.replace(
                expected.encode(errors="replace"), NO_CHECKSUM.encode(), 1
            )
        digest = hashlib.sha256(self._length + header)
        for name, entry in self.tensors.items():
            numbers: Any = torch.empty(
                entry.end - entry.start, dtype=torch.uint8, device="cpu"
            ).numpy()
            if self._file.readinto(numbers) < len(numbers):  # type: ignore[attr-defined]
                raise ValueError(f"it ends before the end of {name!r}")
            digest.update(numbers)
            if name.startswith(prefix):
                tensor = torch.from_numpy(
                    _little_endian(numbers, entry.dtype.itemsize)
                )
                yield (
                    name.removeprefix(prefix),
                    tensor.view(entry.dtype).reshape(entry.shape),
                )
        if expected not in (None, digest.hexdigest()):
            raise ValueError(
                f"{CHECKSUM} in its metadata must be the hash of its other bytes, "
                f"{digest.hexdigest()}, got {expected!r}: the file was damaged or edited"
            )


def _texts(metadata: Any) -> dict[str, str]:
    check_instance(METADATA, metadata, dict)
    for name, text in metadata.items():
        check_instance(f"{name!r} of {METADATA}", text, str)
    texts: dict[str, str] = metadata
    return texts


def _entry(name: str, value: Any, size: int) -> TensorInfo:
    """What the header says of a tensor, with `size` bytes in the file after it."""
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
            f"data_offsets of {name!r} must be {needed} bytes apart as {code} {shape}, got {offsets}"
        )
    return entry


def _side_by_side(entries: dict[str, TensorInfo], size: int) -> dict[str, TensorInfo]:
    """The tensors in the order of their bytes, which must fill the rest of a file."""
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
            f"its tensors must fill the {size} bytes after the header, got {end} bytes"
        )
    return ordered


def _little_endian(numbers: Any, itemsize: int) -> Any:
    """The bytes of numbers as a file orders them, or back as this machine does."""
    if sys.byteorder == "little":
        return numbers
    return numbers.view(f"u{itemsize}").byteswap().view("u1")


def without_prefix(tensors: Mapping[str, Kind], prefix: str) -> dict[str, Kind]:
    """The tensors whose names begin so, by what follows."""
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
    """Raise a ValueError that names what is wrong unless tensors have these names and shapes.

    Args:
        tensors: those whose names begin with `prefix` are looked at.
        expected: names without the prefix, and shapes. What a stranger's config asks
            for may be without end: once more is missing than there is, the rest is
            not looked at.
        prefix: what the names begin with.
    """
    found = without_prefix(tensors, prefix)
    missing, misshapen, unknown = [], [], {*found}
    for name, shape in expected:
        if name not in found:
            missing.append(prefix + name)
        elif found[name].shape != shape:
            misshapen.append(
                f"{prefix}{name} {[*found[name].shape]}, not {list(shape)}"
            )
        unknown.discard(name)
        if len(missing) > len(found):
            unknown.clear()  # of what is left nobody knows
            break
    kinds = {
        "missing": missing,
        "misshapen": misshapen,
        "unknown": [prefix + n for n in sorted(unknown)],
    }
    wrong = [
        f"{kind} {', '.join(map(repr, names[:FEW]))}{' and others' if len(names) > FEW else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if wrong:
        raise ValueError(
            f"its tensors are not those it should have: {'; '.join(wrong)}"
        )


def check_weights(
    tensors: Mapping[str, Tensor | TensorInfo],
    expected: Iterable[tuple[str, Shape]],
    prefix: str = "",
) -> None:
    """As `check_tensors`, and that they are all of one type."""
    check_tensors(tensors, expected, prefix)
    first: dict[torch.dtype, str] = {}
    for name, tensor in without_prefix(tensors, prefix).items():
        first.setdefault(tensor.dtype, name)
    if len(first) > 1:
        got = ", ".join(
            f"{dtype} for {prefix + name!r}" for dtype, name in first.items()
        )
        raise ValueError(f"its tensors must all be of one type, got {got}")


@contextmanager
def reading_tensors(path: Path, kind: str) -> Iterator[TensorFile]:
    """Open a file of tensors; what is wrong with it, here or in the caller's block, is said as by `errors_about`.

    Args:
        path: of a regular file.
        kind: "model" or "checkpoint".

    Raises:
        ValueError: the file is damaged, too large, changed while it is read, or does
            not pass the caller's checks.
        OSError: it cannot be read.
    """
    with reading_file(path) as file:
        check_sizes(path, os.fstat(file.fileno()).st_size, file.read(8))
        file.seek(0)
        with errors_about(path, kind):
            yield TensorFile(file)


def serialise(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> bytes:
    """Return the bytes of a file of tensors, the same whatever their order.

    Args:
        path: where the file is going to be, for messages.
        tensors: by name. A tensor with two names is written twice.
        metadata: texts by name.

    Raises:
        ValueError: if the file would be larger than what `reading_tensors` takes, if its path
            is not valid UTF-8, without which the safetensors library cannot open it,
            or if a tensor is not of a type in `DTYPES`.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the path of a file of tensors must be valid UTF-8, got {str(path)!r}"
        ) from error
    # The largest numbers first, so that each tensor begins at a multiple of the size
    # of its numbers.
    own = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {
        METADATA: {CHECKSUM: NO_CHECKSUM, **dict(sorted(metadata.items()))}
    }
    end = 0
    for name, tensor in own:
        if tensor.dtype not in CODES:
            allowed = ", ".join(map(str, CODES))
            raise ValueError(
                f"{name!r} must be of one of {allowed}, got {tensor.dtype}"
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        code, shape = CODES[tensor.dtype], [*tensor.shape]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    length = len(text).to_bytes(8, "little")
    check_sizes(path, 8 + len(text) + end, length)
    file = io.BytesIO()
    file.write(length + text)
    for _, tensor in own:
        numbers = (
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        )
        file.write(_little_endian(numbers, tensor.element_size()))
    with file.getbuffer() as data:
        place = 8 + text.index(NO_CHECKSUM.encode())
        data[place : place + len(NO_CHECKSUM)] = (
            hashlib.sha256(data).hexdigest().encode()
        )
    return file.getvalue()


def header_of(file: IO[bytes]) -> bytes:
    """Return the header of a file of tensors, not parsed: metadata, names, shapes."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))


def check_sizes(path: Path, size: int, start: bytes) -> None:
    """Raise a ValueError if a file of this size, that starts with the length of its header, is too large."""
    check_size(path, size, LARGEST)
    if (header := int.from_bytes(start, "little")) > LONGEST_HEADER:
        raise ValueError(
            f"{quoted_path(path)} must be a safetensors file with a header of at most "
            f"{LONGEST_HEADER} bytes, got {header}"
        )
