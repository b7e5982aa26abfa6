"""Training with "sequence" on CUDA, recorded as graphs and replayed.

The engine launches thousands of small operations, and launching takes most of the
time. A CUDA graph launches them all at once, on the memory with which it was
recorded. So a replay first copies inputs and weights there, which may change from
call to call, and results are copies.

A body has a few recordings, each for the shapes and settings of one kind of call.
They are made at its second call and freed with the body. Two calls before a backward
may share one: the later call overwrites what the earlier one kept, whose backward
then computes it again, without a graph.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fbt._checks import is_traced
from fbt._text import one_line
from fbt.native import is_plain
from fbt.sequence import proof
from fbt.sequence.backward import Backward
from fbt.sequence.forward import Forward, prepare, results
from fbt.sequence.function import refuse_second_derivative
from fbt.sequence.layout import Chunk, Outputs, Sizes, Weights
from fbt.sequence.python_engine import PythonEngine

# Recordings of a body; 0 turns them off. Each keeps the activations of its calls.
LARGEST_COUNT = 2
NAMES = ("x", "keys", "values", *Weights._fields)
# Computes tensors on fixed memory; and a function that computes them there again.
Compute = Callable[[], list[Tensor]]
Record = Callable[[Compute], tuple[list[Tensor], Callable[[], None]]]


def record_on_cuda(compute: Compute) -> tuple[list[Tensor], Callable[[], None]]:
    """Record a computation, after it has run once on a stream of its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those that load data, may use the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = compute()
    return results, graph.replay


def run_forward(sizes: Sizes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the loop; return its outputs, and then the tensors of all chunks."""
    x, keys, values, *w = inputs
    prepared = prepare(PythonEngine, Weights(*w))
    loop = Forward(PythonEngine, sizes, prepared, x, keys, values)
    chunks = loop.run()
    return [*loop.outputs, *(tensor for chunk in chunks for tensor in chunk)]


def run_backward(
    sizes: Sizes,
    inputs: Sequence[Tensor],
    kept: list[Tensor],
    wanted: Sequence[str],
    *grads: Tensor | None,
) -> list[Tensor]:
    """Run the loop in reverse after `run_forward`; return the wanted gradients."""
    first, width = len(Outputs._fields), len(Chunk._fields)
    chunks = [Chunk(*kept[i : i + width]) for i in range(first, len(kept), width)]
    outputs, w = Outputs(*kept[:first]), Weights(*inputs[3:])
    loop = Backward(PythonEngine, sizes, w, outputs, chunks, {*wanted})
    gradients = loop.run(*grads)
    return [gradients[name] for name in wanted]


class Recording:
    """One forward and one backward on fixed memory.

    Args:
        sizes: sizes and options.
        inputs: tensors with the shapes of `NAMES`.
        wanted: the names of those whose gradients are needed.
        record: such as `record_on_cuda`.

    Attributes:
        turn: counts the calls of forward. A backward may use the memory if there was
            no other call since its own.
    """

    def __init__(
        self,
        sizes: Sizes,
        inputs: Sequence[Tensor],
        wanted: Sequence[str],
        record: Record,
    ) -> None:
        self.sizes, self.wanted, self.turn = sizes, wanted, 0
        fixed = [
            t.detach().clone(memory_format=torch.contiguous_format) for t in inputs
        ]
        with torch.no_grad():
            self.kept, self.replay = record(lambda: run_forward(sizes, fixed))
            self.inputs, self.d_top = fixed, torch.zeros_like(self.kept[0][-1])
            self.gradients, self.replay_backward = record(
                lambda: run_backward(
                    *(sizes, fixed, self.kept, wanted, self.d_top, None, None)
                )
            )

    def forward(self, inputs: Sequence[Tensor]) -> Outputs:
        """Run forward on new inputs; the result is valid for this turn."""
        self.turn += 1
        for fixed, given in zip(self.inputs, inputs, strict=True):
            fixed.copy_(given)
        self.replay()
        return Outputs(*self.kept[: len(Outputs._fields)])

    def backward(
        self, turn: int, inputs: Sequence[Tensor], *grads: Tensor | None
    ) -> list[Tensor]:
        """Return the wanted gradients of the call of a turn, which had these inputs.

        Gradients of the carried state, which few calls have, are not recorded.
        """
        d_top, *d_state = grads
        if turn != self.turn:
            kept = run_forward(self.sizes, inputs)
            return run_backward(self.sizes, inputs, kept, self.wanted, *grads)
        if d_top is None or any(grad is not None for grad in d_state):
            return run_backward(self.sizes, inputs, self.kept, self.wanted, *grads)
        self.d_top.copy_(d_top)
        self.replay_backward()
        # The next replay overwrites them, and autograd may keep them.
        return [gradient.clone() for gradient in self.gradients]


class Replayed(torch.autograd.Function):
    """`WholeSequence` with the engine "sequence", by a recording."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *inputs: Tensor) -> Any:
        """Replay forward; arguments and results are those of `WholeSequence`."""
        outputs = recording.forward(inputs)
        ctx.recording, ctx.turn = recording, recording.turn
        ctx.set_materialize_grads(False)
        # The caller may write to x and to the state, but not to folded weights.
        ctx.save_for_backward(*(t.clone() for t in inputs[:3]), *inputs[3:])
        return results(outputs, recording.sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Replay backward; a second derivative raises a RuntimeError."""
        refuse_second_derivative()
        recording = ctx.recording
        gradients = recording.backward(ctx.turn, ctx.saved_tensors, *grads)
        found = dict(zip(recording.wanted, gradients, strict=True))
        return (None, *(found.get(name) for name in NAMES))


class Recordings:
    """The recordings of a body, the least recently used first."""

    def __init__(self) -> None:
        self.by_call: OrderedDict[Any, Recording | None] = OrderedDict()

    def find(self, sizes: Sizes, inputs: Sequence[Tensor]) -> Recording | None:
        """Return the recording of a call; None at the first one of its kind.

        None also where recording is not possible or was refused.
        """
        x = inputs[0]
        if not may_record(x, sizes):
            return None
        wanted = tuple(
            name for name, t in zip(NAMES, inputs, strict=True) if t.requires_grad
        )
        key = (
            *(sizes, wanted, x.dtype, x.device, *(t.shape for t in inputs)),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        )
        try:
            if key not in self.by_call:
                self.by_call[key] = None
            elif self.by_call[key] is None and works_on(x.device):
                new = Recording(sizes, inputs, wanted, record_on_cuda)
                self.by_call[key] = new
        except RuntimeError as error:  # such as too little memory
            refuse(x.device, one_line(str(error)))
            self.by_call.clear()
            return None
        self.by_call.move_to_end(key)
        while len(self.by_call) > LARGEST_COUNT:
            self.by_call.popitem(last=False)
        return self.by_call[key]


def may_record(x: Tensor, sizes: Sizes) -> bool:
    """Return whether a call for inputs x can be recorded.

    Not with dropout, whose masks differ from call to call, nor with tensors among the
    sizes, which are not copied; and only on the default stream of the current device:
    on another, the caller may be recording a graph.
    """
    return (
        LARGEST_COUNT > 0
        and x.is_cuda
        and is_plain(x)
        and not sizes.dropout
        and not any(isinstance(value, Tensor) for value in sizes)
        and not is_traced()
        and _works.get(x.device, True)
        and x.device.index == torch.cuda.current_device()
        and torch.cuda.current_stream(x.device) == torch.cuda.default_stream(x.device)
    )


_works: dict[torch.device, bool] = {}


def works_on(device: torch.device) -> bool:
    """Return whether a small recording gives the numbers of the loop on a device."""
    if device not in _works:
        if problem := difference(device, record_on_cuda):
            refuse(device, problem)
        _works.setdefault(device, True)
    return _works[device]


def best_time(d_model: int, device: torch.device) -> float:
    """Return what `proof.best_time` does, of "sequence" as it trains on a device."""
    if not works_on(device):
        return proof.best_time(PythonEngine, d_model, device)
    with proof.unrecorded(device):
        given = proof.timed_inputs(d_model, device)
        inputs = [given.x, given.keys, given.values, *given.weights]
        recording = Recording(given.sizes, inputs, NAMES, record_on_cuda)

        def run() -> Tensor:
            recording.forward(inputs)
            grads = (given.d_top, None, None)
            return recording.backward(recording.turn, inputs, *grads)[0]

        return proof.fastest(run)


def refuse(device: torch.device, reason: str) -> None:
    """Record nothing more on a device, and warn."""
    _works[device] = False
    warnings.warn(
        f'backend="sequence" runs without CUDA graphs on {device}, several times as '
        f"slowly: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def difference(device: torch.device, record: Record) -> str:
    """Return where a small recording differs from the loop; "" if nowhere."""
    example = proof.Example(2, 4, 2, 9, 3, 11, 2, 5)
    with proof.unrecorded(device):
        given = proof.Inputs(example, device)
        inputs = [given.x, given.keys, given.values, *given.weights]
        recording = Recording(given.sizes, inputs, NAMES, record)
        for factor in (1.0, 0.5):  # other numbers in the same memory
            inputs, grads = [factor * t for t in inputs], (given.d_top, None, None)
            found = {"the output": recording.forward(inputs).x}
            kept = run_forward(given.sizes, inputs)
            expected = {"the output": kept[0]}
            ours = recording.backward(recording.turn, inputs, *grads)
            loops = run_backward(given.sizes, inputs, kept, NAMES, *grads)
            names = [f"the gradient of {name}" for name in NAMES]
            found |= dict(zip(names, ours, strict=True))
            expected |= dict(zip(names, loops, strict=True))
            if problem := proof.first_error(found, expected):
                return problem
    return ""
