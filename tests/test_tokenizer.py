import copy
import pickle
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fbt.corpus import load_tiny_shakespeare
from fbt.tokenizer import CharTokenizer


@pytest.fixture(scope="session")
def text() -> str:
    return load_tiny_shakespeare()


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SOME_TEXT = st.text(st.characters(exclude_categories=()), min_size=1)


def test_characters_are_numbered_in_their_order() -> None:
    tokenizer = CharTokenizer("hello")
    assert tokenizer.vocabulary == "ehlo"
    assert tokenizer.vocab_size == 4
    ids = tokenizer.encode("hello")
    assert ids.dtype == torch.int64
    assert ids.tolist() == [1, 0, 2, 2, 3]
    assert tokenizer.decode(ids) == "hello"


@given(SOME_TEXT)
def test_round_trip(text: str) -> None:
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text)
    assert ids.tolist() == [sorted(set(text)).index(character) for character in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text


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
        f"text must contain only the {len(set(known))} characters of the vocabulary, "
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


def test_from_vocabulary_of_a_tokenizer_equals_it() -> None:
    tokenizer = CharTokenizer("to be or not")
    assert CharTokenizer.from_vocabulary(tokenizer.vocabulary) == tokenizer


def test_the_empty_text() -> None:
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
def test_types_that_can_be_decoded(numbers: Any) -> None:
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
def test_an_id_out_of_range(numbers: Any, got: str) -> None:
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
def test_invalid_ids(numbers: Any, error: type[Exception], message: str) -> None:
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
            "text must have at least one character, got ''",
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
            "vocabulary must have at least one character, got ''",
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
            "vocabulary must have distinct characters, got '\\n' (U+000A) again at "
            "position 4",
        ),
    ],
)
def test_invalid_arguments(
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


def test_repr_is_a_constructor_call() -> None:
    tokenizer = CharTokenizer("it's\n")
    assert repr(tokenizer) == 'CharTokenizer.from_vocabulary("\\n\'ist")'
    assert eval(repr(tokenizer)) == tokenizer


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_and_pickles(copied: Any) -> None:
    tokenizer = CharTokenizer.from_vocabulary("cab")
    twin = copied(tokenizer)
    assert twin == tokenizer
    assert twin.decode(twin.encode("abc")) == "abc"


def test_encoding_the_corpus_is_fast(text: str) -> None:
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == 65
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        ids = tokenizer.encode(text)
        seconds.append(time.perf_counter() - began)
    assert tokenizer.decode(ids) == text
    assert min(seconds) < 0.3
