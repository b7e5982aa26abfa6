"""Baselines that carry a state: two linear recurrences, and attention by blocks.

A linear recurrence keeps a matrix per head. It reads and writes it with vectors that
depend on the input alone, so all steps can be computed at once.
"""

import torch
import torch.nn.functional as F
from baselines import Layer, rotate, split_heads
from torch import Tensor, nn

BLOCK = 16  # steps in a block of `BlockRecurrent`


def delta_rule(query: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """Read from a memory that replaces what it holds under a key.

    S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T and o_t = S_t q_t, for n
    keys a query: query is [B, H, T, D], key and value are [B, H, n T, D], beta is
    [B, H, n T, 1]; o is [B, H, T, D]. With beta in (0, 2) and unit keys, a factor may
    have the eigenvalue -1 (Grazzi et al. 2024, arXiv 2411.12537); n > 1 is
    DeltaProduct (Siems et al. 2025, arXiv 2502.10297).

    What step t writes, u_t = beta_t (v_t - S_{t-1} k_t), depends on all earlier u,
    linearly: they are the solution of one triangular system.
    """
    steps = torch.arange(key.shape[2], device=key.device)
    before = steps < steps[:, None]
    system = (beta * (key @ key.mT)).masked_fill(~before, 0.0)
    written = torch.linalg.solve_triangular(
        system, beta * value, upper=False, unitriangular=True
    )
    per_query = key.shape[2] // query.shape[2]
    seen = steps < per_query * (steps[: query.shape[2], None] + 1)
    return (query @ key.mT).masked_fill(~seen, 0.0) @ written


def decaying_sum(query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
    """Read from a memory that fades: S_t = a_t S_{t-1} + v_t k_t^T, o_t = S_t q_t.

    The recurrence of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060). All vectors are
    [B, H, T, D]; `decay` is log a_t <= 0, [B, H, T, 1].
    """
    total = decay.cumsum(2)
    steps = torch.arange(key.shape[2], device=key.device)
    fading = (total - total.mT).masked_fill(steps > steps[:, None], -torch.inf).exp()
    return (fading * (query @ key.mT)) @ value


class LinearMixer(nn.Module):
    """Heads of a linear recurrence.

    Args:
        d_model: the width d.
        n_heads: the number of heads.
        writes: how often a step writes by the delta rule; 0 for a decaying sum, whose
            heads forget within 10 to 1,000 steps at first.
    """

    def __init__(self, d_model: int, n_heads: int, writes: int) -> None:
        super().__init__()
        self.n_heads, self.writes, self.times = n_heads, writes, max(1, writes)
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, self.times * d_model, bias=False)
        self.value = nn.Linear(d_model, self.times * d_model, bias=False)
        self.gate = nn.Linear(d_model, self.times * n_heads)
        if not writes:
            steps = torch.logspace(1, 3, n_heads)
            # A sigmoid makes it 1 - 1 / steps.
            self.gate.bias.data = (steps - 1).log()
        self.norm = nn.LayerNorm(d_model // n_heads)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        query = split_heads(self.query(x), self.n_heads)
        key, value, gate = (
            split_heads(linear(x).reshape(len(x), -1, width), self.n_heads)
            for linear, width in (
                (self.key, x.shape[-1]),
                (self.value, x.shape[-1]),
                (self.gate, self.n_heads),
            )
        )
        query, key = (F.normalize(F.silu(v), dim=-1) for v in (query, key))
        if self.writes:
            read = delta_rule(query, key, value, 2 * gate.sigmoid())
        else:
            read = decaying_sum(query, key, value, F.logsigmoid(gate))
        return self.output(self.norm(read).transpose(1, 2).flatten(-2))


class LinearRecurrence(nn.Module):
    """An embedding, layers of a linear recurrence, and a head.

    Args:
        vocab_size: the number of tokens.
        d_model, n_heads, n_layers, writes: see `LinearMixer`.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_heads: int, n_layers: int, writes: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.layers = nn.Sequential(
            *(
                Layer(LinearMixer(d_model, n_heads, writes), d_model, n_layers)
                for _ in range(n_layers)
            )
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        return self.head(self.norm(self.layers(self.token_embedding(tokens))))


class BlockRecurrent(nn.Module):
    """A transformer that carries the outputs of one block of steps to the next.

    Within a block all steps are computed at once. Each layer attends to the earlier
    steps of the block, and to the last layer's outputs at all steps of the block
    before: the memory of a block-recurrent transformer (Hutchins et al. 2022, arXiv
    2203.07852) without its gates. Positions are rotary.

    Args:
        vocab_size: the number of tokens.
        d_model: the width d; the feed-forward block is four times as wide.
        n_heads: the number of heads.
        n_layers: the number of layers.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_heads: int, n_layers: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.carried_norm = nn.LayerNorm(d_model)
        self.layers = nn.ModuleList(
            Layer(BlockAttention(d_model, n_heads), d_model, n_layers)
            for _ in range(n_layers)
        )
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, V] for tokens [B, T]."""
        embedded = self.token_embedding(tokens)
        outputs, carried = [], embedded[:, :0]
        for x in embedded.split(BLOCK, dim=1):
            for layer in self.layers:
                x = layer(x, carried)
            outputs.append(x)
            carried = self.carried_norm(x)
        return self.head(self.norm(torch.cat(outputs, dim=1)))


class BlockAttention(nn.Module):
    """Attention to the earlier steps of a block and to the carried ones."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, carried: Tensor) -> Tensor:
        """Map x [B, n, d] to [B, n, d], with carried vectors [B, m, d]."""
        past, steps = carried.shape[1], carried.shape[1] + x.shape[1]
        key_value = self.key_value(torch.cat([carried, x], dim=1))
        # Rotations count from the first carried step, for queries as for keys.
        query = F.pad(self.query(x), (0, 0, past, 0))
        query, key, value = (
            split_heads(projected, self.n_heads)
            for projected in (query, *key_value.chunk(2, dim=-1))
        )
        order = torch.arange(steps, device=x.device)
        attended = F.scaled_dot_product_attention(
            rotate(query)[:, :, past:],
            rotate(key),
            value,
            attn_mask=order <= order[past:, None],
        )
        return self.output(attended.transpose(1, 2).flatten(-2))
