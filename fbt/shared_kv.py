r"""Shared keys and values (Fan et al. 2020, section 3, last paragraph): one of each for all layers.

$$ K_t, V_t = W_k \, \mathrm{LN}(m_t), \; W_v \, \mathrm{LN}(m_t) $$

All layers read the same memory vector, so they can also read the same projections of it. The cache of a
decoder is then L times smaller, and a step projects its memory once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from fbt._checks import check_bool, check_choice, check_embeddings, check_instance
from fbt.config import Config
from fbt.feedback import FeedbackBody
from fbt.native import DTYPES, is_built, is_plain
from fbt.sequence import Decoder, run_sequence
from fbt.state import State

# What torch calls with a module's inputs, outputs or gradients: of one module, and of all.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
        self._made = self._parts()

    def forward(
        self, x: Tensor, state: State | None = None, *, backend: str = "auto", need_weights: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        """As `FeedbackBody.forward`, with two more backends: "auto" is the faster one that is here.

        "sequence" runs all steps and layers in one autograd Function (see `fbt.sequence`), "native" the same
        with its steps in C++ (see `fbt.native`): faster to train, no second derivative. They read the weights
        of the layers without calling them. So where a part has hooks, settings of its own or another module
        in its place, they refuse and "auto" stays with the loop, as it does under `torch.compile` and
        `torch.jit.trace`. Attention weights always come from the loop, and single steps by default.
        """
        check_choice("backend", backend, ("auto", *self.backends))
        backend = self._traceable(backend)
        compiling = torch.compiler.is_compiling()
        check_embeddings(x, self.d_model)
        check_bool("need_weights", need_weights)
        if backend == "auto" and x.shape[1:2] != (1,) and not compiling and self.is_as_made():
            backend = "native" if self._native_works(x) else "sequence"
        if need_weights or backend not in ("sequence", "native"):
            loop = backend if backend in FeedbackBody.backends else "auto"
            return super().forward(x, state, backend=loop, need_weights=need_weights)
        self._check_state(state, x)
        run = torch.compiler.disable(self._run_sequence) if compiling else self._run_sequence
        return *run(x, state, backend == "native"), None

    def _run_sequence(self, x: Tensor, state: State | None, native: bool) -> tuple[Tensor, State]:
        self._check_as_made()
        return run_sequence(self, x, state, native=native)

    def decoder(self, state: State, backend: str = "auto") -> Decoder:
        """Go on from a state one step at a time, without gradients; its `step` maps x [B, d] to [B, d].

        Args:
            state: what a forward pass returned.
            backend: "native", "sequence", or "auto" for the first of these that this machine offers.

        Raises:
            TypeError: the state is not a `State`, or is of another dtype than the weights.
            ValueError: the state belongs to another body, there is no such backend, or a part of the body
                is not as it was made.
        """
        check_choice("backend of a decoder", backend, self.decoders)
        check_instance("state", state, State)
        self._check_decoded(state)
        self._check_as_made()
        native = backend == "native" or (backend == "auto" and self._native_works(state.keys[0]))
        return Decoder(self, state, native)

    def _check_decoded(self, state: State) -> None:
        """Raise unless a state is one of this body, of whatever batch size."""
        weight, first = self.key_values[0].key.weight, next(iter(state.keys), None)
        batch = first.shape[0] if first is not None and first.ndim else 1
        self._check_state(state, weight.new_empty(batch, 1, self.d_model))

    def is_as_made(self) -> bool:
        """Whether the folded weights say all: no part is hooked, changed or replaced."""
        parts = list(self.modules())
        hooked = any(getattr(torch_module, f"_global{hooks}") for hooks in HOOKS) or any(
            getattr(part, hooks) for part in parts[1:] for hooks in HOOKS
        )
        # With dropout, a part may be in a mode of its own.
        alike = not self.layers[0].dropout.p or all(part.training == self.training for part in parts)
        return not hooked and alike and self._parts() == self._made

    def _parts(self) -> list[Any]:
        """What the parts compute with beside their weights, and which weights each has."""
        found: list[Any] = []
        for part in list(self.modules())[1:]:
            settings = {n: v for n, v in vars(part).items() if not n.startswith("_") and n != "training"}
            found.append((type(part), settings, {n for n, w in part._parameters.items() if w is not None}))
        return found

    def _check_as_made(self) -> None:
        if not self.is_as_made():
            raise ValueError(
                "backends 'sequence' and 'native' read the weights of the layers without calling them, and a "
                "part of this body has hooks or is not as it was made: use 'reference', 'stack' or 'auto'"
            )

    @staticmethod
    def _native_works(x: Tensor) -> bool:
        """Whether `build_native` has run here, and is of use for a tensor like this."""
        return x.device.type == "cpu" and x.dtype in DTYPES and is_plain(x) and is_built()
