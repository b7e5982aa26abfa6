"""Checkpoints: what they restore, and files that are refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hostile_files import build_file, parse_file
from safetensors.torch import save_file
from small_runs import fingerprint, save_checkpoint

from fbt import CharTokenizer, Config, LanguageModel, State
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training.checkpoint import Checkpoint, Fingerprint
from fbt.training.loop import adamw
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings

CONFIG = Config(5, d_model=6, n_heads=2, n_layers=3, span=4, variant="feedback")
SETTINGS = Settings(
    CONFIG, Recipe(steps=7, batch_size=2, carry=True), "some/file.txt", "abc", None
)
TOKENS = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(0))


def stepped() -> tuple[LanguageModel, torch.optim.AdamW, State]:
    """Return a model after two steps, its optimiser and its carried memory."""
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, CharTokenizer("abcde"))
    optimizer, state = adamw(model, SETTINGS.recipe), None
    for _ in range(2):
        state = step(model, optimizer, state)
    assert state is not None
    return model, optimizer, state


def step(
    model: LanguageModel, optimizer: torch.optim.AdamW, state: State | None
) -> State:
    logits, state = model(TOKENS[:, :-1], state, return_state=True)
    optimizer.zero_grad()
    F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    optimizer.step()
    return state.detach()


def test_checkpoint_restores_weights_moments_memory_and_settings(
    tmp_path: Path,
) -> None:
    model, optimizer, state = stepped()
    save_checkpoint(tmp_path, 2, SETTINGS, model, optimizer, state, metrics=b"abc")
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    checkpoint = Checkpoint.load(tmp_path)
    assert (checkpoint.step, checkpoint.settings, checkpoint.tokenizer) == (
        2,
        SETTINGS,
        CharTokenizer("abcde"),
    )
    # FIPS 180-2, appendix B.1.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoint.metrics == Fingerprint(3, abc)

    torch.manual_seed(1)
    other = LanguageModel(CONFIG)
    other_optimizer = adamw(other, SETTINGS.recipe)
    restored = checkpoint.restore(other, other_optimizer, torch.device("cpu"))
    assert restored is not None
    for mine, theirs in zip(
        restored.keys + restored.values, state.keys + state.values, strict=True
    ):
        assert torch.equal(mine, theirs)
    # Two more steps agree to the last bit, so the checkpoint is complete.
    for _ in range(2):
        state, restored = (
            step(model, optimizer, state),
            step(other, other_optimizer, restored),
        )
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_checkpoint_without_memory_restores_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, CharTokenizer("abcde"))
    optimizer = adamw(model, SETTINGS.recipe)
    save_checkpoint(tmp_path, 0, SETTINGS, model, optimizer, None)
    assert (
        Checkpoint.load(tmp_path).restore(model, optimizer, torch.device("cpu"))
        is None
    )


def test_settings_round_trip_through_json() -> None:
    assert Settings.from_json(SETTINGS.to_json()) == SETTINGS


def test_differences_contain_names_and_both_values() -> None:
    other = dataclasses.replace(
        SETTINGS,
        config=dataclasses.replace(CONFIG, dropout=0.5),
        recipe=dataclasses.replace(SETTINGS.recipe, lr=0.25),
        init_from="runs/parallel",
    )
    assert SETTINGS.differences(other) == [
        "init_from: None, 'runs/parallel'",
        "dropout: 0.0, 0.5",
        "lr: 0.002, 0.25",
    ]
    assert SETTINGS.differences(SETTINGS) == []


def test_differences_compare_the_text_and_not_its_source() -> None:
    assert SETTINGS.differences(dataclasses.replace(SETTINGS, data=None)) == []
    assert SETTINGS.differences(dataclasses.replace(SETTINGS, data_sha256="abd")) == [
        "data_sha256: 'abc', 'abd'"
    ]


def test_missing_checkpoint_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=f"no {CHECKPOINT_FILE} in .*cannot resume a run",
    ):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        # a checkpoint of an early version
        (None, "metrics is missing from the metadata"),
        ("{", "metrics is not valid JSON"),
        ("[]", "metrics must be a JSON object, got list"),
        ({}, "must have the field 'size', got none"),
        ({"size": 1}, "must have the field 'sha256', got size"),
        (
            {"size": 1, "sha256": "0" * 64, "md5": ""},
            "must only have the fields size, sha256, got 'md5'",
        ),
        ({"size": -1, "sha256": "0" * 64}, "size must be an int >= 0, got -1"),
        ({"size": 1.5, "sha256": "0" * 64}, "size must be an int >= 0, got 1.5"),
        ({"size": True, "sha256": "0" * 64}, "size must be an int >= 0, got True"),
        ({"size": 1, "sha256": None}, "sha256 must be of type str, got None"),
        (
            {"size": 1, "sha256": "0" * 63},
            "sha256 must be 64 hexadecimal digits, got '000",
        ),
        (
            {"size": 1, "sha256": "A" * 64},
            "sha256 must be 64 hexadecimal digits, got 'AAA",
        ),
        (
            {"size": 1, "sha256": "0" * 64 + "\n"},
            "sha256 must be 64 hexadecimal digits, got",
        ),
    ],
)
def test_bad_fingerprint_is_refused(
    tmp_path: Path, metrics: object, message: str
) -> None:
    path = save_checkpoint(tmp_path, 2, SETTINGS, *stepped())
    header, numbers = parse_file(path.read_bytes())
    if metrics is None:
        del header["__metadata__"]["metrics"]
    else:
        text = metrics if isinstance(metrics, str) else json.dumps(metrics)
        header["__metadata__"]["metrics"] = text
    path.write_bytes(build_file(header, numbers))
    with pytest.raises(
        ValueError, match=f"{CHECKPOINT_FILE} is not a valid checkpoint .*{message}"
    ):
        Checkpoint.load(tmp_path)


def test_fingerprint_round_trips_through_json() -> None:
    original = fingerprint(b"abc")
    assert Fingerprint.from_json(original.to_json()) == original


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    save_checkpoint(tmp_path, 2, SETTINGS, *stepped())
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ValueError, match=f"{CHECKPOINT_FILE} is not a valid checkpoint"
    ):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"step": "1", "settings": "{", "vocabulary": '"ab"'},
        {"step": "one", "settings": SETTINGS.to_json(), "vocabulary": '"ab"'},
        {
            "step": "1",
            "settings": SETTINGS.to_json().replace('"span"', '"reach"'),
            "vocabulary": '"ab"',
        },
    ],
)
def test_file_that_is_not_a_checkpoint_is_refused(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / CHECKPOINT_FILE, metadata)
    with pytest.raises(
        ValueError,
        match=f"{CHECKPOINT_FILE} is not a valid checkpoint of this version",
    ):
        Checkpoint.load(tmp_path)
