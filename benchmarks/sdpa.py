"""The yardstick: a causal pre-norm transformer on PyTorch's own attention.

It is written in the ordinary way, without needless work and without tuning by hand.
It has no position terms, unlike our models, so the comparison is in its favour.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(nn.Module):
    """Attention by `scaled_dot_product_attention`, then a ReLU feed-forward block."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.inner, self.outer = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(
        self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0
    ) -> Tensor:
        """Map x [B, T, d] to [B, T, d].

        Args:
            x: a whole sequence. With a cache: the first steps, or the single next
                step.
            cache: keys and values [B, H, capacity, D]; those of x are stored in it
                from row `start` on.
            start: the number of steps already in the cache.
        """
        query, keys, values = (
            projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projected in self.query_key_value(self.norm1(x)).chunk(3, dim=-1)
        )
        if cache is not None:
            stop = start + x.shape[1]
            cache[0][:, :, start:stop], cache[1][:, :, start:stop] = keys, values
            keys, values = cache[0][:, :, :stop], cache[1][:, :, :stop]
        attended = F.scaled_dot_product_attention(
            query, keys, values, is_causal=start == 0
        )
        x = x + self.output(attended.transpose(1, 2).flatten(-2))
        return x + self.outer(F.relu(self.inner(self.norm2(x))))


class Transformer(nn.Module):
    """L layers over embeddings [B, T, d]."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, n_layers: int) -> None:
        super().__init__()
        self.d_model, self.n_heads = d_model, n_heads
        self.layers = nn.ModuleList(
            Layer(d_model, n_heads, d_ff) for _ in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d], all steps at once."""
        for layer in self.layers:
            x = layer(x)
        return x


class Decoder:
    """The transformer one step at a time, with preallocated keys and values.

    Args:
        model: the transformer.
        batch: B, the number of sequences.
        capacity: the maximum number of steps.
    """

    def __init__(self, model: Transformer, batch: int, capacity: int) -> None:
        self.model, self.length = model, 0
        rows = (batch, model.n_heads, capacity, model.d_model // model.n_heads)
        new = next(model.parameters()).new_zeros  # on the device of the model
        self.cache = [(new(rows), new(rows)) for _ in model.layers]

    @torch.no_grad()
    def extend(self, x: Tensor) -> Tensor:
        """Map the next steps x [B, T, d] to [B, T, d].

        They are the whole prompt, or one step after it.
        """
        for layer, cache in zip(self.model.layers, self.cache, strict=True):
            x = layer(x, cache, self.length)
        self.length += x.shape[1]
        return x
