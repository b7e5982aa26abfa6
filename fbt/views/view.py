"""What the views share: a script each, as HTML that needs no kernel, and as a widget where one is live.

A view's script is `common.js` and its own file, its style `common.css` and its own. A page calls `render`
with a model of plain values; where a kernel is live and anywidget installed, the same script is a widget, and
Python can read what its reader has chosen.
"""

import html
import json
import sys
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from fbt._checks import check_instance
from fbt._text import in_a_line, well_formed

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

    def __init__(self, name: str, data: dict[str, Any], start: dict[str, int], text: str) -> None:
        check_instance("text", text, str)
        self._name, self._start, self._text = name, start, well_formed(text)
        try:
            written = json.dumps(data, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"data must be made of what JSON holds: {in_a_line(str(error))}") from error
        self._data: dict[str, Any] = json.loads(well_formed(written))
        self._widget: Any = None

    def _now(self, name: str) -> int:
        """What a live widget shows, or else what is shown first."""
        return int(self._start[name] if self._widget is None else getattr(self._widget, name))

    def to_html(self) -> str:
        """The view as HTML that needs nothing else; without scripts it is the text."""
        # Inside a script no "<" may stand: "</script>" would end it, and "<!--" can hide its end.
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

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """HTML for pages and for Colab; where a kernel is live also the widget, which JupyterLab prefers."""
        bundle: dict[str, Any] = {}
        if is_live() and find_spec(self.library):
            self._widget = self._widget or self.live()
            bundle = bundle_of(self._widget)
        return bundle | {"text/plain": repr(self), "text/html": self.to_html()}

    def live(self) -> Any:
        """The widget that stands for the view where a kernel is live.

        Raises:
            ImportError: its library is not installed.
        """
        return widget(self._name, self._data, self._start)


def script(name: str) -> str:
    """The JavaScript of a view, a module whose default export has `render({ model, el })`."""
    return "\n".join((HERE / part).read_text(encoding="utf-8") for part in ("common.js", f"{name}.js"))


def style(name: str) -> str:
    """The style sheet of a view."""
    return "\n".join((HERE / part).read_text(encoding="utf-8") for part in ("common.css", f"{name}.css"))


def is_live() -> bool:
    """Whether a kernel runs that shows widgets of its own; Colab shows HTML instead."""
    return "ipykernel" in sys.modules and "google.colab" not in sys.modules


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
    return type(f"Live{name.title()}", (anywidget.AnyWidget,), members)(data=data, **start)
