"""Compare the Triton kernels with the plain operations, in Triton's interpreter.

    TRITON_INTERPRET=1 python tests/triton_interpreted.py [SEED]

With a seed, thirty random configurations are compared instead of the chosen ones.

The interpreter runs on the CPU and is slow, so the models are tiny. It cannot show a
missing barrier; the proof on a card can (see `fbt.sequence.proof`). Uninitialised
memory is NaN.
"""

import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from exact import (
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)
from torch import Tensor

from fbt import engines
from fbt.sequence import proof, triton_engine
from fbt.sequence.python_engine import PythonEngine
from fbt.sequence.triton_engine import TritonEngine

CPU = torch.device("cpu")
SMALL = {"n_layers": 2, "d_model": 6, "d_ff": 5, "n_heads": 2, "span": 4}
HALVES = (torch.bfloat16, torch.float16)
# Allowed error of a tensor in half precision, in units of the spacing of numbers
# near 1. Rounding changes a weight by half a unit at most, and a number depends on a
# chain of some twenty products. Their errors have random signs: 7 units were seen.
ROUNDINGS = 10
# Steps, carried steps, whether to recompute, frozen parameters, and the model.
CORNERS = (
    (1, 0, False, "", {"n_layers": 1, "d_model": 3, "n_heads": 1}),
    (4, 0, False, "", {}),
    (3, 5, False, "relative", {"dropout": 0.3, "span": 3}),
    (4, 2, False, "", {"activation": "gelu", "memory_norm": False, "span": 9}),
    (4, 3, True, "", {"dropout": 0.2, "activation": "gelu"}),
    (3, 1, False, "feed_forward", {"n_heads": 3, "span": 1, "d_ff": 9}),
    (5, 2, False, "", {"dropout": 0.2}, True),
    (4, 0, True, "", {"activation": "gelu"}, True),
)


def computed(
    engine: str,
    steps: int,
    past: int,
    recompute: bool,
    frozen: str,
    changes: dict,
    borders: bool = False,
    half: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield outputs, the state, and all gradients that are wanted.

    Under autocast if `half` is given.
    """
    changes = {**SMALL, **changes}
    shape, module = config("shared-kv", **changes), body("shared-kv", **changes)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    x = normal(2, steps, shape.d_model)
    state = some_state(shape, past, 2) if past else None
    named = {k: v for k, v in leaves(module, x, state).items() if v.requires_grad}
    rows = {}
    if borders:
        starts = torch.zeros(2, steps, dtype=torch.bool)
        starts[0, ::2] = starts[1, 1] = True
        rows = {"lengths": torch.tensor([steps - 1, steps]), "starts": starts}
    torch.manual_seed(4)
    with torch.autocast("cpu", half, enabled=half is not None):
        outputs = everything(
            *engines.run_sequence(module.train(), x, state, engine, recompute, **rows)
        )
    return itertools.chain(outputs, gradients(outputs, named).values())


def check_corners() -> None:
    for corner in CORNERS:
        assert_same(
            list(computed("triton", *corner)), list(computed("sequence", *corner))
        )


def check_half_precision() -> None:
    """Matrices are rounded and nothing else, so all numbers are those with rounded
    matrices, and near those with exact ones.
    """
    for half, corner in zip(HALVES, (CORNERS[2], CORNERS[6]), strict=True):
        actual = list(computed("triton", *corner, half=half))
        assert_same(actual, list(rounded(*corner, half=half)))
        bound = ROUNDINGS * torch.finfo(half).eps
        plain = list(computed("sequence", *corner))
        assert not torch.equal(actual[0], plain[0])
        for ours, exact in zip(actual, plain, strict=True):
            assert ours.dtype == exact.dtype
            assert (ours - exact).norm() <= bound * exact.norm()


def rounded(*corner: Any, half: torch.dtype | None) -> Iterator[Tensor]:
    """Yield what `computed` does, of "sequence" with rounded matrices."""
    with mock.patch.object(PythonEngine, "half_for", TritonEngine.half_for):
        return computed("sequence", *corner, half=half)


def random_corner(numbers: random.Random) -> tuple:
    """Draw what `CORNERS` has; the interpreter needs seconds for each."""
    heads, layers = numbers.randint(1, 3), numbers.randint(1, 3)
    changes = {
        "n_heads": heads,
        "d_model": heads * numbers.randint(1, 5),
        "n_layers": layers,
        "d_ff": numbers.randint(1, 11),
        "span": numbers.randint(1, 12),
        "dropout": numbers.choice((0.0, 0.4)),
        "activation": numbers.choice(("relu", "gelu")),
        "memory_norm": numbers.random() < 0.7,
        "relative": numbers.choice(("per-layer", "shared")),
    }
    steps = numbers.randint(1, 12 // layers)
    past = numbers.randint(0, min(6, changes["span"]))
    frozen = numbers.choice(("", "", "relative", "feed_forward", "memory", "layers"))
    recompute, borders = numbers.random() < 0.3, steps > 1 and numbers.random() < 0.5
    return steps, past, recompute, frozen, changes, borders


def check_random(seed: int) -> None:
    numbers = random.Random(seed)
    for corner in [random_corner(numbers) for _ in range(30)]:
        print(corner, flush=True)
        with mock.patch.object(triton_engine, "MAX_PROGRAMS", numbers.choice((1, 9))):
            half = numbers.choice((None, None, *HALVES))
            actual = list(computed("triton", *corner, half=half))
        assert_same(actual, list(rounded(*corner, half=half)))


def check_a_step_without_gradients() -> None:
    """The state of single steps grows in place, also after a row was cleared, and
    when autocast begins or ends.
    """
    module, x = body("shared-kv", **SMALL), normal(2, 4, 6).detach()
    results = []
    for engine in ("triton", "sequence"):
        with (
            torch.no_grad(),
            mock.patch.object(PythonEngine, "half_for", TritonEngine.half_for),
        ):
            state, steps = None, []
            for t, half in enumerate((None, None, torch.bfloat16, None)):
                state = state.clear([1]) if t == 1 else state
                with torch.autocast("cpu", half, enabled=half is not None):
                    y, state = engines.run_sequence(
                        module, x[:, t : t + 1], state, engine, False
                    )
                steps.append(y)
        results.append([*steps, *state.keys, *state.values])
    assert_same(*results)


def check_the_proof() -> None:
    """It accepts the kernels, and refuses wrong ones."""
    example = proof.Example(2, 3, 1, 5, 2, 2, 3, 3)
    halves = [example._replace(matrices=half) for half in HALVES]

    def problem(*examples: proof.Example) -> str:
        return proof.difference(
            TritonEngine, PythonEngine, CPU, examples or [example]
        )

    assert problem(example, *halves) == ""
    forward, backward = TritonEngine.forward_chunk, TritonEngine.backward_chunk

    def wrong_forward(self: TritonEngine, steps, outputs, chunk) -> None:
        forward(self, steps, outputs, chunk)
        outputs.x[-1, -1, -1, -1] *= 1.01

    def wrong_backward(self: TritonEngine, steps, outputs, chunk, grads, total):
        inputs = backward(self, steps, outputs, chunk, grads, total)
        total.b_1[0, 0] += 0.01
        return inputs

    calls = itertools.count()

    def different_each_time(self: TritonEngine, steps, outputs, chunk) -> None:
        forward(self, steps, outputs, chunk)
        outputs.m[0, 0, 0] += 1e-6 * next(calls)

    with mock.patch.object(triton_engine, "MAX_PROGRAMS", 1):
        assert problem() == ""
    with mock.patch.object(TritonEngine, "forward_chunk", wrong_forward):
        assert "output x is off by" in problem()
    with mock.patch.object(TritonEngine, "backward_chunk", wrong_backward):
        assert "gradient of b_1 is off by" in problem()
    with mock.patch.object(TritonEngine, "forward_chunk", different_each_time):
        assert "changes from run to run" in problem()
    # Without the rounding, the numbers would differ: it is as strict as in float32.
    with mock.patch.object(proof, "round_matrices", lambda weights, dtype: weights):
        for half in halves:
            assert "is off by" in problem(half)


def main() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    torch.use_deterministic_algorithms(True)  # also fills new tensors with NaN
    small_blocks = mock.patch.multiple(
        triton_engine, KEYS=8, BLOCKS={"BK": 4, "BN": 8}
    )
    anywhere = mock.patch.object(TritonEngine, "why_not", lambda x: None)
    with small_blocks, anywhere:
        if len(sys.argv) > 1:
            return check_random(int(sys.argv[1]))
        checks = (check_corners, check_half_precision)
        for check in (*checks, check_a_step_without_gradients, check_the_proof):
            started = time.monotonic()
            check()
            print(f"{check.__name__}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
