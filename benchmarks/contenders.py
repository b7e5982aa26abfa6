"""The contenders: our bodies with every backend, the yardstick and published peers.

Each one is built by name for a given size. It consists of a module and a function
that maps embeddings [B, T, d] to the top layer's outputs [B, T, d], without dropout.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from sdpa import Transformer
from torch import Tensor, nn

import fbt
from fbt.native import build_native
from fbt.parallel import ParallelBody
from fbt.shared_kv import SharedKVBody

YARDSTICK = "parallel (SDPA)"
PARALLEL = "parallel body"
OURS = (
    "reference",
    "stack",
    "sequence",
    "sequence, recompute",
    "native",
    "native, recompute",
)
LABML = ("labml shared KV", "labml shared KV, T rows")
SLOWEST = ("labml plain", "feedback-transformer-pytorch")
PEERS = (*LABML, *SLOWEST)
EVERYONE = (YARDSTICK, PARALLEL, *OURS, *PEERS)
# Parallel models are also measured compiled, and under autocast to bfloat16, as the
# loop in C++ is. Their names end in this.
BFLOAT16, COMPILED = ", bfloat16", ", compiled"
FORMS = (
    *(YARDSTICK + COMPILED, YARDSTICK + COMPILED + BFLOAT16),
    *(PARALLEL + COMPILED, PARALLEL + COMPILED + BFLOAT16),
    *(name + BFLOAT16 for name in (YARDSTICK, PARALLEL, "native")),
)
# These record every operation of every step.
SLOW = ("reference", "stack", *PEERS)

# How contenders differ from ours in what they compute; their parameters are recorded.
DIFFERENCES = {
    YARDSTICK: "no relative terms; biases in every projection",
    PARALLEL: "chapter 1's body: relative terms, keys and values of every layer",
    "labml shared KV": "labml-nn 0.5.1, FeedbackTransformerKV: relative tables of "
    "4096 rows at any span, no normalisation of the memory, a norm after the top "
    "layer; at most 512 steps",
    "labml shared KV, T rows": "the same with relative tables of T rows, which is as "
    "many as are read: at every step autograd makes a gradient of the whole table",
    "labml plain": "labml-nn 0.5.1, FeedbackTransformer: the same with keys and "
    "values of every layer, projected anew from all memories at every step",
    "feedback-transformer-pytorch": "version 0.0.11, one token per step: a gated "
    "feed-forward block (GEGLU) with half as many parameters again, one learned bias "
    "per head in place of relative terms",
}


class Size(NamedTuple):
    """Sizes of a measurement; the span is T."""

    d: int
    H: int
    F: int
    L: int
    T: int
    B: int


class Unavailable(Exception):
    """A contender cannot be measured here; the message says why."""


class Contender(NamedTuple):
    """A module and the function that runs it."""

    module: nn.Module
    run: Callable[[Tensor], Tensor]


def build(name: str, size: Size) -> Contender:
    """Build a contender.

    Args:
        name: one of `EVERYONE` or `FORMS`.
        size: its sizes.

    Returns:
        The module and its function from [B, T, d] to [B, T, d].

    Raises:
        Unavailable: if it cannot run on this machine or at this size.
    """
    if name.endswith(BFLOAT16):
        module, run = build(name.removesuffix(BFLOAT16), size)
        return Contender(module, partial(under_autocast, run))
    if name.endswith(COMPILED):
        module, run = build(name.removesuffix(COMPILED), size)
        return Contender(module, torch.compile(run, dynamic=False))
    if name == YARDSTICK:
        model = Transformer(size.d, size.H, size.F, size.L)
        return Contender(model, model)
    if name.startswith("labml"):
        return labml(size, shared=name in LABML, short=name.endswith("T rows"))
    if name in PEERS:
        return lucidrains(size)
    if name == PARALLEL:
        parallel = ParallelBody(our_config(size))
        return Contender(parallel, lambda x: parallel(x)[0])
    backend, _, recompute = name.partition(", ")
    if backend == "native":
        load_native()
    body = SharedKVBody(our_config(size))
    body.recompute = bool(recompute)
    return Contender(body, lambda x: body(x, backend=backend)[0])


def under_autocast(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return run(x), computed under autocast to bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return run(x)


def our_config(size: Size) -> fbt.Config:
    """Return the configuration of a body of the package, with span T."""
    return fbt.Config(
        1, d_model=size.d, n_heads=size.H, d_ff=size.F, n_layers=size.L, span=size.T
    )


def load_native() -> None:
    """Compile the C++ loop, or load it if it has been compiled before.

    Raises:
        Unavailable: if it cannot be built.
    """
    try:
        build_native()
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"could not build the native loop: {error}") from error


def labml(size: Size, shared: bool, short: bool) -> Contender:
    """Build a model of labml-nn.

    Args:
        size: its sizes.
        shared: whether layers share keys and values.
        short: cut the relative tables to the T rows that are read.
    """
    try:
        from labml_nn.transformers.feed_forward import FeedForward
        from labml_nn.transformers.feedback import (
            FeedbackAttention,
            FeedbackTransformer,
            FeedbackTransformerKV,
            FeedbackTransformerLayer,
        )
    except ImportError as error:
        raise Unavailable(f"labml-nn is not installed: {error}") from error
    if shared and size.T > 512:
        raise Unavailable("labml's stacks hold at most 512 steps")
    attention = FeedbackAttention(size.H, size.d, 0.0, is_kv_precomputed=shared)
    if short:
        for name in ("key_pos_embeddings", "key_pos_bias"):
            table = getattr(attention, name).detach()
            setattr(attention, name, nn.Parameter(table[-size.T :].clone()))
    layer = FeedbackTransformerLayer(
        d_model=size.d,
        attn=attention,
        feed_forward=FeedForward(size.d, size.F, 0.0),
        dropout_prob=0.0,
    )
    model: nn.Module
    if shared:
        model = FeedbackTransformerKV(layer, size.L, size.d, size.H)
    else:
        model = FeedbackTransformer(layer, size.L)
    return Contender(model, lambda x: model(x.transpose(0, 1)).transpose(0, 1))


class PresetEmbedding(nn.Module):
    """Replaces an embedding: returns preset embeddings, whatever the tokens."""

    embeddings: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the preset embeddings [B, T, d]."""
        return self.embeddings


def lucidrains(size: Size) -> Contender:
    """Build the model of feedback-transformer-pytorch, without embedding and head."""
    try:
        from feedback_transformer_pytorch import FeedbackTransformer
    except ImportError as error:
        raise Unavailable(
            f"feedback-transformer-pytorch is not installed: {error}"
        ) from error
    if 4 * size.d != size.F:
        raise Unavailable("its feed-forward width is always four times the model's")
    model = FeedbackTransformer(
        num_tokens=1,
        dim=size.d,
        depth=size.L,
        mem_len=size.T,
        seq_len=1,
        heads=size.H,
        dim_head=size.d // size.H,
    )
    model.token_emb = preset = PresetEmbedding()
    model.to_logits = nn.Identity()

    def run(x: Tensor) -> Tensor:
        preset.embeddings = x
        return model(torch.zeros(x.shape[:2], dtype=torch.long, device=x.device))

    return Contender(model, run)
