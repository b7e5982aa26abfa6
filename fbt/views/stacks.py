"""Stack against buffer: what two kinds of stacks keep, and where gradients go."""

from fbt.views.view import View

STEPS = 7  # as in the figure of chapter 4
WIDTH = 32  # numbers of a key, in the model that a reader builds
LONG = 256  # steps of a longer sequence


class StackSteps(View):
    """The keys that `torch.cat` and a buffer keep, step by step and then backward.

    `torch.cat` copies all earlier keys before each step, and backward needs the
    copies: chapter 4's `ListStack`, or `fbt.TorchStack`. A buffer gets one row per
    step, and hands out windows of it, as `fbt.MemoryStack` does. Keys have 32 numbers
    in float32.
    """

    def __init__(self) -> None:
        data = {"steps": STEPS, "width": WIDTH, "long": LONG}
        super().__init__("stacks", data, {"moment": 0}, table())

    def __repr__(self) -> str:
        return f"StackSteps(moment={self._now('moment')})"


def copies(step: int) -> int:
    """Return how many keys `torch.cat` has copied when a step, from 0, has read."""
    return step * (step + 1) // 2


def table() -> str:
    """Return a text with the keys that both keep after each step."""
    lines = ["Keys kept for backward:", "step   torch.cat   buffer"]
    lines += [f"{t:4d}   {copies(t):9d}   {STEPS:6d}" for t in range(STEPS)]
    return "\n".join(lines)
