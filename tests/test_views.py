"""Tests of the memory, recurrence and choices views.

Code that all views share is tested in test_explorer.py.
"""

import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from exact import SIZES, model, some_tokens
from front_ends import CELLS, WIDGET, attach, outputs_for_user

import fbt
from fbt.views.choices import MAX_RESULTS, Choices
from fbt.views.figures import STYLE
from fbt.views.memory import MemoryExplorer, Snapshot, snapshot
from fbt.views.recurrence import MAX_STEPS, SHOWN_NUMBERS, RecurrenceExplorer
from fbt.views.trace import Trace, memory_shares, trace
from fbt.views.view import View

L, D, T = SIZES["n_layers"], SIZES["d_model"], 7


def model_of(variant: str = "shared-kv", **changes) -> fbt.LanguageModel:
    return model(variant, **{"span": T, "dropout": 0.0} | changes)


def text_of(length: int = T) -> torch.Tensor:
    return some_tokens(1, length)[0]


def state_of(view: View) -> dict:
    """Return the state that the page passes to its script."""
    return json.loads(re.search(r"const state = (.*);\n", view.to_html())[1])


# The trace


@pytest.mark.parametrize("variant", ["feedback", "shared-kv"])
@pytest.mark.parametrize("length", [1, T])
def test_trace_equals_model(variant, length):
    net, tokens = model_of(variant), text_of(length)
    read = trace(net, tokens)
    assert read.outputs.shape == (length, L + 1, D)
    torch.testing.assert_close(read.outputs[:, 0], net.token_embedding(tokens))
    top = net.norm(read.outputs[:, -1])
    torch.testing.assert_close(net.head(top), net(tokens[None])[0])
    memory = net.body.memory.norm(read.memory)
    for cache, project in enumerate(net.body.key_values):
        torch.testing.assert_close(read.keys[cache], project.key(memory))
        torch.testing.assert_close(read.values[cache], project.value(memory))
    torch.testing.assert_close(read.weights, net.attention(tokens[None])[:, 0])
    assert not net.body.memory._forward_pre_hooks


@pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
def test_trace_ignores_training_mode_and_backend(backend):
    net, tokens = model_of("shared-kv", dropout=0.5), text_of(T)
    expected = trace(net.eval(), tokens)
    net.backend = backend
    net.train()
    for value, expected_value in zip(trace(net, tokens), expected, strict=True):
        assert torch.equal(value, expected_value)
    assert net.training


def test_memory_shares_sum_to_one():
    read = trace(model_of(), text_of())
    shares = memory_shares(read)
    torch.testing.assert_close(shares.sum(-1), torch.ones(T, dtype=torch.float64))
    t, layer = 4, 2
    added = read.outputs[t, layer] - read.outputs[t, layer - 1]
    term = read.mixture[layer:].sum() * (added - added.mean())
    memory = read.memory[t] - read.memory[t].mean()
    torch.testing.assert_close(shares[t, layer], term @ memory / (memory @ memory))


def test_trace_refuses_parallel_models_and_long_texts():
    with pytest.raises(TypeError, match="variant 'parallel'"):
        trace(model_of("parallel"), text_of())
    with pytest.raises(
        ValueError,
        match=r"tokens must have shape \[T\] with every size >= 1, got \[0\]",
    ):
        trace(model_of(span=5), text_of(0))
    with pytest.raises(ValueError, match=r"1 to 5 \(the span\), got 6"):
        trace(model_of(span=5), text_of(6))


# The memory


def test_memory_explorer_shows_snapshots():
    net, tokens = model_of(), text_of()
    snapshots = {
        0: snapshot(net, tokens),
        20: Snapshot(torch.eye(L + 1)[0], torch.full((T, L + 1), 1 / (L + 1))),
    }
    explorer = MemoryExplorer(list("a\nb<&>c"), snapshots, query=3)
    state = state_of(explorer)
    assert (state["query"], explorer.query) == (3, 3)
    assert (state["moment"], explorer.moment) == (0, 0)  # before training
    assert [moment["step"] for moment in state["data"]["moments"]] == [0, 20]
    first = state["data"]["moments"][0]
    expected = [
        [round(1000 * share) for share in row]
        for row in memory_shares(trace(net, tokens)).tolist()
    ]
    assert first["shares"] == expected
    assert sum(first["mixture"]) == pytest.approx(1000, abs=2)
    assert repr(explorer) == "MemoryExplorer(7 tokens, 2 snapshots)"
    static = explorer.to_html().partition("<pre>")[2].partition("</pre>")[0]
    assert static.startswith("a\nb&lt;&amp;&gt;c\n\ntraining step  embedding")
    assert len(re.findall(r"\n +\d+  .* %", static)) == 2


ABC, EVEN = list("abc"), Snapshot(torch.ones(2) / 2, torch.ones(3, 2) / 2)


def with_nan(*shape: int, at: tuple[int, ...]) -> torch.Tensor:
    tensor = torch.ones(shape) / 2
    tensor[at] = torch.nan
    return tensor


@pytest.mark.parametrize(
    "error, change, message",
    [
        (ValueError, {"tokens": ""}, "tokens must not be empty"),
        (TypeError, {"tokens": 3}, "tokens must be a sequence of texts, got int"),
        (ValueError, {"snapshots": {}}, "snapshots must not be empty"),
        (TypeError, {"snapshots": [EVEN]}, "snapshots must be of type Mapping"),
        (
            TypeError,
            {"snapshots": {"a": EVEN}},
            "key of snapshots must be .* got 'a'",
        ),
        (
            TypeError,
            {"snapshots": {0: EVEN, 5: 7}},
            r"snapshots\[5\] must be a Snapshot, got int",
        ),
        (
            TypeError,
            {"snapshots": {5: Snapshot([0.5, 0.5], EVEN.shares)}},
            r"snapshots\[5\].mixture must be a tensor of real numbers, got list",
        ),
        (
            ValueError,
            {"snapshots": {5: EVEN._replace(shares=torch.ones(2, 2))}},
            r"snapshots\[5\].shares must be \[3, 2\] for 3 tokens, got \[2, 2\]",
        ),
        (
            ValueError,
            {"snapshots": {0: EVEN, 5: Snapshot(torch.ones(3), torch.ones(3, 3))}},
            r"snapshots\[5\].mixture must be \[2\], got \[3\]",
        ),
        (
            ValueError,
            {"snapshots": {5: EVEN._replace(shares=with_nan(3, 2, at=(2, 1)))}},
            r"snapshots\[5\].shares\[2, 1\] must be finite, got nan",
        ),
        (
            ValueError,
            {"snapshots": {5: EVEN._replace(mixture=with_nan(2, at=(1,)))}},
            r"snapshots\[5\].mixture\[1\] must be finite, got nan",
        ),
        (ValueError, {"query": 3}, r"query must be an int in \[0, 2\], got 3"),
    ],
)
def test_memory_explorer_names_wrong_argument(error, change, message):
    with pytest.raises(error, match=message):
        MemoryExplorer(**{"tokens": ABC, "snapshots": {5: EVEN}} | change)


def test_memory_explorer_keeps_large_shares():
    """Shares are large if the memory vector is close to zero."""
    large = EVEN._replace(shares=torch.tensor([[3e6, -3e6], [1.0, 0.0], [0.0, 1.0]]))
    (moment,) = state_of(MemoryExplorer(ABC, {0: large}))["data"]["moments"]
    assert moment["shares"][0] == [3_000_000_000, -3_000_000_000]


# The recurrence


def test_recurrence_explorer_shows_trace():
    read = trace(model_of(), text_of())
    explorer = RecurrenceExplorer(list("abcdefg"), read, moment=11)
    data = state_of(explorer)["data"]
    assert (data["width"], explorer.moment, len(data["outputs"])) == (D, 11, L + 1)
    for kind, vectors in (
        ("memory", read.memory),
        ("keys", read.keys[0]),
        ("values", read.values[0]),
    ):
        shown = torch.tensor(data[kind], dtype=torch.float64)
        expected = vectors[:, :SHOWN_NUMBERS]
        torch.testing.assert_close(shown, expected, atol=0.0051, rtol=0)
    mean = torch.tensor(data["weights"], dtype=torch.float64) / 1000
    torch.testing.assert_close(mean, read.weights.mean(1), atol=1 / 1999, rtol=0)
    assert repr(explorer) == "RecurrenceExplorer(7 tokens, 3 layers)"


def test_recurrence_explorer_names_wrong_argument():
    read = trace(model_of(), text_of())
    with pytest.raises(
        ValueError, match=r"read.outputs must be \[2, .* for 2 tokens, got \[7"
    ):
        RecurrenceExplorer(["a", "b"], read)
    with pytest.raises(TypeError, match="read must be of type Trace"):
        RecurrenceExplorer(["a", "b"], read.outputs)
    with pytest.raises(
        ValueError, match=rf"in \[0, {T * (L + 3) - 1}\], got {T * (L + 3)}"
    ):
        RecurrenceExplorer(list("abcdefg"), read, moment=T * (L + 3))
    with pytest.raises(
        ValueError, match=rf"in \[1, {MAX_STEPS}\], got {MAX_STEPS + 1}"
    ):
        RecurrenceExplorer(["a"] * (MAX_STEPS + 1), read)
    one_cache = rf"read.keys must be \[1, 7, {D}\] \(one cache .*, got \[3, 7, {D}\]"
    with pytest.raises(ValueError, match=one_cache):
        RecurrenceExplorer(list("abcdefg"), trace(model_of("feedback"), text_of()))


def test_recurrence_explorer_brings_its_model_once():
    tokenizer = fbt.CharTokenizer("abcde")
    config = fbt.Config(5, d_model=14, n_heads=2, n_layers=3, span=7)
    net = fbt.LanguageModel(config, tokenizer)
    read = trace(net, tokenizer.encode("ab"))
    explorer = RecurrenceExplorer(list("ab"), read, model=net)
    assert state_of(explorer)["data"]["model"]["longest"] == 7  # the span
    assert explorer._repr_mimebundle_().keys() == {"text/plain", "text/html"}
    for other, message in (
        (fbt.LanguageModel(config), "model must have a tokenizer"),
        (
            fbt.LanguageModel(config.replace(variant="feedback"), tokenizer),
            "the variant of model must be .*shared-kv.*, got 'feedback'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrenceExplorer(list("ab"), read, model=other)


@pytest.mark.parametrize("field", Trace._fields)
def test_recurrence_explorer_names_wrong_field(field):
    read = trace(model_of(), text_of())
    tensor = getattr(read, field).clone()
    tensor[(-1,) * tensor.ndim] = torch.inf
    index = [size - 1 for size in tensor.shape]
    for error, value, message in (
        (TypeError, None, "must be a tensor of real numbers, got NoneType"),
        (ValueError, tensor[..., None], "must be "),
        (ValueError, tensor, "must be finite, got inf"),
    ):
        expected = f"read.{field}{index if 'finite' in message else ''} {message}"
        with pytest.raises(error, match=re.escape(expected)):
            RecurrenceExplorer(list("abcdefg"), read._replace(**{field: value}))


# In a live notebook


def test_jupyterlab_gets_widgets():
    outputs = outputs_for_user()
    assert len(outputs) == len(CELLS) - 1
    for output in outputs:
        assert {"text/plain", "text/html", WIDGET} <= output.keys()


@pytest.mark.parametrize(
    "content, widget",
    [
        ({"code": "view", "allow_stdin": True}, True),  # JupyterLab, VS Code
        ({"code": "view", "allow_stdin": False}, False),  # nbclient
        ({"comm_id": "1", "data": {}}, True),  # a view shown by a widget's callback
    ],
)
def test_widget_requires_front_end_with_stdin(monkeypatch, content, widget):
    attach(monkeypatch, content)
    view = Choices(describe, span=[1, 2], name=["a"])
    assert (WIDGET in view._repr_mimebundle_()) == widget
    assert (view._widget is not None) == widget  # so no comm is opened


def test_terminal_gets_no_widget(monkeypatch):
    attach(monkeypatch, {})
    for shell in (None, object()):  # plain Python, IPython
        monkeypatch.setattr("IPython.get_ipython", lambda shell=shell: shell)
        view = Choices(describe, span=[1, 2], name=["a"])
        assert WIDGET not in view._repr_mimebundle_()


def test_each_view_has_its_own_style_sheet(monkeypatch):
    attach(monkeypatch, {"allow_stdin": True})
    read = trace(model_of(), text_of())
    views = [
        MemoryExplorer(list("abcdefg"), {0: snapshot(model_of(), text_of())}),
        RecurrenceExplorer(list("abcdefg"), read),
        fbt.AttentionExplorer(list("abcdefg"), read.weights),
    ]
    widgets = [view._repr_mimebundle_() and view._widget for view in views]
    # front ends store the style sheet under this id
    assert len({widget._anywidget_id for widget in widgets}) == len(views)


# Choices


def describe(span: int, name: str) -> str:
    return f"<{name}> {span}"


def test_choices_start_at_the_selected_values():
    view = Choices(describe, start={"span": 1}, span=[1, 2, 4], name=["a", "b"])
    assert state_of(view)["span"] == 0 and state_of(view)["name"] == 1
    for start in ({"span": 3}, {"length": 1}):
        with pytest.raises(ValueError, match="start must select among"):
            Choices(describe, start=start, span=[1, 2, 4], name=["a", "b"])


def test_choices_contain_all_results():
    view = Choices(describe, span=[1, 2, 4], name=["a", "b"])
    state = state_of(view)
    texts = [result["text"] for result in state["data"]["results"]]
    # the last argument varies fastest
    assert texts == [f"<{name}> {span}" for span in (1, 2, 4) for name in "ab"]
    assert [control["slider"] for control in state["data"]["controls"]] == [
        True,
        False,
    ]
    assert (state["span"], state["name"]) == (1, 1)
    assert "<pre>&lt;b&gt; 2</pre>" in view.to_html()


def test_figure_of_choices_has_text_colour():
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


def test_live_choices_call_function_again(monkeypatch):
    def half(number: float, name: str) -> str:
        if name == "wrong":
            raise ValueError("unknown <name>")
        return f"{name} {number / 2:g}"

    attach(monkeypatch, {"allow_stdin": True})
    view = Choices(half, number=[0.5, 1.0, 2.0], name=["a", "b"])
    assert WIDGET in view._repr_mimebundle_()
    number, name, output = view._widget.children
    assert "b 0.5" in output.value
    number.value, name.value = 1.5, "c"  # not among the choices
    assert "c 0.75" in output.value
    assert number.step == 0.1 and number.readout_format == ".1f"
    for control in (number, name):  # otherwise long names are cut
        assert control.style.description_width == "initial"
    name.value = "wrong"
    assert "ValueError: unknown &lt;name&gt;" in output.value


def test_too_many_choices_raise():
    count = MAX_RESULTS + 1
    message = (
        f"at most {MAX_RESULTS} combinations, got {count}: "
        f"Choices(span: {count}, name: 1)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Choices(describe, span=list(range(count)), name=["a"])
    many = range(10_000)
    with pytest.raises(ValueError, match="at most"):  # without computing them
        Choices(describe, span=many, name=many, more=many)


@pytest.mark.parametrize(
    "error, choices, message",
    [
        (ValueError, {}, "choices must not be empty"),
        (ValueError, {"span": [], "name": ["a"]}, "span must not be empty"),
        (TypeError, {"span": 3}, "span must be a sequence of values, got int"),
        (TypeError, {"span": "abc"}, "span must be a sequence of values, got str"),
        (
            TypeError,
            {"span": [1, None]},
            r"span\[1\] must be a text or a number, got NoneType",
        ),
        (
            ValueError,
            {"span": [1.0, torch.nan]},
            r"span\[1\] must be finite, got nan",
        ),
    ],
)
def test_choices_name_wrong_choice(error, choices, message):
    with pytest.raises(error, match=message):
        Choices(describe, **choices)


@pytest.mark.parametrize("result", [None, 3, ("a", "b"), ("a", "b", "c"), b"a"])
def test_choices_refuse_other_results(result):
    kind = type(result).__name__
    message = f"a text, or a figure and a text, got {kind} for span=1, name='a'"
    with pytest.raises(TypeError, match=message):
        Choices(lambda span, name: result, span=[1, 2], name=["a"])
    with pytest.raises(TypeError, match="function must be callable, got str"):
        Choices("describe", span=[1])


def test_choice_must_not_be_named_data():
    with pytest.raises(ValueError, match="a name other than 'data'"):
        Choices(lambda data: str(data), data=[1, 2])
