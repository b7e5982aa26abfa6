"""The missing arrows: what the vectors of both kinds of model build on."""

from fbt._checks import check_bool, check_choice
from fbt.views.view import View

KINDS = ("parallel", "feedback")
STEPS = 6  # columns that fit in a phone
LAYERS = 4


class MissingArrows(View):
    """The vectors of a small model as a grid, a row per layer and a column per step.

    A reader chooses a vector to see the vectors it builds on and the longest chain of
    layers that lead to it, or plays the rounds in which all vectors of a known text
    can be computed, in a parallel and in a feedback model.

    Args:
        kind: the kind of model shown first, "parallel" or "feedback".
        played: whether to show the rounds first, instead of a vector.

    Raises:
        TypeError: if `played` is not a bool.
        ValueError: if `kind` is another value.
    """

    def __init__(self, kind: str = "parallel", *, played: bool = False) -> None:
        check_choice("kind", kind, KINDS)
        check_bool("played", played)
        start = {
            "kind": KINDS.index(kind),
            "node": STEPS + STEPS - 1,  # layer 1 of the last step
            "round": 0 if played else -1,
        }
        text = "\n\n".join(rounds(name) for name in KINDS)
        super().__init__("arrows", {"steps": STEPS, "layers": LAYERS}, start, text)

    def __repr__(self) -> str:
        return f"MissingArrows({KINDS[self._now('kind')]!r})"


def rounds(kind: str) -> str:
    """Return a text with the round in which each vector can be computed.

    It is the length of the longest chain of layers to the vector. A parallel model
    computes layer l of all steps in round l. A feedback model computes layer l of
    step t, counted from 0, in round t L + l: layer 1 reads the top of step t - 1.
    """
    lines = [f"Rounds of a {kind} model:"]
    for layer in range(LAYERS, -1, -1):
        name = f"layer {layer}" if layer else "embedding"
        after = LAYERS if kind == "feedback" and layer else 0
        numbers = (f"{after * step + layer:3d}" for step in range(STEPS))
        lines.append(f"{name:9s} {' '.join(numbers)}")
    steps = (f"{step:3d}" for step in range(STEPS))
    return "\n".join([*lines, f"{'step':9s} {' '.join(steps)}"])
