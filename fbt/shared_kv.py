"""Shared keys and values (Fan et al. 2020, section 3, last paragraph): one K_t and one V_t for all layers.

    K_t, V_t = W_k LN(m_t), W_v LN(m_t)

All layers read the same memory vector, so they can also read the same projections of it. The cache of a
decoder is then L times smaller, and a step projects its memory once.
"""

from fbt.config import Config
from fbt.feedback import FeedbackBody


class SharedKVBody(FeedbackBody):
    """A `FeedbackBody` with a single cache that every layer attends to."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, n_caches=1)
