from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fbt.corpus import load_tiny_shakespeare
from fbt.data import even_windows, random_windows, split


@pytest.fixture(scope="session")
def text() -> str:
    return load_tiny_shakespeare()


# Splitting.


def test_the_default_split(text: str) -> None:
    train, validation = split(text)
    assert (len(train), len(validation)) == (1_003_854, 111_540)
    assert train + validation == text


@given(st.integers(2, 999), st.floats(0.01, 0.99))
def test_a_split_loses_nothing(length: int, validation: float) -> None:
    tokens = torch.arange(length)
    if not 0 < int(length * (1 - validation)) < length:
        with pytest.raises(
            ValueError, match="data must be long enough to split, got length"
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
            "data must be long enough to split, got length 1 with validation=0.5",
        ),
    ],
)
def test_invalid_arguments_of_split(
    data: Any, validation: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        split(data, validation)
    assert str(caught.value) == message


# Windows.


def test_random_windows_are_consecutive_tokens() -> None:
    tokens = torch.arange(100, 137)
    windows = random_windows(
        tokens, length=5, batch_size=11, generator=torch.Generator().manual_seed(0)
    )
    assert windows.shape == (11, 6)
    assert windows.dtype == tokens.dtype
    assert torch.equal(windows - windows[:, :1], torch.arange(6).expand(11, 6))


def test_starts_are_drawn_uniformly() -> None:
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


def test_random_windows_depend_only_on_the_generator() -> None:
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
def test_even_windows_of_a_given_number(data: st.DataObject) -> None:
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
        (
            torch.arange(1),
            1,
            ValueError,
            "tokens must have at least 2 entries, got 1",
        ),
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
def test_invalid_tokens_and_lengths(
    tokens: Any, length: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        even_windows(tokens, length=length)
    assert str(caught.value) == message
    with pytest.raises(error) as caught:
        random_windows(tokens, length=length, batch_size=1, generator=GENERATOR)
    assert str(caught.value) == message


def test_invalid_counts_and_generators() -> None:
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
