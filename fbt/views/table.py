"""A table of results: HTML in a notebook and a page, aligned text in a terminal."""

import html
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from fbt._text import replace_surrogates

T = TypeVar("T")
SECONDS_BETWEEN_UPDATES = 0.25
NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?( ?%| ?[a-zA-Zµ/]+)?")


class Table:
    """A table that can be shown before it is complete, and grows while a cell runs.

    Args:
        header: the names of the columns.
        rows: the rows so far, each with one value per column. Format numbers
            beforehand, as in f"{accuracy:.0%}"; they are aligned on the right.

    Raises:
        ValueError: if there is no column, or a row has another number of values.
    """

    def __init__(self, *header: str, rows: Any = ()) -> None:
        if not header:
            raise ValueError("header must have at least 1 column, got 0")
        self.header = [_text(name) for name in header]
        self.rows: list[list[str]] = []
        self._display: Any = None
        self._progress: tuple[int, int] | None = None
        for row in rows:
            self.add(*row)

    def add(self, *row: Any) -> None:
        """Add a row; a table that was shown by `show` is updated in place.

        Raises:
            ValueError: if the row does not have one value per column.
        """
        if len(row) != len(self.header):
            raise ValueError(
                f"row must have {len(self.header)} values, got {len(row)}"
            )
        self.rows.append([_text(value) for value in row])
        if self._display is not None:
            self._display.update(self)

    def show(self) -> "Table":
        """Show the table now, and again whenever a row is added to it.

        Without IPython nothing is shown; print the table when it is complete.
        """
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            self._display = ipython.display.display(self, display_id=True)
        return self

    def follow(self, steps: Sequence[T]) -> Iterator[T]:
        """Yield each of `steps`, with a progress bar below a table that is shown.

        The bar goes when the steps end; one that was interrupted tells where.
        """
        last = time.monotonic()
        for done, step in enumerate(steps):
            now = time.monotonic()
            if self._display and now - last >= SECONDS_BETWEEN_UPDATES:
                last = now
                self._progress = done, len(steps)
                self._display.update(self)
            yield step
        if self._progress:
            self._progress = None
            self._display.update(self)

    def _repr_html_(self) -> str:
        head = self._html_row(self.header, headers=len(self.header))
        # A value needs a header for screen readers: if its column has none, its row.
        headers = 0 if all(self.header) else 1
        body = "".join(self._html_row(row, headers) for row in self.rows)
        return (
            '<div class="fbt-table" style="overflow-x: auto" tabindex="0">'
            '<table class="table">'
            f"<thead>{head}</thead><tbody>{body}</tbody></table>"
            f"{self._progress_html()}</div>"
        )

    def _html_row(self, values: list[str], headers: int) -> str:
        """Return a row, whose first cells are headers unless they are empty."""
        cells = []
        for column, value in enumerate(values):
            tag = "th" if column < headers and value else "td"
            style = f"text-align: {self._side(column)}"
            cells.append(f'<{tag} style="{style}">{html.escape(value)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    def _progress_html(self) -> str:
        if self._progress is None:
            return ""
        done, total = self._progress
        bar = f'<progress value="{done}" max="{total}"></progress>'
        return f"<label>{bar} {done:,} of {total:,}</label>"

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = [self._side(column) for column in range(len(widths))]
        return "\n".join(
            "  ".join(
                value.rjust(width) if side == "right" else value.ljust(width)
                for value, width, side in zip(line, widths, sides, strict=True)
            ).rstrip()
            for line in lines
        )

    def _side(self, column: int) -> str:
        """Return "right" for a column of numbers, otherwise "left"."""
        values = [row[column] for row in self.rows if row[column]]
        is_numeric = bool(values) and all(map(NUMBER.fullmatch, values))
        return "right" if is_numeric else "left"


def _text(value: Any) -> str:
    return replace_surrogates(str(value))
