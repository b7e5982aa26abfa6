import copy
import os
import pickle
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fbt import _corpus
from fbt.data import (
    CharTokenizer,
    CorpusUnavailable,
    even_windows,
    load_tiny_shakespeare,
    random_windows,
    split,
)

NAME = "tiny-shakespeare.txt"


@dataclass
class Fake:
    """A source that answers as it is told to, and remembers how often it was asked."""

    name: str
    answer: bytes | Exception
    asked: int = field(default=0)

    def fetch(self) -> bytes:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(scope="session")
def text() -> str:
    return load_tiny_shakespeare()


@pytest.fixture(scope="session")
def corpus(text: str) -> bytes:
    return text.encode()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Loading.


def test_the_corpus_is_the_usual_one(text: str) -> None:
    assert len(text) == 1_115_394
    assert text.count("\n") == 40_000
    assert len(set(text)) == 65
    assert text.startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n"
    )


def test_it_is_fetched_once_and_then_read_in_silence(
    corpus: bytes, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Fake("first", corpus)
    assert load_tiny_shakespeare(tmp_path / "new", sources=[source]) == text
    assert (
        capsys.readouterr().err
        == f"Tiny Shakespeare: kept as {tmp_path / 'new' / NAME}\n"
    )
    assert load_tiny_shakespeare(str(tmp_path / "new"), sources=[source]) == text
    assert capsys.readouterr() == ("", "")
    assert source.asked == 1
    assert names(tmp_path / "new") == [NAME]
    assert (tmp_path / "new" / NAME).read_bytes() == corpus


def test_sources_are_tried_in_order_until_one_delivers(
    corpus: bytes, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [
        Fake("first", OSError("no route")),
        Fake("second", corpus),
        Fake("third", corpus),
    ]
    assert load_tiny_shakespeare(tmp_path, sources=sources) == text
    assert [source.asked for source in sources] == [1, 1, 0]
    assert "Tiny Shakespeare: not from first: no route\n" in capsys.readouterr().err


def test_a_tampered_text_is_refused(corpus: bytes, text: str, tmp_path: Path) -> None:
    tampered = corpus.replace(b"First Citizen", b"First Senator", 1)
    assert len(tampered) == len(corpus)
    assert (
        load_tiny_shakespeare(
            tmp_path, sources=[Fake("first", tampered), Fake("second", corpus)]
        )
        == text
    )
    assert (tmp_path / NAME).read_bytes() == corpus


@pytest.mark.parametrize("kept", [b"", b"half a cor", b"\xff\xfe"])
def test_a_corrupted_copy_is_fetched_again(
    corpus: bytes, text: str, tmp_path: Path, kept: bytes
) -> None:
    (tmp_path / NAME).write_bytes(kept)
    assert load_tiny_shakespeare(tmp_path, sources=[Fake("first", corpus)]) == text
    assert (tmp_path / NAME).read_bytes() == corpus


def test_the_error_names_everything_that_was_tried(tmp_path: Path) -> None:
    # the SHA-256 of b"x"
    wrong = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    sources = [
        Fake("first", OSError("no route")),
        Fake("second", b"x"),
        Fake("third", TimeoutError()),
        Fake(
            "fourth", FileNotFoundError(2, "No such file or directory", "/somewhere")
        ),
    ]
    with pytest.raises(CorpusUnavailable) as caught:
        load_tiny_shakespeare(tmp_path, sources=sources)
    assert str(caught.value).splitlines() == [
        "Tiny Shakespeare could not be had. Tried, in this order:",
        f"  {tmp_path / NAME}: no such file",
        "  first: no route",
        f"  second: sha256 is {wrong}, expected {_corpus.SHA256}",
        "  third: TimeoutError",
        "  fourth: No such file or directory",
        f"To put it there by hand, save {_corpus.USUAL_URL} as {tmp_path / NAME} "
        f"(1115394 bytes, sha256 {_corpus.SHA256}).",
    ]
    assert isinstance(caught.value, OSError)
    assert names(tmp_path) == []


def test_the_error_says_what_is_wrong_with_the_copy(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"x")
    with pytest.raises(
        CorpusUnavailable,
        match=rf"{NAME}: sha256 is 2d71\w+, expected {_corpus.SHA256}\n",
    ):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert (tmp_path / NAME).read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_in_place_of_the_copy_is_replaced(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    """Opening it would wait for a writer without end."""
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(CorpusUnavailable, match=rf"{NAME}: Not a regular file\n"):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert load_tiny_shakespeare(tmp_path, sources=[Fake("first", corpus)]) == text
    assert (tmp_path / NAME).read_bytes() == corpus


def test_a_copy_that_is_too_large_is_not_read(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(b"")
    os.truncate(tmp_path / NAME, 2**40)  # a hole, which takes no room on the disk
    with pytest.raises(
        CorpusUnavailable,
        match=f"must have at most {len(corpus)} bytes, got {2**40}\n",
    ):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert load_tiny_shakespeare(tmp_path, sources=[Fake("first", corpus)]) == text


def test_a_copy_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(
        CorpusUnavailable, match=rf"{NAME}: (Is a directory|Permission denied)\n"
    ):
        load_tiny_shakespeare(tmp_path, sources=[])


def test_the_cache_variable_names_the_folder(
    corpus: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "cache"))
    assert load_tiny_shakespeare(sources=[Fake("first", corpus)]) == text
    assert (tmp_path / "cache" / NAME).read_bytes() == corpus
    assert load_tiny_shakespeare(sources=[]) == text


def test_a_file_put_there_by_hand_is_enough(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(corpus)
    assert load_tiny_shakespeare(tmp_path, sources=[]) == text


def test_the_text_is_returned_though_it_cannot_be_kept(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    # A folder below a file can be written by nobody, not even by root.
    (tmp_path / "file").write_bytes(b"in the way")
    folder = tmp_path / "file" / "folder"
    message = re.escape(f"Tiny Shakespeare could not be kept as {folder / NAME} (")
    with pytest.warns(
        RuntimeWarning,
        match=rf"{message}.*set FBT_CACHE to a folder that can be written",
    ) as caught:
        assert load_tiny_shakespeare(folder, sources=[Fake("first", corpus)]) == text
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("folder", [3, b"cache"])
def test_a_folder_must_be_a_path(folder: Any) -> None:
    with pytest.raises(
        TypeError,
        match=re.escape(
            f"folder must be of type str or Path, got {folder!r} of type "
        ),
    ):
        load_tiny_shakespeare(folder)


def test_an_unforeseen_error_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_tiny_shakespeare(tmp_path, sources=[Fake("first", ZeroDivisionError())])


# The tokenizer.

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SOME_TEXT = st.text(st.characters(exclude_categories=()), min_size=1)


def test_characters_are_numbered_in_their_order() -> None:
    tokenizer = CharTokenizer("hello")
    assert tokenizer.vocabulary == "ehlo"
    assert tokenizer.vocab_size == 4
    numbers = tokenizer.encode("hello")
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [1, 0, 2, 2, 3]
    assert tokenizer.decode(numbers) == "hello"


@given(SOME_TEXT)
def test_round_trip(text: str) -> None:
    tokenizer = CharTokenizer(text)
    numbers = tokenizer.encode(text)
    assert numbers.tolist() == [
        sorted(set(text)).index(character) for character in text
    ]
    assert tokenizer.decode(numbers) == text
    assert tokenizer.decode(numbers.tolist()) == text


@given(SOME_TEXT, ANY_TEXT)
def test_an_unknown_character_is_named_with_its_position(
    known: str, text: str
) -> None:
    tokenizer = CharTokenizer(known)
    unknown = [(i, c) for i, c in enumerate(text) if c not in known]
    if not unknown:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    position, character = unknown[0]
    with pytest.raises(ValueError) as caught:
        tokenizer.encode(text)
    assert str(caught.value) == (
        f"text must hold only the {len(set(known))} characters of the vocabulary, "
        f"got {character!r} (U+{ord(character):04X}) at position {position}"
    )


@given(
    st.sets(st.characters(exclude_categories=()), min_size=1).flatmap(
        lambda s: st.permutations(sorted(s))
    )
)
def test_from_vocabulary_keeps_the_order(characters: Sequence[str]) -> None:
    vocabulary = "".join(characters)
    tokenizer = CharTokenizer.from_vocabulary(vocabulary)
    assert tokenizer.vocabulary == vocabulary
    assert tokenizer.encode(vocabulary).tolist() == list(range(len(vocabulary)))
    assert tokenizer.decode(range(len(vocabulary))) == vocabulary


def test_the_vocabulary_of_a_text_gives_its_tokenizer_back() -> None:
    tokenizer = CharTokenizer("to be or not")
    assert CharTokenizer.from_vocabulary(tokenizer.vocabulary) == tokenizer


def test_nothing_encodes_to_nothing() -> None:
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode("").dtype == torch.int64
    assert tokenizer.decode(tokenizer.encode("")) == ""
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    "numbers",
    [
        torch.tensor([1, 0]),
        torch.tensor([1, 0], dtype=torch.int32),
        torch.tensor([1, 0], dtype=torch.uint8),
        [1, 0],
        (1, 0),
        range(1, -1, -1),
        np.array([1, 0]),
        list(np.array([1, 0])),
        list(torch.tensor([1, 0])),
    ],
    ids=str,
)
def test_what_can_be_decoded(numbers: Any) -> None:
    assert CharTokenizer("ab").decode(numbers) == "ba"


@pytest.mark.parametrize(
    ("numbers", "got"),
    [
        ([0, 1, 3], "got 3 at position 2"),
        ([0, -1], "got -1 at position 1"),
        ([2**70], f"got {2**70} at position 0"),
        (torch.tensor([1, 3, -1]), "got 3 at position 1"),
    ],
)
def test_a_number_out_of_range(numbers: Any, got: str) -> None:
    with pytest.raises(ValueError) as caught:
        CharTokenizer("abc").decode(numbers)
    assert str(caught.value) == f"numbers must be in [0, 2], {got}"


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        (
            torch.tensor([1.0]),
            TypeError,
            "numbers must be a tensor of integers, got Tensor [1] of torch.float32",
        ),
        (
            torch.tensor([1], dtype=torch.bfloat16),
            TypeError,
            "numbers must be a tensor of integers, got Tensor [1] of torch.bfloat16",
        ),
        (
            torch.tensor([True]),
            TypeError,
            "numbers must be a tensor of integers, got Tensor [1] of torch.bool",
        ),
        (
            torch.tensor([1j]),
            TypeError,
            "numbers must be a tensor of integers, got Tensor [1] of torch.complex64",
        ),
        (torch.tensor(1), ValueError, "numbers must have shape [N], got []"),
        (
            torch.tensor([[1, 0]]),
            ValueError,
            "numbers must have shape [N], got [1, 2]",
        ),
        (
            [0, 1.0],
            TypeError,
            "numbers must be ints, got 1.0 of type float at position 1",
        ),
        (
            [True],
            TypeError,
            "numbers must be ints, got True of type bool at position 0",
        ),
        (
            [[1]],
            TypeError,
            "numbers must be ints, got [1] of type list at position 0",
        ),
        (
            "ab",
            TypeError,
            "numbers must be a tensor or a sequence of ints, got 'ab' of type str",
        ),
        (
            1,
            TypeError,
            "numbers must be a tensor or a sequence of ints, got 1 of type int",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_decoded(
    numbers: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        CharTokenizer("ab").decode(numbers)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "argument", "error", "message"),
    [
        (
            CharTokenizer,
            "",
            ValueError,
            "text must hold at least one character, got ''",
        ),
        (
            CharTokenizer,
            b"ab",
            TypeError,
            "text must be of type str, got b'ab' of type bytes",
        ),
        (
            CharTokenizer("ab").encode,
            ["a"],
            TypeError,
            "text must be of type str, got ['a'] of type list",
        ),
        (
            CharTokenizer.from_vocabulary,
            "",
            ValueError,
            "vocabulary must hold at least one character, got ''",
        ),
        (
            CharTokenizer.from_vocabulary,
            ["a"],
            TypeError,
            "vocabulary must be of type str, got ['a'] of type list",
        ),
        (
            CharTokenizer.from_vocabulary,
            "ab\nc\n",
            ValueError,
            "vocabulary must hold each character once, got '\\n' (U+000A) again at position 4",
        ),
    ],
)
def test_what_a_tokenizer_refuses(
    make: Any, argument: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        make(argument)
    assert str(caught.value) == message


def test_equality_and_hash() -> None:
    assert CharTokenizer("hello") == CharTokenizer("hole")
    assert hash(CharTokenizer("hello")) == hash(CharTokenizer("hole"))
    assert CharTokenizer("hello") != CharTokenizer("help")
    assert CharTokenizer.from_vocabulary("ba") != CharTokenizer.from_vocabulary("ab")
    assert CharTokenizer("a") != "a"


def test_repr_makes_it_again() -> None:
    tokenizer = CharTokenizer("it's\n")
    assert repr(tokenizer) == 'CharTokenizer.from_vocabulary("\\n\'ist")'
    assert eval(repr(tokenizer)) == tokenizer


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_and_pickles(again: Any) -> None:
    tokenizer = CharTokenizer.from_vocabulary("cab")
    twin = again(tokenizer)
    assert twin == tokenizer
    assert twin.decode(twin.encode("abc")) == "abc"


def test_the_whole_corpus_in_a_moment(text: str) -> None:
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == 65
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        numbers = tokenizer.encode(text)
        seconds.append(time.perf_counter() - began)
    assert tokenizer.decode(numbers) == text
    assert min(seconds) < 0.3


# Splitting.


def test_the_usual_split(text: str) -> None:
    train, validation = split(text)
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert train + validation == text


@given(st.integers(2, 999), st.floats(0.01, 0.99))
def test_a_split_loses_nothing(length: int, validation: float) -> None:
    tokens = torch.arange(length)
    if not 0 < int(length * (1 - validation)) < length:
        with pytest.raises(
            ValueError, match="data must be long enough to cut in two, got length"
        ):
            split(tokens, validation)
        return
    head, tail = split(tokens, validation)
    assert torch.equal(torch.cat([head, tail]), tokens)
    assert abs(len(tail) - validation * length) <= 1


@pytest.mark.parametrize(
    ("data", "validation", "error", "message"),
    [
        (
            [1, 2],
            0.1,
            TypeError,
            "data must be a str or a tensor, got [1, 2] of type list",
        ),
        (torch.zeros(2, 3), 0.1, ValueError, "data must have shape [N], got [2, 3]"),
        ("abc", 0.0, ValueError, "validation must be a number in (0, 1), got 0.0"),
        ("abc", 1, ValueError, "validation must be a number in (0, 1), got 1"),
        (
            "abc",
            float("nan"),
            ValueError,
            "validation must be a number in (0, 1), got nan",
        ),
        (
            "abc",
            "0.1",
            TypeError,
            "validation must be a number in (0, 1), got '0.1' of type str",
        ),
        (
            "abc",
            True,
            TypeError,
            "validation must be a number in (0, 1), got True of type bool",
        ),
        (
            "a",
            0.5,
            ValueError,
            "data must be long enough to cut in two, got length 1 with validation=0.5",
        ),
    ],
)
def test_what_split_refuses(
    data: Any, validation: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        split(data, validation)
    assert str(caught.value) == message


# Windows.


def test_random_windows_are_stretches_of_the_tokens() -> None:
    tokens = torch.arange(100, 137)
    windows = random_windows(
        tokens, length=5, batch_size=11, generator=torch.Generator().manual_seed(0)
    )
    assert windows.shape == (11, 6)
    assert windows.dtype == tokens.dtype
    assert torch.equal(windows - windows[:, :1], torch.arange(6).expand(11, 6))


def test_every_start_is_drawn_and_about_equally_often() -> None:
    windows = random_windows(
        torch.arange(13),
        length=5,
        batch_size=8000,
        generator=torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(windows[:, 0], minlength=13)
    assert torch.equal(counts.nonzero().flatten(), torch.arange(8))  # 13 - 5 starts
    # five standard deviations are 148
    assert counts[:8].min() > 850 and counts[:8].max() < 1150


def test_random_windows_follow_their_generator_alone() -> None:
    tokens = torch.arange(1000)

    def draw(seed: int) -> torch.Tensor:
        return random_windows(
            tokens,
            length=7,
            batch_size=3,
            generator=torch.Generator().manual_seed(seed),
        )

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_windows_are_copies() -> None:
    tokens = torch.arange(10)
    even_windows(tokens, length=3).zero_()
    random_windows(
        tokens, length=3, batch_size=2, generator=torch.Generator()
    ).zero_()
    assert torch.equal(tokens, torch.arange(10))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 12])
def test_even_windows_predict_every_token_once(length: int) -> None:
    tokens = torch.arange(13)
    windows = even_windows(tokens, length=length)
    assert windows.shape == (12 // length, length + 1)
    assert windows[:, 1:].flatten().tolist() == list(
        range(1, 1 + 12 // length * length)
    )
    assert torch.equal(windows[1:, 0], windows[:-1, -1])


@given(st.data())
@settings(deadline=None)
def test_a_count_of_even_windows(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 50))
    length = data.draw(st.integers(1, size - 1))
    count = data.draw(st.integers(1, size - length))
    windows = even_windows(torch.arange(size), length=length, count=count)
    assert windows.shape == (count, length + 1)
    starts = windows[:, 0]
    assert torch.equal(windows, starts[:, None] + torch.arange(length + 1))
    assert starts[0] == 0
    if count > 1:
        assert windows[-1, -1] == size - 1
        gaps = starts.diff()
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("tokens", "length", "error", "message"),
    [
        (
            [1, 2, 3],
            1,
            TypeError,
            "tokens must be a tensor of integers, got [1, 2, 3] of type list",
        ),
        (torch.zeros(2, 3), 1, ValueError, "tokens must have shape [N], got [2, 3]"),
        (torch.arange(1), 1, ValueError, "tokens must hold at least 2 tokens, got 1"),
        (torch.arange(5), 5, ValueError, "length must be an int in [1, 4], got 5"),
        (torch.arange(5), 0, ValueError, "length must be an int in [1, 4], got 0"),
        (
            torch.arange(5),
            2.0,
            TypeError,
            "length must be an int in [1, 4], got 2.0 of type float",
        ),
    ],
)
def test_what_windows_refuse(
    tokens: Any, length: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        even_windows(tokens, length=length)
    assert str(caught.value) == message
    with pytest.raises(error) as caught:
        random_windows(tokens, length=length, batch_size=1, generator=GENERATOR)
    assert str(caught.value) == message


def test_counts_and_generators_that_windows_refuse() -> None:
    tokens = torch.arange(5)
    with pytest.raises(ValueError, match=r"count must be an int in \[1, 3\], got 4"):
        even_windows(tokens, length=2, count=4)
    with pytest.raises(ValueError, match=r"count must be an int in \[1, 3\], got 0"):
        even_windows(tokens, length=2, count=0)
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, got 0"):
        random_windows(tokens, length=2, batch_size=0, generator=GENERATOR)
    generator: Any = 7
    with pytest.raises(
        TypeError, match=r"generator must be of type Generator, got \d+ of type int"
    ):
        random_windows(tokens, length=2, batch_size=1, generator=generator)
