"""The promises of "The same numbers again" in book/api.md."""

import hashlib
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
import torch
from exact import (
    CASES,
    VARIANTS,
    assert_same,
    body,
    everything,
    gradients,
    leaves,
    normal,
)

import fbt
from fbt.attention import dropout_from
from fbt.language_model import BODIES

pytestmark = pytest.mark.usefixtures("native")
each_case = pytest.mark.parametrize("variant, backend", CASES)
TEXT = "to be, or not to be, that is the question. " * 9


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def one_pass(
    variant: str, backend: str, batch: int = 13, own: bool = False
) -> list[torch.Tensor]:
    """Return outputs and gradients with dropout.

    The masks come from torch's global generator, or from an own one.
    """
    torch.manual_seed(0)
    c = fbt.Config(
        9, variant=variant, d_model=16, n_heads=2, n_layers=2, span=8, dropout=0.1
    )
    module, x = (
        BODIES[variant](c),
        normal(batch, 11, 16).float().detach().requires_grad_(),
    )
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    if own:
        torch.manual_seed(1)
    with dropout_from(generator, module) if own else nullcontext():
        outputs = everything(*module(x, backend=backend)[:2])
    return [
        *outputs,
        *gradients(
            [output.double() for output in outputs], leaves(module, x)
        ).values(),
    ]


@each_case
def test_pass_repeats_bit_for_bit(variant, backend):
    assert_same(
        one_pass(variant, backend), one_pass(variant, backend), rtol=0, atol=0
    )


@each_case
def test_dropout_of_an_own_generator_equals_that_of_the_global_one(variant, backend):
    actual, expected = (
        one_pass(variant, backend, own=True),
        one_pass(variant, backend),
    )
    assert_same(actual, expected, rtol=0, atol=0)


def test_pass_on_two_threads_repeats_bit_for_bit(two_threads):
    """Operations of the other backends are too small for threads."""
    assert_same(
        one_pass("parallel", "reference"),
        one_pass("parallel", "reference"),
        rtol=0,
        atol=0,
    )


def test_groups_of_sequences_are_summed_in_one_order(two_threads):
    """With more groups than threads, their order must not depend on timing."""
    for batch in (13, 140):
        first = one_pass("shared-kv", "native", batch)
        for _ in range(4):
            assert_same(one_pass("shared-kv", "native", batch), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    "variant, backend", [("parallel", "reference"), ("shared-kv", "sequence")]
)
def test_threads_change_no_more_than_rounding(variant, backend):
    """For "native", see test_native.py."""
    module, x = body(variant, d_model=32, n_layers=1, span=4), normal(5, 6, 32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            outputs = everything(*module(x, backend=backend)[:2])
            results.append(
                [*outputs, *gradients(outputs, leaves(module, x)).values()]
            )
        finally:
            torch.set_num_threads(1)
    assert_same(results[1], results[0])


@each_case
def test_no_operation_is_nondeterministic(variant, backend):
    expected = one_pass(variant, backend)
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = one_pass(variant, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(actual, expected, rtol=0, atol=0)


def trained(variant: str) -> str:
    """Return a hash of the weights after a short run, and of a generated text."""
    size = {"steps": 3, "batch_size": 5, "seq_len": 12, "d_model": 32, "dropout": 0.1}
    # Two threads are slow where operations are small.
    torch.set_num_threads(2 if variant == "shared-kv" else 1)
    try:
        run = fbt.train(TEXT, preset="tiny", variant=variant, progress=False, **size)
    finally:
        torch.set_num_threads(1)
    weights = b"".join(
        tensor.numpy().tobytes() for tensor in run.model.state_dict().values()
    )
    text = run.model.generate("to be", 9, seed=1)
    return hashlib.sha256(weights + text.encode()).hexdigest()


def test_run_in_another_process_repeats_bit_for_bit():
    elsewhere = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.split() == [trained(variant) for variant in VARIANTS]


if __name__ == "__main__":
    print(*map(trained, VARIANTS))
