"""Results to choose with sliders and lists: computed beforehand for a page, anew where a kernel is live."""

import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fbt._text import replace_surrogates
from fbt.views.view import View, check_count

Value = str | int | float
MOST = 64  # results that a page carries


class Choices(View):
    """A function of a few choices and what it returns, with a control for each choice.

    Args:
        function: called by the names of the choices. It returns a text, or a
            matplotlib figure together with what that shows in words.
        choices: what can be chosen, by name: numbers make a slider, texts a list. The
            middle one comes first. All combinations are computed, at most 64.

    In a live notebook ipywidgets stand in their place and call the function anew: a
    number may then be any in the range, a text any at all.

    Raises:
        TypeError: `function` cannot be called or returns something else, or a choice
            is not a list of texts and numbers.
        ValueError: there is nothing to choose or too much, or a number is not finite.
    """

    library = "ipywidgets"

    def __init__(
        self, function: Callable[..., Any], **choices: Sequence[Value]
    ) -> None:
        if not callable(function):
            raise TypeError(
                f"function must be callable, got {type(function).__name__}"
            )
        if "data" in choices:
            raise ValueError("a choice must have a name other than 'data'")
        check_count("choices", choices)
        self.function = function
        self.choices = {
            name: checked(name, values) for name, values in choices.items()
        }
        count = math.prod(map(len, self.choices.values()))
        if count > MOST:
            raise ValueError(
                f"choices must have at most {MOST} combinations, got {count}: {self!r}"
            )
        combinations = list(itertools.product(*self.choices.values()))
        results = [self.result(values) for values in combinations]
        controls = [
            {"name": name, "values": values, "slider": are_numbers(values)}
            for name, values in self.choices.items()
        ]
        start = {name: len(values) // 2 for name, values in self.choices.items()}
        first = tuple(values[start[name]] for name, values in self.choices.items())
        text = results[combinations.index(first)]["text"]
        super().__init__(
            "choices", {"controls": controls, "results": results}, start, text
        )

    def result(self, values: Sequence[Value]) -> dict[str, str]:
        """The text for one value of each choice, and the figure where there is one.

        Raises:
            TypeError: the function returned something else.
        """
        chosen = dict(zip(self.choices, values, strict=True))
        found = self.function(**chosen)
        try:
            return shown(found)
        except TypeError as error:
            where = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            raise TypeError(f"{error} for {where}") from error

    def __repr__(self) -> str:
        return f"Choices({', '.join(f'{name}: {len(values)}' for name, values in self.choices.items())})"

    def live(self) -> Any:
        """The controls as ipywidgets, above what the function returns for them.

        Raises:
            ImportError: ipywidgets are not installed.
        """
        import ipywidgets

        controls = {
            name: control(name, values, values[self._start[name]])
            for name, values in self.choices.items()
        }
        output = ipywidgets.HTML()

        def compute(change: Any = None) -> None:
            try:
                found = self.result([part.value for part in controls.values()])
            except ValueError as error:  # what a reader typed, as a rule
                found = {"text": f"ValueError: {error}"}
            output.value = (
                f"{found.get('figure', '')}<pre>{html.escape(found['text'])}</pre>"
            )

        for part in controls.values():
            part.observe(compute, "value")
        compute()
        return ipywidgets.VBox([*controls.values(), output])


def checked(name: str, values: Any) -> list[Value]:
    """The values of a choice.

    Raises:
        TypeError: `values` is not a sequence, or holds other than texts and numbers.
        ValueError: there are none, or a number is not finite.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} must be a sequence of values, got {type(values).__name__}"
        )
    values = list(values)
    check_count(name, values)
    for place, value in enumerate(values):
        if not isinstance(value, str | int | float):
            found = type(value).__name__
            raise TypeError(
                f"{name}[{place}] must be a text or a number, got {found}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}[{place}] must be finite, got {value}")
    return values


def are_numbers(values: Sequence[Value]) -> bool:
    """Whether all values are numbers."""
    return not any(isinstance(value, str) for value in values)


def control(name: str, values: list[Any], first: Any) -> Any:
    """An ipywidget for a choice: a slider over the range of the numbers, a field that proposes the texts."""
    import ipywidgets

    name = name.replace("_", " ")
    if not are_numbers(values):
        return ipywidgets.Combobox(
            description=name, value=first, options=values, continuous_update=False
        )
    low, high = min(values), max(values)
    given = {
        "description": name,
        "value": first,
        "min": low,
        "max": high,
        "continuous_update": False,
    }
    if all(isinstance(value, int) for value in values):
        return ipywidgets.IntSlider(**given)
    return ipywidgets.FloatSlider(**given, step=(high - low) / 100)


def shown(found: Any) -> dict[str, str]:
    """What a page is given of a result: its text, and the figure where there is one.

    Raises:
        TypeError: it is neither a text nor a figure and a text.
    """
    if isinstance(found, str):
        return {"text": replace_surrogates(found)}
    pair = isinstance(found, tuple | list) and len(found) == 2
    if not pair or not hasattr(found[0], "savefig") or not isinstance(found[1], str):
        kind = type(found).__name__
        raise TypeError(
            f"function must return a text, or a figure and a text, got {kind}"
        )
    from fbt.views.figures import INK, svg_of

    figure, text = found
    drawing = svg_of(figure).decode().replace(INK, "currentColor")
    return {
        "text": replace_surrogates(text),
        "figure": drawing[drawing.index("<svg") :],
    }
