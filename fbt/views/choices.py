"""Results to choose with sliders and lists: computed beforehand for a page, anew where a kernel is live."""

import html
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from fbt._text import well_formed
from fbt.views.view import View

Value = str | int | float
MOST = 64  # results that a page carries


class Choices(View):
    """A function of a few choices and what it returns, with a control for each choice.

    Args:
        function: called by the names of the choices. It returns a text, or a matplotlib figure together with
            what that shows in words.
        choices: what can be chosen, by name: numbers make a slider, texts a list. The middle one comes
            first. All combinations are computed, at most 64.

    In a live notebook ipywidgets stand in their place and call the function anew: a number may then be any in
    the range, a text any at all.

    Raises:
        ValueError: there is nothing to choose, or too much.
    """

    library = "ipywidgets"

    def __init__(self, function: Callable[..., Any], **choices: Sequence[Value]) -> None:
        self.function, self.choices = function, {name: list(values) for name, values in choices.items()}
        combinations = list(itertools.product(*self.choices.values()))
        if "data" in choices:
            raise ValueError("a choice must have a name other than 'data'")
        if not choices or not 1 <= len(combinations) <= MOST:
            raise ValueError(f"choices must have 1 to {MOST} combinations, got {len(combinations)}")
        results = [shown(self.call(values)) for values in combinations]
        controls = [
            {"name": name, "values": values, "slider": are_numbers(values)}
            for name, values in self.choices.items()
        ]
        start = {name: len(values) // 2 for name, values in self.choices.items()}
        first = tuple(values[start[name]] for name, values in self.choices.items())
        text = results[combinations.index(first)]["text"]
        super().__init__("choices", {"controls": controls, "results": results}, start, text)

    def call(self, values: Sequence[Value]) -> Any:
        """What the function returns for one value of each choice."""
        return self.function(**dict(zip(self.choices, values, strict=True)))

    def __repr__(self) -> str:
        return f"Choices({', '.join(f'{name}: {len(values)}' for name, values in self.choices.items())})"

    def live(self) -> Any:
        """The controls as ipywidgets, above what the function returns for them.

        Raises:
            ImportError: ipywidgets are not installed.
        """
        import ipywidgets

        controls = {
            name: control(name, values, values[self._start[name]]) for name, values in self.choices.items()
        }
        output = ipywidgets.HTML()

        def compute(change: Any = None) -> None:
            try:
                found = shown(self.call([part.value for part in controls.values()]))
            except ValueError as error:  # what a reader typed, as a rule
                found = {"text": f"ValueError: {error}"}
            output.value = f"{found.get('figure', '')}<pre>{html.escape(found['text'])}</pre>"

        for part in controls.values():
            part.observe(compute, "value")
        compute()
        return ipywidgets.VBox([*controls.values(), output])


def are_numbers(values: Sequence[Value]) -> bool:
    """Whether all values are numbers."""
    return not any(isinstance(value, str) for value in values)


def control(name: str, values: list[Any], first: Any) -> Any:
    """An ipywidget for a choice: a slider over the range of the numbers, a field that proposes the texts."""
    import ipywidgets

    name = name.replace("_", " ")
    if not are_numbers(values):
        return ipywidgets.Combobox(description=name, value=first, options=values, continuous_update=False)
    low, high = min(values), max(values)
    given = {"description": name, "value": first, "min": low, "max": high, "continuous_update": False}
    if all(isinstance(value, int) for value in values):
        return ipywidgets.IntSlider(**given)
    return ipywidgets.FloatSlider(**given, step=(high - low) / 100)


def shown(found: Any) -> dict[str, str]:
    """What a page is given of a result: its text, and the figure where there is one."""
    if isinstance(found, str):
        return {"text": well_formed(found)}
    from fbt.views.figures import INK, svg_of

    figure, text = found
    drawing = svg_of(figure).decode().replace(INK, "currentColor")
    return {"text": well_formed(text), "figure": drawing[drawing.index("<svg") :]}
