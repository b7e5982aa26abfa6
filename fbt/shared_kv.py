"""Shared keys and values (Fan et al. 2020, section 3, last paragraph): one K_t and one V_t for all layers.

    K_t, V_t = W_k LN(m_t), W_v LN(m_t)

All layers read the same memory vector, so they can also read the same projections of it. The cache of a
decoder is then L times smaller, and a step projects its memory once.
"""

from torch import Tensor

from fbt._checks import check_choice, check_embeddings
from fbt.config import Config
from fbt.feedback import FeedbackBody
from fbt.native import DTYPES, is_built
from fbt.sequence import Decoder, run_sequence
from fbt.state import State


class SharedKVBody(FeedbackBody):
    """A `FeedbackBody` with a single cache that every layer attends to.

    Attributes:
        recompute: let the "sequence" backend keep only the outputs of the layers, the keys and the values,
            and compute the rest again in backward: less memory, a little more time.
    """

    backends = (*FeedbackBody.backends, "sequence", "native")
    decoders = ("auto", "sequence", "native")

    def __init__(self, config: Config) -> None:
        super().__init__(config, n_caches=1)
        self.recompute = False

    def forward(
        self, x: Tensor, state: State | None = None, *, backend: str = "auto", need_weights: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        """As `FeedbackBody.forward`, with one more backend.

        "sequence" runs all steps and layers in one autograd Function (see `fbt.sequence`): faster to train,
        no second derivative. Attention weights always come from the loop.
        """
        if backend not in ("sequence", "native"):
            return super().forward(x, state, backend=backend, need_weights=need_weights)
        if need_weights:
            return super().forward(x, state, backend="stack", need_weights=True)
        check_embeddings(x, self.d_model)
        return *run_sequence(self, x, state, native=backend == "native"), None

    def decoder(self, state: State, backend: str = "auto") -> Decoder:
        """Go on from a state one step at a time, without gradients; its `step` maps x [B, d] to [B, d].

        Args:
            state: what a forward pass returned.
            backend: "native", "sequence", or "auto" for the first of these that this machine offers.

        Raises:
            ValueError: there is no such backend.
        """
        check_choice("backend of a decoder", backend, self.decoders)
        able = state.keys[0].device.type == "cpu" and state.keys[0].dtype in DTYPES
        native = backend == "native" or (backend == "auto" and able and is_built())
        return Decoder(self, state, native)
