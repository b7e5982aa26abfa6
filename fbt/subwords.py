"""Subword tokenizers of the library `tokenizers`, imported only when used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fbt._checks import check_instance, describe

if TYPE_CHECKING:
    import tokenizers


class SubwordTokenizer:
    """A `tokenizers.Tokenizer` as a tokenizer of this package.

    It encodes a text without the special tokens that a post-processor would add, so
    that the ids of a prompt are those of a longer text's beginning. Two are equal if
    their JSON is.

    Args:
        tokenizer: the tokenizer, trained or loaded with that library.

    Raises:
        TypeError: if it is anything else.

    Source: https://huggingface.co/docs/tokenizers.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        names = ("get_vocab_size", "to_str", "encode", "decode")
        if isinstance(tokenizer, type) or not all(
            callable(getattr(tokenizer, name, None)) for name in names
        ):
            raise TypeError(
                f"tokenizer must be a tokenizers.Tokenizer, got {describe(tokenizer)}"
            )
        self.tokenizer = tokenizer

    @classmethod
    def from_json(cls, text: str) -> SubwordTokenizer:
        """Return the tokenizer of a JSON text, such as a file `tokenizer.json`.

        Raises:
            TypeError: if `text` is not a str.
            ImportError: if the library is not installed.
            ValueError: if the text is not that of a tokenizer.
        """
        check_instance("text", text, str)
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(
                "a subword tokenizer needs the package tokenizers: "
                "pip install tokenizers"
            ) from error
        try:
            return cls(tokenizers.Tokenizer.from_str(text))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"not the JSON of a tokenizer: {error}") from error

    def to_json(self) -> str:
        """Return the whole tokenizer as a JSON text."""
        return self.tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        """The number of token ids, V, with added tokens."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text as an int64 tensor [N].

        Raises:
            TypeError: if `text` is not a str.
        """
        check_instance("text", text, str)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return torch.tensor(ids, dtype=torch.long, device="cpu")

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Return the text of ids [N] in [0, V - 1]; special tokens have no text."""
        return self.tokenizer.decode(
            ids.tolist() if isinstance(ids, Tensor) else list(ids)
        )

    def __eq__(self, other: object) -> bool:
        return (
            self.to_json() == other.to_json()
            if isinstance(other, SubwordTokenizer)
            else NotImplemented
        )

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"SubwordTokenizer(vocab_size={self.vocab_size})"
