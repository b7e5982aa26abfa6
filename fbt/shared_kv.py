r"""Shared keys and values (Fan et al. 2020, section 3, last paragraph).

$$ K_t, V_t = W_k \, \mathrm{LN}(m_t), \; W_v \, \mathrm{LN}(m_t) $$

All layers read the same memory vector, so they can share its projections as well. A
step then projects its memory once, and a decoder's cache is L times smaller.
"""

import torch
from torch import Tensor

from fbt import engines
from fbt._checks import check_bool, check_choice
from fbt.config import Config
from fbt.feedback import FeedbackBody
from fbt.state import State


class SharedKVBody(FeedbackBody):
    """A `FeedbackBody` with one cache of keys and values, which all layers share.

    Args:
        config: sizes and options, as of a `FeedbackBody`.

    Attributes:
        recompute: whether the backends "sequence", "native" and "triton" store only
            the layers' outputs, keys and values, and recompute the rest in backward.
            This takes about half the memory and a little more time.
    """

    backends = (*FeedbackBody.backends, "sequence", "native", "triton")

    def __init__(self, config: Config) -> None:
        super().__init__(config, n_caches=1)
        self.recompute = False

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
        """Run the steps of x in order, like `FeedbackBody.forward`.

        There are three faster backends. "sequence" runs all steps and layers in one
        autograd Function (see `fbt.sequence`); "native" runs its steps in C++ (see
        `fbt.native`), and "triton" runs them in one kernel on a GPU. None of them
        supports second derivatives. They read the layers' weights without calling the
        layers: if a module has hooks, another class or other settings, they raise a
        ValueError that names it.

        "auto" falls back to the loop in that case, with a warning, under
        `torch.jit.trace` and `torch.export`, and for a single step with gradients.
        Attention weights are always computed by the loop. `torch.compile` breaks its
        graph around "auto" and the faster backends, which it cannot speed up.

        Raises:
            TypeError, ValueError: as `FeedbackBody.forward`; also if a backend does
                not support the device or the dtype of x.
            RuntimeError: if "native" is chosen but not built.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        backend = self._traceable(backend)
        check_bool("need_weights", need_weights)
        if need_weights or backend in FeedbackBody.backends:
            return super().forward(
                x,
                state,
                lengths=lengths,
                starts=starts,
                backend=backend if backend in FeedbackBody.backends else "auto",
                need_weights=need_weights,
            )
        self._check_input(x, state, lengths, starts)
        if torch.compiler.is_compiling():
            # A graph of all steps would take minutes to compile. What surrounds the
            # call may be in a CUDA graph of the compiler's.
            run = torch.compiler.disable(self._run)
            return run(x, state, lengths, starts, backend, False)
        return self._run(x, state, lengths, starts, backend)

    def _run(
        self,
        x: Tensor,
        state: State | None,
        lengths: Tensor | None,
        starts: Tensor | None,
        backend: str,
        may_replay: bool = True,
    ) -> tuple[Tensor, State, None]:
        """Run an engine, or the loop if "auto" chooses no engine."""
        engine, checked = backend, backend == "auto"
        if checked:
            choice = engines.choose(self, x)
            engines.warn_once(choice)
            if choice.engine is None:
                y, state, _ = super().forward(
                    x, state, lengths=lengths, starts=starts
                )
                return y, state, None
            engine = choice.engine
        options = self.recompute, checked, lengths, starts, may_replay
        return *engines.run_sequence(self, x, state, engine, *options), None
