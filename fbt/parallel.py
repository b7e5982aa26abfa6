r"""The parallel transformer, the feedback models' baseline: causal and pre-norm.

$$
K_j^l, V_j^l
  &= W_k^l \, \mathrm{LN}_1(x_j^{l-1}), \; W_v^l \, \mathrm{LN}_1(x_j^{l-1}) \\
x_t^l &= \mathrm{layer}(x_t^{l-1}; \; K_j^l, V_j^l \text{ for } t - S \le j \le t)
$$

A query sees its own step (distance 0) and the S steps before it. All steps of a layer
are computed at once. The price: layer $l$ reads only layer $l - 1$ of earlier steps,
never the layers above. Long texts are computed in blocks of queries, so that memory
and time are linear in their length; see `fbt.attention.attend_in_blocks`.

A single step without gradients is a matter of small operations, so there are few of
them: norms, u and the scale of the scores are folded into the weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import (
    check_bool,
    check_choice,
    check_embeddings,
    check_instance,
    is_traced,
)
from fbt.attention import (
    Attention,
    Dropout,
    FeedForward,
    KeyValue,
    RelativeTerms,
    module_list,
)
from fbt.config import Backend, Config
from fbt.inspection import active_dropout, remembered, why_not_folded
from fbt.state import Cache, State, check_state
from fbt.visibility import (
    check_lengths,
    check_starts,
    hidden,
    oldest_steps,
    state_after,
)

# Maps keys and values [B, H, T, D] of a block, or [B, H, D] of one step, to those of
# all steps it may see.
Past = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ParallelLayer(nn.Module):
    """One pre-norm layer: causal self-attention, then feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.key_value = KeyValue(config)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        past: Past | None,
        relative: RelativeTerms,
        oldest: Tensor | None = None,
        *,
        need_weights: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Map the layer's input x [B, T, d] to its output.

        Args:
            x: outputs of the layer below.
            past: puts keys and values of earlier steps before those of x; None if
                there are none.
            relative: the relative terms.
            oldest: the first key [B, T] that each query may see; None hides none.
            need_weights: see `Attention.forward`.

        Returns:
            The output [B, T, d]; keys and values of all steps; the attention weights
            [B, H, T, P + T], or None for a long text without `need_weights`.
        """
        z = self.norm1(x)
        keys, values = self.key_value(z)
        if past is not None:
            keys, values = past(keys, values)
        attended, weights = self.attention(
            z, keys, values, relative, oldest, need_weights=need_weights
        )
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x, (keys, values), weights


class ParallelBody(nn.Module):
    """L parallel layers.

    Args:
        config: sizes and options; `memory` and `memory_norm` have no effect.
    """

    backends = ("reference",)
    plain: Backend = "reference"
    own_classes: Mapping[str, type[nn.Module]] = {"layers": ParallelLayer}

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_instance("config", config, Config)
        self.d_model, self.n_heads, self.span = (
            config.d_model,
            config.n_heads,
            config.span,
        )
        tables = config.n_layers if config.relative == "per-layer" else 1
        self.relative = module_list(
            RelativeTerms(config, range(config.span + 1)) for _ in range(tables)
        )
        self.layers = module_list(
            ParallelLayer(config) for _ in range(config.n_layers)
        )

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        backend: str = "auto",
        need_weights: bool = False,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run all layers over x.

        Args:
            x: embeddings [B, T, d], T >= 1.
            state: the state returned for the previous block of the same sequences, or
                None.
            lengths: the number of steps of each row [B], 1 to T, or None; see
                `FeedbackBody.forward`.
            starts: bool [B, T], True at the first step of each document, or None.
            backend: "auto" or "reference", which are the same here.
            need_weights: also return the attention weights.

        Returns:
            The top layer's outputs [B, T, d]; the state for the next block; the
            attention weights [L, B, H, T, P + T] or None. Rows are queries; P is the
            length of the given state.

        Raises:
            TypeError, ValueError: as in `FeedbackBody.forward`.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        check_embeddings(x, self.d_model)
        check_bool("need_weights", need_weights)
        check_state(
            state, x, caches=len(self.layers), heads=self.n_heads, span=self.span
        )
        check_lengths(lengths, x)
        check_starts(starts, x)
        oldest = oldest_steps(x, state, starts)
        if starts is None and not need_weights and self._folds(x):
            return *self._step(x, state, oldest), None
        keys, values, trace = [], [], []
        for l, layer in enumerate(self.layers):
            past = (
                None
                if state is None
                else partial(join, state.keys[l], state.values[l])
            )
            relative = self.relative[l % len(self.relative)]
            x, (k, v), weights = layer(
                x, past, relative, oldest, need_weights=need_weights
            )
            keys.append(k)
            values.append(v)
            if need_weights:
                trace.append(weights)
        after = state_after(
            keys,
            values,
            span=self.span,
            past=0 if state is None else state.length,
            steps=x.shape[1],
            oldest=oldest,
            lengths=lengths,
        )
        return x, after, torch.stack(trace) if need_weights else None

    def _folds(self, x: Tensor) -> bool:
        """Return whether x [B, T, d] is one step, and only its result counts."""
        return not (
            x.shape[1] != 1
            or torch.is_grad_enabled()
            or is_traced()
            or torch.is_autocast_enabled(x.device.type)  # keys may have other dtypes
            or active_dropout(self.layers[0].dropout)
            or why_not_folded(self)
        )

    def _step(
        self, x: Tensor, state: State | None, oldest: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run the layers over one step, in the cache of its state."""
        cache, row = (state and state._place) or (None, 0)
        if cache is None or not cache.claim(row):
            row = 0 if state is None else state.length
            cache = Cache.starting(
                state,
                x.view(len(x), self.n_heads, 1, -1),
                len(self.layers),
                self.span,
                None if oldest is None else oldest[:, 0],
            )
            cache.claim(row)
        unseen = None
        if cache.oldest is not None:
            low = max(0, row - self.span)
            unseen = hidden(cache.oldest[:, None] - low, row + 1 - low)
        activation, x = self.layers[0].feed_forward.activation, x[:, 0]
        for l, weights in enumerate(remembered(self, "step", self._folded)):
            past = partial(cache.append, l, row, self.span)
            x = step(x, past, weights, activation, unseen)
        return x[:, None], cache.state(row + 1, self.span)

    @torch.no_grad()
    def _folded(self) -> list["StepWeights"]:
        with torch.inference_mode(False):
            return [
                fold(layer, self.relative[l % len(self.relative)])
                for l, layer in enumerate(self.layers)
            ]


class StepWeights(NamedTuple):
    """The weights of a layer for single steps, each norm folded into what follows.

    Attributes:
        w_qkv, b_qkv: [3 d, d] and [3 d], for q + u, keys and values.
        table: E / sqrt(D), transposed to [H, D, n].
        s: (s - u . E) / sqrt(D), [H, 1, n]: q . E = (q + u) . E - u . E.
        w_o, b_o, w_1, b_1, w_2, b_2: of the output and the feed-forward block.
    """

    w_qkv: Tensor
    b_qkv: Tensor
    table: Tensor
    s: Tensor
    w_o: Tensor
    b_o: Tensor
    w_1: Tensor
    b_1: Tensor
    w_2: Tensor
    b_2: Tensor


def fold(layer: ParallelLayer, relative: RelativeTerms) -> StepWeights:
    """Fold the norms, u and 1 / sqrt(D) of a layer into its weights."""
    u, E, s = relative.query_bias, relative.key_embedding, relative.key_bias
    scale = u.shape[-1] ** -0.5
    projections = layer.attention.query, layer.key_value.key, layer.key_value.value
    w_qkv = torch.cat([projection.weight for projection in projections])
    inner, outer = layer.feed_forward.inner, layer.feed_forward.outer
    return StepWeights(
        w_qkv=w_qkv * layer.norm1.weight,
        b_qkv=w_qkv @ layer.norm1.bias + F.pad(u.flatten(), (0, 2 * u.numel())),
        table=(scale * E).transpose(1, 2).contiguous(),
        s=scale * (s[:, None] - u[:, None] @ E.transpose(1, 2)),
        w_o=layer.attention.output.weight,
        b_o=layer.attention.output.bias,
        w_1=inner.weight * layer.norm2.weight,
        b_1=inner.weight @ layer.norm2.bias + inner.bias,
        w_2=outer.weight,
        b_2=outer.bias,
    )


def step(
    x: Tensor,
    past: Past,
    weights: StepWeights,
    activation: Callable[[Tensor], Tensor],
    unseen: Tensor | None,
) -> Tensor:
    """Map the input x [B, d] of a layer to its output, without dropout.

    Keys that are `unseen` [B, 1, 1, J] count for nothing; None for none.
    """
    (batch, d), (heads, width, rows) = x.shape, weights.table.shape
    z = torch.layer_norm(x, (d,))
    query, key, value = (
        F.linear(z, weights.w_qkv, weights.b_qkv)
        .view(batch, 3, heads, width)
        .unbind(1)
    )  # [B, H, D]
    keys, values = past(key, value)  # [B, H, J, D]
    seen = keys.shape[2]
    position = torch.baddbmm(
        weights.s.narrow(2, rows - seen, seen),
        query.transpose(0, 1),
        weights.table.narrow(2, rows - seen, seen),
    )  # [H, B, J]
    bias = position.transpose(0, 1).unsqueeze(2)
    if unseen is not None:
        bias = bias.masked_fill(unseen, -torch.inf)
    attended = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, bias)
    x = x + F.linear(attended.view(batch, d), weights.w_o, weights.b_o)
    inner = F.linear(torch.layer_norm(x, (d,)), weights.w_1, weights.b_1)
    return x + F.linear(activation(inner), weights.w_2, weights.b_2)


def join(
    past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Put keys and values [B, H, P, D] of earlier blocks before those of a block."""
    return torch.cat([past_keys, keys], dim=2), torch.cat(
        [past_values, values], dim=2
    )
