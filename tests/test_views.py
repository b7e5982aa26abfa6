"""The views of memory, recurrence and choices; what all views share is tested with the explorer."""

import importlib
import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from exact import SIZES, model, some_tokens

import fbt
from fbt.views.choices import MOST, Choices
from fbt.views.figures import STYLE
from fbt.views.memory import MemoryExplorer, Snapshot, snapshot
from fbt.views.recurrence import LONGEST, NUMBERS, RecurrenceExplorer
from fbt.views.trace import made_of, trace
from fbt.views.view import View

L, D, T = SIZES["n_layers"], SIZES["d_model"], 7


def model_of(variant: str = "shared-kv", **changes) -> fbt.LanguageModel:
    return model(variant, **{"span": T, "dropout": 0.0} | changes)


def text_of(length: int = T) -> torch.Tensor:
    return some_tokens(1, length)[0]


def state_of(view: View) -> dict:
    """What the page's script is given."""
    return json.loads(re.search(r"const state = (.*);\n", view.to_html())[1])


# What a model computes


@pytest.mark.parametrize("variant", ["feedback", "shared-kv"])
@pytest.mark.parametrize("length", [1, T])
def test_a_trace_is_what_the_model_computes(variant, length):
    reader, tokens = model_of(variant), text_of(length)
    read = trace(reader, tokens)
    assert read.outputs.shape == (length, L + 1, D)
    torch.testing.assert_close(read.outputs[:, 0], reader.token_embedding(tokens))
    top = reader.norm(read.outputs[:, -1])
    torch.testing.assert_close(reader.head(top), reader(tokens[None])[0])
    memory = reader.body.memory.norm(read.memory)
    for cache, project in enumerate(reader.body.key_values):
        torch.testing.assert_close(read.keys[cache], project.key(memory))
        torch.testing.assert_close(read.values[cache], project.value(memory))
    torch.testing.assert_close(read.weights, reader.attention(tokens[None])[:, 0])
    assert not reader.body.memory._forward_pre_hooks


@pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
def test_a_trace_is_the_same_in_training_and_with_any_backend(backend):
    reader, tokens = model_of("shared-kv", dropout=0.5), text_of(T)
    expected = trace(reader.eval(), tokens)
    reader.backend = backend
    reader.train()
    for found, value in zip(trace(reader, tokens), expected, strict=True):
        assert torch.equal(found, value)
    assert reader.training


def test_the_parts_of_a_memory_vector_sum_to_it():
    read = trace(model_of(), text_of())
    shares = made_of(read)
    torch.testing.assert_close(shares.sum(-1), torch.ones(T, dtype=torch.float64))
    t, layer = 4, 2
    added = read.outputs[t, layer] - read.outputs[t, layer - 1]
    part = read.mixture[layer:].sum() * (added - added.mean())
    memory = read.memory[t] - read.memory[t].mean()
    torch.testing.assert_close(shares[t, layer], part @ memory / (memory @ memory))


def test_what_has_no_memory_or_is_too_long_is_not_traced():
    with pytest.raises(TypeError, match="variant 'parallel'"):
        trace(model_of("parallel"), text_of())
    with pytest.raises(ValueError, match=r"tokens must have shape \[T\] with every size >= 1, got \[0\]"):
        trace(model_of(span=5), text_of(0))
    with pytest.raises(ValueError, match="1 to 5 like the span, got 6"):
        trace(model_of(span=5), text_of(6))


# The memory


def test_the_memory_explorer_shows_the_snapshots():
    reader, tokens = model_of(), text_of()
    seen = {
        0: snapshot(reader, tokens),
        20: Snapshot(torch.eye(L + 1)[0], torch.full((T, L + 1), 1 / (L + 1))),
    }
    explorer = MemoryExplorer(list("a\nb<&>c"), seen, query=3)
    state = state_of(explorer)
    assert (state["query"], state["moment"], explorer.query, explorer.moment) == (3, 1, 3, 1)
    assert [moment["step"] for moment in state["data"]["moments"]] == [0, 20]
    first = state["data"]["moments"][0]
    expected = [[round(1000 * share) for share in row] for row in made_of(trace(reader, tokens)).tolist()]
    assert first["shares"] == expected
    assert sum(first["mixture"]) == pytest.approx(1000, abs=2)
    assert repr(explorer) == "MemoryExplorer(7 tokens, 2 snapshots)"
    assert "<pre>a\nb&lt;&amp;&gt;c</pre>" in explorer.to_html()


@pytest.mark.parametrize(
    "tokens, shares, query, said",
    [
        ("", torch.ones(0, 2), None, "got 0 tokens"),
        ("abc", torch.ones(2, 2), None, r"\[3, 2\] at step 5, got \[2, 2\] for a mixture \[2\]"),
        ("abc", torch.full((3, 2), torch.nan), None, "finite"),
        ("abc", torch.ones(3, 2), 3, r"query must be an int in \[0, 2\], got 3"),
    ],
)
def test_the_memory_explorer_names_what_is_wrong(tokens, shares, query, said):
    with pytest.raises(ValueError, match=said):
        MemoryExplorer(list(tokens), {5: Snapshot(torch.ones(2) / 2, shares)}, query=query)


# The recurrence


def test_the_recurrence_explorer_shows_the_trace():
    read = trace(model_of(), text_of())
    explorer = RecurrenceExplorer(list("abcdefg"), read, moment=11)
    data = state_of(explorer)["data"]
    assert (data["width"], explorer.moment, len(data["outputs"])) == (D, 11, L + 1)
    for kind, vectors in (("memory", read.memory), ("keys", read.keys[0]), ("values", read.values[0])):
        shown = torch.tensor(data[kind], dtype=torch.float64) / 100
        assert shown.shape == (T, NUMBERS)
        largest = vectors[:, :NUMBERS].abs().max()
        torch.testing.assert_close(shown * largest, vectors[:, :NUMBERS], atol=float(largest) / 199, rtol=0)
    mean = torch.tensor(data["weights"], dtype=torch.float64) / 1000
    torch.testing.assert_close(mean, read.weights.mean(1), atol=1 / 1999, rtol=0)
    assert repr(explorer) == "RecurrenceExplorer(7 tokens, 3 layers)"


def test_the_recurrence_explorer_names_what_is_wrong():
    read = trace(model_of(), text_of())
    with pytest.raises(ValueError, match="tokens must be 7 like the steps read, got 2"):
        RecurrenceExplorer(["a", "b"], read)
    with pytest.raises(ValueError, match=rf"in \[0, {T * (L + 3) - 1}\], got {T * (L + 3)}"):
        RecurrenceExplorer(list("abcdefg"), read, moment=T * (L + 3))
    with pytest.raises(ValueError, match=rf"in \[1, {LONGEST}\], got {LONGEST + 1}"):
        RecurrenceExplorer(["a"] * (LONGEST + 1), read)
    with pytest.raises(ValueError, match="one cache that all layers share, got 3"):
        RecurrenceExplorer(list("abcdefg"), trace(model_of("feedback"), text_of()))


# In a live notebook


def test_each_view_has_a_style_of_its_own():
    importlib.import_module("ipykernel")  # as in a notebook
    read = trace(model_of(), text_of())
    views = [
        MemoryExplorer(list("abcdefg"), {0: snapshot(model_of(), text_of())}),
        RecurrenceExplorer(list("abcdefg"), read),
        fbt.AttentionExplorer(list("abcdefg"), read.weights),
    ]
    widgets = [view._repr_mimebundle_() and view._widget for view in views]
    assert len({widget._anywidget_id for widget in widgets}) == len(views)  # by which it is kept


# Choices


def told(span: int, name: str) -> str:
    return f"<{name}> {span}"


def test_choices_hold_every_result():
    view = Choices(told, span=[1, 2, 4], name=["a", "b"])
    state = state_of(view)
    texts = [result["text"] for result in state["data"]["results"]]
    assert texts == [f"<{name}> {span}" for span in (1, 2, 4) for name in "ab"]  # the last name varies first
    assert [control["slider"] for control in state["data"]["controls"]] == [True, False]
    assert (state["span"], state["name"]) == (1, 1)
    assert "<pre>&lt;b&gt; 2</pre>" in view.to_html()


def test_a_figure_of_choices_takes_the_colour_of_the_text():
    def drawing(height: int):
        with plt.rc_context(STYLE):
            figure, axes = plt.subplots()
        axes.plot([0, height])
        return figure, f"up to {height}"

    (result,) = state_of(Choices(drawing, height=[3]))["data"]["results"]
    assert result["text"] == "up to 3"
    assert result["figure"].startswith("<svg")
    assert "currentColor" in result["figure"]
    assert "#757575" not in result["figure"]
    assert not plt.get_fignums()


def test_live_choices_call_the_function_anew():
    def half(number: float, name: str) -> str:
        if name == "wrong":
            raise ValueError("no <such> name")
        return f"{name} {number / 2:g}"

    importlib.import_module("ipykernel")  # as in a notebook
    view = Choices(half, number=[0.5, 1.0, 2.0], name=["a", "b"])
    assert "application/vnd.jupyter.widget-view+json" in view._repr_mimebundle_()
    number, name, output = view._widget.children
    assert "b 0.5" in output.value
    number.value, name.value = 1.5, "c"  # neither is among the choices
    assert "c 0.75" in output.value
    name.value = "wrong"
    assert "ValueError: no &lt;such&gt; name" in output.value


def test_too_many_choices_are_refused():
    with pytest.raises(ValueError, match=f"1 to {MOST} combinations, got {MOST + 1}"):
        Choices(told, span=list(range(MOST + 1)), name=["a"])
    with pytest.raises(ValueError, match="got 0"):
        Choices(told, span=[], name=["a"])
    with pytest.raises(ValueError, match="got 1"):
        Choices(told)


def test_a_choice_may_not_have_the_name_of_what_the_page_is_given():
    with pytest.raises(ValueError, match="a name other than 'data'"):
        Choices(lambda data: str(data), data=[1, 2])
