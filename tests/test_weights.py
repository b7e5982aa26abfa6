"""Damaged, swapped, huge and malicious files: each raises one clear error."""

import ast
import gzip
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from exact import AROUND, OPTIONS, VARIANTS, config, model
from hostile_files import (
    build_file,
    limited_memory,
    parse_file,
    reason,
    refusal,
    with_dtype,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import TEXT, WARNINGS, save_checkpoint, small_run

import fbt
from fbt import _weights
from fbt.language_model import LanguageModel, weight_shapes
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.training import resume
from fbt.training.checkpoint import Checkpoint
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
HUGE = 2**26  # a quarter of the largest size that Config allows


# Shapes of a model's weights


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changes", [{}, *OPTIONS, *AROUND], ids=str)
def test_weight_shapes_equal_those_of_the_model(
    variant: str, changes: dict[str, Any]
) -> None:
    lm = model(variant, **changes)
    before = torch.get_rng_state()
    assert dict(weight_shapes(lm.config)) == {
        k: tuple(v.shape) for k, v in lm.state_dict().items()
    }
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "size", ["vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "span"]
)
def test_weight_shapes_of_a_model_larger_than_any_memory(size: str) -> None:
    changes = {size: HUGE} | ({"d_model": HUGE} if size == "n_heads" else {})
    shapes = weight_shapes(
        fbt.Config(**{"vocab_size": 19, "d_model": 14, "n_heads": 2} | changes)
    )
    name, shape = next(shapes)
    assert (name, len(shape)) == ("token_embedding.weight", 2)


def test_weight_shapes_import_no_compiler() -> None:
    """Drawing weights on the meta device would import one, which takes seconds."""
    code = """
import sys, fbt
from fbt.language_model import weight_shapes
before = set(sys.modules)
list(weight_shapes(fbt.Config(19)))
assert len(set(sys.modules) - before) < 10
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Files of models


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return model("shared-kv", TOKENIZER).save_pretrained(tmp_path)


def rewrite(
    path: Path, change: Callable[[dict[str, Any], dict[str, str]], Any]
) -> None:
    """Apply `change` to the header and its metadata.

    It may return another header, or a number of bytes to add to the file.
    """
    header, numbers = parse_file(path.read_bytes())
    changed = change(header, header["__metadata__"])
    if isinstance(changed, int):
        numbers += bytes(changed)
    path.write_bytes(
        build_file(changed if isinstance(changed, bytes) else header, numbers)
    )


def without_checksum(path: Path) -> dict[str, str]:
    """Return the metadata of a file without its checksum."""
    metadata: dict[str, str] = parse_file(path.read_bytes())[0]["__metadata__"]
    del metadata["sha256"]
    return metadata


def set_field(metadata: dict[str, str], **changes: Any) -> None:
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | changes)


# Changes of header and metadata, and their errors.
WRONG: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]] = {
    "an unknown tensor": (lambda h, m: added(h, "extra"), "unknown 'extra'"),
    "a tensor renamed": (
        lambda h, m: h.update(other=h.pop("head.bias")),
        "missing 'head.bias'; unknown 'other'",
    ),
    "a tensor transposed": (
        lambda h, m: h["head.weight"]["shape"].reverse(),
        "misshapen 'head.weight [14, 19], not [19, 14]'",
    ),
    "a name with a line end": (
        lambda h, m: added(h, "a\nb"),
        r"unknown 'a\nb'",
    ),
    "many unknown tensors": (
        lambda h, m: added(h, *(f"{i:02}" for i in range(50))),
        "unknown '00', '01', '02', '03' and others",
    ),
    "another type": (
        lambda h, m: set_dtype(h, "I64"),
        "dtype of 'body.key_values.0.key.weight' must be one of "
        "'F16', 'BF16', 'F32', 'F64', got 'I64'",
    ),
    "float8": (
        lambda h, m: set_dtype(h, "F8_E4M3", 8),
        "must be one of 'F16', 'BF16', 'F32', 'F64', got 'F8_E4M3'",
    ),
    "no config": (
        lambda h, m: m.pop("config"),
        "config is missing from the metadata",
    ),
    "a config of no model": (
        lambda h, m: m.update(config="[3]"),
        "config must be a JSON object, got list",
    ),
    "a config that is null": (
        lambda h, m: m.update(config="null"),
        "config must be a JSON object, got NoneType",
    ),
    "a config cut off": (
        lambda h, m: m.update(config='{"vocab_size": 19'),
        "Expecting ',' delimiter",
    ),
    "a config nested deeply": (
        lambda h, m: m.update(config="[" * 10**6),
        "config is not valid JSON: maximum recursion",
    ),
    "a number of 10,000 digits": (
        lambda h, m: m.update(config="9" * 10**4),
        "Exceeds the limit",
    ),
    "a number beyond all floats": (
        lambda h, m: set_field(m, dropout=10**400),
        "dropout must be a number in [0.0, 1.0), got an int of 1329 bits",
    ),
    "no number": (
        lambda h, m: set_field(m, dropout=float("nan")),
        "dropout must be a number in [0.0, 1.0), got nan",
    ),
    "a text for a number": (
        lambda h, m: set_field(m, span="13"),
        "span must be an int in [1, 268435456], got '13' of type str",
    ),
    "a bool for a number": (
        lambda h, m: set_field(m, n_layers=True),
        "n_layers must be an int in [1, 268435456], got True",
    ),
    "a number for a bool": (
        lambda h, m: set_field(m, memory_norm=1),
        "memory_norm must be True or False, got 1",
    ),
    "a list for a choice": (
        lambda h, m: set_field(m, variant=["shared-kv"]),
        "variant must be one of",
    ),
    "a long text for a choice": (
        lambda h, m: set_field(m, variant="x" * 10**6),
        "variant must be one of",
    ),
    "an unknown field": (
        lambda h, m: set_field(m, colour="red"),
        "config must only have the fields vocab_size,",
    ),
    "a field renamed": (
        lambda h, m: m.update(config=m["config"].replace("vocab_size", "vocabulary")),
        "got 'vocabulary'",
    ),
    "no size of the vocabulary": (
        lambda h, m: m.update(config='{"d_model": 14}'),
        "config must have the field 'vocab_size', got d_model",
    ),
    "a field twice": (
        lambda h, m: m.update(config='{"span": 13, ' + m["config"][1:]),
        "config is not valid JSON: 'span' occurs twice",
    ),
    "heads that do not divide": (
        lambda h, m: set_field(m, n_heads=3),
        "n_heads must divide d_model, got n_heads=3 and d_model=14",
    ),
    "another span": (
        lambda h, m: set_field(m, span=12),
        "misshapen 'body.relative.0.key_embedding [2, 13, 7], not [2, 12, 7]'",
    ),
    "another variant": (
        lambda h, m: set_field(m, variant="parallel"),
        "missing 'body.layers.0.key_value.key.weight'",
    ),
    "no vocabulary": (
        lambda h, m: m.update(vocabulary='""'),
        "vocabulary must have at least one character",
    ),
    "a short vocabulary": (
        lambda h, m: m.update(vocabulary='"abc"'),
        "tokenizer must have vocab_size=19 tokens, as the model, got 3",
    ),
    "a character twice": (
        lambda h, m: m.update(vocabulary='"aa"'),
        "vocabulary must have distinct characters",
    ),
    "a vocabulary of numbers": (
        lambda h, m: m.update(vocabulary="3"),
        "vocabulary must be of type str, got 3 of type int",
    ),
    "a vocabulary that is null": (
        lambda h, m: m.update(vocabulary="null"),
        "vocabulary must be of type str, got None of type NoneType",
    ),
    # Entries of tensors.
    "overlapping tensors": (
        lambda h, m: h.update(
            {"head.bias": h["body.layers.0.attention.output.bias"] | {"shape": [14]}}
        ),
        "data_offsets of 'head.bias' must begin at ",
    ),
    "tensors back to front": (
        lambda h, m: h["head.bias"]["data_offsets"].reverse(),
        "data_offsets of 'head.bias' must be 152 bytes apart as F64 [19], got [",
    ),
    "a shape of another size": (
        lambda h, m: h["head.bias"].update(shape=[20]),
        "data_offsets of 'head.bias' must be 160 bytes apart as F64 [20], got [",
    ),
    "a shape below zero": (
        lambda h, m: h["head.bias"].update(shape=[-19]),
        "shape of 'head.bias' must be an int in [1, 4294967296], got -19",
    ),
    "a shape of no number": (
        lambda h, m: h["head.bias"].update(shape=[19.0]),
        "shape of 'head.bias' must be an int in [1, 4294967296], got 19.0",
    ),
    "a shape of nothing": (
        lambda h, m: h["head.bias"].update(shape=[0, HUGE]),
        "shape of 'head.bias' must be an int in [1, 4294967296], got 0",
    ),
    "a shape beyond all numbers": (
        lambda h, m: h["head.bias"].update(shape=[2**62, 2**62]),
        "shape of 'head.bias' must be an int in [1, 4294967296], "
        "got 4611686018427387904",
    ),
    "a shape of many numbers": (
        lambda h, m: h["head.bias"].update(shape=[HUGE] * 50_000),
        "length of the shape of 'head.bias' must be an int in [0, 8], got 50000",
    ),
    "a shape that is a number": (
        lambda h, m: h["head.bias"].update(shape=19),
        "shape of 'head.bias' must be of type list, got 19",
    ),
    "one offset": (
        lambda h, m: h["head.bias"]["data_offsets"].pop(),
        "length of the data_offsets of 'head.bias' must be an int in [2, 2], got 1",
    ),
    "an offset below zero": (
        lambda h, m: h["head.bias"].update(data_offsets=[-152, 0]),
        "data_offsets of 'head.bias' must be an int in [0, ",
    ),
    "numbers of no tensor": (
        lambda h, m: h.pop("token_embedding.weight"),
        "bytes after the header, got ",
    ),
    "numbers of no tensor in between": (
        lambda h, m: h.pop("head.bias"),
        "data_offsets of 'head.weight' must begin at ",
    ),
    "a tensor beyond the file": (
        lambda h, m: added(h, "extra") - 1,
        "data_offsets of 'extra' must be an int in [0, ",
    ),
    "an unknown type": (
        lambda h, m: h["head.bias"].update(dtype="F99"),
        "dtype of 'head.bias' must be one of 'F16', 'BF16', 'F32', 'F64', got 'F99'",
    ),
    "no type": (
        lambda h, m: h["head.bias"].pop("dtype"),
        "'head.bias' must have a dtype, got ",
    ),
    "no shape": (
        lambda h, m: h["head.bias"].pop("shape"),
        "'head.bias' must have a shape, got ",
    ),
    "no offsets": (
        lambda h, m: h["head.bias"].pop("data_offsets"),
        "'head.bias' must have a data_offsets, got ",
    ),
    "a tensor that is a number": (
        lambda h, m: h.update({"head.bias": 3}),
        "'head.bias' must be of type dict, got 3",
    ),
    "metadata of numbers": (
        lambda h, m: m.update(config=3),
        "'config' of __metadata__ must be of type str, got 3",
    ),
    "metadata that is null": (
        lambda h, m: h.update(__metadata__=None),
        "__metadata__ must be of type dict, got None",
    ),
    "no metadata": (
        lambda h, m: h.pop("__metadata__") and None,
        "config is missing from the metadata",
    ),
    "a header that is a list": (
        lambda h, m: b"[]",
        "header must be of type dict, got []",
    ),
    "a header nested deeply": (
        lambda h, m: b'{"a":' + b"[" * 10**6,
        "header is not valid JSON: maximum",
    ),
    "a header in no UTF-8": (
        lambda h, m: b'{"\xff":0}',
        "header is not valid JSON: 'utf-8' codec can't decode byte 0xff",
    ),
    "a header in UTF-16": (
        lambda h, m: json.dumps(h).encode("utf-16"),
        "header is not valid JSON: 'utf-8' codec can't decode byte 0xff",
    ),
    "a tensor twice": (
        lambda h, m: b'{"head.bias": 1, "head.bias": 2}',
        "header is not valid JSON: 'head.bias' occurs twice in an object",
    ),
    "the last of many names twice": (
        lambda h, m: (
            json.dumps(dict.fromkeys(map(str, range(150_000)), 0)).encode()[:-1]
            + b',"149999":0}'
        ),
        "header is not valid JSON: '149999' occurs twice in an object",
    ),
    "half a character": (
        lambda h, m: m.update(config="\ud800"),
        "config is not valid JSON: Expecting value",
    ),
}
WRONG |= {
    f"{size} without end": (
        lambda h, m, size=size: set_field(m, **{size: HUGE}),
        "tensor names or shapes do not match the config",
    )
    for size in ("d_model", "n_layers", "d_ff", "span")
}
WRONG["vocab_size without end"] = (
    lambda h, m: set_field(m, vocab_size=HUGE),
    f"tokenizer must have vocab_size={HUGE} tokens, as the model, got 19",
)


def added(header: dict[str, Any], *names: str) -> int:
    """Add tensors of one entry each, and return their size in bytes."""
    start = data_size(header)
    for i, name in enumerate(names):
        first = start + 8 * i
        header[name] = {
            "dtype": "F64",
            "shape": [1],
            "data_offsets": [first, first + 8],
        }
    return 8 * len(names)


def data_size(header: dict[str, Any]) -> int:
    return max(
        entry["data_offsets"][1]
        for entry in header.values()
        if "data_offsets" in entry
    )


def set_dtype(header: dict[str, Any], kind: str, times: int = 1) -> None:
    """Change the dtype of all tensors, and multiply their last size by `times`."""
    for name, entry in header.items():
        if name != "__metadata__":
            entry.update(
                dtype=kind, shape=[*entry["shape"][:-1], entry["shape"][-1] * times]
            )


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_file_is_refused(saved: Path, case: str) -> None:
    change, message = WRONG[case]
    rewrite(saved, change)
    assert message in refusal(
        saved, lambda: LanguageModel.from_pretrained(saved.parent)
    )


# Values that a field of a config or recipe refuses, by type.
REFUSED: dict[Any, tuple[Any, ...]] = {
    int: (-1, 1.5, "13", None, [1], True, float("nan")),
    float: (-1, "0.1", [], float("nan"), 10**400),
    bool: (1, "yes", None),
    str: ("", 3, None, ["gelu"]),
}


def refused_values(kind: type) -> list[Any]:
    """Return each field with each value that it refuses."""
    return [
        pytest.param(field.name, value, id=f"{field.name}-{value!r}"[:40])
        for field in fields(kind)
        for value in REFUSED[str if get_args(field.type) else field.type]
        if (field.name, value) != ("d_ff", None)  # means the default
    ]


@pytest.mark.parametrize("field, value", refused_values(fbt.Config))
def test_an_invalid_field_of_a_config_is_named(
    saved: Path, field: str, value: Any
) -> None:
    rewrite(saved, lambda h, m: set_field(m, **{field: value}))
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert message.startswith(
        f"is not a valid model of this version of fbt: {field} must be "
    )


def test_weights_of_different_dtypes_are_refused(saved: Path) -> None:
    weights, metadata = load_file(saved), without_checksum(saved)
    save_file(weights | {"head.bias": weights["head.bias"].float()}, saved, metadata)
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "must have the same dtype, got torch.float64 for " in message
    assert "torch.float32 for 'head.bias'" in message


SWAPPED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the length": lambda data: data[:7],
    "cut in the header": lambda data: data[:100],
    "cut in the numbers": lambda data: data[:-1],
    "a byte too long": lambda data: data + b"\0",
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "packed": gzip.compress,
    "a page": lambda data: b"<!doctype html><title>Please log in</title>",
    "a pointer": lambda data: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "a pickle": lambda data: pickle.dumps(Path),
    "a header of 2**64 bytes": lambda data: b"\xff" * 8 + data[8:],
    "a header beyond the file": lambda data: (
        (len(data)).to_bytes(8, "little") + data[8:]
    ),
}
SWAPPED |= {
    f"bit {i} flipped": lambda data, i=i: flipped(data, i)
    for i in (0, 9, 17, 63, 70, 100, 200)
}


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("case", SWAPPED)
def test_a_file_of_another_format_is_refused(saved: Path, case: str) -> None:
    saved.write_bytes(SWAPPED[case](saved.read_bytes()))
    refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    saved = saved.rename(saved.with_name(CHECKPOINT_FILE))
    refusal(saved, lambda: Checkpoint.load(saved.parent))


def test_a_file_that_is_too_large_is_refused(saved: Path) -> None:
    with saved.open("r+b") as file:
        file.truncate(_weights.LARGEST + 1)  # a sparse file
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert (
        message
        == f"must have at most {_weights.LARGEST} bytes, got {_weights.LARGEST + 1}"
    )


def test_a_header_that_is_too_long_is_refused(saved: Path) -> None:
    header, numbers = parse_file(saved.read_bytes())
    header |= {
        f"{i:05}": {"dtype": "F64", "shape": [0, HUGE], "data_offsets": [0, 0]}
        for i in range(140_000)
    }
    saved.write_bytes(build_file(header, numbers))
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert message.startswith(
        "must be a safetensors file with a header of at most "
        f"{_weights.LONGEST_HEADER} bytes, got "
    )


def test_the_longest_header_is_checked_quickly(saved: Path) -> None:
    """It has as many tensors as possible, and its config even more."""
    header, numbers = parse_file(saved.read_bytes())
    set_field(header["__metadata__"], n_layers=HUGE)
    more = _weights.MOST_TENSORS + 1 - len(header)
    numbers += bytes(added(header, *(f"{i:05}" for i in range(more))))
    saved.write_bytes(build_file(header, numbers))
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "tensor names or shapes do not match the config" in message
    numbers += bytes(added(header, "one more"))
    saved.write_bytes(build_file(header, numbers))
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert f"must name at most {_weights.MOST_TENSORS} tensors, got " in message


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_loading_holds_the_weights_in_memory_once(kind: str, tmp_path: Path) -> None:
    """64 MB of weights; twice that is over the limit."""
    lm = fbt.LanguageModel(
        fbt.Config(19, d_model=2000, n_heads=1, n_layers=1, d_ff=1, span=1), TOKENIZER
    )
    size = lm.save_pretrained(tmp_path).stat().st_size
    assert size > 64e6
    if kind == "checkpoint":
        settings = Settings(lm.config, Recipe(), None, "", None)
        save_checkpoint(
            tmp_path, 0, settings, lm, torch.optim.AdamW(lm.parameters()), None
        )
    load: Callable[[], object] = {
        "model": lambda: LanguageModel.from_pretrained(tmp_path),
        "checkpoint": lambda: Checkpoint.load(tmp_path),
    }[kind]
    # the model exists before its weights are read
    times = 2 if kind == "model" else 1
    with limited_memory(int((times + 0.5) * size)):
        load()


@pytest.mark.parametrize("limit", ["LARGEST", "LONGEST_HEADER"])
def test_a_file_too_large_to_read_is_not_written(
    saved: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(_weights, limit, 1000)
    with pytest.raises(
        ValueError, match=f"{WEIGHTS_FILE} must (have|be) .*at most 1000 bytes, got "
    ):
        LanguageModel(config("feedback")).save_pretrained(saved.parent)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [WEIGHTS_FILE]


def test_weights_of_nan_and_infinity_are_loaded(
    tmp_path: Path,
) -> None:
    lm = model("shared-kv", TOKENIZER)
    with torch.no_grad():
        lm.head.bias[3] = torch.nan
    lm.save_pretrained(tmp_path)
    assert LanguageModel.from_pretrained(tmp_path).head.bias.isnan().sum() == 1


# The bytes of a file


@pytest.mark.parametrize("dtype", _weights.CODES, ids=str)
def test_safetensors_reads_our_files(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.randn(3, 5).to(dtype),
        "é \n": torch.randn(7).to(dtype),
        "none of its own": torch.randn(2, 3).to(dtype).T,
        "a single number": torch.tensor(3.25, dtype=dtype),
        "parameter": torch.nn.Parameter(torch.ones(1, dtype=dtype)),
    }
    path = tmp_path / "tensors"
    path.write_bytes(_weights.serialise(path, tensors, {"text": '"ä\n\\'}))
    actual = load_file(path)
    assert actual.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert actual[name].dtype == dtype and torch.equal(actual[name], tensor), name
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["text"] == '"ä\n\\'
    with _weights.reading_tensors(path, "model") as stored:
        assert stored.text("text") == '"ä\n\\'
        reloaded = dict(stored.read())
    for name, tensor in tensors.items():
        assert reloaded[name].dtype == dtype and torch.equal(
            reloaded[name], tensor
        ), name


@pytest.mark.parametrize("metadata", [None, {}, {"text": "ä"}])
def test_files_of_safetensors_are_read(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "tensors"
    tensors = {
        f"t{i}": torch.randn(i + 1, 3).to(dtype)
        for i, dtype in enumerate(_weights.CODES)
    }
    save_file(tensors, path, metadata)
    with _weights.reading_tensors(path, "model") as stored:
        assert stored.metadata == (metadata or {})
        actual = dict(stored.read())
    assert actual.keys() == tensors.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in tensors.items())


def test_tensors_are_aligned(tmp_path: Path) -> None:
    """Otherwise a program that maps the file would have to copy it."""
    tensors = {
        f"{i} {dtype}": torch.ones(3, dtype=dtype)
        for i in range(2)
        for dtype in _weights.CODES
    }
    header, numbers = parse_file(_weights.serialise(tmp_path, tensors, {"odd": "x"}))
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % tensors[name].element_size() == 0, name
    assert len(numbers) == sum(t.nbytes for t in tensors.values())


def test_files_are_equal_on_big_endian_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {str(dtype): torch.arange(3.0).to(dtype) for dtype in _weights.CODES}
    path = tmp_path / "tensors"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "byteorder", "big")
        path.write_bytes(_weights.serialise(path, tensors, {}))
        with _weights.reading_tensors(path, "model") as stored:
            reloaded = dict(stored.read())
    assert all(
        torch.equal(reloaded[name], tensor) for name, tensor in tensors.items()
    )
    turned = load_file(path)  # dtypes whose bytes are compared here
    for name, tensor in tensors.items():
        swapped = tensor.view(torch.uint8).view(3, -1).flip(1).flatten()
        assert torch.equal(turned[name].view(torch.uint8), swapped), name


SAVING = """
import hashlib, random, sys, torch
from pathlib import Path
import fbt
from fbt import _weights
from fbt.training.checkpoint import Fingerprint, checkpoint_bytes
from fbt.training.settings import Settings
from fbt.training.recipe import Recipe

torch.manual_seed(0)
tokenizer = fbt.CharTokenizer("abcdefghijklmnopqrs")
config = fbt.Config(19, d_model=6, n_heads=2, n_layers=2, span=3)
lm = fbt.LanguageModel(config, tokenizer)
folder = Path(sys.argv[1])
for i in range(3):
    paths = [lm.save_pretrained(folder / "m")]
    optimizer = torch.optim.AdamW(lm.parameters())
    settings = Settings(lm.config, Recipe(), "x", "y", None)
    paths.append(folder / "checkpoint")
    none = Fingerprint(0, hashlib.sha256().hexdigest())
    data = checkpoint_bytes(folder, 0, settings, lm, optimizer, None, none)
    paths[1].write_bytes(data)
    tensors = list(lm.state_dict().items())
    random.shuffle(tensors)
    names = ("step", "settings", "vocabulary", "format", "x")
    metadata = [(name, name * 9) for name in names]
    random.shuffle(metadata)
    paths.append(folder / "shuffled")
    paths[2].write_bytes(_weights.serialise(folder, dict(tensors), dict(metadata)))
    print(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths))
"""


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    """Also in other processes, with another order of dicts and sets."""
    actual = set()
    for seed in ("0", "1", "random"):
        command = [sys.executable, *WARNINGS, "-c", SAVING, str(tmp_path)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        actual |= {*done.stdout.splitlines()}
    assert len(actual) == 1


# Checksums


def test_the_checksum_is_the_hash_of_the_other_bytes(saved: Path) -> None:
    header, numbers = parse_file(data := saved.read_bytes())
    assert re.fullmatch("[0-9a-f]{64}", header["__metadata__"]["sha256"])
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + len(numbers)
    # computes the checksum anew, for a header with spaces
    put = build_file(header, numbers)
    saved.write_bytes(put)
    assert LanguageModel.from_pretrained(saved.parent).tokenizer == TOKENIZER


def test_a_flipped_bit_in_the_data_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    start = len(whole) - len(parse_file(whole)[1])
    for position in (start, (start + len(whole)) // 2, len(whole) - 1):
        saved.write_bytes(flipped(whole, 8 * position + 3))
        message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
        assert (
            "sha256 in the metadata must be the hash of the other bytes, " in message
        )


def test_a_config_of_another_file_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for old, new in ((b"0.0", b"0.5"), (b"relu", b"gelu"), (b"abcd", b"abdc")):
        assert whole.count(old) == 1
        saved.write_bytes(whole.replace(old, new))
        message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
        assert (
            "sha256 in the metadata must be the hash of the other bytes, " in message
        )


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_mixture_of_two_files_is_noticed(saved: Path, share: float) -> None:
    one, lm = saved.read_bytes(), model("shared-kv", TOKENIZER)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter += 1.0
    other = lm.save_pretrained(saved.parent).read_bytes()
    assert len(one) == len(other)
    cut = int(share * len(one))
    saved.write_bytes(one[:cut] + other[cut:])
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "sha256 in the metadata must be the hash of the other bytes, " in message


@pytest.mark.parametrize("checksum", ["", "0" * 64, "x" * 10**5, "\ud800", "SHA"])
def test_an_invalid_checksum_is_refused(saved: Path, checksum: str) -> None:
    header, numbers = parse_file(saved.read_bytes())
    header["__metadata__"]["sha256"] = checksum
    saved.write_bytes(build_file(json.dumps(header).encode(), numbers))
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "sha256 in the metadata must be the hash of the other bytes, " in message


def test_a_file_without_a_checksum_is_read(saved: Path) -> None:
    """Other programs and the weights that ship with the package have none."""
    expected = LanguageModel.from_pretrained(saved.parent).state_dict()
    save_file(load_file(saved), saved, without_checksum(saved))
    for name, tensor in (
        LanguageModel.from_pretrained(saved.parent).state_dict().items()
    ):
        assert torch.equal(tensor, expected[name]), name


def test_a_file_truncated_while_it_is_read_is_named(saved: Path) -> None:
    """With a mapped file the process would be killed."""
    with (
        pytest.raises(ValueError) as caught,
        _weights.reading_tensors(saved, "model") as stored,
    ):
        os.truncate(saved, saved.stat().st_size // 2)
        dict(stored.read())
    assert (
        reason(saved, caught.value)
        == "changed while it was read: try again once it is complete"
    )


def test_a_file_changed_while_it_is_read_is_named(saved: Path) -> None:
    whole = saved.read_bytes()
    with (
        pytest.raises(ValueError) as caught,
        _weights.reading_tensors(saved, "model") as stored,
    ):
        dict(stored.read())  # completely, and the data is valid
        saved.write_bytes(whole + b"\0")
    assert (
        reason(saved, caught.value)
        == "changed while it was read: try again once it is complete"
    )


def test_a_file_replaced_while_it_is_read_is_the_old_one(saved: Path) -> None:
    expected = load_file(saved)
    with _weights.reading_tensors(saved, "model") as stored:
        model("parallel", TOKENIZER).save_pretrained(saved.parent)
        actual = dict(stored.read())
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint_data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("run")
    small_run(folder=folder, carry=True)
    return (folder / CHECKPOINT_FILE).read_bytes()


@pytest.fixture
def checkpoint(checkpoint_data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(checkpoint_data)
    return path


def set_setting(metadata: dict[str, str], part: str = "", **changes: Any) -> None:
    settings = json.loads(metadata["settings"])
    (settings[part] if part else settings).update(changes)
    metadata["settings"] = json.dumps(settings)


def set_best(metadata: dict[str, str], **values: Any) -> None:
    """Change fields of the best evaluation."""
    metadata["best"] = json.dumps(json.loads(metadata["best"]) | values)


WRONG_CHECKPOINTS: dict[
    str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]
] = {
    "no step": (lambda h, m: m.pop("step"), "step is missing from the metadata"),
    "a step that is a word": (
        lambda h, m: m.update(step="one"),
        "step is not valid JSON: Expecting value",
    ),
    "a step below zero": (
        lambda h, m: m.update(step="-1"),
        "step must be an int in [0, 11], got -1",
    ),
    "a step after the last": (
        lambda h, m: m.update(step="12"),
        "step must be an int in [0, 11], got 12",
    ),
    "a step of many digits": (
        lambda h, m: m.update(step="1" * 10**5),
        "Exceeds the limit",
    ),
    "no settings": (
        lambda h, m: m.pop("settings"),
        "settings is missing from the metadata",
    ),
    "settings of no run": (
        lambda h, m: m.update(settings="[]"),
        "settings must be of type dict, got []",
    ),
    "settings nested deeply": (
        lambda h, m: m.update(settings='{"a":' * 10**5),
        "settings is not valid JSON: maximum recursion",
    ),
    "an unknown setting": (
        lambda h, m: set_setting(m, colour=3),
        "settings must only have the fields config, recipe, data, data_sha256, "
        "init_from, got 'colour'",
    ),
    "no recipe": (
        lambda h, m: set_setting(m, recipe=None),
        "recipe must be a JSON object, got NoneType",
    ),
    "a recipe of another kind": (
        lambda h, m: set_setting(m, "recipe", lr="fast"),
        "lr must be a number",
    ),
    "a rate beyond all floats": (
        lambda h, m: set_setting(m, "recipe", lr=10**400),
        "lr must be a number",
    ),
    "a text from a number": (
        lambda h, m: set_setting(m, data=3),
        "data must be of type str or None, got 3",
    ),
    "a hash of a list": (
        lambda h, m: set_setting(m, data_sha256=[]),
        "data_sha256 must be of type str, got []",
    ),
    "a start from a list": (
        lambda h, m: set_setting(m, init_from=[]),
        "init_from must be of type str or None",
    ),
    "another vocabulary": (
        lambda h, m: m.update(vocabulary='"ab"'),
        "tokenizer must have vocab_size=14 tokens, as the model, got 2",
    ),
    "a model of another width": (
        lambda h, m: set_setting(m, "config", d_ff=65),
        "body.layers.0.feed_forward",
    ),
    "a model without end": (
        lambda h, m: set_setting(m, "config", n_layers=HUGE),
        "missing 'model.",
    ),
    "another batch": (
        lambda h, m: set_setting(m, "recipe", batch_size=4),
        "misshapen 'state.keys.0 [3, 2, 5, 8], not [4, 2, 5, 8]'",
    ),
    "a memory that was not carried": (
        lambda h, m: set_setting(m, "recipe", carry=False),
        "unknown 'state.keys.0'",
    ),
    "a memory from before the first step": (
        lambda h, m: m.update(step="0"),
        "unknown 'state.keys.0'",
    ),
    "no memory": (
        lambda h, m: renamed(h, "state.", "optimizer."),
        "missing 'state.keys.0'",
    ),
    "half a memory": (
        lambda h, m: renamed(h, "state.values.", "optimizer.v"),
        "missing 'state.values.0'",
    ),
    "too long a memory": (
        lambda h, m: renamed(h, "state.keys.0", "state.keys.00"),
        "unknown 'state.keys.00'",
    ),
    "a part of nothing": (
        lambda h, m: renamed(h, "optimizer.0.step", "other"),
        "must be named model.*, state.*, optimizer.*, best.*, got 'other'",
    ),
    "a best of another step": (
        lambda h, m: set_best(m, step=12),
        "best evaluation must be an int in [1, 11]",
    ),
    "a best of no loss": (
        lambda h, m: set_best(m, val_loss=math.nan),
        "val_loss of the best evaluation must",
    ),
    "a best that may be final": (
        lambda h, m: set_best(m, final=1),
        "final of the best evaluation must be True",
    ),
    "a best of a list": (
        lambda h, m: m.update(best="[]"),
        "best must be of type dict, got []",
    ),
    "a best with weights": (
        lambda h, m: set_best(m, weights={}),
        "multiple values for keyword argument 'weights'",
    ),
    "a best without weights": (lambda h, m: set_best(m, step=4), "missing 'best."),
    "weights of no best": (
        lambda h, m: renamed(h, "optimizer.0.step", "best.head.bias"),
        "unknown 'best.head.bias'",
    ),
}
WRONG_MOMENTS: dict[
    str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]
] = {
    "of a parameter beyond the last": (
        lambda h, m: renamed(h, "optimizer.0.", "optimizer.99."),
        "unknown 'optimizer.99.exp_avg', 'optimizer.99.exp_avg_sq', "
        "'optimizer.99.step'",
    ),
    "of no number": (
        lambda h, m: renamed(h, "optimizer.0.", "optimizer.x."),
        "unknown 'optimizer.x.exp_avg'",
    ),
    "under another sign": (
        lambda h, m: renamed(h, "optimizer.0.", "optimizer.٠."),
        "unknown 'optimizer.٠.exp_avg'",
    ),
    "a kind missing": (
        lambda h, m: renamed(h, "optimizer.0.exp_avg_sq", "optimizer.0.max"),
        "missing 'optimizer.0.exp_avg_sq'; unknown 'optimizer.0.max'",
    ),
    "of another shape": (
        lambda h, m: h["optimizer.0.exp_avg"].update(
            shape=[*h["optimizer.0.exp_avg"]["shape"], 1]
        ),
        "misshapen 'optimizer.0.exp_avg [16, 16, 1], not [16, 16]'",
    ),
    "more steps than there were": (
        lambda h, m: (
            m.update(step="3"),
            set_setting(m, "recipe", steps=5),
            set_best(m, step=3),
        ),
        "step must be in [1, 3], got 11.0",
    ),
}


def renamed(header: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in header if name.startswith(old)]:
        header[new + name.removeprefix(old)] = header.pop(name)


@pytest.mark.parametrize("case", WRONG_CHECKPOINTS)
def test_an_invalid_checkpoint_is_refused(checkpoint: Path, case: str) -> None:
    change, message = WRONG_CHECKPOINTS[case]
    rewrite(checkpoint, change)
    assert message in refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))


@pytest.mark.parametrize(
    "field, value", [*refused_values(fbt.Config), *refused_values(Recipe)]
)
def test_an_invalid_setting_is_named(
    checkpoint: Path, field: str, value: Any
) -> None:
    part = "config" if field in {f.name for f in fields(fbt.Config)} else "recipe"
    rewrite(checkpoint, lambda h, m: set_setting(m, part, **{field: value}))
    message = refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))
    assert message.startswith(
        f"is not a valid checkpoint of this version of fbt: {field} must be "
    )


@pytest.mark.parametrize(
    "field", ["config", "recipe", "data", "data_sha256", "init_from"]
)
def test_a_missing_setting_is_named(checkpoint: Path, field: str) -> None:
    def remove(header: dict[str, Any], metadata: dict[str, str]) -> None:
        settings = json.loads(metadata["settings"])
        del settings[field]
        metadata["settings"] = json.dumps(settings)

    rewrite(checkpoint, remove)
    message = refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))
    assert f"settings must have the field '{field}', got " in message


@pytest.mark.parametrize(
    "part", ["state.keys.0", "state.values.0", "state.", "optimizer.0.exp_avg"]
)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_tensors_have_the_dtype_of_the_weights(
    checkpoint: Path, part: str, dtype: str
) -> None:
    header, numbers = parse_file(checkpoint.read_bytes())
    checkpoint.write_bytes(
        build_file(header, with_dtype(header, numbers, part, dtype))
    )
    message = refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))
    assert re.search(
        rf"'{part}.*' must be torch.float32 like the weights, got torch\.\w+$",
        message,
    )


def test_all_tensors_may_have_another_dtype(
    checkpoint: Path,
) -> None:
    header, numbers = parse_file(checkpoint.read_bytes())
    for part in ("model.", "state."):
        numbers = with_dtype(header, numbers, part, "F64")
    for name in [name for name in header if ".exp_avg" in name]:
        numbers = with_dtype(header, numbers, name, "F64")
    checkpoint.write_bytes(build_file(header, numbers))
    loaded = Checkpoint.load(checkpoint.parent)
    assert {
        t.dtype for name, t in loaded.tensors.items() if not name.endswith(".step")
    } == {torch.float64}


@pytest.mark.parametrize("case", WRONG_MOMENTS)
def test_invalid_moments_are_refused_before_training(
    checkpoint: Path, case: str
) -> None:
    change, message = WRONG_MOMENTS[case]
    rewrite(checkpoint, change)
    error_message = refusal(
        checkpoint, lambda: resume(checkpoint.parent, TEXT, progress=False)
    )
    assert message in error_message
    assert [path.name for path in checkpoint.parent.iterdir()] == [CHECKPOINT_FILE]


def test_superfluous_moments_take_no_memory(checkpoint: Path) -> None:
    header, numbers = parse_file(checkpoint.read_bytes())
    # float32 entries; read and copied they exceed the limit
    many = 30_000_000
    header["optimizer.99.exp_avg"] = {
        "dtype": "F32",
        "shape": [many],
        "data_offsets": [len(numbers), len(numbers) + 4 * many],
    }
    checkpoint.write_bytes(build_file(header, numbers))
    with checkpoint.open("r+b") as file:
        # a sparse file
        file.truncate(checkpoint.stat().st_size + 4 * many)
    assert re.search(
        r"it has \d+ moments for \d+ weights",
        refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent)),
    )


@pytest.mark.parametrize(
    "part, message",
    [
        ("optimizer.", "moments are missing after 11 steps"),
        ("state.", "missing 'state.keys.0'"),
    ],
)
def test_no_group_of_tensors_may_be_missing(
    checkpoint: Path, part: str, message: str
) -> None:
    metadata = without_checksum(checkpoint)
    tensors = {
        name: value
        for name, value in load_file(checkpoint).items()
        if not name.startswith(part)
    }
    save_file(tensors, checkpoint, metadata)
    assert message in refusal(
        checkpoint, lambda: resume(checkpoint.parent, TEXT, progress=False)
    )


def test_models_and_checkpoints_are_not_interchangeable(
    saved: Path, checkpoint: Path
) -> None:
    one, other = saved.read_bytes(), checkpoint.read_bytes()
    saved.write_bytes(other)
    checkpoint.write_bytes(one)
    message = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "config is missing from the metadata" in message
    assert "settings is missing from the metadata" in refusal(
        checkpoint, lambda: Checkpoint.load(checkpoint.parent)
    )


# No code is run


def test_the_package_executes_no_data() -> None:
    """It uses neither pickle, which may call anything, nor eval or exec."""
    for path in sorted(Path(fbt.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {
                    getattr(node, "module", None)
                }
                assert not names & {
                    "pickle",
                    "marshal",
                    "shelve",
                    "dill",
                    "joblib",
                    "yaml",
                }, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in (
                    "eval",
                    "exec",
                    "compile",
                    "__import__",
                ), path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in (
                    "torch.load",
                    "np.load",
                    "numpy.load",
                    "torch.jit.load",
                ), path
