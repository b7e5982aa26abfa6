"""What the views share: one script each, as HTML for pages and as a live widget.

A view's script is `common.js` and its own file, its style `common.css` and its own. A
page calls `render` with a model of plain values; in a live notebook with anywidget
installed, the same script is a widget, and Python can read what was chosen.
"""

import html
import json
import reprlib
import sys
from collections.abc import Iterable, Sequence, Sized
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from fbt._checks import check_instance
from fbt._text import one_line, replace_surrogates

HERE = files("fbt.views")


class View:
    """Something to look at and to act on, in a page, in JupyterLab and in Colab.

    Args:
        name: of its script and style, `name.js` and `name.css`.
        data: what it shows, as JSON.
        start: what is chosen at first; a live widget follows its reader.
        text: what is shown where no script runs.
    """

    library = "anywidget"  # what `live` needs

    def __init__(
        self, name: str, data: dict[str, Any], start: dict[str, int], text: str
    ) -> None:
        check_instance("text", text, str)
        self._name, self._start, self._text = name, start, replace_surrogates(text)
        try:
            written = json.dumps(data, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"data must be made of what JSON holds: {one_line(str(error))}"
            ) from error
        self._data: dict[str, Any] = json.loads(replace_surrogates(written))
        self._widget: Any = None

    def _now(self, name: str) -> int:
        """What a live widget shows, or else what is shown first."""
        return int(
            self._start[name] if self._widget is None else getattr(self._widget, name)
        )

    def to_html(self) -> str:
        """The view as HTML that needs nothing else; without scripts it is the text."""
        # Inside a script no "<" may stand: "</script>" would end it, and "<!--" can
        # hide its end.
        state = json.dumps({"data": self._data} | self._start).replace("<", "\\u003c")
        code = script(self._name).replace("export default", "const view =")
        return (
            f"<style>{style(self._name)}</style>"
            f'<div class="fbt-view"><pre>{html.escape(self._text)}</pre></div>'
            f"<script>(() => {{\n{code}\n"
            "const el = document.currentScript.previousElementSibling;\n"
            f"const state = {state};\n"
            "view.render({ el, model: {\n"
            "  get: (name) => state[name],\n"
            "  set: (name, value) => { state[name] = value; },\n"
            "  save_changes: () => {},\n"
            "} });\n})();</script>"
        )

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """HTML for pages and Colab; a live notebook gets a widget as well."""
        bundle: dict[str, Any] = {}
        if is_live() and find_spec(self.library):
            self._widget = self._widget or self.live()
            bundle = bundle_of(self._widget)
        return bundle | {"text/plain": repr(self), "text/html": self.to_html()}

    def live(self) -> Any:
        """The widget that stands for the view in a live front end.

        Raises:
            ImportError: its library is not installed.
        """
        return widget(self._name, self._data, self._start)


def script(name: str) -> str:
    """The JavaScript of a view, a module whose default export has `render({ model, el })`."""
    return "\n".join(
        (HERE / part).read_text(encoding="utf-8")
        for part in ("common.js", f"{name}.js")
    )


def style(name: str) -> str:
    """The style sheet of a view."""
    return "\n".join(
        (HERE / part).read_text(encoding="utf-8")
        for part in ("common.css", f"{name}.css")
    )


def is_live() -> bool:
    """Return whether someone is looking, through a front end that shows widgets.

    A running kernel does not tell: nbclient, and with it nbconvert, papermill and
    Jupyter Book, runs one to make pages, which would fetch the widget's manager from
    the network. Such clients say with each request that nobody can answer `input()`;
    front ends for people let them answer. Colab shows HTML.
    """
    ipython = sys.modules.get("IPython")
    if ipython is None or "google.colab" in sys.modules:
        return False
    shell = ipython.get_ipython()
    if not hasattr(shell, "get_parent"):  # plain Python, or IPython in a terminal
        return False
    # Other messages than requests to run code, such as a widget's, need a front end.
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", True))


def bundle_of(live: Any) -> dict[str, Any]:
    """The formats in which a widget shows itself."""
    found = live._repr_mimebundle_()
    return dict(found[0] if isinstance(found, tuple) else found)


def widget(name: str, data: dict[str, Any], start: dict[str, int]) -> Any:
    """The view as a widget of a live kernel, with a trait for each thing that is chosen."""
    import anywidget
    import traitlets

    traits: dict[str, Any] = {"data": traitlets.Dict().tag(sync=True)}
    traits |= {chosen: traitlets.Int().tag(sync=True) for chosen in start}
    members = {"_esm": script(name), "_css": style(name)} | traits
    # A front end keeps one style sheet for all classes of a name.
    return type(f"Live{name.title()}", (anywidget.AnyWidget,), members)(
        data=data, **start
    )


def texts_of(tokens: Any) -> list[str]:
    """The texts of the steps.

    Raises:
        TypeError: `tokens` is not a sequence.
    """
    if not isinstance(tokens, Iterable) or (
        isinstance(tokens, Tensor) and not tokens.ndim
    ):
        found = type(tokens).__name__
        raise TypeError(f"tokens must be a sequence of texts, got {found}")
    return [str(token) for token in tokens]


def entry(name: str, key: Any) -> str:
    """An entry of an argument as a message names it: weights['first']."""
    return f"{name}[{reprlib.repr(key)}]"


def check_count(name: str, values: Sized) -> int:
    """Return how many values there are; raise a ValueError if there are none."""
    if not values:
        raise ValueError(f"{name} must not be empty")
    return len(values)


def check_shape(
    name: str, value: Any, sizes: Sequence[int | str], why: str = ""
) -> None:
    """Raise unless `value` is a tensor of real numbers of the given sizes, none 0.

    A size given as a text, such as "L", may be any.

    Raises:
        TypeError: `value` is not a tensor of real numbers.
        ValueError: it has another shape.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        found = type(value).__name__ if not isinstance(value, Tensor) else value.dtype
        raise TypeError(f"{name} must be a tensor of real numbers, got {found}")
    fits = len(sizes) == value.ndim and all(
        isinstance(size, str) or size == found
        for size, found in zip(sizes, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        expected = ", ".join(map(str, sizes))
        raise ValueError(f"{name} must be [{expected}]{why}, got {[*value.shape]}")


def check_finite(name: str, numbers: Tensor) -> None:
    """Raise a ValueError that names the first infinite or NaN entry of `numbers`."""
    check_entries(name, numbers, numbers.isfinite(), "finite")


def check_entries(name: str, numbers: Tensor, right: Tensor, what: str) -> None:
    """Raise a ValueError that names the first of `numbers` where `right` is False."""
    if not right.all():
        place = (~right).nonzero()[0].tolist()
        found = numbers[tuple(place)].item()
        raise ValueError(f"{name}{place} must be {what}, got {found:g}")
