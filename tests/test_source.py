"""Tests of `fbt.show`: the source it displays and the link to its lines."""

import ast
import html
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

import fbt
from fbt._repository import BRANCH, PLACEHOLDER, URL
from fbt.attention import attend
from fbt.stack import _Push

ROOT = Path(fbt.__file__).parents[1]


def increment(x):
    return x + 1


@pytest.mark.parametrize(
    "obj, file",
    [
        (fbt.MemoryStack, "fbt/stack.py"),
        (fbt.MemoryStack.push, "fbt/stack.py"),
        (_Push, "fbt/stack.py"),
        (attend, "fbt/attention.py"),
        (fbt.Config, "fbt/config.py"),
        (fbt.LanguageModel.generate, "fbt/language_model.py"),
        (fbt.LanguageModel.attention, "fbt/language_model.py"),
        (fbt.LanguageModel.backend, "fbt/language_model.py"),
        (fbt.LanguageModel.from_pretrained, "fbt/language_model.py"),
        (importlib.import_module("fbt.shared_kv"), "fbt/shared_kv.py"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else getattr(value, "__name__", "a property")
    ),
)
def test_link_points_to_displayed_lines(obj, file):
    source = fbt.show(obj)
    name, _, lines = source.where.partition(", lines ")
    first, last = map(int, lines.split(" to "))
    assert name == file
    assert source.link == f"{URL}/blob/{BRANCH}/{file}#L{first}-L{last}"
    linked = (ROOT / file).read_text().splitlines()[first - 1 : last]
    assert inspect.cleandoc("\n".join(linked)) == inspect.cleandoc(source.code)
    ast.parse(source.code)


def test_source_displays_as_markdown_and_prints_as_text():
    source = fbt.show(attend)
    assert (
        source._repr_markdown_()
        == f"[{source.where}]({source.link})\n\n```python\n{source.code}\n```"
    )
    assert repr(source) == f"# {source.where}\n{source.code}"


def test_source_displays_as_code_that_scrolls():
    source = fbt.show(attend)
    shown = BeautifulSoup(source._repr_html_(), "html.parser")
    assert shown.pre.get_text().rstrip("\n") == source.code
    assert "white-space: pre;" in shown.pre["style"]
    assert shown.p.get_text() == source.where


@pytest.mark.parametrize("owner", ["someone", PLACEHOLDER])
def test_notebooks_link_to_the_repository_once_it_has_an_address(owner, monkeypatch):
    monkeypatch.setattr("fbt.views.source.URL", f"https://github.com/{owner}/fbt")
    source = fbt.show(attend)
    link = BeautifulSoup(source._repr_html_(), "html.parser").a
    assert (link and link["href"]) == (None if owner == PLACEHOLDER else source.link)


@pytest.mark.parametrize(
    "obj",
    [attend, fbt.MemoryStack, fbt.MemoryStack.push, fbt.LanguageModel.attention],
)
def test_docstring_false_removes_only_the_docstring(obj):
    full, short = fbt.show(obj).code, fbt.show(obj, docstring=False).code
    expected = ast.parse(full)
    del expected.body[0].body[0]
    assert ast.unparse(ast.parse(short)) == ast.unparse(expected)
    assert set(short.splitlines()) <= set(full.splitlines())
    assert short.count("#") == full.count("#")  # comments stay


def test_function_without_docstring_is_unchanged():
    assert (
        fbt.show(increment, docstring=False).code
        == "def increment(x):\n    return x + 1"
    )


def test_code_outside_the_package_has_no_link():
    source = fbt.show(increment)
    assert source.link is None
    assert source.where.startswith("test_source.py, lines ")
    assert source._repr_markdown_().startswith("test_source.py")


@pytest.mark.parametrize(
    "obj",
    [3, "text", None, len, torch.add, fbt.LanguageModel(fbt.Config(3))],
    ids=type,
)
def test_objects_without_source_raise(obj):
    with pytest.raises(
        TypeError, match="obj must be a class, function, method or module"
    ):
        fbt.show(obj)


def test_docstring_false_removes_docstring_of_module():
    module = importlib.import_module("fbt.shared_kv")
    expected = ast.parse(fbt.show(module).code)
    del expected.body[0]
    assert ast.unparse(
        ast.parse(fbt.show(module, docstring=False).code)
    ) == ast.unparse(expected)


@pytest.mark.parametrize("fence", ["```", "~~~", "`````"])
def test_fences_inside_code_do_not_end_it(fence, tmp_path, monkeypatch):
    hostile = f"{fence}\n<img src=x onerror=alert(1)>\n"
    path = tmp_path / "<b>[x](javascript:alert(1))`*.py"
    path.write_text(f'def f():\n    """{hostile}"""\n')
    spec = importlib.util.spec_from_file_location("hostile", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source = fbt.show(module.f)
    page = MarkdownIt().render(source._repr_markdown_())
    assert html.escape(source.code, quote=False) in page.replace("&quot;", '"')
    for markup in (page, source._repr_html_()):
        assert not BeautifulSoup(markup, "html.parser").select("img, b, a")
        assert path.name in html.unescape(markup)
