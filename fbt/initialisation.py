"""Initial weights that are drawn from a generator of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RANDOM = (
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    Tensor.normal_,
    Tensor.uniform_,
)


class _Drawing(TorchFunctionMode):
    """Give the functions that initialise weights a generator, in this thread."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in RANDOM and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return function(*args, **kwargs)


class _Skipping(TorchFunctionMode):
    """Skip the functions that draw weights, in this thread."""

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def initialising(seed: int = 0) -> Iterator[None]:
    """A context for building a model on the CPU, with the weights that follow `torch.manual_seed(seed)`.

    Torch's global generator, which all threads share, is neither seeded nor used. A
    default device and an inference mode of the caller play no part.

    Args:
        seed: the same seed gives the same weights, to the last bit.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False), torch.device("cpu"), _Drawing(generator):
        yield


@contextmanager
def shapes_only() -> Iterator[None]:
    """A context for building a model of which only names and shapes are needed.

    Its tensors are on the meta device and take no memory. No weights are drawn: on
    that device, torch would import a compiler for it, which takes seconds.
    """
    with torch.inference_mode(False), torch.device("meta"), _Skipping():
        yield
