"""Tests on a CUDA device: two backends, CUDA graphs and training chapters."""

import gpu
import pytest
import torch
from chapters import chapters, read
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
from fbt import engines
from fbt.sequence import graphs, proof
from fbt.sequence.python_engine import PythonEngine
from fbt.sequence.triton_engine import TritonEngine

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

VARIANT, DEVICE = "shared-kv", "cuda"
OPTIONS = {"span": 5, "dropout": 0.0}
LENGTH = 19  # longer than the span and than a chunk


def on_device(tensor: Tensor) -> Tensor:
    """Return a copy on the device, as a leaf."""
    return tensor.detach().to(DEVICE).requires_grad_()


def state_on_device(length: int) -> fbt.State:
    state = some_state(config(VARIANT, **OPTIONS), length)
    return fbt.State(
        *(tuple(map(on_device, kind)) for kind in (state.keys, state.values))
    )


@pytest.mark.parametrize("past", [0, 1, 4, 5])
def test_sequence_backend_equals_reference_on_cuda(past):
    module, x = (
        body(VARIANT, **OPTIONS).to(DEVICE),
        on_device(normal(BATCH, LENGTH, 14)),
    )
    state = state_on_device(past) if past else None
    named, results = leaves(module, x, state), []
    for backend in ("reference", "sequence"):
        outputs = everything(*module(x, state, backend=backend)[:2])
        assert all(output.device.type == DEVICE for output in outputs)
        results.append((outputs, gradients(outputs, named)))
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


def test_triton_kernels_pass_their_proof_on_this_card():
    device = torch.device(DEVICE, torch.cuda.current_device())
    assert proof.difference(TritonEngine, PythonEngine, device) == ""


@pytest.mark.parametrize("past", [0, 4])
def test_sequence_trains_as_a_graph_by_itself(past):
    """Recorded at the second call; weights and inputs change from call to call."""
    device = torch.device(DEVICE, torch.cuda.current_device())
    assert graphs.difference(device, graphs.record_on_cuda) == ""
    module = body(VARIANT, **OPTIONS).to(DEVICE)
    for seed in range(4):
        x = on_device(normal(BATCH, LENGTH, 14, seed=seed))
        state = state_on_device(past) if past else None
        named, results = leaves(module, x, state), []
        for backend in ("reference", "sequence"):
            outputs = everything(*module(x, state, backend=backend)[:2])
            tops = gradients(outputs[:1], named, retain=True)
            results.append((outputs, tops, gradients(outputs, named)))
        for plain, ours in zip(*results, strict=True):
            assert_same(ours, plain)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    (recording,) = engines._recordings[module].by_call.values()
    assert recording is not None and recording.turn == 3


def test_cuda_graph_replays_forward_and_backward():
    """Capture a step as in PyTorch's notes on CUDA graphs, then replay it.

    The replay uses new values in the same memory.

    No autograd graph may outlive its step, because its leaves would remember the
    stream on which they were first used.
    """
    module, x, state = (
        body(VARIANT, **OPTIONS).to(DEVICE),
        on_device(normal(BATCH, LENGTH, 14)),
        state_on_device(4),
    )
    named = leaves(module, x, state)
    weights = normal(BATCH, LENGTH, 14, seed=8).detach().to(DEVICE)

    def step() -> Tensor:
        y = module(x, state, backend="sequence")[0]
        (y * weights).sum().backward()
        return y.detach()

    def clear_gradients() -> None:
        for tensor in named.values():
            tensor.grad = None

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            clear_gradients()
            step()
    torch.cuda.current_stream().wait_stream(side)

    clear_gradients()  # so that the capture allocates them in the graph's memory
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

    clear_gradients()
    assert_same(replayed[0], step())
    assert_same(replayed[1], {name: tensor.grad for name, tensor in named.items()})


@pytest.mark.filterwarnings("ignore:TensorFloat32")  # the compiler's advice
def test_gpu_benchmark_measures_every_job(monkeypatch):
    """Compiled by the compiler, captured as a graph, and with the kernels."""
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    for job in gpu.jobs(gpu.DRY):
        row = gpu.measure(job, DEVICE)
        if job.name in gpu.OTHERS and "is not installed" in row.get("not_run", ""):
            continue
        assert row["seconds"] > 0 and row["memory_mb"] > 0, row


@pytest.mark.parametrize(
    "path",
    [path for path in chapters() if "fbt.train(" in path.read_text(encoding="utf-8")],
    ids=lambda path: path.stem,
)
def test_training_chapter_runs_on_gpu(path):
    run = execute(read(path), path.stem)
    assert run.error is None, run.error
