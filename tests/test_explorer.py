"""The attention explorer: what it shows is what it was given, text stays text, and it needs no kernel."""

import base64
import json
import re
import sys

import numpy as np
import pytest
import torch
from front_ends import WIDGET, attach

import fbt

L, H, T = 2, 3, 7
TOKENS = list("ROMEO:\n")
SVG_NAME = "http://www.w3.org/2000/svg"  # the name of a kind of element, which nothing fetches


def shares(*, seed: int = 0) -> torch.Tensor:
    """Attention weights of a causal model [L, H, T, T]."""
    scores = torch.randn(L, H, T, T, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)


def state_of(explorer: fbt.AttentionExplorer) -> dict:
    """What the page's script is given."""
    return json.loads(re.search(r"const state = (.*);\n", explorer.to_html())[1])


def weight(text: str, layer: int, head: int, query: int, key: int) -> float:
    """A weight as explorer.js decodes it."""
    numbers = np.frombuffer(base64.b64decode(text), np.uint8)
    place = (layer * H + head) * T * (T + 1) // 2 + query * (query + 1) // 2 + key
    return (numbers[place] / 255) ** 2


def test_the_page_holds_the_weights():
    weights = {"one": shares(), "other": shares(seed=1)}
    panels = state_of(fbt.AttentionExplorer(TOKENS, weights))["data"]["panels"]
    assert [panel["name"] for panel in panels] == ["one", "other"]
    for panel in panels:
        assert (panel["layers"], panel["heads"]) == (L, H)
        for (layer, head, query, key), expected in np.ndenumerate(weights[panel["name"]].numpy()):
            if key <= query:
                found = weight(panel["weights"], layer, head, query, key)
                assert found == pytest.approx(expected, abs=2 / 255)


def test_what_is_chosen_first():
    first = state_of(fbt.AttentionExplorer(TOKENS, shares()))
    assert {name: first[name] for name in ("query", "layer", "head")} == {"query": 6, "layer": -1, "head": -1}
    explorer = fbt.AttentionExplorer(TOKENS, shares(), query=3, layer=1, head=2)
    chosen = state_of(explorer)
    assert (chosen["query"], chosen["layer"], chosen["head"]) == (3, 1, 2)
    assert (explorer.query, explorer.layer, explorer.head) == (3, 1, 2)


def test_text_is_never_markup():
    tokens = ["<img src=x onerror=alert(1)>", "</script>", "&amp;", '"', "\u05d0", "🎭", "e\u0301"]
    page = fbt.AttentionExplorer(tokens, {"</script><b>": shares()}).to_html()
    assert page.count("</script>") == 1  # the page's own
    assert "<img" not in page.split("<script>")[0]
    assert json.loads(re.search(r"const state = (.*);\n", page)[1])["data"]["tokens"] == tokens


def test_the_text_can_be_read_without_scripts():
    assert "<pre>ROMEO:\n</pre>" in fbt.AttentionExplorer(TOKENS, shares()).to_html()


def test_a_page_fetches_nothing():
    page = fbt.AttentionExplorer(TOKENS, shares()).to_html().replace(SVG_NAME, "")
    assert not re.search(r"https?:|//[a-z]|@import|\burl\(", page)


def test_a_live_notebook_gets_a_widget_that_python_can_read(monkeypatch):
    attach(monkeypatch, {"allow_stdin": True})
    explorer = fbt.AttentionExplorer(TOKENS, shares(), query=2)
    bundle = explorer._repr_mimebundle_()
    assert {"text/plain", "text/html", WIDGET} <= bundle.keys()
    explorer._widget.query = 5  # the reader chooses
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
    "change, said",
    [
        ({"tokens": []}, "must not be empty, got 0 tokens"),
        ({"tokens": TOKENS[1:]}, r"must be \[L, H, 6, 6\] for 6 tokens, got \[2, 3, 7, 7\]"),
        ({"weights": shares()[0]}, r"got \[3, 7, 7\]"),
        ({"weights": {}}, "0 tensors of weights"),
        ({"weights": {"a": shares(), "b": shares()[:1]}}, "must have one shape"),
        ({"weights": 3 * shares()}, "must be shares from 0 to 1"),
        ({"weights": shares() * torch.nan}, "must be shares from 0 to 1"),
        ({"query": 7}, r"query must be .*6.* got 7"),
        ({"layer": -1}, "layer must be"),
        ({"head": 3}, "head must be"),
    ],
)
def test_bad_arguments_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        fbt.AttentionExplorer(**{"tokens": TOKENS, "weights": shares()} | change)


def test_weights_must_be_a_tensor():
    with pytest.raises(TypeError, match="weights must be a tensor, got list"):
        fbt.AttentionExplorer(TOKENS, shares().tolist())


def test_a_page_does_not_carry_more_than_it_can():
    length = 10_000  # of a tensor that takes no memory
    with pytest.raises(
        ValueError, match=r"at most 20000000 numbers for a page, got 100000000, \[1, 1, 10000"
    ):
        fbt.AttentionExplorer(["x"] * length, torch.zeros(1).expand(1, 1, length, length))


def test_half_a_character_can_be_sent(monkeypatch):
    """Pages and the messages of a kernel are UTF-8, which has no place for one."""
    attach(monkeypatch, {"allow_stdin": True})
    explorer = fbt.AttentionExplorer(["\ud800", *TOKENS[1:]], {"\udfff": shares()})
    json.dumps(explorer._repr_mimebundle_(), ensure_ascii=False).encode()
    json.dumps(explorer._widget.get_state("data"), ensure_ascii=False).encode()
    assert explorer._widget.data["tokens"][0] == "\ufffd"
