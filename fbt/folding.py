"""Fold norms and scales into the weights of a body with shared keys and values.

Folding reads the weights of the layers without calling the layers; see
`fbt.inspection`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fbt.attention import KeyValue, RelativeTerms
from fbt.feedback import FeedbackBody, FeedbackLayer
from fbt.sequence.layout import Weights


def fold(body: FeedbackBody, rows: int) -> Weights:
    """Fold norms and 1 / sqrt(D) into the weights, in plain autograd.

    Args:
        body: a body with one cache.
        rows: the number of rows of the relative tables to use, from the end.

    Returns:
        The weights, stacked over layers.
    """
    tables: list[RelativeTerms] = [
        body.relative[l % len(body.relative)] for l in range(len(body.layers))
    ]
    scale = tables[0].query_bias.shape[-1] ** -0.5
    first = tables[0].key_bias.shape[-1] - rows
    project: KeyValue = body.key_values[0]
    w_kv = torch.cat([project.key.weight, project.value.weight])
    b_kv = w_kv.new_zeros(w_kv.shape[0])
    if isinstance(body.memory.norm, nn.LayerNorm):
        w_kv, b_kv = w_kv * body.memory.norm.weight, w_kv @ body.memory.norm.bias

    def stacked(folded: Callable[[FeedbackLayer], Tensor]) -> Tensor:
        """Stack over layers. Folded one by one, autograd copies no weight."""
        return torch.stack([folded(layer) for layer in body.layers])

    return Weights(
        w_q=stacked(
            lambda layer: layer.attention.query.weight * (layer.norm1.weight * scale)
        ),
        b_q=stacked(
            lambda layer: layer.attention.query.weight @ (layer.norm1.bias * scale)
        ),
        u=torch.stack([table.query_bias for table in tables]) * scale,
        table=torch.stack([table.key_embedding[:, first:] for table in tables]),
        s=torch.stack([table.key_bias[:, first:] for table in tables]) * scale,
        w_o=stacked(lambda layer: layer.attention.output.weight),
        b_o=stacked(lambda layer: layer.attention.output.bias),
        w_1=stacked(
            lambda layer: layer.feed_forward.inner.weight * layer.norm2.weight
        ),
        b_1=stacked(
            lambda layer: (
                layer.feed_forward.inner.bias
                + layer.feed_forward.inner.weight @ layer.norm2.bias
            )
        ),
        w_2=stacked(lambda layer: layer.feed_forward.outer.weight),
        b_2=stacked(lambda layer: layer.feed_forward.outer.bias),
        mix=body.layer_weights(),
        w_kv=w_kv,
        b_kv=b_kv,
    )
