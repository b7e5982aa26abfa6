"""Prove on a device that an engine computes what the engine "sequence" computes.

A kernel can be right on one card and wrong on another: compilers differ, and a missing
barrier shows only where threads really run at the same time. So an engine that is
compiled for a card computes small examples there, forward and backward, before it is
used: outputs and every gradient must be near those of the plain tensor operations on
the same card, and a repetition must give the same bits.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fbt.sequence.backward import Backward
from fbt.sequence.engine import Engine
from fbt.sequence.forward import Forward
from fbt.sequence.layout import Sizes, Weights

# Allowed difference, relative to the largest number of a tensor, in float32.
TOLERANCE = 1e-4
REPETITIONS = 3
# Heads, width of a head, layers, width of feed-forward, sequences, steps, carried
# steps, span, GELU, memory norm, dropout, recompute. Widths are no powers of two.
EXAMPLES = (
    (1, 3, 1, 5, 2, 1, 0, 4, False, True, 0.0, False),
    (2, 5, 2, 17, 3, 9, 0, 4, False, True, 0.0, False),
    (3, 4, 2, 7, 5, 6, 5, 7, True, False, 0.0, False),
    (2, 3, 3, 9, 3, 7, 3, 40, False, True, 0.3, True),
)


def difference(engine: type[Engine], trusted: type[Engine], device: str) -> str:
    """Return where an engine's numbers differ from those of another engine.

    Args:
        engine: the engine to check.
        trusted: the engine to compare it with, in float64.
        device: where both compute.

    Returns:
        A description, or "" if all numbers agree and repetitions are equal bit by bit.
    """
    for example in EXAMPLES:
        expected = dict(computed(trusted, example, device, torch.float64))
        first: dict[str, Tensor] = {}
        for _ in range(REPETITIONS):
            for name, value in computed(engine, example, device, torch.float32):
                exact = expected[name]
                largest = exact.abs().max().item() if exact.numel() else 0.0
                error = (value - exact).abs()
                if not (error <= TOLERANCE * max(1.0, largest)).all():
                    return f"{name} is off by {error.max().item():.2g}"
                if not torch.equal(first.setdefault(name, value), value):
                    return f"{name} changes from run to run"
    return ""


def computed(
    engine: type[Engine], example: tuple, device: str, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of all outputs and gradients of an example."""
    heads, width, layers, inner, batch, steps, past, span, *options = example
    gelu, norm_memory, dropout, recompute = options
    d = heads * width
    rows = min(span, past + steps - 1)
    numbers = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=numbers, dtype=torch.float64) / 2
        return values.to(device, dtype)

    weights = Weights(
        w_q=new(layers, d, d),
        b_q=new(layers, d),
        u=new(layers, heads, width),
        table=new(layers, heads, rows, width),
        s=new(layers, heads, rows),
        w_o=new(layers, d, d),
        b_o=new(layers, d),
        w_1=new(layers, inner, d),
        b_1=new(layers, inner),
        w_2=new(layers, d, inner),
        b_2=new(layers, d),
        mix=new(layers + 1),
        w_kv=new(2 * d, d),
        b_kv=new(2 * d),
    )
    sizes = Sizes(
        heads=heads,
        span=span,
        past=past,
        norm_memory=norm_memory,
        gelu=gelu,
        dropout=dropout,
        generator=torch.Generator(device).manual_seed(0),
        recompute=recompute,
        needs_backward=True,
    )
    state = [new(heads * batch, past, width) for _ in range(2)]
    loop = Forward(engine, sizes, weights, new(steps, batch, d), *state)
    chunks, outputs = loop.run(), loop.outputs
    yield from ((f"output {name}", v) for name, v in outputs._asdict().items())
    wanted = {"x", "keys", "values", *Weights._fields}
    newest = min(span, past + steps)
    of_state = [new(batch, heads, newest, width) for _ in range(2)]
    backward = Backward(engine, sizes, weights, outputs, chunks, wanted)
    gradients = backward.run(new(steps, batch, d), *of_state)
    yield from ((f"gradient of {name}", v) for name, v in gradients.items())
