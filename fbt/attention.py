r"""Attention over a memory with relative terms, and the feed-forward block: the parts every body is made of.

Shapes: B sequences, T queries, J keys, H heads of width D, $d = H D$.

$$
\mathrm{score}_j &= \big( (q + u) \cdot K_j + q \cdot E_{t-j} + s_{t-j} \big) / \sqrt D \\
o &= \sum_j \mathrm{softmax}(\mathrm{score})_j \, V_j
$$

The same function serves a whole sequence (T queries at once, the parallel body) and
one step (T = 1, the feedback bodies): only the number of queries differs. The
relative terms are those of Transformer-XL (Dai et al. 2019, section 3.3) with learned
tables in place of sinusoids.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import is_traced
from fbt.config import Config

# the most queries whose scores are computed at once where nobody needs them
LONG = 1024
# queries of a block; twice and half as many take longer, at spans from 8 to 1024
BLOCK = 128


class RelativeTerms(nn.Module):
    """The learned terms that depend on distance: E (key embedding), s (key bias) and u (query bias).

    The tables have one row per distance, oldest first, so that the last J rows line
    up with the last J keys and a step needs a slice, not a gather.

    E and u start at zero; s starts as a penalty on distance, as in ALiBi (Press et
    al. 2022): each step further back costs a score its head's slope, from 1 in the
    first head to 1/64 in the last, up to 32 in all. The table holds sqrt(D) times
    that, since scores are divided by it. Were s zero, attention would start as a mean
    over the span, and a mean of many memories passes hardly any state on.

    Args:
        config: gives H and D.
        distances: the distances there are rows for; row i holds distance
            `distances.stop - 1 - i`. Feedback bodies use range(1, S + 1): a step
            never sees itself. A parallel body uses range(S + 1).
    """

    def __init__(self, config: Config, distances: range) -> None:
        super().__init__()
        heads, width = config.n_heads, config.d_head
        # E
        self.key_embedding = nn.Parameter(torch.zeros(heads, len(distances), width))
        self.key_bias = nn.Parameter(torch.empty(heads, len(distances)))  # s
        self.query_bias = nn.Parameter(torch.zeros(heads, width))  # u
        if self.key_bias.is_meta:  # there are no values to compute
            return
        slopes = 64 ** -torch.linspace(0, 1, heads)
        further = torch.arange(len(distances) - 1, -1, -1)  # than the newest key
        # A weight of e^-32 is nothing, but one below e^-87 is subnormal, and slow on
        # a CPU.
        penalty = (slopes[:, None] * further).clamp(max=32)
        with torch.no_grad():
            self.key_bias.copy_(-penalty * width**0.5)


def distance_scores(query: Tensor, table: Tensor) -> Tensor:
    """Each query times each row of a table, q . E_r: [B, H, T, D] and [H, n, D] -> [B, H, T, n]."""
    # [H, B T, D]: one matrix product for each head
    by_head = query.transpose(0, 1).flatten(1, 2)
    return (
        (by_head @ table.transpose(-1, -2))
        .unflatten(1, (-1, query.shape[-2]))
        .transpose(0, 1)
    )


def skew(by_distance: Tensor, keys: int | None = None) -> Tensor:
    """Turn scores indexed by distance into scores indexed by key; what falls outside the span is -inf.

    Query t sees keys t..t+n-1 of the result, the oldest first: entry [t, t + c] is
    `by_distance[t, c]`. Padding each row with T entries of -inf and reading the same
    numbers in rows one shorter does just that, because every row then starts one
    place further to the left. The padding is the mask.

    With fewer columns the padding is shorter and the reading starts later. What falls
    off the left of a row then turns up right of the newest key that the query above
    it sees. The caller has to mask it.

    Args:
        by_distance: [..., T, n], one column per distance, the largest distance first.
        keys: how many columns to return, the last ones, at least n - 1; None for all
            n + T - 1.

    Returns:
        [..., T, keys].
    """
    *_, length, n = by_distance.shape
    keys = n + length - 1 if keys is None else keys
    padding, start = keys + 1 - n, n + length - 1 - keys
    if padding:
        by_distance = F.pad(by_distance, (0, padding), value=-torch.inf)
    # Split, since the backward of a slice would first fill a tensor of this size with
    # zeros.
    _, rows, _ = by_distance.flatten(-2).split(
        (start, length * keys, padding), dim=-1
    )
    return rows.unflatten(-1, (length, keys))


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    relative: RelativeTerms,
    dropout: float | nn.Module = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend from T queries to J keys, each query over the span that ends at its own newest key.

    The last key is the newest that the last query may see; query t may see keys up to
    t - T + 1 places before it. How far back a query reaches is the number of rows in
    the tables of `relative`.

    Args:
        query: [B, H, T, D].
        keys: [B, H, J, D], J >= T.
        values: [B, H, J, D].
        relative: the tables; see `RelativeTerms`.
        dropout: probability of dropping an attention weight, or a module that drops
            them.

    Returns:
        The attended values [B, H, T, D] and the attention weights [B, H, T, J] before
        dropout.
    """
    length, count, scale = query.shape[-2], keys.shape[-2], query.shape[-1] ** -0.5
    query = query * scale
    s = scale * relative.key_bias[:, None, -count:]
    if length == 1:  # the distances are the keys
        position = distance_scores(query, relative.key_embedding[:, -count:])
    else:
        # The skew to J keys takes J + 1 rows: the last ones of E, zeros before them
        # where E has fewer.
        E = F.pad(
            relative.key_embedding,
            (0, 0, count + 1 - relative.key_embedding.shape[1], 0),
        )
        position = skew(distance_scores(query, E), count)
        # by itself small: skewed in full, it is the mask
        s = skew(s.expand(-1, length, -1))[..., -count:]
    scores = (query + scale * relative.query_bias[:, None]) @ keys.transpose(-1, -2)
    scores += position  # in place, since memory of this size costs more than the sum
    scores += s
    weights = torch.softmax(scores, dim=-1)
    if isinstance(dropout, nn.Module):
        dropped = dropout(weights)
    else:
        dropped = F.dropout(weights, dropout, training=dropout > 0)
    return dropped @ values, weights


def dropout_mask_(
    x: Tensor, dropout: float, generator: torch.Generator | None = None
) -> Tensor:
    """Fill x with the factors of dropout, 0 or 1 / (1 - dropout), and return it.

    On a CPU, `F.dropout` draws the same factors from a generator in the same state.

    Args:
        x: a tensor shaped and laid out like the one to be multiplied; its values do
            not matter.
        dropout: probability of a 0.
        generator: source of randomness; None is torch's global generator.
    """
    return x.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


class Dropout(nn.Dropout):
    """`nn.Dropout` that can draw from a generator of its own; see `dropout_from`."""

    _generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of x while training, and scale the others by 1 / (1 - p)."""
        generator = self._generator
        if generator is None or not (self.training and self.p):
            return super().forward(x)
        return x * dropout_mask_(torch.empty_like(x), self.p, generator)


@contextmanager
def dropout_from(generator: torch.Generator, module: nn.Module) -> Iterator[None]:
    """A context in which the dropout of a module draws from `generator`, not from torch's global one.

    Args:
        generator: on the device of the module.
        module: holds the `Dropout` modules. Only one thread at a time may train it.
    """
    parts = [part for part in module.modules() if isinstance(part, Dropout)]
    for part in parts:
        part._generator = generator
    try:
        yield
    finally:
        for part in parts:
            del part._generator


def attend_in_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    relative: RelativeTerms,
    dropout: float | nn.Module = 0.0,
) -> Tensor:
    """Attended values as from `attend`, in blocks of queries that each see only the keys of their span.

    Most of the T x J scores of a long text lie outside the span. Here time and memory
    are linear in T.

    Args:
        query: [B, H, T, D].
        keys: [B, H, J, D], J >= T.
        values: [B, H, J, D].
        relative: the tables; see `RelativeTerms`.
        dropout: probability with which an attention weight is dropped.

    Returns:
        The attended values [B, H, T, D].
    """
    span = relative.key_bias.shape[-1] - 1  # earlier keys that a query sees
    blocks = query.split(BLOCK, dim=-2)
    # Cut once and joined again, since the backward of each slice would fill a tensor
    # of size J with zeros.
    sizes = [keys.shape[-2] - query.shape[-2], *(block.shape[-2] for block in blocks)]
    cut_keys, cut_values = keys.split(sizes, dim=-2), values.split(sizes, dim=-2)
    earlier = -(-span // BLOCK)
    attended = []
    for i, block in enumerate(blocks):
        near, seen = slice(max(0, i + 1 - earlier), i + 2), span + block.shape[-2]
        k, v = (
            torch.cat(cut[near], dim=-2)[:, :, -seen:]
            for cut in (cut_keys, cut_values)
        )
        attended.append(attend(block, k, v, relative, dropout)[0])
    return torch.cat(attended, dim=-2)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[B, T, d] -> [B, H, T, D]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, d]."""
    return x.transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """The query side of attention: W_q, `attend` over keys and values made elsewhere, then W_o and b_o."""

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
        *,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from normalised inputs to keys and values.

        Args:
            z: normalised inputs [B, T, d].
            keys: [B, H, J, D], J >= T.
            values: [B, H, J, D].
            relative: the tables; see `RelativeTerms`.
            need_weights: False allows a long text to be read in blocks, without its T
                x J weights.

        Returns:
            The attention output [B, T, d] and the attention weights [B, H, T, J];
            None instead of the weights where the text was read in blocks.
        """
        query = split_heads(self.query(z), self.n_heads)
        weights: Tensor | None = None
        if need_weights or is_traced() or query.shape[-2] <= LONG:
            attended, weights = attend(query, keys, values, relative, self.dropout)
        else:
            attended = attend_in_blocks(query, keys, values, relative, self.dropout)
        return self.output(merge_heads(attended)), weights


class KeyValue(nn.Module):
    """W_k and W_v: what a step offers to later queries.

    There are no biases: one that all keys share cancels in the softmax, and a value
    bias is an output bias.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.key = nn.Linear(config.d_model, config.d_model, bias=False)
        self.value = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Project z [B, T, d] to keys and values, each [B, H, T, D]."""
        return split_heads(self.key(z), self.n_heads), split_heads(
            self.value(z), self.n_heads
        )


class FeedForward(nn.Module):
    """W_2 act(W_1 z + b_1) + b_2, from width d to F and back."""

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
    """Scale an output projection by 1 / sqrt(2 L) and zero its bias.

    Each layer adds two such outputs to the residual stream; scaled, their sum starts
    with the variance of one (Radford et al. 2019, section 2.3).
    """
    with torch.no_grad():
        linear.weight.mul_((2 * config.n_layers) ** -0.5)
        linear.bias.zero_()


M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """`nn.ModuleList`, telling type checkers what is in it."""
    return cast(Sequence[M], nn.ModuleList(modules))
