"""Files of tensors: what is checked before one of them is believed.

A file may be damaged, or come from a stranger. The safetensors library runs no code, and sees to it that
tensors lie inside the file, side by side. What it leaves open is settled here before memory is taken: how
large file and header may be, and whether names, shapes and types of the tensors are what the config asks for.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fbt._files import naming

LARGEST = 2**32  # bytes of a file
LONGEST_HEADER = 2_000_000  # bytes of it; the library would take 100 MB, and a gigabyte of memory for them
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FEW = 4  # tensors of a kind that an error names

Shape = tuple[int, ...]


class Stored:
    """An open file of tensors.

    Attributes:
        metadata: texts by name.
        tensors: by name; their numbers are read from the file where they are used, and keep it open.

    Raises:
        ValueError: a tensor is of no floating-point type that a model has.
    """

    def __init__(self, file: Any) -> None:
        self.metadata: dict[str, str] = file.metadata() or {}
        # Whole tensors: the library takes a time that grows with their number to look at the shape of one.
        try:
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except AttributeError as error:
            raise ValueError(f"it has numbers of a type that this torch does not know: {error}") from error
        for name, tensor in self.tensors.items():
            if tensor.dtype not in FLOATS:
                raise ValueError(
                    f"{name!r} must be of one of {', '.join(map(str, FLOATS))}, got {tensor.dtype}"
                )

    def text(self, name: str) -> str:
        """The text of that name in the metadata; raises a ValueError where there is none."""
        if name not in self.metadata:
            raise ValueError(f"there is no {name} in its metadata")
        return self.metadata[name]


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by what follows."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Iterable[tuple[str, Shape]], prefix: str = ""
) -> None:
    """Raise a ValueError that names what is wrong unless tensors have these names and shapes.

    Args:
        tensors: those whose names begin with `prefix` are looked at.
        expected: names without the prefix, and shapes. What a stranger's config asks for may be without end:
            once more is missing than there is, the rest is not looked at.
        prefix: what the names begin with.
    """
    found = part_of(tensors, prefix)
    missing, misshapen, unknown = [], [], {*found}
    for name, shape in expected:
        if name not in found:
            missing.append(prefix + name)
        elif found[name].shape != shape:
            misshapen.append(f"{prefix}{name} {list(found[name].shape)}, not {list(shape)}")
        unknown.discard(name)
        if len(missing) > len(found):
            unknown.clear()  # of what is left nobody knows
            break
    kinds = {"missing": missing, "misshapen": misshapen, "unknown": [prefix + n for n in sorted(unknown)]}
    wrong = [
        f"{kind} {', '.join(map(repr, names[:FEW]))}{' and others' if len(names) > FEW else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if wrong:
        raise ValueError(f"its tensors are not those it should have: {'; '.join(wrong)}")


def check_weights(
    tensors: Mapping[str, Tensor], expected: Iterable[tuple[str, Shape]], prefix: str = ""
) -> None:
    """As `check_tensors`, and that they are all of one type."""
    check_tensors(tensors, expected, prefix)
    if len(types := {str(tensor.dtype) for tensor in part_of(tensors, prefix).values()}) > 1:
        raise ValueError(f"its tensors must all be of one type, got {', '.join(sorted(types))}")


@contextmanager
def reading(path: Path, kind: str) -> Iterator[Stored]:
    """Open a file of tensors; what is wrong with it, here or in the caller's block, is said as by `naming`.

    Args:
        path: of a regular file.
        kind: "model" or "checkpoint".

    Raises:
        ValueError: the file is damaged, too large, or does not pass the caller's checks.
        OSError: it cannot be read.
    """
    with path.open("rb") as start:
        check_sizes(path, path.stat().st_size, start.read(8))
    with naming(path, kind):
        try:
            with safe_open(path, framework="pt") as file:
                yield Stored(file)
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def serialise(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the bytes of a file of tensors that `reading` takes.

    Args:
        path: where the file is going to be, for messages.
        tensors: by name.
        metadata: texts by name.

    Raises:
        ValueError: if the file would be too large, or its path cannot be opened by the
            library.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the path of a file of tensors must be valid UTF-8, got {str(path)!r}") from error
    # Each a tensor of its own: the library refuses two names for the same numbers, as tied weights are.
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    data = save(own, metadata)
    check_sizes(path, len(data), data[:8])
    return data


def header_of(file: IO[bytes]) -> bytes:
    """Return the header of a file of tensors, not parsed: metadata, names, shapes."""
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))


def check_sizes(path: Path, size: int, start: bytes) -> None:
    """Raise a ValueError if a file of this size, that starts with the length of its header, is too large."""
    if size > LARGEST:
        raise ValueError(f"{path} must have at most {LARGEST} bytes, got {size}")
    if (header := int.from_bytes(start, "little")) > LONGEST_HEADER:
        raise ValueError(
            f"{path} must be a safetensors file with a header of at most {LONGEST_HEADER} bytes, got {header}"
        )
