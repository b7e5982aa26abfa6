"""The base of the interactive views: one script, for static pages and live widgets.

The script of a view is `common.js` plus its own file, its style sheet `common.css`
plus its own. A page calls `render` with a model of plain values. In a live notebook
with anywidget installed, the same script runs as a widget, and Python can read the
reader's selection.
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
    """An interactive view for web pages, JupyterLab and Colab.

    Args:
        name: name of its script and style sheet, `name.js` and `name.css`.
        data: the content, as JSON values.
        start: the initial selection; a live widget follows its reader.
        text: shown instead of the view if no script runs.

    Raises:
        TypeError: if `text` is not a str, or `data` is not made of JSON values.
    """

    library = "anywidget"  # imported by `live`
    # Files that a worker runs, in this order; the script finds their joined text as
    # WORKER. They are plain scripts, without imports and exports.
    worker: tuple[str, ...] = ()

    def __init__(
        self, name: str, data: dict[str, Any], start: dict[str, int], text: str
    ) -> None:
        check_instance("text", text, str)
        self._name, self._start, self._text = name, start, replace_surrogates(text)
        try:
            encoded = json.dumps(data, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"data must be made of JSON values: {one_line(str(error))}"
            ) from error
        self._data: dict[str, Any] = json.loads(replace_surrogates(encoded))
        self._widget: Any = None

    def _now(self, name: str) -> int:
        """Return the current selection, which is the initial one without a widget."""
        return int(
            self._start[name] if self._widget is None else getattr(self._widget, name)
        )

    def to_html(self) -> str:
        """Return the view as self-contained HTML; the text is its fallback."""
        # Escape "<": "</script>" would end the script, and "<!--" could hide its end.
        state = json.dumps({"data": self._data} | self._start, ensure_ascii=False)
        state = state.replace("<", "\\u003c")
        code = script(self._name, self.worker).replace(
            "export default", "const view ="
        )
        return (
            f"<style>{style(self._name)}</style>"
            f'<div class="fbt-view">{self._still()}</div>'
            f"<script>(() => {{\n{code}\n"
            "const el = document.currentScript.previousElementSibling;\n"
            f"const state = {state};\n"
            "view.render({ el, model: {\n"
            "  get: (name) => state[name],\n"
            "  set: (name, value) => { state[name] = value; },\n"
            "  save_changes: () => {},\n"
            "} });\n})();</script>"
        )

    def _still(self) -> str:
        """Return the HTML that is shown if no script runs."""
        return f"<pre>{html.escape(self._text)}</pre>"

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> dict[str, Any]:
        """Return HTML for pages and Colab and, in a live notebook, a widget."""
        bundle: dict[str, Any] = {}
        if is_live() and find_spec(self.library):
            self._widget = self._widget or self.live()
            bundle = mime_bundle(self._widget)
        return bundle | {"text/plain": repr(self), "text/html": self.to_html()}

    def live(self) -> Any:
        """Return the view as a widget for a live front end.

        Raises:
            ImportError: if the widget's library is not installed.
        """
        return widget(self._name, self._data, self._start, self.worker)


def script(name: str, worker: Sequence[str] = ()) -> str:
    """Return a view's JavaScript, a module that exports `render({ model, el })`.

    Args:
        name: of the view.
        worker: see `View.worker`.
    """
    code = joined("common.js", f"{name}.js")
    if not worker:
        return code
    # Escape "<": "</script>" would end the script of a page.
    text = json.dumps(joined(*worker)).replace("<", "\\u003c")
    return f"const WORKER = {text};\n{code}"


def style(name: str) -> str:
    """Return the style sheet of a view."""
    return joined("common.css", f"{name}.css")


def joined(*names: str) -> str:
    """Return the texts of files of this folder, one after the other."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


def is_live() -> bool:
    """Return whether a person is using a front end that shows widgets.

    A running kernel does not prove it: nbclient (and so nbconvert, papermill and
    Jupyter Book) also runs one, to make pages on which a widget would load its
    manager from the network. Such clients send `allow_stdin=False` with each request,
    because nobody can answer `input()`. Colab shows the HTML.
    """
    ipython = sys.modules.get("IPython")
    if ipython is None or "google.colab" in sys.modules:
        return False
    shell = ipython.get_ipython()
    if not hasattr(shell, "get_parent"):  # plain Python, or IPython in a terminal
        return False
    # Other messages, such as those of widgets, come only from a live front end.
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", True))


def mime_bundle(live: Any) -> dict[str, Any]:
    """Return the MIME bundle of a widget, without its metadata."""
    bundle = live._repr_mimebundle_()
    return dict(bundle[0] if isinstance(bundle, tuple) else bundle)


def widget(
    name: str, data: dict[str, Any], start: dict[str, int], worker: Sequence[str] = ()
) -> Any:
    """Return a view as an anywidget, with a trait for each part of the selection."""
    import anywidget
    import traitlets

    traits: dict[str, Any] = {"data": traitlets.Dict().tag(sync=True)}
    traits |= {chosen: traitlets.Int().tag(sync=True) for chosen in start}
    members = {"_esm": script(name, worker), "_css": style(name)} | traits
    # A front end keeps one style sheet per class name, so each view needs its own.
    return type(f"Live{name.title()}", (anywidget.AnyWidget,), members)(
        data=data, **start
    )


def texts_of(tokens: Any) -> list[str]:
    """Return the texts of the steps.

    Raises:
        TypeError: if `tokens` is not a sequence.
    """
    is_scalar = isinstance(tokens, Tensor) and not tokens.ndim
    if not isinstance(tokens, Iterable) or is_scalar:
        kind = type(tokens).__name__
        raise TypeError(f"tokens must be a sequence of texts, got {kind}")
    return [str(token) for token in tokens]


def entry_name(name: str, key: Any) -> str:
    """Return the name of an entry for messages, such as weights['first']."""
    return f"{name}[{reprlib.repr(key)}]"


def check_count(name: str, values: Sized) -> int:
    """Return the number of values; raise a ValueError if there are none."""
    if not values:
        raise ValueError(f"{name} must not be empty")
    return len(values)


def check_shape(
    name: str, value: Any, sizes: Sequence[int | str], why: str = ""
) -> None:
    """Raise unless `value` is a non-empty tensor of real numbers of the given shape.

    Args:
        name: name of the value, for messages.
        value: the value to check.
        sizes: the allowed sizes; a text such as "L" allows any size.
        why: a reason for the shape, appended to it in the message.

    Raises:
        TypeError: if `value` is not a tensor of real numbers.
        ValueError: if `value` has another shape.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of real numbers, got {kind}")
    fits = len(sizes) == value.ndim and all(
        isinstance(size, str) or size == actual
        for size, actual in zip(sizes, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        expected = ", ".join(map(str, sizes))
        raise ValueError(f"{name} must be [{expected}]{why}, got {[*value.shape]}")


def check_finite(name: str, values: Tensor) -> None:
    """Raise a ValueError for the first infinite or NaN entry of `values`."""
    check_entries(name, values, values.isfinite(), "finite")


def check_entries(name: str, values: Tensor, valid: Tensor, allowed: str) -> None:
    """Raise a ValueError for the first entry of `values` that is not `valid`."""
    if not valid.all():
        index = (~valid).nonzero()[0].tolist()
        value = values[tuple(index)].item()
        raise ValueError(f"{name}{index} must be {allowed}, got {value:g}")
