"""Unusual folders and prompts, and malicious runs."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import build_file, parse_file, reason
from safetensors.torch import load_file
from small_runs import TEXT, fingerprint, small_command, small_run

import fbt
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import resume
from fbt.training.__main__ import main
from fbt.training.interrupt import Interrupt
from fbt.training.metrics import METRICS_FILE

FOLDERS = [
    "a b",
    'it\'s "so"',
    "two\nlines",
    "-x",
    "--help",
    "~",
    "~root",
    "$HOME;`id`&*?|<>",
    "%41",
    "back\\slash",
    "日本",
    "אב\u202e\u2066",
    "🎭👩‍👩‍👧",
    "e\u0301",
    "\x01\x7f",
    "\u2028",
    " ",
    ".hidden",
    "a" * 255,
]


def small_model() -> fbt.LanguageModel:
    return fbt.LanguageModel(
        fbt.Config(3, d_model=4, n_heads=1, n_layers=1, span=2),
        fbt.CharTokenizer("abc"),
    )


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Paths


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
@pytest.mark.parametrize("kind", [str, Path])
def test_folders_with_unusual_names(name: str, kind: Any, here: Path) -> None:
    lm = small_model()
    path = lm.save_pretrained(kind(name))
    # not expanded: that is the shell's task
    assert path.resolve().parent == here / name
    assert fbt.LanguageModel.from_pretrained(kind(name)).tokenizer == lm.tokenizer
    assert [entry.name for entry in here.iterdir()] == [name]


@pytest.mark.parametrize("name", ["", "/dev", "../..", "no\nsuch"], ids=ascii)
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fbt.LanguageModel.from_pretrained(name)
    assert str(caught.value).startswith(
        f"no model.safetensors in {name!r}; names that ship"
    )


@pytest.mark.parametrize("name", ["a\0b", "\ud800"], ids=ascii)
def test_an_invalid_path_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="name must be a path") as caught:
        fbt.LanguageModel.from_pretrained(name)
    assert str(caught.value).endswith(f"got {name!r}")


def test_only_regular_files_are_opened(here: Path) -> None:
    """Opening a pipe without a writer would wait forever."""
    for name in ("model.safetensors", CHECKPOINT_FILE):
        os.mkfifo(here / name)
    with pytest.raises(OSError, match=r"Not a regular file: '.*model\.safetensors'"):
        fbt.LanguageModel.from_pretrained(here)
    with pytest.raises(
        OSError, match=r"Not a regular file: '.*checkpoint\.safetensors'"
    ):
        resume(here)


def test_a_folder_whose_name_is_not_utf8_is_refused_before_training(
    here: Path,
) -> None:
    """Safetensors cannot open files there."""
    name = os.fsdecode(b"\xff")
    with pytest.raises(ValueError, match=r"must be valid UTF-8, got '.*\\udcff"):
        small_run(folder=name)
    assert not list(here.glob("*/*.safetensors"))


@pytest.mark.parametrize(
    "name", ["-x 'a' \"b\" $(touch hacked)\n~\\ \u202e🎭", "~", "--help"], ids=ascii
)
def test_the_command_to_continue_can_be_pasted(
    name: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = here / "-my 'text'\n.txt"
    data.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(Interrupt, "requested", True)
    assert main(small_command(Path(data.name), Path(name))) == 130
    command = capsys.readouterr().out.partition("resume with: ")[2].rstrip("\n")
    assert command.startswith("python -m fbt.training --resume ")
    as_words = command.replace("python", "printf '%s\\0'", 1)
    words = (
        subprocess.run(["sh", "-c", as_words], capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    monkeypatch.setattr(Interrupt, "requested", False)
    assert main(words[2:-1]) == 0
    assert (here / name / "model.safetensors").is_file()
    assert sorted(path.name for path in here.iterdir()) == sorted([data.name, name])


# An unfinished run


def test_the_weights_of_an_unfinished_run_are_loaded(run: Path, here: Path) -> None:
    """A warning says that its folder has no model yet, and how to continue."""
    with pytest.warns(UserWarning) as caught:
        lm = fbt.LanguageModel.from_pretrained(run)
    (warning,) = caught
    assert str(warning.message) == (
        f"no model.safetensors in {run}, whose run is not finished: loading its last "
        f"checkpoint. To continue the run, call fbt.training.resume({str(run)!r})"
    )
    assert warning.filename == __file__
    # explicitly
    named = fbt.LanguageModel.from_pretrained(run / CHECKPOINT_FILE)
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(run / CHECKPOINT_FILE).items()
        if name.startswith("model.")
    }
    for loaded in (lm, named):
        assert not loaded.training and loaded.tokenizer == fbt.CharTokenizer(TEXT)
        assert loaded.state_dict().keys() == weights.keys()
        assert all(
            torch.equal(loaded.state_dict()[name], weights[name]) for name in weights
        )
    ended = resume(run, TEXT, progress=False)
    # without a warning, which would be an error
    loaded = fbt.LanguageModel.from_pretrained(run)
    for name, tensor in ended.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_damaged_checkpoint_of_an_unfinished_run_is_named(run: Path) -> None:
    path = run / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as caught:
        fbt.LanguageModel.from_pretrained(path)
    assert reason(path, caught.value).startswith(
        "is not a valid checkpoint of this version of fbt: "
    )


# Prompts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt must have at least 1 character, got ''"),
        ("a\n", r"got '\n' (U+000A) at position 1"),
        ("ab\0", r"got '\x00' (U+0000) at position 2"),
        ("é", "got 'é' (U+00E9) at position 0"),
        ("e\u0301", "got 'e' (U+0065) at position 0"),
        ("🎭", "got '🎭' (U+1F3AD) at position 0"),
        ("\u202e", r"got '\u202e' (U+202E) at position 0"),
        ("\ud800", r"got '\ud800' (U+D800) at position 0"),
        ("a" * 10_000 + "z", "got 'z' (U+007A) at position 10000"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_an_unknown_character_in_a_prompt_is_named(prompt: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        small_model().generate(prompt, 1)
    assert str(caught.value).endswith(message)


def test_any_character_can_be_trained_on_and_generated(here: Path) -> None:
    odd = "\0\x1b\r\n\u2028\u202eא\u0301e\ud83c🎭￾\U0010ffff"
    lm = fbt.LanguageModel(
        fbt.Config(len(set(odd)), d_model=4, n_heads=1, n_layers=1, span=2),
        fbt.CharTokenizer(odd),
    )
    lm.save_pretrained(here)
    text = fbt.LanguageModel.from_pretrained(here).generate(odd, 50, seed=0)
    assert text.startswith(odd) and len(text) == len(odd) + 50


def test_lone_surrogates_in_a_text_are_refused_before_writing(
    here: Path,
) -> None:
    with pytest.raises(ValueError, match="text must not contain surrogates"):
        small_run(TEXT + "\ud800", folder=here / "run")
    assert not (here / "run").exists()


# A malicious run


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("strangers")
    small_run(folder=folder, steps=3)
    return {
        name: (folder / name).read_bytes() for name in (CHECKPOINT_FILE, METRICS_FILE)
    }


@pytest.fixture
def run(run_files: dict[str, bytes], here: Path) -> Path:
    folder = here / "run"
    folder.mkdir()
    for name, data in run_files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 is not valid JSON: Expecting value"),
        ("[" * 10**5, "line 1 is not valid JSON: maximum recursion"),
        ("[]", "line 1 must be of type dict, got []"),
        ("{}", "step in line 1 must be an int >= 0, got None"),
        ('{"step": -1}', "step in line 1 must be an int >= 0, got -1"),
        (
            '{"step": 1, "loss": 2}',
            "seconds in line 1 must be a number in [0.0, inf), got None",
        ),
        (
            '{"step": 1, "seconds": 1, "loss": "low"}',
            "loss in line 1 must be a number",
        ),
        (
            '{"step": 1, "seconds": 1, "loss": 1' + "0" * 400 + "}",
            "loss in line 1 must be a number",
        ),
        (
            '{"step": 1, "seconds": 1, "val_loss": NaN}',
            "val_loss in line 1 must be a number in [0.0, inf), got nan",
        ),
        (
            '{"step": 1, "seconds": 1, "sample": 3}',
            "sample in line 1 must be of type str, got 3",
        ),
        (
            '{"step": 1, "seconds": 1, "layer_weights": "all"}',
            "layer_weights in line 1 must be a number",
        ),
        (
            '{"step": 1, "seconds": 1, "layer_weights": [null]}',
            "layer_weights in line 1 must be a number",
        ),
        (
            '{"step": 2, "seconds": 1}',
            "its last step must be 3, as in the checkpoint, got 2",
        ),
        (
            b"\xff",
            "line 1 is not valid JSON: 'utf-8' codec can't decode byte 0xff",
        ),
        (
            '{"step": 1, "step": 2}',
            "line 1 is not valid JSON: 'step' occurs twice",
        ),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_invalid_metrics_are_named(
    run: Path, line: str | bytes, message: str
) -> None:
    path = run / METRICS_FILE
    data = (line if isinstance(line, bytes) else line.encode()) + b"\n"
    path.write_bytes(data)
    header, numbers = parse_file((run / CHECKPOINT_FILE).read_bytes())
    header["__metadata__"]["metrics"] = fingerprint(data).to_json()
    (run / CHECKPOINT_FILE).write_bytes(build_file(header, numbers))
    with pytest.raises(ValueError) as caught:
        resume(run, TEXT, progress=False)
    error_message = reason(path, caught.value)
    assert error_message.startswith(
        "is not a valid file of metrics of this version of fbt: "
    )
    assert message in error_message


def set_data(run: Path, place: str) -> None:
    """Set the path of the text in the checkpoint of a run."""
    path = run / CHECKPOINT_FILE
    header, numbers = parse_file(path.read_bytes())
    settings = json.loads(header["__metadata__"]["settings"]) | {"data": place}
    header["__metadata__"]["settings"] = json.dumps(settings)
    path.write_bytes(build_file(header, numbers))


@pytest.mark.parametrize(
    "place", ["/proc/kmsg", "/proc/kcore", "hole", "/proc/self/environ"]
)
def test_a_system_file_is_not_read_as_a_text(
    run: Path, here: Path, place: str
) -> None:
    """Some seem to be regular files, but are endless, block, or contain secrets."""
    if place == "hole":
        (here / place).touch()
        os.truncate(here / place, 2**40)
    elif not os.access(place, os.R_OK):
        pytest.skip("not here")
    set_data(run, place)
    began = time.monotonic()
    with pytest.raises((ValueError, OSError)) as caught:
        resume(run, progress=False)
    assert re.search(
        r"must have at most \d+ bytes|is not the text that the run in|Not a regular|"
        "Operation not permitted",
        str(caught.value),
    )
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "."])
def test_a_text_must_be_a_regular_file(here: Path, place: str) -> None:
    os.mkfifo(here / "pipe")
    with pytest.raises(OSError, match=r"Not a regular file: '|Is a directory: '"):
        small_run(Path(place))


def test_metrics_must_be_a_regular_file(run: Path) -> None:
    (run / METRICS_FILE).unlink()
    os.mkfifo(run / METRICS_FILE)
    with pytest.raises(OSError, match=r"Not a regular file: '.*metrics\.jsonl'"):
        resume(run, TEXT, progress=False)


@pytest.mark.parametrize(
    "place", ["/dev/zero", "/dev/stdin", ".", "pipe", "no\nsuch", "a\0b", "/dev/full"]
)
def test_an_endless_text_is_not_read(run: Path, here: Path, place: str) -> None:
    """A checkpoint contains the path of the text."""
    os.mkfifo(here / "pipe")
    set_data(run, place)
    began = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match=r"the text of the run in .* is not a file"
    ):
        resume(run, progress=False)
    assert time.monotonic() - began < 5
