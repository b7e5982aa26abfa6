"""Small float64 models without special values, and comparisons, for exactness tests.

Sizes are different primes where possible, so that axes cannot be confused.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

import fbt
from fbt.language_model import BODIES

M = TypeVar("M", bound=nn.Module)

SIZES = {"d_model": 14, "n_heads": 2, "n_layers": 3, "d_ff": 11, "span": 13}
BATCH, VOCABULARY = 5, 19
# The smallest, the smallest with memory, an odd one, one longer than the span.
LENGTHS = (1, 2, 9, 17)
VARIANTS = ("parallel", "feedback", "shared-kv")
FEEDBACK = ("feedback", "shared-kv")
BACKENDS = ("reference", "stack")
# The backends of each variant that compute on a CPU.
ON_CPU = {
    variant: tuple(name for name in BODIES[variant].backends if name != "triton")
    for variant in VARIANTS
}
CASES = [(variant, backend) for variant in VARIANTS for backend in ON_CPU[variant]]
OPTIONS = (
    {"memory": "uniform", "n_layers": 2},
    {"memory": "top"},
    {"memory": "embedding"},
    {"memory_norm": False},
    {"relative": "shared"},
    {"activation": "gelu"},
    {"span": 1},
    {"n_layers": 1, "n_heads": 1, "d_model": 7},
)
# Options of the model around the body.
AROUND = ({"final_norm": False},)


def config(variant: str, **changes) -> fbt.Config:
    return fbt.Config(VOCABULARY, variant=variant, **{**SIZES, **changes})


def perturbed(module: M, seed: int = 1) -> M:
    """Convert a module to float64, and add noise, since many weights are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, dtype=torch.float64, generator=generator
            )
    return module


def body(variant: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(BODIES[variant](config(variant, **changes)))


def model(
    variant: str, tokenizer: fbt.CharTokenizer | None = None, **changes
) -> fbt.LanguageModel:
    torch.manual_seed(0)
    return perturbed(fbt.LanguageModel(config(variant, **changes), tokenizer))


def normal(*shape: int, seed: int = 2) -> Tensor:
    """Return a float64 leaf that requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        shape, dtype=torch.float64, generator=generator
    ).requires_grad_()


def some_tokens(batch: int, length: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def some_state(shape: fbt.Config, length: int, batch: int = BATCH) -> fbt.State:
    """Return a state of leaves, as if from an earlier block."""
    caches = 1 if shape.variant == "shared-kv" else shape.n_layers
    sizes = (batch, shape.n_heads, length, shape.d_head)
    return fbt.State(
        tuple(normal(*sizes, seed=100 + i) for i in range(caches)),
        tuple(normal(*sizes, seed=200 + i) for i in range(caches)),
    )


def leaves(
    module: nn.Module, x: Tensor | None = None, state: fbt.State | None = None
) -> dict[str, Tensor]:
    """Return all tensors that require a gradient, by name."""
    named = dict(module.named_parameters())
    if x is not None:
        named["x"] = x
    if state is not None:
        named |= {f"state.keys[{i}]": k for i, k in enumerate(state.keys)}
        named |= {f"state.values[{i}]": v for i, v in enumerate(state.values)}
    return named


def gradients(
    outputs: Iterable[Tensor], named: Mapping[str, Tensor], retain: bool = False
) -> dict[str, Tensor]:
    """Return the gradients of a fixed random weighted sum of the outputs.

    Tensors that the outputs do not depend on get a gradient of zero.
    """
    loss = sum(
        (o * normal(*o.shape, seed=i).detach().to(o.device)).sum()
        for i, o in enumerate(outputs)
    )
    grads = torch.autograd.grad(
        loss,
        list(named.values()),
        allow_unused=True,
        materialize_grads=True,
        retain_graph=retain,
    )
    return dict(zip(named, grads, strict=True))


def assert_same(
    actual: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    expected: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    name: str = "",
    rtol: float = 1e-10,
    atol: float = 1e-11,
) -> None:
    """Compare tensors, or lists or dicts of them; errors name what differs."""
    if isinstance(actual, Tensor):
        torch.testing.assert_close(
            actual,
            expected,
            rtol=rtol,
            atol=atol,
            msg=lambda text: f"{name or 'output'} differs: {text}",
        )
        return
    if not isinstance(actual, Mapping):
        actual = {
            f"{name or 'output'}[{i}]": tensor for i, tensor in enumerate(actual)
        }
        expected = {
            f"{name or 'output'}[{i}]": tensor for i, tensor in enumerate(expected)
        }
        name = ""
    assert actual.keys() == expected.keys()
    for key, tensor in actual.items():
        assert_same(tensor, expected[key], f"{name} {key}".strip(), rtol, atol)


def everything(y: Tensor, state: fbt.State) -> list[Tensor]:
    """Return outputs and state as one list."""
    return [y, *state.keys, *state.values]


def gradient_sizes(lm: fbt.LanguageModel, tokens: Tensor, target: int) -> Tensor:
    """Return the norm of d log p(target) / d embedding of each token [T]."""
    kept = []

    def keep(_module, _inputs, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    with lm.token_embedding.register_forward_hook(keep):
        log = lm(tokens[None])[0, -1].log_softmax(-1)[target]
    log.backward()
    return kept[0].grad[0].norm(dim=-1)
