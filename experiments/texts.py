"""The texts of experiments, as tokens."""

from functools import cache

from king_james import load_king_james
from torch import Tensor

import fbt
from fbt.data import split

TEXTS = {
    "Tiny Shakespeare": fbt.load_tiny_shakespeare,
    "King James Bible": load_king_james,
}


@cache
def corpus(name: str = "Tiny Shakespeare") -> tuple[Tensor, Tensor, int]:
    """Return training tokens, validation tokens and the vocabulary size of a text."""
    text = TEXTS[name]()
    tokenizer = fbt.CharTokenizer(text)
    return *split(tokenizer.encode(text)), len(tokenizer.vocabulary)
