r"""Shared keys and values (Fan et al. 2020, section 3, last paragraph): one of each for all layers.

$$ K_t, V_t = W_k \, \mathrm{LN}(m_t), \; W_v \, \mathrm{LN}(m_t) $$

All layers read the same memory vector, so they can also read the same projections of
it. The cache of a decoder is then L times smaller, and a step projects its memory
once.
"""

import torch
from torch import Tensor

from fbt import engines
from fbt._checks import check_bool, check_choice, check_embeddings, check_instance
from fbt.config import Config
from fbt.feedback import FeedbackBody
from fbt.state import State


class SharedKVBody(FeedbackBody):
    """A `FeedbackBody` with a single cache that every layer attends to.

    Attributes:
        recompute: let the backends "sequence" and "native" keep only the outputs of
            the layers, the keys and the values, and compute the rest again in
            backward: about half the memory, a little more time.
    """

    backends = (*FeedbackBody.backends, "sequence", "native")
    decoders = ("auto", "sequence", "native")

    def __init__(self, config: Config) -> None:
        super().__init__(config, n_caches=1)
        self.recompute = False

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        backend: str = "auto",
        need_weights: bool = False,
    ) -> tuple[Tensor, State, Tensor | None]:
        """As `FeedbackBody.forward`, with two faster backends.

        "sequence" runs all steps and layers in one autograd Function (see
        `fbt.sequence`), "native" the same with its steps in C++ (see `fbt.native`).
        Neither has a second derivative. They read the weights of the layers without
        calling them: if a module has hooks, another class or other settings, they
        raise a ValueError that names it, and "auto" takes the loop, as it does under
        `torch.compile` and `torch.jit.trace` and for a single step. Attention weights
        always come from the loop.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        backend = self._traceable(backend)
        check_embeddings(x, self.d_model)
        check_bool("need_weights", need_weights)
        engine = backend if backend in engines.ENGINES else None
        if backend == "auto" and not need_weights:
            engine = engines.choose(self, x)
        if need_weights or engine is None:
            loop = backend if backend in FeedbackBody.backends else "auto"
            return super().forward(x, state, backend=loop, need_weights=need_weights)
        self._check_state(state, x)
        run = engines.run_sequence
        if torch.compiler.is_compiling():
            run = torch.compiler.disable(run)
        # `choose` has checked the body.
        checked = backend == "auto"
        return *run(self, x, state, engine, self.recompute, checked), None

    def decoder(self, state: State, backend: str = "auto") -> engines.Decoder:
        """Go on from a state one step at a time, without gradients.

        Args:
            state: what a forward pass returned.
            backend: "native", "sequence" or "auto", the first of these that can be
                used.

        Returns:
            A decoder, whose `step` maps embeddings [B, d] to top outputs [B, d].

        Raises:
            TypeError: if the state is not a `State`, or has another dtype than the
                weights.
            ValueError: if the state belongs to another body, there is no such
                backend, or a module of the body has hooks or was changed; the message
                names it.
        """
        check_choice("backend of a decoder", backend, self.decoders)
        check_instance("state", state, State)
        self._check_decoded(state)
        if backend == "auto":
            backend = engines.first_for(state.keys[0])
        return engines.Decoder(self, state, backend)

    def _check_decoded(self, state: State) -> None:
        """Raise unless a state is one of this body, of whatever batch size."""
        weight, first = self.key_values[0].key.weight, next(iter(state.keys), None)
        batch = first.shape[0] if first is not None and first.ndim else 1
        self._check_state(state, weight.new_empty(batch, 1, self.d_model))
