"""Feed random input to all loaders: each returns an object or raises one clear error.

`make fuzz` runs this file for ten minutes, test_fuzz.py for a few seconds.
"""

import argparse
import atexit
import copy
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hostile_files import (
    build_file,
    limited_resources,
    parse_file,
    reason,
    with_dtype,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rewriting import rewritten_while_loaded
from small_runs import fingerprint, save_checkpoint

from fbt import CharTokenizer, Config, LanguageModel
from fbt._plays import PLAYS, REPLACEMENTS, rebuild
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.training.checkpoint import Checkpoint
from fbt.training.loop import adamw
from fbt.training.metrics import METRICS_FILE, read_metrics
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings

FOLDER = Path(tempfile.mkdtemp(prefix="fbt-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
CONFIGS = [
    Config(
        5,
        variant=variant,
        d_model=4,
        n_heads=2,
        n_layers=2,
        d_ff=3,
        span=3,
        **changes,
    )
    for variant, changes in (
        ("parallel", {"relative": "shared"}),
        ("feedback", {"memory": "top"}),
        ("shared-kv", {}),
    )
]
RECIPE = Recipe(steps=7, batch_size=2, carry=True)
TOKENS = torch.arange(8).view(2, 4) % 5

# Prefixes of tensors whose dtype is changed together.
PARTS = [
    "",
    "model.",
    "state.",
    "optimizer.",
    "body.",
    "head.",
    "optimizer.0.",
    "state.keys.0",
]
TYPES = [
    "F16",
    "BF16",
    "F32",
    "F64",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "C64",
]

# Values


def edges(*more: Any) -> st.SearchStrategy[Any]:
    """Integers at the limits of types."""
    powers = [
        s * (2**n + d)
        for n in (0, 7, 31, 32, 53, 62, 63, 64)
        for d in (-1, 0, 1)
        for s in (1, -1)
    ]
    return st.sampled_from([*powers, 10**18, 10**400, -(10**400), *more])


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | edges()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["parallel", "feedback", "shared-kv", "gelu"])
    | st.sampled_from(["uniform", "top", "shared", "float32"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def json_texts(draw: Any, valid: Any) -> str:
    """JSON or almost JSON, often `valid` with fields changed, removed or added."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(ANY_TEXT)
    if kind == 1:
        return draw(st.sampled_from("[{9")) * draw(
            st.sampled_from([1, 500, 1_000, 5_000, 50_000])
        )
    if kind == 2:
        return json.dumps(draw(JSON))
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, 3))):
        value = changed(draw, value)
    text = json.dumps(value)
    return text[: draw(st.integers(0, len(text)))] if kind == 3 else text


def changed(draw: Any, value: Any) -> Any:
    """Return a value with one item replaced, removed or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if isinstance(value[key], dict | list) and draw(st.integers(0, 3)):
            return {**value, key: changed(draw, value[key])}
        match draw(st.integers(0, 5)):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, draw(ANY_TEXT): draw(JSON)}
            case 2:
                return {
                    (draw(ANY_TEXT) if k == key else k): v for k, v in value.items()
                }
            case _:
                return {**value, key: draw(JSON)}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        position = draw(st.integers(0, len(value) - 1))
        replaced = (
            [draw(st.integers(0, 9) | edges() | SCALARS)]
            if draw(st.integers(0, 4))
            else []
        )
        return [*value[:position], *replaced, *value[position + 1 :]]
    return draw(JSON)


# Files


@st.composite
def files(draw: Any, kind: str) -> bytes:
    """A valid file whose header is edited and whose bytes are damaged."""
    data = draw(st.sampled_from(range(len(VALID[kind]))).map(VALID[kind].__getitem__))
    if draw(st.integers(0, 3)):
        data = edited(draw, data)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2, 5]))):
        first = draw(st.integers(0, min(len(data), 4096)) | st.integers(0, len(data)))
        last = min(len(data), first + draw(st.sampled_from([0, 1, 2, 8, 100, 10**9])))
        match draw(st.integers(0, 4)):
            case 0:
                data = data[:first]
            case 1:
                data = data[:first] + draw(st.binary(max_size=16)) + data[last:]
            case 2:
                data = data[:last] + data[first:]
            case 3:
                data = (
                    data[:first]
                    + draw(st.sampled_from(sorted(VALID)).map(VALID.__getitem__))[0][
                        first:
                    ]
                )
            case 4 if data[first : first + 1]:
                flipped = data[first] ^ 1 << draw(st.integers(0, 7))
                data = data[:first] + bytes([flipped]) + data[first + 1 :]
    return data


def edited(draw: Any, data: bytes) -> bytes:
    """Return a file with changes in metadata, entries or dtypes of tensors."""
    header, numbers = parse_file(data)
    for prefix in draw(
        st.sampled_from([(), (), ("model.", "state.")])
        | st.lists(st.sampled_from(PARTS), max_size=3)
    ):
        numbers = with_dtype(
            header,
            numbers,
            prefix,
            draw(st.sampled_from(["F16", "BF16", "F32", "F64"])),
        )
    if not draw(st.integers(0, 3)):
        return build_file(header, numbers)
    metadata = header["__metadata__"]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header)))
        match draw(st.integers(0, 6)):
            case 0 | 1 | 2 if metadata:
                key = draw(st.sampled_from(sorted(metadata)))
                try:
                    metadata[key] = draw(json_texts(json.loads(metadata[key])))
                except (ValueError, RecursionError):  # not valid JSON, or no longer
                    metadata[key] = draw(ANY_TEXT)
            case 3 | 4 if isinstance(header[name], dict) and "shape" in header[name]:
                entry = header[name]
                match draw(st.integers(0, 2)):
                    case 0:
                        entry["shape"] = changed(draw, entry["shape"])
                    case 1:
                        entry["dtype"] = draw(st.sampled_from(TYPES))
                    case 2:
                        entry["data_offsets"] = changed(draw, entry["data_offsets"])
            case 5:
                other = draw(st.sampled_from(sorted(header)) | ANY_TEXT)
                header[name], header[other] = (
                    header.get(other, draw(JSON)),
                    header[name],
                )
            case 6:
                header[draw(ANY_TEXT)] = draw(JSON)
                header.pop(name)
    return build_file(header if draw(st.integers(0, 19)) else draw(JSON), numbers)


def saved_models() -> list[bytes]:
    torch.manual_seed(0)
    models = [LanguageModel(config, CharTokenizer("abcde")) for config in CONFIGS]
    models.append(LanguageModel(CONFIGS[2]).half())
    return [lm.save_pretrained(FOLDER).read_bytes() for lm in models]


def saved_checkpoints() -> list[bytes]:
    torch.manual_seed(0)
    actual = []
    for config in CONFIGS:
        lm = LanguageModel(config, CharTokenizer("abcde"))
        optimizer, state = adamw(lm, RECIPE), None
        for _ in range(2):
            state = train_step(lm, optimizer, state)
        settings = Settings(config, RECIPE, "text.txt", "abc", None)
        actual.append(
            save_checkpoint(FOLDER, 2, settings, lm, optimizer, state).read_bytes()
        )
    return actual


def train_step(
    lm: LanguageModel, optimizer: torch.optim.Optimizer, state: Any
) -> Any:
    tokens = TOKENS.repeat(1 if state is None else state.batch_size, 1)[
        : state and state.batch_size
    ]
    tokens = tokens % lm.config.vocab_size
    logits, state = lm(tokens[:, :-1], state, return_state=True)
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    return state.detach()


# Loaders


def check_model(data: bytes) -> bool:
    (FOLDER / WEIGHTS_FILE).write_bytes(data)
    try:
        lm = LanguageModel.from_pretrained(FOLDER)
    except ValueError as error:
        reason(FOLDER / WEIGHTS_FILE, error)
        return False
    assert lm(TOKENS % lm.config.vocab_size).shape == (2, 4, lm.config.vocab_size)
    assert lm.tokenizer is None or lm.tokenizer.vocab_size == lm.config.vocab_size
    return True


def check_checkpoint(data: bytes) -> bool:
    path = FOLDER / CHECKPOINT_FILE
    path.write_bytes(data)
    try:
        checkpoint = Checkpoint.load(FOLDER)
        lm = LanguageModel(checkpoint.settings.config, checkpoint.tokenizer)
        optimizer = adamw(lm, checkpoint.settings.recipe)
        state = checkpoint.restore(lm, optimizer, torch.device("cpu"))
    except ValueError as error:
        reason(path, error)
        return False
    assert 0 <= checkpoint.step <= checkpoint.settings.recipe.steps
    if checkpoint.metrics is not None:
        assert checkpoint.metrics.size >= 0 and len(checkpoint.metrics.sha256) == 64
    train_step(lm, optimizer, state)
    return True


def check_metrics(text: str) -> bool:
    path = FOLDER / METRICS_FILE
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    try:
        metrics = read_metrics(FOLDER, fingerprint(data), METRIC["step"])
    except ValueError as error:
        reason(path, error)
        return False
    assert all(metric["step"] >= 0 and metric["seconds"] >= 0 for metric in metrics)
    assert metrics[-1]["step"] == METRIC["step"]
    return True


def check_settings(text: str) -> bool:
    try:
        actual = Settings.from_json(text)
    except (TypeError, ValueError):
        return False
    assert Settings.from_json(actual.to_json()) == actual
    return True


def check_config(values: dict[str, Any]) -> bool:
    try:
        config = Config(**values)
    except (TypeError, ValueError):
        return False
    assert (
        Config(**asdict(config)) == config
        and config.d_head * config.n_heads == config.d_model
    )
    return True


def check_tokenizer(texts: tuple[str, str]) -> bool:
    text, other = texts
    for make in (CharTokenizer, CharTokenizer.from_vocabulary):
        try:
            tokenizer = make(text)
        except ValueError:
            assert not text or len(set(text)) < len(text)
            continue
        assert tokenizer.decode(tokenizer.encode(text)) == text
        try:
            tokenizer.encode(other)
        except ValueError as error:
            assert set(other) - set(text)
            assert str(error).isprintable()
    return bool(text)


def check_plays(plays: dict[str, str]) -> bool:
    try:
        text = rebuild(plays)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return False
    assert text.count("\n") <= 40_000
    return True


MARKDOWN_PARTS = (
    ANY_TEXT
    | st.sampled_from(
        [
            "# ACT I\n",
            "### SCENE I\n",
            "**A**\n",
            "_[a",
            "]_",
            "_",
            "Ghost\n",
            "\n",
            "\\",
            "**",
            " & ",
        ]
    )
    | st.sampled_from([old for old, _ in REPLACEMENTS])
)
METRIC = {
    "step": 3,
    "seconds": 1.5,
    "loss": 2.0,
    "sample": "a",
    "layer_weights": [0.5, 0.5],
}
SETTINGS = json.loads(Settings(CONFIGS[2], RECIPE, "text.txt", "abc", None).to_json())


@dataclass
class Loader:
    """A loader to test.

    Attributes:
        inputs: random inputs.
        valid: an input that must be accepted.
        check: loads an input, and returns whether it was accepted.
    """

    inputs: st.SearchStrategy[Any]
    valid: Any
    check: Callable[[Any], bool]


def config_fields() -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a config, some of them changed."""
    names = [*asdict(CONFIGS[0])]
    changes = st.dictionaries(st.sampled_from(names) | ANY_TEXT, JSON, max_size=3)
    return changes.map(lambda fields: asdict(CONFIGS[0]) | fields)


def lines_with_replacements() -> list[str]:
    """Return the lines of a play that contains each passage to be replaced once."""
    lines = [line for old, _ in REPLACEMENTS for line in old.strip("\n").split("\n")]
    return [
        "**A**",
        *(f"**{line[:-1]}**" if line.endswith(":") else line for line in lines),
        "the end",
    ]


def with_play(lines: list[str]) -> dict[str, str]:
    """Return all plays, empty except the first."""
    return dict.fromkeys(PLAYS, "") | {PLAYS[0]: "\n".join(lines)}


def plays() -> st.SearchStrategy[dict[str, str]]:
    """A play that can be rebuilt, with some lines inserted."""
    lines = lines_with_replacements()
    changes = st.lists(
        st.tuples(st.integers(0, len(lines)), MARKDOWN_PARTS), max_size=4
    )

    def with_lines(inserted: list[tuple[int, str]]) -> dict[str, str]:
        result = [*lines]
        for position, text in inserted:
            result.insert(position, text)
        return with_play(result)

    return changes.map(with_lines)


VALID = {"model": saved_models(), "checkpoint": saved_checkpoints()}
LOADERS = {
    "model": Loader(files("model"), VALID["model"][0], check_model),
    "checkpoint": Loader(
        files("checkpoint"), VALID["checkpoint"][0], check_checkpoint
    ),
    "metrics": Loader(
        st.lists(json_texts(METRIC), max_size=3).map("\n".join),
        json.dumps(METRIC),
        check_metrics,
    ),
    "settings": Loader(json_texts(SETTINGS), json.dumps(SETTINGS), check_settings),
    "config": Loader(config_fields(), asdict(CONFIGS[0]), check_config),
    "tokenizer": Loader(
        st.tuples(ANY_TEXT, ANY_TEXT), ("abc", "ab"), check_tokenizer
    ),
    "plays": Loader(plays(), with_play(lines_with_replacements()), check_plays),
}


def fuzz(loader: Loader, examples: int) -> tuple[int, int]:
    """Try inputs, and return how many were tried and how many accepted."""
    tried = accepted = 0

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )
    @given(loader.inputs)
    def try_input(value: Any) -> None:
        nonlocal tried, accepted
        tried += 1
        with limited_resources(seconds=1.0):
            accepted += loader.check(value)

    assert loader.check(loader.valid)
    try_input()
    return tried, accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="for all loaders together [600]"
    )
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    failed = False
    for name, loader in LOADERS.items():
        end = time.monotonic() + seconds / len(LOADERS)
        tried = accepted = 0
        while time.monotonic() < end:
            try:
                more = fuzz(loader, examples=200)
            except Exception:
                traceback.print_exc()
                failed = True
                break
            tried, accepted = tried + more[0], accepted + more[1]
        print(f"{name:<12}{tried:>8} inputs, {accepted} accepted", flush=True)
    counts = rewritten_while_loaded(
        FOLDER, seconds / len(LOADERS), seed=time.time_ns()
    )
    print(
        f"rewritten while loaded: {counts['loaded']} loaded, "
        f"{counts['refused']} refused",
        flush=True,
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
