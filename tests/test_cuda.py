"""On a CUDA device: the loop of chapter 6 has the numbers of the definition, and chapters that train run."""

import gpu
import pytest
import torch
from chapters import chapters, read
from contenders import Size
from exact import (
    BATCH,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)
from executor import execute
from torch import Tensor

import fbt

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

VARIANT, DEVICE = "shared-kv", "cuda"
OPTIONS = {"span": 5, "dropout": 0.0}
LENGTH = 19  # beyond the span, and more than one chunk


def there(tensor: Tensor) -> Tensor:
    """The same numbers as a leaf on the device."""
    return tensor.detach().to(DEVICE).requires_grad_()


def state_there(length: int) -> fbt.State:
    state = some_state(config(VARIANT, **OPTIONS), length)
    return fbt.State(
        *(tuple(map(there, kind)) for kind in (state.keys, state.values))
    )


@pytest.mark.parametrize("carried", [0, 1, 4, 5])
def test_the_sequence_backend_equals_the_reference(carried):
    module, x = body(VARIANT, **OPTIONS).to(DEVICE), there(normal(BATCH, LENGTH, 14))
    state = state_there(carried) if carried else None
    named, results = leaves(module, x, state), []
    for backend in ("reference", "sequence"):
        outputs = everything(*module(x, state, backend=backend)[:2])
        assert all(output.device.type == DEVICE for output in outputs)
        results.append((outputs, gradients(outputs, named)))
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


def test_a_cuda_graph_replays_forward_and_backward():
    """As PyTorch's notes on CUDA graphs describe it for a whole network, then with new numbers in place.

    No graph of autograd may outlive its step: its leaves would remember the stream
    they were first used on.
    """
    module, x, state = (
        body(VARIANT, **OPTIONS).to(DEVICE),
        there(normal(BATCH, LENGTH, 14)),
        state_there(4),
    )
    named = leaves(module, x, state)
    weights = normal(BATCH, LENGTH, 14, seed=8).detach().to(DEVICE)

    def step() -> Tensor:
        y = module(x, state, backend="sequence")[0]
        (y * weights).sum().backward()
        return y.detach()

    def forget() -> None:
        for tensor in named.values():
            tensor.grad = None

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forget()
            step()
    torch.cuda.current_stream().wait_stream(side)

    forget()  # so that the gradients of the capture lie in the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    with torch.no_grad():
        for i, tensor in enumerate(named.values()):
            tensor += 0.1 * normal(*tensor.shape, seed=300 + i).detach().to(DEVICE)
    graph.replay()
    replayed = (
        y.clone(),
        {name: tensor.grad.clone() for name, tensor in named.items()},
    )

    forget()
    assert_same(replayed[0], step())
    assert_same(replayed[1], {name: tensor.grad for name, tensor in named.items()})


@pytest.mark.parametrize("name", gpu.NAMES)
def test_the_benchmark_measures_a_step_and_its_graph(name):
    small = Size(d=8, H=2, F=12, L=2, T=19, B=3)
    rows = [gpu.row("small", small, name, graph) for graph in (False, True)]
    assert all(0 < row["seconds"] <= max(row["samples"][1:]) for row in rows)


@pytest.mark.parametrize(
    "path",
    [path for path in chapters() if "fbt.train(" in path.read_text(encoding="utf-8")],
    ids=lambda path: path.stem,
)
def test_a_chapter_that_trains_runs_where_there_is_a_gpu(path):
    run = execute(read(path), path.stem)
    assert run.error is None, run.error
