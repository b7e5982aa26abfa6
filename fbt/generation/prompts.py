"""Prompts as texts or token ids, and results in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fbt._checks import (
    check_instance,
    check_int,
    check_tokens,
    check_values,
    describe,
)
from fbt.tokenizer import CharTokenizer, Tokenizer, encode

# A text, texts, ids [T], ids [B, T], or lists of ids.
Prompt = str | list[str] | Tensor | Sequence[Sequence[int]]
NO_TOKEN = -100  # fills rows of results that ended earlier; losses ignore it
UNFINISHED = "\ufffd"  # ends a text whose last character has more tokens to come


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids.

    Attributes:
        ids: an int64 tensor [T], T >= 1, per prompt, on the CPU.
        texts: the texts, or None if ids were given.
        form: "one", a "batch" [B, T], or "several" of any lengths.
        given: the prompts as they were given.
    """

    ids: list[Tensor]
    texts: list[str] | None
    form: Literal["one", "batch", "several"]
    given: Prompt


def read_prompts(
    name: str, given: Any, tokenizer: Tokenizer | None, vocab_size: int
) -> Prompts:
    """Return prompts as ids.

    Args:
        name: of the argument in messages.
        given: a text, a list of texts, an integer tensor [T] or [B, T], or a list of
            lists of ids.
        tokenizer: of the model. Only texts need it.
        vocab_size: V; ids are 0 to V - 1.

    Raises:
        TypeError, ValueError: if the prompts are of another type, empty or not in the
            vocabulary, or if a text needs a tokenizer.
    """
    if isinstance(given, Tensor):
        shape = "[T]" if given.ndim == 1 else "[B, T]"
        check_tokens(name, given, shape, vocab_size)
        check_values(name, given)
        ids = given.detach().to("cpu", torch.long)
        if given.ndim == 1:
            return Prompts([ids], None, "one", given)
        return Prompts(list(ids), None, "batch", given)
    if not isinstance(given, str | list | tuple):
        raise TypeError(
            f"{name} must be a text, an integer tensor [T] or [B, T], or a list of "
            f"texts or of lists of ids, got {describe(given)}"
        )
    if not given and not isinstance(given, str):
        raise ValueError(f"{name} must be a text or a list of at least one, got []")
    if isinstance(given, str):
        ids = _encode(name, given, tokenizer)
        return Prompts([ids], [given], "one", given)
    if isinstance(given[0], str):
        for text in given:
            check_instance(f"a {name} of the list", text, str)
        several = [_encode(name, text, tokenizer) for text in given]
        return Prompts(several, list(given), "several", given)
    rows = [_row(name, row, vocab_size) for row in given]
    return Prompts(rows, None, "several", given)


def _encode(name: str, text: str, tokenizer: Tokenizer | None) -> Tensor:
    if tokenizer is None:
        raise ValueError(
            f"a text as {name} needs a tokenizer: pass token ids, set "
            "model.tokenizer, or pass tokenizer= to from_pretrained; "
            "got tokenizer=None"
        )
    if not text:
        raise ValueError(f"{name} must have at least 1 character, got ''")
    try:
        ids = encode(tokenizer, text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be encoded: {error}") from error
    if not len(ids):
        raise ValueError(f"{name} must have at least 1 token, got 0 for {text!r}")
    return ids


def _row(name: str, row: Any, vocab_size: int) -> Tensor:
    if not isinstance(row, list | tuple) or not row:
        raise TypeError(
            f"{name} must be a list of texts or of lists of at least 1 id, "
            f"got {describe(row)} in it"
        )
    for token in row:
        check_int(f"an id of {name}", token, low=0, high=vocab_size - 1)
    return torch.tensor([int(token) for token in row], device="cpu")


class Stop(NamedTuple):
    """What ends a sequence: any of some texts within the new text, or of some ids."""

    texts: tuple[str, ...]
    ids: frozenset[int]


def read_stop(given: Any, tokenizer: Tokenizer | None, vocab_size: int) -> Stop:
    """Return the texts and ids of `stop`: None, a text, an id, or a sequence of them.

    Raises:
        TypeError, ValueError: if one of them is neither, empty or out of range, or if
            a text needs a tokenizer.
    """
    if given is None:
        return Stop((), frozenset())
    items = [given] if isinstance(given, str | Integral) else given
    check_instance("stop", items, list, tuple, set, frozenset)
    texts, ids = [], []
    for item in items:
        if isinstance(item, str) and item:
            texts.append(item)
        else:
            check_int("stop, if it is not a text,", item, low=0, high=vocab_size - 1)
            ids.append(int(item))
    if texts and tokenizer is None:
        raise ValueError(
            f"the text {texts[0]!r} as stop needs a tokenizer, got tokenizer=None"
        )
    return Stop(tuple(texts), frozenset(ids))


class Piece(NamedTuple):
    """A token that was drawn.

    Attributes:
        token: its id.
        text: what it adds to the text; "" while a character is incomplete, or if no
            text is needed.
        log_prob: its log-probability under the model, or NaN if not requested.
    """

    token: int
    text: str
    log_prob: float


class Continuation:
    """The continuation of one prompt, token by token.

    Args:
        prompt: the ids [T] of the prompt.
        tokenizer: returns the text of the tokens; None if no text is needed.
        stop: what ends it.
        max_new_tokens: the most tokens it may have.

    Attributes:
        ended: whether it has all its tokens.
    """

    def __init__(
        self,
        prompt: Tensor,
        tokenizer: Tokenizer | None,
        stop: Stop,
        max_new_tokens: int,
    ) -> None:
        self.ended = max_new_tokens == 0
        self._left, self._stop, self._tokenizer = max_new_tokens, stop, tokenizer
        # Tokens whose text depends on those before them, such as the space between
        # two words, are decoded behind the tokens of the last piece.
        self._tokens = prompt.tolist()
        self._shown = len(self._tokens)
        self._tail = ""  # the end of the text, in which a stop may begin

    def add(self, token: int, log_prob: float) -> Piece:
        """Add a token, and return it with its text."""
        self._left -= 1
        self.ended = self._left == 0 or token in self._stop.ids
        text = self._text(token)
        if self._stop.texts:
            self._tail += text
            self.ended |= any(stop in self._tail for stop in self._stop.texts)
            longest = max(map(len, self._stop.texts))
            self._tail = self._tail[-longest:]
        return Piece(token, text, log_prob)

    def _text(self, token: int) -> str:
        if self._tokenizer is None:
            return ""
        if type(self._tokenizer) is CharTokenizer:
            return self._tokenizer.vocabulary[token]
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(UNFINISHED) and not self.ended:
            return ""
        before = self._tokenizer.decode(self._tokens[: self._shown])
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text[len(before) :]
