r"""Shared keys and values (Fan et al. 2020, section 3, last paragraph): one of each for all layers.

$$ K_t, V_t = W_k \, \mathrm{LN}(m_t), \; W_v \, \mathrm{LN}(m_t) $$

All layers read the same memory vector, so they can also read the same projections of it. The cache of a
decoder is then L times smaller, and a step projects its memory once.
"""

import torch
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
        recompute: let the backends "sequence" and "native" keep only the outputs of the layers, the keys and
            the values, and compute the rest again in backward: about half the memory, a little more time.
    """

    backends = (*FeedbackBody.backends, "sequence", "native")
    decoders = ("auto", "sequence", "native")

    def __init__(self, config: Config) -> None:
        super().__init__(config, n_caches=1)
        self.recompute = False
        self._kinds = [type(part) for part in self.modules()]

    def forward(
        self, x: Tensor, state: State | None = None, *, backend: str = "auto", need_weights: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        """As `FeedbackBody.forward`, with two more backends: "auto" is the faster one that is here.

        "sequence" runs all steps and layers in one autograd Function (see `fbt.sequence`), "native" the same
        with its steps in C++ (see `fbt.native`): faster to train, no second derivative. They read the weights
        of the layers without calling them, so where a part has hooks, or another module is in its place, and
        under `torch.compile`, "auto" stays with the loop. Attention weights always come from the loop, and
        single steps by default.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        if backend == "auto" and x.shape[1:2] != (1,) and self.is_as_made():
            backend = "native" if self._native_works(x) else "sequence"
        if need_weights or backend not in ("sequence", "native"):
            loop = backend if backend in FeedbackBody.backends else "auto"
            return super().forward(x, state, backend=loop, need_weights=need_weights)
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
        native = backend == "native" or (backend == "auto" and self._native_works(state.keys[0]))
        return Decoder(self, state, native)

    def is_as_made(self) -> bool:
        """Whether the folded weights say all: no part is hooked, replaced or being compiled."""
        parts = list(self.modules())
        hooked = any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in parts[1:]
        )
        kinds = [type(part) for part in parts]
        return not hooked and kinds == self._kinds and not torch.compiler.is_compiling()

    @staticmethod
    def _native_works(x: Tensor) -> bool:
        """Whether `build_native` has run here, and is of use for a tensor like this."""
        return x.device.type == "cpu" and x.dtype in DTYPES and is_built()
