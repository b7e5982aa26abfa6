"""Tables of results: aligned text, escaped HTML, rows that arrive later."""

import sys
from types import SimpleNamespace

import pytest

from fbt.views import table as table_module
from fbt.views.table import Table


def example():
    return Table("model", "accuracy", rows=[["one <b>", "7%"], ["feedback", "100%"]])


def test_text_is_aligned_and_numbers_are_on_the_right():
    assert repr(example()).splitlines() == [
        "model     accuracy",
        "one <b>         7%",
        "feedback      100%",
    ]


@pytest.mark.parametrize(
    "value", ["3", "-1.5", "1,000", "2e-16", "12.3 ms", "99 %", "99%", "1.2e+09"]
)
def test_columns_of_numbers_are_aligned_on_the_right(value):
    html = Table("a", "b", rows=[["text", value]])._repr_html_()
    assert f'<td style="text-align: right">{value}</td>' in html
    assert '<td style="text-align: left">text</td>' in html


def test_a_column_with_text_is_aligned_on_the_left():
    html = Table("a", rows=[["3"], ["three"]])._repr_html_()
    assert "right" not in html


def test_html_is_escaped():
    html = example()._repr_html_()
    assert "one &lt;b&gt;" in html and "<b>" not in html


def test_without_a_header_of_its_column_a_value_has_one_in_its_row():
    html = Table("", "a", rows=[["x", "1"]])._repr_html_()
    assert '<tr><td style="text-align: left"></td><th' in html
    assert '<tbody><tr><th style="text-align: left">x</th><td' in html
    assert "<th" not in Table("a", rows=[["x"]])._repr_html_().split("<tbody>")[1]


def test_a_wide_table_scrolls_by_keyboard():
    assert 'tabindex="0"' in example()._repr_html_()


@pytest.fixture
def shown(monkeypatch):
    """The HTML of a table at each of its updates in a notebook."""
    updates = []
    handle = SimpleNamespace(update=lambda table: updates.append(table._repr_html_()))
    display = SimpleNamespace(display=lambda table, display_id: handle)
    fake = SimpleNamespace(get_ipython=lambda: object(), display=display)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    return updates


def test_shown_table_is_updated_with_each_row(shown):
    table = Table("n").show()
    table.add(1)
    table.add(2)
    assert [html.count("<tr>") for html in shown] == [2, 3]


def test_a_loop_shows_its_progress_until_it_ends(shown, monkeypatch):
    monkeypatch.setattr(table_module, "SECONDS_BETWEEN_UPDATES", 0)
    table = Table("n").show()
    assert list(table.follow(range(3))) == [0, 1, 2]
    assert ['max="3"' in html for html in shown] == [True] * 3 + [False]
    assert '<progress value="2" max="3">' in shown[2] and "2 of 3" in shown[2]


def test_a_short_loop_and_one_outside_a_notebook_show_no_bar(shown, monkeypatch):
    assert list(Table("n").show().follow("ab")) == ["a", "b"]
    monkeypatch.delitem(sys.modules, "IPython")
    monkeypatch.setattr(table_module, "SECONDS_BETWEEN_UPDATES", 0)
    assert list(Table("n").show().follow("ab")) == ["a", "b"]
    assert shown == []


def test_without_a_notebook_show_returns_the_table(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    table = Table("n").show()
    table.add(1)
    assert repr(table) == "n\n1"


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"row must have 2 values, got 1"):
        example().add("three")
    with pytest.raises(ValueError, match=r"at least 1 column, got 0"):
        Table()
