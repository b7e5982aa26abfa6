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
"""

from collections.abc import Callable
from functools import partial

import torch
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
from fbt.config import Config
from fbt.state import Cache, State, check_state

# Maps keys and values [B, H, T, D] of a block to those of all steps it may see.
Past = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ParallelLayer(nn.Module):
    """One pre-norm layer: causal self-attention, then feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.span = config.span
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
        *,
        need_weights: bool = True,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Map the layer's input x [B, T, d] to its output.

        Args:
            x: outputs of the layer below.
            past: puts keys and values of earlier steps before those of x; None if
                there are none.
            relative: the relative terms.
            need_weights: see `Attention.forward`.

        Returns:
            The output [B, T, d]; keys and values of the last S steps, for the next
            block; the attention weights [B, H, T, P + T], or None for a long text
            without `need_weights`.
        """
        z = self.norm1(x)
        keys, values = self.key_value(z)
        if past is not None:
            keys, values = past(keys, values)
        attended, weights = self.attention(
            z, keys, values, relative, need_weights=need_weights
        )
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x, (keys[:, :, -self.span :], values[:, :, -self.span :]), weights


class ParallelBody(nn.Module):
    """L parallel layers.

    Args:
        config: sizes and options; `memory` and `memory_norm` have no effect.
    """

    backends = ("reference",)

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
        backend: str = "auto",
        need_weights: bool = False,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run all layers over x.

        Args:
            x: embeddings [B, T, d], T >= 1.
            state: the state returned for the previous block of the same sequences, or
                None.
            backend: "auto" or "reference", which are the same here.
            need_weights: also return the attention weights.

        Returns:
            The top layer's outputs [B, T, d]; the state for the next block; the
            attention weights [L, B, H, T, P + T] or None. Rows are queries; P is the
            length of the given state.

        Raises:
            TypeError: if `state` is not a `State`, or has another dtype than x.
            ValueError: if x is empty or has another width, `state` belongs to another
                batch or body, or `backend` does not exist.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        check_embeddings(x, self.d_model)
        check_bool("need_weights", need_weights)
        check_state(
            state, x, caches=len(self.layers), heads=self.n_heads, span=self.span
        )
        if not need_weights and self._writes_in_place(x):
            return self._step(x, state)
        caches, trace = [], []
        for l, layer in enumerate(self.layers):
            past = (
                None
                if state is None
                else partial(join, state.keys[l], state.values[l])
            )
            relative = self.relative[l % len(self.relative)]
            x, cache, weights = layer(x, past, relative, need_weights=need_weights)
            caches.append(cache)
            if need_weights:
                trace.append(weights)
        # Clones: the state then keeps only its own memory alive, and writing to it
        # cannot change tensors that backward needs.
        after = State(
            tuple(k.clone() for k, _ in caches), tuple(v.clone() for _, v in caches)
        )
        return x, after, torch.stack(trace) if need_weights else None

    @staticmethod
    def _writes_in_place(x: Tensor) -> bool:
        """Return whether x [B, T, d] is one step that nothing records."""
        return not (
            x.shape[1] != 1
            or torch.is_grad_enabled()
            or is_traced()
            or torch.is_autocast_enabled(x.device.type)  # keys may have other dtypes
        )

    def _step(self, x: Tensor, state: State | None) -> tuple[Tensor, State, None]:
        """Run the layers over one step, in the cache of its state."""
        cache, row = (state and state._place) or (None, 0)
        if cache is None or not cache.claim(row):
            like = x.view(len(x), self.n_heads, 1, -1)
            cache = Cache.starting(state, like, len(self.layers), self.span)
            row = 0 if state is None else state.length
            cache.claim(row)
        for l, layer in enumerate(self.layers):
            relative = self.relative[l % len(self.relative)]
            past = partial(cache.append, l, row, self.span)
            x, _, _ = layer(x, past, relative, need_weights=False)
        return x, cache.state(row + 1, self.span), None


def join(
    past_keys: Tensor, past_values: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Put keys and values [B, H, P, D] of earlier blocks before those of a block."""
    return torch.cat([past_keys, keys], dim=2), torch.cat(
        [past_values, values], dim=2
    )
