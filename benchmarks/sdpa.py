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
        self,
        x: Tensor,
        cache: tuple[Tensor, Tensor] | None = None,
        start: int | Tensor = 0,
    ) -> Tensor:
        """Map x [B, T, d] to [B, T, d].

        Args:
            x: a whole sequence. With a cache: the first steps, or the single next
                step.
            cache: keys and values [B, H, capacity, D]; those of x are stored in it
                from row `start` on.
            start: the number of steps already in the cache; a tensor [1] for a single
                step that attends to all rows of the cache, later ones masked.
        """
        query, keys, values = (
            projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projected in self.query_key_value(self.norm1(x)).chunk(3, dim=-1)
        )
        mask = None
        if cache is not None and isinstance(start, Tensor):
            cache[0].index_copy_(2, start, keys)
            cache[1].index_copy_(2, start, values)
            keys, values = cache
            rows = torch.arange(keys.shape[2], device=x.device)
            mask = (rows <= start)[None, None, None]
        elif cache is not None:
            stop = start + x.shape[1]
            cache[0][:, :, start:stop], cache[1][:, :, start:stop] = keys, values
            keys, values = cache[0][:, :, :stop], cache[1][:, :, :stop]
        is_causal = not isinstance(start, Tensor) and start == 0
        attended = F.scaled_dot_product_attention(
            query, keys, values, mask, is_causal=is_causal
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
        x = self.through(x, self.length)
        self.length += x.shape[1]
        return x

    def through(self, x: Tensor, start: int | Tensor) -> Tensor:
        """Run all layers on the next steps, after `start` steps."""
        for layer, cache in zip(self.model.layers, self.cache, strict=True):
            x = layer(x, cache, start)
        return x


class CompiledDecoder(Decoder):
    """A decoder of single steps, compiled; no shape depends on the step."""

    def __init__(self, model: Transformer, batch: int, capacity: int) -> None:
        super().__init__(model, batch, capacity)
        self.compiled = torch.compile(self.through, dynamic=False)

    @torch.no_grad()
    def extend(self, x: Tensor) -> Tensor:
        """Map the next step x [B, 1, d] to [B, 1, d]."""
        x = self.compiled(x, torch.tensor([self.length], device=x.device))
        self.length += 1
        return x
