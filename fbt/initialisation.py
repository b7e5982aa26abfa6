"""Contexts for building a model: weights from a separate generator, or no weights."""

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


class _WithGenerator(TorchFunctionMode):
    """Pass a generator to the functions that draw weights, in this thread."""

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


class _WithoutDrawing(TorchFunctionMode):
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
    """Build a model on the CPU with the same weights as after `torch.manual_seed`.

    Torch's global generator, which all threads share, is neither seeded nor used. The
    caller's default device and inference mode are ignored.

    Args:
        seed: the same seed gives the same weights, bit for bit.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False), torch.device("cpu"), _WithGenerator(generator):
        yield


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build a model on the meta device, where weights have a shape but no values.

    No weights are drawn. Torch would import a compiler for that, which takes seconds.
    """
    with torch.inference_mode(False), torch.device("meta"), _WithoutDrawing():
        yield
