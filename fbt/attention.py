r"""Attention with relative terms, and the feed-forward block.

Shapes: B sequences, T queries, J keys, H heads of width D, $d = H D$.

$$
\mathrm{score}_j
  &= \big( (q + u) \cdot K_j + q \cdot E_{t-j} + s_{t-j} \big) / \sqrt D \\
o &= \sum_j \mathrm{softmax}(\mathrm{score})_j \, V_j
$$

The parallel body attends with all T queries at once, the feedback bodies with one
query per step (T = 1). The relative terms follow Transformer-XL (Dai et al. 2019,
section 3.3), with learned tables instead of sinusoids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import is_traced
from fbt.config import Config
from fbt.visibility import hidden, softmax_of_visible

# Longer sequences are computed in blocks, unless their weights are returned.
LONG = 1024
# Queries per block: 64 and 256 are slower, at spans from 8 to 1024.
BLOCK = 128


class RelativeTerms(nn.Module):
    """Learned relative terms: E (key embedding), s (key bias) and u (query bias).

    E and s are tables with one row per distance, the largest distance first. The last
    J rows therefore belong to the last J keys, and a step takes a slice, not a
    gather.

    E and u start at zero. s starts as a penalty on distance, as in ALiBi (Press et
    al. 2022): each step further back lowers a score by the head's slope, which falls
    from 1 in the first head to 1/64 in the last; the penalty is at most 32. It is
    stored times sqrt(D), because scores are divided by sqrt(D). If s started at zero,
    attention would start as a mean over the span, and a mean of many memories passes
    on hardly any state.

    Args:
        config: provides H and D.
        distances: the distances of the rows; row i belongs to distance
            `distances.stop - 1 - i`. Feedback bodies use range(1, S + 1), because a
            step never sees itself; the parallel body uses range(S + 1).
    """

    def __init__(self, config: Config, distances: range) -> None:
        super().__init__()
        heads, rows, width = config.n_heads, len(distances), config.d_head
        self.key_embedding = nn.Parameter(torch.zeros(heads, rows, width))  # E
        self.key_bias = nn.Parameter(torch.empty(heads, rows))  # s
        self.query_bias = nn.Parameter(torch.zeros(heads, width))  # u
        if self.key_bias.is_meta:  # there are no values to compute
            return
        slopes = 64 ** -torch.linspace(0, 1, heads)
        steps_back = torch.arange(rows - 1, -1, -1)
        # e^-32 is negligible; weights below e^-87 are subnormal, and slow on a CPU.
        penalty = (slopes[:, None] * steps_back).clamp(max=32)
        with torch.no_grad():
            self.key_bias.copy_(-penalty * width**0.5)


def distance_scores(query: Tensor, table: Tensor) -> Tensor:
    """Multiply each query by each row of a table: q . E_r.

    Args:
        query: [B, H, T, D].
        table: [H, n, D].

    Returns:
        [B, H, T, n].
    """
    # [H, B T, D]: one matrix product per head
    by_head = query.transpose(0, 1).flatten(1, 2)
    return (
        (by_head @ table.transpose(-1, -2))
        .unflatten(1, (-1, query.shape[-2]))
        .transpose(0, 1)
    )


def skew(by_distance: Tensor, keys: int | None = None) -> Tensor:
    """Turn scores indexed by distance into scores indexed by key.

    Entry [t, t + c] of the result is `by_distance[t, c]`; entries outside the span
    are -inf. To compute it, pad each row with T entries of -inf and read the same
    numbers in rows one shorter: each row then lands one column further to the right
    than the row above it, and the padding becomes the mask.

    With fewer `keys`, the padding is shorter and reading starts later. Scores that do
    not fit on the left of a row then appear at the right end of the row above, after
    the newest key its query may see. The caller must mask them.

    Args:
        by_distance: [..., T, n], one column per distance, the largest distance first.
        keys: how many columns to return, counted from the right, at least n - 1; None
            returns all n + T - 1.

    Returns:
        [..., T, keys].
    """
    *_, length, n = by_distance.shape
    keys = n + length - 1 if keys is None else keys
    padding, skipped = keys + 1 - n, n + length - 1 - keys
    if padding:
        by_distance = F.pad(by_distance, (0, padding), value=-torch.inf)
    # Not a slice: its backward would fill a tensor of this size with zeros.
    _, rows, _ = by_distance.flatten(-2).split(
        (skipped, length * keys, padding), dim=-1
    )
    return rows.unflatten(-1, (length, keys))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    relative: RelativeTerms,
    dropout: float | nn.Module = 0.0,
    oldest: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from T queries to J keys, each query to the keys of its span.

    Query t sees keys up to J - T + t, so the last query sees the last key. It sees at
    most as many keys as the tables of `relative` have rows.

    Args:
        query: [B, H, T, D].
        keys: [B, H, J, D], J >= T.
        values: [B, H, J, D].
        relative: the relative terms.
        dropout: probability of dropping an attention weight, or a module that does
            the dropping.
        oldest: the first key [B, T] that each query may see, 0 to J; None hides none.
            A query that may see no key gets weights of zero.

    Returns:
        The attended values [B, H, T, D], and the attention weights [B, H, T, J]
        before dropout.
    """
    length, count, scale = query.shape[-2], keys.shape[-2], query.shape[-1] ** -0.5
    query = query * scale
    s = scale * relative.key_bias[:, None, -count:]
    if length == 1:  # one query: distances and keys are the same columns
        position = distance_scores(query, relative.key_embedding[:, -count:])
    else:
        # The skew to J keys needs J + 1 rows: the last ones of E, padded with zeros.
        E = F.pad(
            relative.key_embedding,
            (0, 0, count + 1 - relative.key_embedding.shape[1], 0),
        )
        position = skew(distance_scores(query, E), count)
        # s has no batch axis, so a full skew is cheap; it supplies the mask.
        s = skew(s.expand(-1, length, -1))[..., -count:]
    scores = (query + scale * relative.query_bias[:, None]) @ keys.transpose(-1, -2)
    scores += position  # in place: allocating costs more than adding
    scores += s
    if oldest is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        weights = softmax_of_visible(scores, hidden(oldest, count))
    if isinstance(dropout, nn.Module):
        dropped = dropout(weights)
    else:
        dropped = F.dropout(weights, dropout, training=dropout > 0)
    return dropped @ values, weights


def dropout_mask_(
    x: Tensor, dropout: float, generator: torch.Generator | None = None
) -> Tensor:
    """Fill x with a dropout mask, entries 0 or 1 / (1 - dropout), and return it.

    On a CPU, `F.dropout` draws the same mask from a generator in the same state.

    Args:
        x: a tensor with the shape and layout of the one to be masked; its values are
            overwritten.
        dropout: probability of a 0.
        generator: source of randomness; None means torch's global generator.
    """
    return x.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


class Dropout(nn.Dropout):
    """`nn.Dropout` that can draw from a generator of its own; see `dropout_from`."""

    _generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of x during training, and scale the others by 1 / (1 - p)."""
        generator = self._generator
        if generator is None or not (self.training and self.p):
            return super().forward(x)
        return x * dropout_mask_(torch.empty_like(x), self.p, generator)


@contextmanager
def dropout_from(generator: torch.Generator, module: nn.Module) -> Iterator[None]:
    """Draw dropout masks from `generator` inside a `with` block.

    Args:
        generator: a generator on the device of the module.
        module: contains the `Dropout` modules. Only one thread at a time may train
            it.
    """
    dropouts = [m for m in module.modules() if isinstance(m, Dropout)]
    for dropout in dropouts:
        dropout._generator = generator
    try:
        yield
    finally:
        for dropout in dropouts:
            del dropout._generator


def attend_in_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    relative: RelativeTerms,
    dropout: float | nn.Module = 0.0,
    oldest: Tensor | None = None,
) -> Tensor:
    """Compute the attended values of `attend` one block of queries at a time.

    Most of the T x J scores of a long text lie outside the span. Each block attends
    only to the keys in its span, so time and memory are linear in T.

    Args:
        query: [B, H, T, D].
        keys: [B, H, J, D], J >= T.
        values: [B, H, J, D].
        relative: the relative terms.
        dropout: probability of dropping an attention weight, or a module that does
            the dropping.
        oldest: the first key [B, T] that each query may see; None hides none.

    Returns:
        The attended values [B, H, T, D].
    """
    span = relative.key_bias.shape[-1] - 1  # earlier keys that a query sees
    blocks = query.split(BLOCK, dim=-2)
    # Split once and concatenate: the backward of one slice per block would fill a
    # tensor of length J with zeros each time.
    sizes = [keys.shape[-2] - query.shape[-2], *(block.shape[-2] for block in blocks)]
    key_blocks, value_blocks = keys.split(sizes, dim=-2), values.split(sizes, dim=-2)
    earlier = -(-span // BLOCK)  # blocks that the span reaches back
    attended = []
    for i, block in enumerate(blocks):
        near, seen = slice(max(0, i + 1 - earlier), i + 2), span + block.shape[-2]
        k, v = (
            torch.cat(kind[near], dim=-2)[:, :, -seen:]
            for kind in (key_blocks, value_blocks)
        )
        first = None
        if oldest is not None:  # counted from the first key of the block
            rows = slice(i * BLOCK, i * BLOCK + block.shape[-2])
            before = keys.shape[-2] - query.shape[-2] + rows.stop - k.shape[-2]
            first = oldest[:, rows] - before
        attended.append(attend(block, k, v, relative, dropout, first)[0])
    return torch.cat(attended, dim=-2)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Split the width into heads: [B, T, d] -> [B, H, T, D]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Merge the heads into the width: [B, H, T, D] -> [B, T, d]."""
    return x.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Attention of normalised inputs z to given keys and values.

    W_o attend(W_q z, keys, values) + b_o; `KeyValue` computes the keys and values.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = Dropout(config.dropout)
        self.query = nn.Linear(config.d_model, config.d_model, bias=False)
        self.output = nn.Linear(config.d_model, config.d_model)
        scale_residual_output(self.output, config)

    def forward(
        self,
        z: Tensor,
        keys: Tensor,
        values: Tensor,
        relative: RelativeTerms,
        oldest: Tensor | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from normalised inputs to keys and values.

        Args:
            z: normalised inputs [B, T, d].
            keys: [B, H, J, D], J >= T.
            values: [B, H, J, D].
            relative: the relative terms.
            oldest: the first key [B, T] that each query may see, 0 to J; None hides
                none. The output of a query that may see no key is zero.
            need_weights: False allows computing long texts in blocks, which saves the
                T x J weights.

        Returns:
            The attention output [B, T, d], and the attention weights [B, H, T, J] or,
            for a text computed in blocks, None.
        """
        query = split_heads(self.query(z), self.n_heads)
        weights: Tensor | None = None
        if need_weights or is_traced() or query.shape[-2] <= LONG:
            attended, weights = attend(
                query, keys, values, relative, self.dropout, oldest
            )
        else:
            attended = attend_in_blocks(
                query, keys, values, relative, self.dropout, oldest
            )
        output = self.output(merge_heads(attended))
        if oldest is not None:  # a query without keys skips attention, bias included
            output = output.masked_fill((oldest == keys.shape[2])[..., None], 0)
        return output, weights


class KeyValue(nn.Module):
    """Project vectors z to keys W_k z and values W_v z.

    There are no biases. A bias on the keys adds the same number to all scores of a
    query, which the softmax cancels; a bias on the values equals one on the output.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.key = nn.Linear(config.d_model, config.d_model, bias=False)
        self.value = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Project z [B, T, d] to keys and values, each [B, H, T, D]."""
        keys, values = self.key(z), self.value(z)
        return split_heads(keys, self.n_heads), split_heads(values, self.n_heads)


class FeedForward(nn.Module):
    """The feed-forward block W_2 act(W_1 z + b_1) + b_2, of inner width F."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff)
        self.outer = nn.Linear(config.d_ff, config.d_model)
        self.activation: Callable[[Tensor], Tensor] = (
            F.relu if config.activation == "relu" else F.gelu
        )
        scale_residual_output(self.outer, config)

    def forward(self, z: Tensor) -> Tensor:
        """Map normalised inputs z [B, T, d] to [B, T, d]."""
        return self.outer(self.activation(self.inner(z)))


def scale_residual_output(linear: nn.Linear, config: Config) -> None:
    """Scale an output projection by 1 / sqrt(2 L), and set its bias to zero.

    L layers add 2 L such outputs to the residual stream. Scaled, their sum starts
    with the variance of a single one (Radford et al. 2019, section 2.3).
    """
    with torch.no_grad():
        linear.weight.mul_((2 * config.n_layers) ** -0.5)
        linear.bias.zero_()


M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """Return an `nn.ModuleList` whose element type is known to type checkers."""
    return cast(Sequence[M], nn.ModuleList(modules))
