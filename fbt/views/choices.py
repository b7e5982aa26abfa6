"""Results of a function, selected with sliders and lists.

Pages contain all results; a live kernel computes them on request.
"""

import html
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fbt._checks import check_instance, shorten
from fbt._text import replace_surrogates
from fbt.views.view import View, check_count

Value = str | int | float
MAX_RESULTS = 64  # in a page


class Choices(View):
    """The results of a function, with a control for each of its arguments.

    Args:
        function: called with one value of each choice as keyword arguments. It
            returns a text, or a matplotlib figure and a text that describes it.
        start: the value that is selected first, for some of the arguments; the
            middle one for the others.
        choices: the values of each argument. Numbers get a slider, texts a list. The
            function is called for all combinations, at most 64.

    In a live notebook, ipywidgets replace the controls and call the function again. A
    slider then allows all numbers in its range, a list any text.

    Raises:
        TypeError: if `function` is not callable or returns something else, or a
            choice is not a sequence of texts and numbers.
        ValueError: if there are no choices, a choice is empty, a number is not
            finite, there are more than 64 combinations, or `start` has a name or a
            value that is not among the choices.
    """

    library = "ipywidgets"

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        start: Mapping[str, Value] | None = None,
        **choices: Sequence[Value],
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
            name: check_values(name, values) for name, values in choices.items()
        }
        count = math.prod(map(len, self.choices.values()))
        if count > MAX_RESULTS:
            raise ValueError(
                f"choices must have at most {MAX_RESULTS} combinations, "
                f"got {count}: {self!r}"
            )
        combinations = list(itertools.product(*self.choices.values()))
        results = [self.result(values) for values in combinations]
        controls = [
            {"name": name, "values": values, "slider": are_numbers(values)}
            for name, values in self.choices.items()
        ]
        selected = {name: len(values) // 2 for name, values in self.choices.items()}
        selected |= self._indices({} if start is None else start)
        first = tuple(values[selected[name]] for name, values in self.choices.items())
        text = results[combinations.index(first)]["text"]
        super().__init__(
            "choices", {"controls": controls, "results": results}, selected, text
        )

    def _indices(self, start: Mapping[str, Value]) -> dict[str, int]:
        """Return the index of each start value among the values of its choice."""
        check_instance("start", start, Mapping)
        for name, value in start.items():
            if value not in self.choices.get(name, ()):
                raise ValueError(
                    f"start must select among {self!r}, got {name}={shorten(value)}"
                )
        return {
            name: self.choices[name].index(value) for name, value in start.items()
        }

    def result(self, values: Sequence[Value]) -> dict[str, str]:
        """Call the function, and return its text and, if any, its figure as SVG.

        Raises:
            TypeError: if the function returned something else.
        """
        chosen = dict(zip(self.choices, values, strict=True))
        result = self.function(**chosen)
        try:
            return to_json(result)
        except TypeError as error:
            where = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
            raise TypeError(f"{error} for {where}") from error

    def __repr__(self) -> str:
        counts = [f"{name}: {len(values)}" for name, values in self.choices.items()]
        return f"Choices({', '.join(counts)})"

    def live(self) -> Any:
        """Return the controls as ipywidgets, with the function's result below them.

        Raises:
            ImportError: if ipywidgets is not installed.
        """
        import ipywidgets

        controls = {
            name: control(name, values, values[self._start[name]])
            for name, values in self.choices.items()
        }
        output = ipywidgets.HTML()

        def compute(change: Any = None) -> None:
            try:
                result = self.result([widget.value for widget in controls.values()])
            except ValueError as error:  # usually about a text the reader typed
                result = {"text": f"ValueError: {error}"}
            text = html.escape(result["text"])
            output.value = f"{result.get('figure', '')}<pre>{text}</pre>"

        for widget in controls.values():
            widget.observe(compute, "value")
        compute()
        return ipywidgets.VBox([*controls.values(), output])


def check_values(name: str, values: Any) -> list[Value]:
    """Return the values of a choice as a list.

    Raises:
        TypeError: if `values` is not a sequence of texts and numbers.
        ValueError: if `values` is empty, or a number is not finite.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(
            f"{name} must be a sequence of values, got {type(values).__name__}"
        )
    values = list(values)
    check_count(name, values)
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise TypeError(f"{name}[{i}] must be a text or a number, got {kind}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}[{i}] must be finite, got {value}")
    return values


def are_numbers(values: Sequence[Value]) -> bool:
    """Return whether all values are numbers."""
    return not any(isinstance(value, str) for value in values)


def control(name: str, values: list[Any], first: Any) -> Any:
    """Return an ipywidget: a slider for numbers, a field with options for texts."""
    import ipywidgets

    options = {
        "description": name.replace("_", " "),
        "style": {"description_width": "initial"},  # others are cut
        "value": first,
        "continuous_update": False,
    }
    if not are_numbers(values):
        return ipywidgets.Combobox(**options, options=values)
    options |= {"min": min(values), "max": max(values)}
    if all(isinstance(value, int) for value in values):
        return ipywidgets.IntSlider(**options)
    digits = max(len(f"{value:g}".partition(".")[2]) for value in values)
    step, form = 10.0**-digits, f".{digits}f"
    return ipywidgets.FloatSlider(**options, step=step, readout_format=form)


def to_json(result: Any) -> dict[str, str]:
    """Return the text of a result and, if there is one, its figure as SVG.

    Raises:
        TypeError: if `result` is neither a text nor a figure and a text.
    """
    if isinstance(result, str):
        return {"text": replace_surrogates(result)}
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    if (
        not is_pair
        or not hasattr(result[0], "savefig")
        or not isinstance(result[1], str)
    ):
        kind = type(result).__name__
        raise TypeError(
            f"function must return a text, or a figure and a text, got {kind}"
        )
    from fbt.views.figures import INK, svg_of

    figure, text = result
    drawing = svg_of(figure).decode().replace(INK, "currentColor")
    return {
        "text": replace_surrogates(text),
        "figure": drawing[drawing.index("<svg") :],
    }
