"""Messages and texts are cleaned before they are passed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbt._text import LONGEST_LINE, one_line, replace_surrogates

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("as it is: é 🎭", "as it is: é 🎭"),
        ("two\nlines \r\n and\u2028a third", "two lines and a third"),
        ("red \x1b[31mand\x07 \x9bloud\0", "red [31mand loud"),
        ("\u202eturned", "turned"),
        ("half \ud800", "half"),
        ("x" * 10**6, "x" * LONGEST_LINE + " ..."),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_one_line(message: str, line: str) -> None:
    assert one_line(message) == line


@given(ANY_TEXT)
def test_a_line_can_be_printed(message: str) -> None:
    assert one_line(message).isprintable()
    assert one_line(one_line(message)) == one_line(message)


@given(ANY_TEXT)
def test_only_lone_surrogates_are_replaced(text: str) -> None:
    assert replace_surrogates(text).encode().decode() == replace_surrogates(text)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert replace_surrogates(text) == text


def test_a_pair_of_surrogates_becomes_one_character() -> None:
    assert replace_surrogates("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert replace_surrogates("\ud83c" + "\udfad") == "🎭"
