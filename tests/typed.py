"""What a type checker knows of the package; `make lint` runs mypy on this file."""

from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor

import fbt


def check_types(model: fbt.LanguageModel, tokens: Tensor) -> None:
    """Check the types of results."""
    assert_type(model(tokens), Tensor)
    assert_type(model(tokens, return_state=True), tuple[Tensor, fbt.State])
    rows = model(tokens, return_state=True, lengths=tokens, starts=tokens)
    assert_type(rows, tuple[Tensor, fbt.State])
    assert_type(model.step(tokens), tuple[Tensor, fbt.State])
    assert_type(model.loss(tokens, tokens), Tensor)
    assert_type(model.score("a"), Tensor)
    assert_type(model.score([[1]]), list[Tensor])
    assert_type(model.generate("a", 5, top_p=0.9), str)
    assert_type(model.generate(["a"], stop="b"), list[str])
    assert_type(model.generate(tokens), Tensor)
    assert_type(model.generate([[1, 2]], seed=1), list[list[int]])
    assert_type(model.generate("a", return_log_probs=True), tuple[Any, Tensor])
    assert_type("".join(model.stream("a")), str)
    assert_type(next(iter(model.stream(["a"]))), list[str])


class Own(fbt.LanguageModel):
    """A class of a user."""


def check_classes() -> None:
    """Check what is accepted, and what is returned for a subclass."""
    model = Own.from_pretrained("tiny-shakespeare", dtype=torch.float32)
    assert_type(model, Own)
    tokenizers: list[fbt.Tokenizer] = [
        fbt.CharTokenizer("ab"),
        fbt.tasks.WordTokenizer(["a"]),
        fbt.SubwordTokenizer.from_json("{}"),
    ]
    for tokenizer in tokenizers:
        assert_type(fbt.train(tokens=np.arange(9), tokenizer=tokenizer), fbt.Run)
    fbt.Config(3, variant="shared")  # type: ignore[arg-type]
    model.generate("a", top_q=1)  # type: ignore[call-overload]
    fbt.train(preset="huge")  # type: ignore[arg-type]
