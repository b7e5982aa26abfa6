"""Baselines beside fbt's parallel model: other positions, and LSTMs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITIONS = ("absolute", "rotary", "none")


class Transformer(nn.Module):
    """A causal pre-norm transformer with absolute (learned), rotary or no positions.

    Args:
        vocab_size: the number of tokens.
        d_model: the width d; the feed-forward block is four times as wide.
        n_heads: the number of heads.
        n_layers: the number of layers.
        positions: one of `POSITIONS`. With "none" only the causal mask tells
            positions apart.
        longest: length of the longest sequence. Absolute positions beyond the
            training length keep their initial values.
        loops: how often the layers run, each time on what they have made.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_heads: int,
        n_layers: int,
        positions: str,
        longest: int,
        loops: int = 1,
    ) -> None:
        super().__init__()
        self.positions, self.loops = positions, loops
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(
            Layer(
                Attention(d_model, n_heads, rotary=positions == "rotary"),
                d_model,
                loops * n_layers,
            )
            for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, vocab_size)
        nn.init.normal_(
            self.token_embedding.weight, std=0.02 if positions == "absolute" else 1.0
        )
        if positions == "absolute":
            self.position_embedding = nn.Embedding(longest, d_model)
            nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        x = self.token_embedding(tokens)
        if self.positions == "absolute":
            x = x + self.position_embedding.weight[: tokens.shape[1]]
        for _ in range(self.loops):
            for layer in self.layers:
                x = layer(x)
        return self.head(self.norm(x))


class Layer(nn.Module):
    """A mixer of steps, such as attention, then a ReLU feed-forward block.

    Output weights are scaled by 1 / sqrt(2 L) at the start, as in fbt.

    Args:
        mixer: maps normed vectors [B, T, d] to [B, T, d] by its linear map `output`.
        d_model: the width d; the feed-forward block is four times as wide.
        n_layers: the number L of layers that a model runs.
    """

    def __init__(self, mixer: nn.Module, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.inner, self.outer = (
            nn.Linear(d_model, 4 * d_model),
            nn.Linear(4 * d_model, d_model),
        )
        with torch.no_grad():
            for linear in (mixer.get_submodule("output"), self.outer):
                assert isinstance(linear, nn.Linear)
                linear.weight.mul_((2 * n_layers) ** -0.5)
                linear.bias.zero_()

    def forward(self, x: Tensor, *carried: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]; the mixer also gets what is carried."""
        x = x + self.mixer(self.norm1(x), *carried)
        return x + self.outer(F.relu(self.inner(self.norm2(x))))


class Attention(nn.Module):
    """Causal self-attention, with rotary positions or none."""

    def __init__(self, d_model: int, n_heads: int, rotary: bool) -> None:
        super().__init__()
        self.n_heads, self.rotary = n_heads, rotary
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        query, key, value = (
            split_heads(projected, self.n_heads)
            for projected in self.query_key_value(x).chunk(3, dim=-1)
        )
        if self.rotary:
            query, key = rotate(query), rotate(key)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(-2))


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Split x [B, T, H D] into [B, H, T, D]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def rotate(x: Tensor) -> Tensor:
    """Apply rotary positions (Su et al. 2021).

    Rotate pairs of components of x [B, H, T, D] by angles proportional to the step.
    """
    *_, length, width = x.shape
    speed = 10_000.0 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angle = torch.arange(length, device=x.device)[:, None] * speed
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class LSTM(nn.Module):
    """An embedding, an LSTM (Hochreiter and Schmidhuber 1997) and a linear head."""

    def __init__(self, vocab_size: int, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.lstm = nn.LSTM(d_model, d_model, n_layers, batch_first=True)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        return self.head(self.lstm(self.token_embedding(tokens))[0])


class LSTMWithAttention(nn.Module):
    """An LSTM that adds to the embeddings, then one layer of attention over it.

    It carries a state below and looks things up above; nothing is fed back. Positions
    are rotary.
    """

    def __init__(self, vocab_size: int, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.norm_in, self.norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        self.layer = Layer(Attention(d_model, n_heads, rotary=True), d_model, 1)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        x = self.token_embedding(tokens)
        x = x + self.lstm(self.norm_in(x))[0]
        return self.head(self.norm(self.layer(x)))
