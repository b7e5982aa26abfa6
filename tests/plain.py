"""The equations of the three models as plain loops: per step, per layer, per head.

Nothing here uses the package. Parameters are a dict of tensors with the names that
the package gives them, so that gradients of both sides refer to the same leaves. Slow
and simple on purpose.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Cache = list[list[Tensor]]  # [step][head] -> [B, D]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    """Return W x + b, or W x if there is no b."""
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def layer_norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return (
        centred / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
    )


def activate(name: str, x: Tensor) -> Tensor:
    if name == "relu":
        return torch.where(x > 0, x, 0.0)
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def heads(config, x: Tensor) -> list[Tensor]:
    """Split [B, d] into H pieces [B, D]."""
    return [
        x[:, h * config.d_head : (h + 1) * config.d_head]
        for h in range(config.n_heads)
    ]


def attend_one_head(
    config,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    distances: Sequence[int],
    embedding: Tensor,
    bias: Tensor,
    query_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attend from one query [B, D] to J keys; return the result and the weights.

    A score is ((q + u) . K_j + q . E_r + s_r) / sqrt(D). The row of distance r in
    `embedding` and `bias` is span - r: the tables run from far to near.
    """
    rows = [config.span - r for r in distances]
    content = ((query + query_bias)[:, None] * torch.stack(list(keys), dim=1)).sum(-1)
    position = (query[:, None] * embedding[rows]).sum(-1) + bias[rows]
    exponentials = torch.exp((content + position) / math.sqrt(config.d_head))
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return (weights[:, :, None] * torch.stack(list(values), dim=1)).sum(1), weights


def attention(
    p: Parameters,
    config,
    l: int,
    z: Tensor,
    keys: Cache,
    values: Cache,
    steps: Sequence[int],
    now: int,
) -> tuple[Tensor, list[Tensor]]:
    """Attend from normalised z [B, d] at step `now` to the given steps.

    Returns:
        The output [B, d], and the weights of each head.
    """
    table = f"relative.{l if config.relative == 'per-layer' else 0}"
    queries = heads(config, linear(p, f"layers.{l}.attention.query", z))
    outputs, weights = [], []
    for h, query in enumerate(queries):
        o, w = attend_one_head(
            config,
            query,
            [keys[j][h] for j in steps],
            [values[j][h] for j in steps],
            [now - j for j in steps],
            p[f"{table}.key_embedding"][h],
            p[f"{table}.key_bias"][h],
            p[f"{table}.query_bias"][h],
        )
        outputs.append(o)
        weights.append(w)
    return linear(
        p, f"layers.{l}.attention.output", torch.cat(outputs, dim=-1)
    ), weights


def feed_forward(p: Parameters, config, l: int, x: Tensor) -> Tensor:
    inner = linear(
        p, f"layers.{l}.feed_forward.inner", layer_norm(p, f"layers.{l}.norm2", x)
    )
    return linear(
        p, f"layers.{l}.feed_forward.outer", activate(config.activation, inner)
    )


def layer_weights(p: Parameters, config) -> list[Tensor | float]:
    """Return w_0, ..., w_L: a softmax of the logits, or fixed."""
    L = config.n_layers
    if config.memory == "learned":
        exponentials = [torch.exp(logit) for logit in p["memory.layer_logits"]]
        return [e / sum(exponentials) for e in exponentials]
    return {
        "uniform": [1 / (L + 1)] * (L + 1),
        "top": [0.0] * L + [1.0],
        "embedding": [1.0] + [0.0] * L,
    }[config.memory]


def history(caches: Sequence[Tensor]) -> list[Cache]:
    """Return carried tensors [B, H, P, D] as caches: lists of steps of heads."""
    return [
        [
            [cache[:, h, j] for h in range(cache.shape[1])]
            for j in range(cache.shape[2])
        ]
        for cache in caches
    ]


def empty(n_caches: int) -> tuple[list[Cache], list[Cache]]:
    return [[] for _ in range(n_caches)], [[] for _ in range(n_caches)]


def newest(config, caches: Sequence[Cache]) -> tuple[Tensor, ...]:
    """Return the state: the last S steps of each cache as [B, H, J, D]."""
    return tuple(
        torch.stack(
            [torch.stack(step, dim=1) for step in cache[-config.span :]], dim=2
        )
        for cache in caches
    )


def feedback(p: Parameters, config, x: Tensor, past=None):
    """Compute a feedback body, with keys and values per layer or shared.

    Args:
        p: parameters.
        config: the configuration.
        x: inputs [B, T, d].
        past: keys and values carried in, each a tuple of [B, H, P, D], or None.

    Returns:
        Top outputs [B, T, d], the state, and attention weights [L, B, H, T, P + T].
    """
    B, T, _ = x.shape
    L, H = config.n_layers, config.n_heads
    n_caches = 1 if config.variant == "shared-kv" else L
    keys, values = empty(n_caches) if past is None else map(history, past)
    P = len(keys[0])
    trace = x.new_zeros(L, B, H, T, P + T)
    w = layer_weights(p, config)
    tops = []
    for t in range(T):
        now = P + t
        steps = range(max(0, now - config.span), now)
        outputs = [x[:, t]]
        for l in range(L):
            h = outputs[-1]
            if steps:
                cache = l if n_caches == L else 0
                z = layer_norm(p, f"layers.{l}.norm1", h)
                o, weights = attention(
                    p, config, l, z, keys[cache], values[cache], steps, now
                )
                trace[l, :, :, t, steps.start : now] = torch.stack(
                    weights, dim=1
                ).detach()
                h = h + o
            outputs.append(h + feed_forward(p, config, l, h))
        memory = sum(
            weight * output for weight, output in zip(w, outputs, strict=True)
        )
        if config.memory_norm:
            memory = layer_norm(p, "memory.norm", memory)
        for cache in range(n_caches):
            keys[cache].append(
                heads(config, linear(p, f"key_values.{cache}.key", memory))
            )
            values[cache].append(
                heads(config, linear(p, f"key_values.{cache}.value", memory))
            )
        tops.append(outputs[-1])
    return (
        torch.stack(tops, dim=1),
        (newest(config, keys), newest(config, values)),
        trace,
    )


def parallel(p: Parameters, config, x: Tensor, past=None, strict: bool = False):
    """Compute the parallel transformer, one step and one layer at a time.

    Arguments and results are those of `feedback`.

    Args:
        strict: hide a query's own step; step 0 then skips attention.
    """
    B, T, _ = x.shape
    L, H = config.n_layers, config.n_heads
    keys, values = empty(L) if past is None else map(history, past)
    P = len(keys[0])
    trace = x.new_zeros(L, B, H, T, P + T)
    tops = []
    for t in range(T):
        now = P + t
        steps = range(max(0, now - config.span), now if strict else now + 1)
        h = x[:, t]
        for l in range(L):
            z = layer_norm(p, f"layers.{l}.norm1", h)
            keys[l].append(heads(config, linear(p, f"layers.{l}.key_value.key", z)))
            values[l].append(
                heads(config, linear(p, f"layers.{l}.key_value.value", z))
            )
            if steps:
                o, weights = attention(
                    p, config, l, z, keys[l], values[l], steps, now
                )
                trace[l, :, :, t, steps.start : steps.stop] = torch.stack(
                    weights, dim=1
                ).detach()
                h = h + o
            h = h + feed_forward(p, config, l, h)
        tops.append(h)
    return (
        torch.stack(tops, dim=1),
        (newest(config, keys), newest(config, values)),
        trace,
    )


def body(p: Parameters, config, x: Tensor, past=None):
    """Compute `parallel` or `feedback`, depending on the configuration."""
    return (parallel if config.variant == "parallel" else feedback)(
        p, config, x, past
    )
