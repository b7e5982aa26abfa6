r"""The Feedback Transformer: layers that attend to one memory vector per step.

Equations of Fan et al. 2020, section 3:

$$
m_t &= \sum_{l=0}^L w_l \, x_t^l, \quad w = \mathrm{softmax}(\text{layer logits}) \\
K_t^l, V_t^l &= W_k^l \, \mathrm{LN}(m_t), \; W_v^l \, \mathrm{LN}(m_t) \\
x_t^l &= \mathrm{layer}(x_t^{l-1}; \; K_j^l, V_j^l \text{ for } t - S \le j < t)
$$

$m_t$ mixes the outputs of all layers, so already the first layer of step $t + 1$ can
use what the top layer computed at step $t$. For the same reason steps must be
computed one after another. Step 0 has no memory and skips attention.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbt._checks import (
    check_bool,
    check_choice,
    check_embeddings,
    check_instance,
    check_int,
    is_exported,
    shorten,
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
from fbt.stack import MemoryStack, TorchStack
from fbt.state import State, check_state
from fbt.visibility import (
    check_lengths,
    check_starts,
    oldest_steps,
    state_after,
    without_hidden,
)

# Of the keys and of the values of a cache.
Stacks = tuple[TorchStack | MemoryStack, TorchStack | MemoryStack]


class WeightedMemory(nn.Module):
    """Mix the outputs of all layers into the memory vector m_t = sum_l w_l x_t^l.

    The mixture w depends on `config.memory`: the softmax of learned logits, equal
    shares, or one layer only. `config.memory_norm` adds a LayerNorm after it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind, self.n_outputs = config.memory, config.n_layers + 1
        self.layer_logits: nn.Parameter | None = None
        if config.memory == "learned":
            self.layer_logits = nn.Parameter(torch.zeros(self.n_outputs))
        self.norm = (
            nn.LayerNorm(config.d_model) if config.memory_norm else nn.Identity()
        )

    def layer_weights(self, like: Tensor | None = None) -> Tensor:
        """Return the mixture w, [L + 1]; layer 0 is the embedding.

        Args:
            like: a tensor with the dtype and device that fixed weights should have,
                since they are not stored; None means torch's defaults.
        """
        if self.layer_logits is not None:
            return torch.softmax(self.layer_logits, dim=0)
        like = torch.empty(0) if like is None else like
        if self.kind == "uniform":
            return like.new_ones(self.n_outputs) / self.n_outputs
        weights = like.new_zeros(self.n_outputs)
        weights[-1 if self.kind == "top" else 0] = 1
        return weights

    def forward(self, outputs: list[Tensor], layer_weights: Tensor) -> Tensor:
        """Return LN(m_t), [B, 1, d].

        Args:
            outputs: the L + 1 outputs x_t^l, each [B, 1, d].
            layer_weights: the mixture w, [L + 1].
        """
        return self.norm(torch.stack(outputs, dim=-1) @ layer_weights)


class FeedbackLayer(nn.Module):
    """One pre-norm layer: attention to given keys and values, then feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None,
        values: Tensor | None,
        relative: RelativeTerms,
        oldest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map the layer's input x [B, 1, d] at one step to its output.

        Args:
            x: output of the layer below.
            keys: keys of earlier steps, [B, H, J, D], or None at step 0.
            values: values of earlier steps, [B, H, J, D], or None at step 0.
            relative: the relative terms.
            oldest: the first key [B, 1] that each row may see, J if it may see none;
                None hides no key.

        Returns:
            The output [B, 1, d], and the attention weights [B, H, 1, J]; at step 0,
            J = 0.
        """
        weights = x.new_zeros(x.shape[0], self.attention.n_heads, 1, 0)
        if keys is not None and values is not None:
            attended, weights = self.attention(
                self.norm1(x), keys, values, relative, oldest
            )
            x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.norm2(x))), weights


class FeedbackBody(nn.Module):
    """L layers that read a weighted memory, one step after another.

    Args:
        config: sizes and options.
        n_caches: how many caches of keys and values there are: L, one per layer as in
            the paper's first form, or 1, shared by all layers. None means L.

    Raises:
        TypeError, ValueError: if `n_caches` is neither L nor 1.
    """

    backends: tuple[str, ...] = ("reference", "stack")
    plain: Backend = "stack"  # what "auto" takes if there is no faster engine
    own_classes: Mapping[str, type[nn.Module]] = {
        "layers": FeedbackLayer,
        "memory": WeightedMemory,
    }

    def __init__(self, config: Config, n_caches: int | None = None) -> None:
        super().__init__()
        check_instance("config", config, Config)
        n_caches = config.n_layers if n_caches is None else n_caches
        check_int("n_caches", n_caches, low=1, high=config.n_layers)
        if n_caches not in (1, config.n_layers):
            raise ValueError(
                f"n_caches must be 1 or n_layers={config.n_layers}, "
                f"got {shorten(n_caches)}"
            )
        self.d_model, self.n_heads, self.span = (
            config.d_model,
            config.n_heads,
            config.span,
        )
        tables = config.n_layers if config.relative == "per-layer" else 1
        self.relative = module_list(
            RelativeTerms(config, range(1, config.span + 1)) for _ in range(tables)
        )
        self.layers = module_list(
            FeedbackLayer(config) for _ in range(config.n_layers)
        )
        self.memory = WeightedMemory(config)
        self.key_values = module_list(KeyValue(config) for _ in range(n_caches))

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
        """Run the steps of x in order.

        Args:
            x: embeddings [B, T, d], T >= 1.
            state: the state returned for the previous block of the same sequences;
                None means an empty memory.
            lengths: the number of steps of each row [B], 1 to T, with padding after
                them. The state returned is that of each row after its own last step.
                None means T.
            starts: bool [B, T], True at the first step of each document. A document
                sees nothing before it, as if it began with an empty memory. None
                means that there are no borders.
            backend: "reference" (`torch.stack` at each step), "stack" (`MemoryStack`)
                or "auto" ("stack", but "reference" under `torch.jit.trace` and
                `torch.export`).
            need_weights: also return the attention weights.

        Returns:
            The top layer's outputs [B, T, d]; the state for the next block; the
            attention weights [L, B, H, T, P + T] or None. Rows are queries; P is the
            length of the given state. Row 0 is zero if P = 0.

        Raises:
            TypeError: if `state` is not a `State`, or has another dtype than x, or
                `lengths` are not integers or `starts` not bool.
            ValueError: if x is empty or has another width, `state` belongs to another
                batch or body, `lengths` or `starts` have another shape, a length is
                out of range, or `backend` does not exist.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        backend = self._traceable(backend)
        check_bool("need_weights", need_weights)
        self._check_input(x, state, lengths, starts)
        stacks = self._stacks(x.shape[1], state, plain=backend == "reference")
        mix = self.layer_weights()
        past = 0 if state is None else state.length
        oldest = oldest_steps(x, state, starts)
        tops: list[Tensor] = []
        trace: list[list[Tensor]] = []
        written: list[list[tuple[Tensor, Tensor]]] = []
        for t, h in enumerate(x.split(1, dim=1)):
            caches = [(keys.window(), values.window()) for keys, values in stacks]
            first = None
            if oldest is not None:
                caches, first = without_hidden(caches, oldest[:, t : t + 1], past + t)
            outputs, weights = [h], []
            for l, layer in enumerate(self.layers):
                relative = self.relative[l % len(self.relative)]
                h, w = layer(h, *caches[l % len(caches)], relative, first)
                outputs.append(h)
                weights.append(w)
            memory = self.memory(outputs, mix)
            new = [project(memory) for project in self.key_values]
            for (keys, values), (k, v) in zip(stacks, new, strict=True):
                keys.push(k)
                values.push(v)
            tops.append(h)
            if lengths is not None:  # a window has forgotten where short rows end
                written.append(new)
            if need_weights:  # otherwise free them
                trace.append(weights)
        after = state_after(
            *(_joined(written, state) if written else _windows(stacks)),
            span=self.span,
            past=past,
            steps=x.shape[1],
            oldest=oldest,
            lengths=lengths,
        )
        all_weights = _assemble(trace, past) if need_weights else None
        return torch.cat(tops, dim=1), after, all_weights

    def layer_weights(self) -> Tensor:
        """Return the mixture w, [L + 1], with the dtype and device of the body."""
        return self.memory.layer_weights(self.relative[0].query_bias)

    @staticmethod
    def _traceable(backend: str) -> str:
        """Return `backend`, or "reference" during tracing and export.

        Neither can record custom autograd Functions.
        """
        if is_exported():
            check_choice("backend under torch.export", backend, ("auto", "reference"))
            return "reference"
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            allowed = ("auto", "reference")
            check_choice("backend under torch.jit.trace", backend, allowed)
            return "reference"
        return backend

    def _check_input(
        self,
        x: Tensor,
        state: State | None,
        lengths: Tensor | None,
        starts: Tensor | None,
    ) -> None:
        check_embeddings(x, self.d_model)
        check_state(
            state, x, caches=len(self.key_values), heads=self.n_heads, span=self.span
        )
        check_lengths(lengths, x)
        check_starts(starts, x)

    def _stacks(self, length: int, state: State | None, plain: bool) -> list[Stacks]:
        """Return two stacks per cache, keys and values, filled from `state`."""

        def stack(initial: Tensor | None) -> TorchStack | MemoryStack:
            return (
                TorchStack(self.span, initial)
                if plain
                else MemoryStack(self.span, length, initial)
            )

        if state is None:
            return [(stack(None), stack(None)) for _ in self.key_values]
        return [
            (stack(k), stack(v))
            for k, v in zip(state.keys, state.values, strict=True)
        ]


def _windows(stacks: list[Stacks]) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values [B, H, J, D] of the newest steps, for each cache."""
    keys = [keys.window() for keys, _ in stacks]
    values = [values.window() for _, values in stacks]
    return cast(list[Tensor], keys), cast(list[Tensor], values)


def _joined(
    written: list[list[tuple[Tensor, Tensor]]], state: State | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values [B, H, P + T, D] of all steps, for each cache.

    Args:
        written: for each step and cache, its key and its value [B, H, 1, D].
        state: carried in, or None.
    """
    keys, values = [], []
    for c, steps in enumerate(zip(*written, strict=True)):
        new_keys, new_values = map(list, zip(*steps, strict=True))
        if state is not None:
            new_keys.insert(0, state.keys[c])
            new_values.insert(0, state.values[c])
        keys.append(torch.cat(new_keys, dim=2))
        values.append(torch.cat(new_values, dim=2))
    return keys, values


def _assemble(trace: list[list[Tensor]], past: int) -> Tensor:
    """Join the weights of all steps into one tensor [L, B, H, T, past + T].

    Args:
        trace: for each step and layer, the weights [B, H, 1, J].
        past: length of the given state.
    """
    rows = []
    for t, weights in enumerate(trace):
        seen = weights[0].shape[-1]
        rows.append(F.pad(torch.stack(weights), (past + t - seen, len(trace) - t)))
    return torch.cat(rows, dim=-2)
