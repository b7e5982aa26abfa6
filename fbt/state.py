"""What one block of text leaves for the next: the cached keys and values of at most `span` steps."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)  # tensors have no == that is true or false
class State:
    """Cached keys and values, oldest step first, never written in place: continuations may share one.

    Attributes:
        keys, values: one [B, H, J, D] tensor per cache, 1 <= J <= span. A parallel or feedback model has a
            cache per layer, a shared-KV model has one.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def detach(self) -> "State":
        """The same numbers, cut from the graph: gradients stop at the border of the block."""
        return self.map(Tensor.detach)

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """What a function makes of each cache [B, H, J, D]."""
        return State(tuple(map(function, self.keys)), tuple(map(function, self.values)))

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.keys[0].shape[0]

    @property
    def length(self) -> int:
        """J, the number of steps the caches hold."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all cached keys and values."""
        return sum(t.numel() * t.element_size() for t in self.keys + self.values)
