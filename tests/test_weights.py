"""Weights and checkpoints that are damaged, swapped, enormous or made to mislead: each is one clear error."""

import ast
import gzip
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import OPTIONS, VARIANTS, config, model
from hostile_files import put_together, refusal, taken_apart
from safetensors.torch import load_file, save_file
from small_runs import TEXT, small_run

import fbt
from fbt import _weights
from fbt.checkpoint import CHECKPOINT_FILE, Checkpoint
from fbt.language_model import WEIGHTS_FILE, LanguageModel, shapes_of
from fbt.training import resume

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
HUGE = 10**18


# What a model of a config saves


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changes", [{}, *OPTIONS], ids=str)
def test_shapes_are_those_of_the_model(variant: str, changes: dict[str, Any]) -> None:
    lm = model(variant, **changes)
    before = torch.get_rng_state()
    assert dict(shapes_of(lm.config)) == {k: tuple(v.shape) for k, v in lm.state_dict().items()}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", ["vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "span"])
def test_shapes_of_a_model_that_no_machine_can_hold(size: str) -> None:
    changes = {size: HUGE} | ({"d_model": HUGE} if size == "n_heads" else {})
    shapes = shapes_of(fbt.Config(**{"vocab_size": 19, "d_model": 14, "n_heads": 2} | changes))
    name, shape = next(shapes)
    assert (name, len(shape)) == ("token_embedding.weight", 2)


# Files of models


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return model("shared-kv", TOKENIZER).save_pretrained(tmp_path)


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, str]], Any]) -> None:
    """Let `change` work on the header and its metadata."""
    header, numbers = taken_apart(path.read_bytes())
    changed = change(header, header["__metadata__"])
    path.write_bytes(put_together(changed if isinstance(changed, bytes) else header, numbers))


def set_field(metadata: dict[str, str], **changes: Any) -> None:
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | changes)


# What is done to header and metadata, and what is said of it.
WRONG: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]] = {
    "an unknown tensor": (lambda h, m: h.update(extra=empty()), "unknown 'extra'"),
    "a tensor renamed": (
        lambda h, m: h.update(other=h.pop("head.bias")),
        "missing 'head.bias'; unknown 'other'",
    ),
    "a tensor transposed": (
        lambda h, m: h["head.weight"]["shape"].reverse(),
        "misshapen 'head.weight [14, 19], not [19, 14]'",
    ),
    "a name with a line end": (
        lambda h, m: h.update({"a\nb": empty()}),
        r"unknown 'a\nb'",
    ),
    "many unknown tensors": (
        lambda h, m: h.update({f"{i:02}": empty() for i in range(50)}),
        "unknown '00', '01', '02', '03' and others",
    ),
    "another type": (
        lambda h, m: typed(h, "I64"),
        "'body.key_values.0.key.weight' must be of one of torch.float16",
    ),
    "float8": (
        lambda h, m: typed(h, "F8_E4M3", 8),
        "torch.float64, got torch.float8_e4m3fn",
    ),
    "no config": (lambda h, m: m.pop("config"), "there is no config in its metadata"),
    "a config of no model": (lambda h, m: m.update(config="[3]"), "must be a mapping, not list"),
    "a config that is null": (lambda h, m: m.update(config="null"), "must be a mapping, not NoneType"),
    "a config cut off": (lambda h, m: m.update(config='{"vocab_size": 19'), "Expecting ',' delimiter"),
    "a config nested deeply": (
        lambda h, m: m.update(config="[" * 10**6),
        "config is no JSON that can be read: maximum recursion",
    ),
    "a number of 10,000 digits": (lambda h, m: m.update(config="9" * 10**4), "Exceeds the limit"),
    "a number beyond all floats": (
        lambda h, m: set_field(m, dropout=10**400),
        "dropout must be a number in [0.0, 1.0), got 1000",
    ),
    "no number": (
        lambda h, m: set_field(m, dropout=float("nan")),
        "dropout must be a number in [0.0, 1.0), got nan",
    ),
    "a text for a number": (
        lambda h, m: set_field(m, span="13"),
        "span must be an int >= 1, got '13' of type str",
    ),
    "a bool for a number": (
        lambda h, m: set_field(m, n_layers=True),
        "n_layers must be an int >= 1, got True",
    ),
    "a number for a bool": (
        lambda h, m: set_field(m, memory_norm=1),
        "memory_norm must be True or False, got 1",
    ),
    "a list for a choice": (lambda h, m: set_field(m, variant=["shared-kv"]), "variant must be one of"),
    "a long text for a choice": (lambda h, m: set_field(m, variant="x" * 10**6), "variant must be one of"),
    "an unknown field": (lambda h, m: set_field(m, colour="red"), "unexpected keyword argument 'colour'"),
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
    "no vocabulary": (lambda h, m: m.update(vocabulary='""'), "vocabulary must hold at least one character"),
    "a short vocabulary": (
        lambda h, m: m.update(vocabulary='"abc"'),
        "tokenizer must have vocab_size=19 characters, got 3",
    ),
    "a character twice": (
        lambda h, m: m.update(vocabulary='"aa"'),
        "vocabulary must hold each character once",
    ),
    "a vocabulary of numbers": (
        lambda h, m: m.update(vocabulary="3"),
        "vocabulary must be of type str, got 3 of type int",
    ),
    "a vocabulary that is null": (
        lambda h, m: m.update(vocabulary="null"),
        "vocabulary must be of type str, got None of type NoneType",
    ),
    # Left to the library, which looks at these before it lends a number.
    "overlapping tensors": (
        lambda h, m: h.update({"head.bias": h["norm.weight"]}),
        "invalid offset for tensor",
    ),
    "a shape of another size": (
        lambda h, m: h["head.bias"].update(shape=[20]),
        "invalid shape, data type, or offset",
    ),
    "a shape below zero": (lambda h, m: h["head.bias"].update(shape=[-19]), "expected usize"),
    "a shape beyond all numbers": (
        lambda h, m: h["head.bias"].update(shape=[2**62, 2**62]),
        "overflow computing buffer size",
    ),
    "numbers of no tensor": (lambda h, m: h.pop("token_embedding.weight"), "not fully covered"),
    "a tensor beyond the file": (
        lambda h, m: h.update(extra={"dtype": "F64", "shape": [9], "data_offsets": [end(h), end(h) + 72]}),
        "not fully covered",
    ),
    "an unknown type": (lambda h, m: h["head.bias"].update(dtype="F99"), "unknown variant `F99`"),
    "metadata of numbers": (lambda h, m: m.update(config=3), "expected a string"),
    "a header that is a list": (lambda h, m: b"[]", "invalid JSON in header"),
    "a header nested deeply": (lambda h, m: b'{"a":' + b"[" * 10**6, "recursion limit exceeded"),
    "a header in no UTF-8": (lambda h, m: b'{"\xff":0}', "invalid UTF-8 in header"),
    "half a character": (lambda h, m: b'{"__metadata__":{"config":"\\ud800"}}', "invalid JSON in header"),
}
WRONG |= {
    f"{size} without end": (lambda h, m, size=size: set_field(m, **{size: HUGE}), "its tensors are not those")
    for size in ("vocab_size", "d_model", "n_layers", "d_ff", "span")
}


def empty() -> dict[str, Any]:
    return {"dtype": "F64", "shape": [0, HUGE], "data_offsets": [0, 0]}


def end(header: dict[str, Any]) -> int:
    return max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)


def typed(header: dict[str, Any], kind: str, times: int = 1) -> None:
    """Call all numbers by another name; where that is of fewer bytes, let there be more of them."""
    for name, entry in header.items():
        if name != "__metadata__":
            entry.update(dtype=kind, shape=[*entry["shape"][:-1], entry["shape"][-1] * times])


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_wrong_is_refused(saved: Path, case: str) -> None:
    change, message = WRONG[case]
    rewrite(saved, change)
    assert message in refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))


def test_all_weights_are_of_one_type(saved: Path) -> None:
    weights, metadata = load_file(saved), taken_apart(saved.read_bytes())[0]["__metadata__"]
    save_file(weights | {"head.bias": weights["head.bias"].float()}, saved, metadata)
    said = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "must all be of one type, got torch.float32, torch.float64" in said


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
    "a pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "a pickle": lambda data: pickle.dumps(Path),
    "a header of 2**64 bytes": lambda data: b"\xff" * 8 + data[8:],
    "a header beyond the file": lambda data: (len(data)).to_bytes(8, "little") + data[8:],
}
SWAPPED |= {f"bit {i} turned": lambda data, i=i: turned(data, i) for i in (0, 9, 17, 63, 70, 100, 200)}


def turned(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("case", SWAPPED)
def test_another_file_under_that_name_is_refused(saved: Path, case: str) -> None:
    saved.write_bytes(SWAPPED[case](saved.read_bytes()))
    refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    saved = saved.rename(saved.with_name(CHECKPOINT_FILE))
    refusal(saved, lambda: Checkpoint.load(saved.parent))


def test_an_enormous_file_is_refused_before_it_is_opened(saved: Path) -> None:
    with saved.open("r+b") as file:
        file.truncate(_weights.LARGEST + 1)  # a hole, which takes no room on the disk
    said = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert said == f"must have at most {_weights.LARGEST} bytes, got {_weights.LARGEST + 1}"


def test_a_long_header_is_refused_before_it_is_read(saved: Path) -> None:
    header, numbers = taken_apart(saved.read_bytes())
    header |= {f"{i:05}": empty() for i in range(35_000)}
    saved.write_bytes(put_together(header, numbers))
    said = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert said.startswith(
        f"must be a safetensors file with a header of at most {_weights.LONGEST_HEADER} bytes, got "
    )


def test_a_header_just_short_enough_is_read_at_once(saved: Path) -> None:
    """As many tensors as there can be, and a config of as many layers as it takes to look at them all."""
    header, numbers = taken_apart(saved.read_bytes())
    set_field(header["__metadata__"], n_layers=HUGE)
    header |= {f"{i:05}": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]} for i in range(25_000)}
    saved.write_bytes(put_together(header, numbers))
    assert _weights.LONGEST_HEADER * 0.75 < saved.stat().st_size < _weights.LONGEST_HEADER
    refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))


@pytest.mark.parametrize("limit", ["LARGEST", "LONGEST_HEADER"])
def test_what_could_not_be_read_is_not_written(
    saved: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(_weights, limit, 1000)
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} must (have|be) .*at most 1000 bytes, got "):
        LanguageModel(config("feedback")).save_pretrained(saved.parent)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [WEIGHTS_FILE]


def test_weights_that_are_no_numbers_are_loaded_to_be_looked_at(tmp_path: Path) -> None:
    lm = model("shared-kv", TOKENIZER)
    with torch.no_grad():
        lm.head.bias[3] = torch.nan
    lm.save_pretrained(tmp_path)
    assert LanguageModel.from_pretrained(tmp_path).head.bias.isnan().sum() == 1


# Checkpoints


@pytest.fixture(scope="module")
def bytes_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("run")
    small_run(folder=folder, carry=True)
    return (folder / CHECKPOINT_FILE).read_bytes()


@pytest.fixture
def checkpoint(bytes_of_a_run: bytes, tmp_path: Path) -> Path:
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(bytes_of_a_run)
    return path


def set_setting(metadata: dict[str, str], part: str = "", **changes: Any) -> None:
    settings = json.loads(metadata["settings"])
    (settings[part] if part else settings).update(changes)
    metadata["settings"] = json.dumps(settings)


WRONG_CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]] = {
    "no step": (lambda h, m: m.pop("step"), "there is no step in its metadata"),
    "a step that is a word": (lambda h, m: m.update(step="one"), "invalid literal for int()"),
    "a step below zero": (lambda h, m: m.update(step="-1"), "step must be an int in [0, 11], got -1"),
    "a step after the last": (lambda h, m: m.update(step="12"), "step must be an int in [0, 11], got 12"),
    "a step of many digits": (lambda h, m: m.update(step="1" * 10**5), "Exceeds the limit"),
    "no settings": (lambda h, m: m.pop("settings"), "there is no settings in its metadata"),
    "settings of no run": (lambda h, m: m.update(settings="[]"), "settings must be of type dict, got []"),
    "settings nested deeply": (
        lambda h, m: m.update(settings='{"a":' * 10**5),
        "settings is no JSON that can be read: maximum recursion",
    ),
    "an unknown setting": (lambda h, m: set_setting(m, colour=3), "unexpected keyword argument 'colour'"),
    "no recipe": (lambda h, m: set_setting(m, recipe=None), "recipe must be of type dict, got None"),
    "a recipe of another kind": (lambda h, m: set_setting(m, "recipe", lr="fast"), "lr must be a number"),
    "a rate beyond all floats": (lambda h, m: set_setting(m, "recipe", lr=10**400), "lr must be a number"),
    "a text from a number": (
        lambda h, m: set_setting(m, data=3),
        "data must be of type str or NoneType, got 3",
    ),
    "a hash of a list": (
        lambda h, m: set_setting(m, data_sha256=[]),
        "data_sha256 must be of type str, got []",
    ),
    "a start from a list": (
        lambda h, m: set_setting(m, init_from=[]),
        "init_from must be of type str or NoneType",
    ),
    "no vocabulary": (lambda h, m: m.pop("vocabulary"), "there is no vocabulary in its metadata"),
    "another vocabulary": (lambda h, m: m.update(vocabulary='"ab"'), "characters, got 2"),
    "a model of another width": (
        lambda h, m: set_setting(m, "config", d_ff=65),
        "body.layers.0.feed_forward",
    ),
    "a model without end": (lambda h, m: set_setting(m, "config", n_layers=HUGE), "missing 'model."),
    "another batch": (
        lambda h, m: set_setting(m, "recipe", batch_size=4),
        "misshapen 'state.keys.0 [3, 2, 5, 8], not [4, 2, 5, 8]'",
    ),
    "a memory that was not carried": (
        lambda h, m: set_setting(m, "recipe", carry=False),
        "unknown 'state.keys.0'",
    ),
    "a memory from before the first step": (lambda h, m: m.update(step="0"), "unknown 'state.keys.0'"),
    "no memory": (
        lambda h, m: renamed(h, "state.", "optimizer."),
        "missing 'state.keys.0'",
    ),
    "half a memory": (lambda h, m: renamed(h, "state.values.", "optimizer.v"), "missing 'state.values.0'"),
    "too long a memory": (
        lambda h, m: renamed(h, "state.keys.0", "state.keys.00"),
        "unknown 'state.keys.00'",
    ),
    "a part of nothing": (
        lambda h, m: renamed(h, "optimizer.0.step", "other"),
        "must be named model.*, state.*, optimizer.*, got 'other'",
    ),
}
WRONG_MOMENTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]] = {
    "of a parameter beyond the last": (
        lambda h, m: renamed(h, "optimizer.0.", "optimizer.99."),
        "unknown 'optimizer.99.exp_avg', 'optimizer.99.exp_avg_sq', 'optimizer.99.step'",
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
        lambda h, m: h["optimizer.0.exp_avg"].update(shape=[*h["optimizer.0.exp_avg"]["shape"], 1]),
        "misshapen 'optimizer.0.exp_avg [16, 16, 1], not [16, 16]'",
    ),
    "more steps than there were": (
        lambda h, m: (m.update(step="3"), set_setting(m, "recipe", steps=5)),
        "step must be in [1, 3], got 11.0",
    ),
}


def renamed(header: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in header if name.startswith(old)]:
        header[new + name.removeprefix(old)] = header.pop(name)


@pytest.mark.parametrize("case", WRONG_CHECKPOINTS)
def test_a_checkpoint_that_is_wrong_is_refused(checkpoint: Path, case: str) -> None:
    change, message = WRONG_CHECKPOINTS[case]
    rewrite(checkpoint, change)
    assert message in refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))


@pytest.mark.parametrize("case", WRONG_MOMENTS)
def test_moments_that_are_wrong_are_refused_before_a_step_is_taken(checkpoint: Path, case: str) -> None:
    change, message = WRONG_MOMENTS[case]
    rewrite(checkpoint, change)
    said = refusal(checkpoint, lambda: resume(checkpoint.parent, TEXT, progress=False))
    assert message in said
    assert [path.name for path in checkpoint.parent.iterdir()] == [CHECKPOINT_FILE]


def test_moments_beyond_those_of_the_weights_take_no_memory(checkpoint: Path) -> None:
    header, numbers = taken_apart(checkpoint.read_bytes())
    many = 30_000_000  # of float32; read and then copied they are more than may be taken
    header["optimizer.99.exp_avg"] = {
        "dtype": "F32",
        "shape": [many],
        "data_offsets": [len(numbers), len(numbers) + 4 * many],
    }
    checkpoint.write_bytes(put_together(header, numbers))
    with checkpoint.open("r+b") as file:
        file.truncate(checkpoint.stat().st_size + 4 * many)  # a hole, which takes no room on the disk
    assert re.search(
        r"it has \d+ moments for \d+ weights", refusal(checkpoint, lambda: Checkpoint.load(checkpoint.parent))
    )


@pytest.mark.parametrize(
    "part, message",
    [("optimizer.", "there are no moments after 11 steps"), ("state.", "missing 'state.keys.0'")],
)
def test_a_part_may_not_be_missing(checkpoint: Path, part: str, message: str) -> None:
    metadata = taken_apart(checkpoint.read_bytes())[0]["__metadata__"]
    tensors = {name: value for name, value in load_file(checkpoint).items() if not name.startswith(part)}
    save_file(tensors, checkpoint, metadata)
    assert message in refusal(checkpoint, lambda: resume(checkpoint.parent, TEXT, progress=False))


def test_a_model_is_no_checkpoint_and_a_checkpoint_no_model(saved: Path, checkpoint: Path) -> None:
    one, other = saved.read_bytes(), checkpoint.read_bytes()
    saved.write_bytes(other)
    checkpoint.write_bytes(one)
    said = refusal(saved, lambda: LanguageModel.from_pretrained(saved.parent))
    assert "there is no config in its metadata" in said
    assert "there is no settings in its metadata" in refusal(
        checkpoint, lambda: Checkpoint.load(checkpoint.parent)
    )


# No code


def test_the_package_runs_nothing_that_it_reads() -> None:
    """No pickles, in which a file says what to call, and no text made into code."""
    for path in sorted(Path(fbt.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "np.load", "numpy.load", "torch.jit.load"), path
