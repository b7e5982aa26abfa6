"""Tests of the attention explorer, and of the code that all views share."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from front_ends import WIDGET, attach

import fbt
from fbt.views.explorer import LEVELS

L, H, T = 2, 3, 7
TOKENS = list("ROMEO:\n")
# an XML namespace, which nothing fetches
SVG_NAME = "http://www.w3.org/2000/svg"


def shares(*, seed: int = 0) -> torch.Tensor:
    """Attention weights of a causal model [L, H, T, T]."""
    scores = torch.randn(L, H, T, T, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)


def two_way(*, seed: int = 0) -> torch.Tensor:
    """Attention weights of a bidirectional model [L, H, T, T]."""
    return torch.randn(
        L, H, T, T, generator=torch.Generator().manual_seed(seed)
    ).softmax(-1)


def wrong(value: float) -> torch.Tensor:
    """Return weights with an invalid share at [1, 2, 4, 3]."""
    weights = shares()
    weights[1, 2, 4, 3] = value
    return weights


def state_of(explorer: fbt.AttentionExplorer) -> dict:
    """Return the state that the page passes to its script."""
    return json.loads(re.search(r"const state = (.*);\n", explorer.to_html())[1])


def weight(panel: dict, layer: int, head: int, query: int, key: int) -> float:
    """Decode a weight as explorer.js does."""
    levels = [LEVELS.index(character) for character in panel["weights"]]
    if panel["causal"]:
        index = (layer * H + head) * T * (T + 1) // 2 + query * (query + 1) // 2 + key
    else:
        index = np.ravel_multi_index((layer, head, query, key), (L, H, T, T))
    return (levels[index] / 255) ** 2


def test_page_contains_causal_weights():
    weights = {"one": shares(), "other": shares(seed=1)}
    panels = state_of(fbt.AttentionExplorer(TOKENS, weights))["data"]["panels"]
    assert [panel["name"] for panel in panels] == ["one", "other"]
    for panel in panels:
        assert (panel["layers"], panel["heads"]) == (L, H)
        for (layer, head, query, key), expected in np.ndenumerate(
            weights[panel["name"]].numpy()
        ):
            if key <= query:
                decoded = weight(panel, layer, head, query, key)
                assert decoded == pytest.approx(expected, abs=2 / 255)


def test_page_contains_weights_of_later_steps():
    weights = {"causal": shares(), "two-way": two_way()}
    causal, full = state_of(fbt.AttentionExplorer(TOKENS, weights))["data"]["panels"]
    assert (causal["causal"], full["causal"]) == (True, False)
    for (layer, head, query, key), expected in np.ndenumerate(
        weights["two-way"].numpy()
    ):
        decoded = weight(full, layer, head, query, key)
        assert decoded == pytest.approx(expected, abs=2 / 255)
    sizes = [len(panel["weights"]) for panel in (causal, full)]
    assert sizes == [L * H * T * (T + 1) // 2, L * H * T * T]


def test_tiny_weights_of_later_steps_are_dropped():
    weights = shares() + 1e-7  # like rounding errors of masked weights
    (panel,) = state_of(fbt.AttentionExplorer(TOKENS, weights))["data"]["panels"]
    assert panel["causal"]


def test_initial_selection():
    first = state_of(fbt.AttentionExplorer(TOKENS, shares()))
    assert {name: first[name] for name in ("query", "layer", "head")} == {
        "query": 6,
        "layer": -1,
        "head": -1,
    }
    explorer = fbt.AttentionExplorer(TOKENS, shares(), query=3, layer=1, head=2)
    chosen = state_of(explorer)
    assert (chosen["query"], chosen["layer"], chosen["head"]) == (3, 1, 2)
    assert (explorer.query, explorer.layer, explorer.head) == (3, 1, 2)


def test_text_is_never_markup():
    tokens = [
        "<img src=x onerror=alert(1)>",
        "</script>",
        "&amp;",
        '"',
        "\u05d0",
        "🎭",
        "e\u0301",
    ]
    page = fbt.AttentionExplorer(tokens, {"</script><b>": shares()}).to_html()
    assert page.count("</script>") == 1  # the end of the page's script
    assert "<img" not in page.split("<script>")[0]
    assert (
        json.loads(re.search(r"const state = (.*);\n", page)[1])["data"]["tokens"]
        == tokens
    )


def test_text_is_readable_without_scripts():
    assert "<pre>ROMEO:\n</pre>" in fbt.AttentionExplorer(TOKENS, shares()).to_html()


def test_page_loads_nothing():
    page = fbt.AttentionExplorer(TOKENS, shares()).to_html().replace(SVG_NAME, "")
    assert not re.search(r"https?:|//[a-z]|@import|\burl\(", page)


def test_live_notebook_gets_widget_readable_from_python(monkeypatch):
    attach(monkeypatch, {"allow_stdin": True})
    explorer = fbt.AttentionExplorer(TOKENS, shares(), query=2)
    bundle = explorer._repr_mimebundle_()
    assert {"text/plain", "text/html", WIDGET} <= bundle.keys()
    explorer._widget.query = 5  # as selected by the reader
    assert explorer.query == 5
    assert explorer._repr_mimebundle_().keys() == bundle.keys()


def test_colab_and_plain_python_get_html(monkeypatch):
    explorer = fbt.AttentionExplorer(TOKENS, shares())
    assert explorer._repr_mimebundle_().keys() == {"text/plain", "text/html"}
    attach(monkeypatch, {"allow_stdin": True})
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    assert explorer._repr_mimebundle_().keys() == {"text/plain", "text/html"}
    assert repr(explorer) == "AttentionExplorer(7 tokens)"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": []}, "tokens must not be empty"),
        (
            {"tokens": TOKENS[1:]},
            r"must be \[L, H, 6, 6\] for 6 tokens, got \[2, 3, 7, 7\]",
        ),
        ({"weights": shares()[0]}, r"got \[3, 7, 7\]"),
        ({"weights": {}}, "weights must not be empty"),
        (
            {"weights": torch.zeros(0, H, T, T)},
            r"weights must be .* got \[0, 3, 7, 7\]",
        ),
        (
            {"weights": {"a": shares(), "b": shares()[:1]}},
            r"weights\['b'\] must be \[2, 3, 7, 7\] like weights\['a'\], "
            r"got \[1, 3, 7, 7\]",
        ),
        (
            {"weights": {"a": shares(), "b": shares()[0]}},
            r"weights\['b'\] must be \[L, H, 7, 7\]",
        ),
        (
            {"weights": wrong(1.5)},
            r"weights\[1, 2, 4, 3\] must be a share from 0 to 1, got 1.5",
        ),
        ({"weights": wrong(-1.0)}, r"weights\[1, 2, 4, 3\] must be .*, got -1$"),
        (
            {"weights": {"a": shares(), "b": wrong(torch.nan)}},
            r"weights\['b'\]\[1, 2, 4, 3\] .* got nan",
        ),
        ({"query": 7}, r"query must be .*6.* got 7"),
        ({"layer": -1}, "layer must be"),
        ({"head": 3}, "head must be"),
    ],
)
def test_explorer_names_wrong_value(change, message):
    with pytest.raises(ValueError, match=message) as raised:
        fbt.AttentionExplorer(**{"tokens": TOKENS, "weights": shares()} | change)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": 7}, "tokens must be a sequence of texts, got int"),
        ({"tokens": None}, "tokens must be a sequence of texts, got NoneType"),
        (
            {"weights": shares().tolist()},
            "weights must be a tensor of real numbers, got list",
        ),
        (
            {"weights": {"a": shares(), "b": None}},
            r"weights\['b'\] must be a tensor .*, got NoneType",
        ),
        (
            {"weights": shares().to(torch.complex64)},
            "weights must be .* got torch.complex64",
        ),
        ({"query": "1"}, "query must be"),
    ],
)
def test_explorer_names_argument_of_wrong_type(change, message):
    with pytest.raises(TypeError, match=message) as raised:
        fbt.AttentionExplorer(**{"tokens": TOKENS, "weights": shares()} | change)
    assert len(str(raised.value).splitlines()) == 1


def test_names_of_weights_are_converted_to_texts():
    explorer = fbt.AttentionExplorer(TOKENS, {1: shares(), 2: shares(seed=1)})
    assert repr(explorer) == "AttentionExplorer(7 tokens, 1, 2)"
    assert [panel["name"] for panel in state_of(explorer)["data"]["panels"]] == [
        "1",
        "2",
    ]
    with pytest.raises(ValueError, match=r"^.{1,150}$"):
        fbt.AttentionExplorer(TOKENS, {"\n" * 10_000: shares()[0]})


def test_too_many_weights_for_a_page_raise():
    length = 10_000  # of an expanded tensor, which takes no memory
    with pytest.raises(
        ValueError,
        match=r"at most 20000000 numbers for a page, got 100000000 in shape \[1",
    ):
        fbt.AttentionExplorer(
            ["x"] * length, torch.zeros(1).expand(1, 1, length, length)
        )


def test_lone_surrogates_are_replaced(monkeypatch):
    """UTF-8, used by pages and kernel messages, cannot encode a lone surrogate."""
    attach(monkeypatch, {"allow_stdin": True})
    explorer = fbt.AttentionExplorer(["\ud800", *TOKENS[1:]], {"\udfff": shares()})
    json.dumps(explorer._repr_mimebundle_(), ensure_ascii=False).encode()
    json.dumps(explorer._widget.get_state("data"), ensure_ascii=False).encode()
    assert explorer._widget.data["tokens"][0] == "\ufffd"
