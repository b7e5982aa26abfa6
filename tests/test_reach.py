"""The reach of a prediction, computed by hand in a page, equals torch's gradient."""

import pytest
import torch
from engines import NODE, node
from exact import VOCABULARY, gradient_sizes, some_tokens
from torch import Tensor

import fbt
from fbt.views.live import WEIGHED, has_reach
from fbt.views.packing import pack, rounded

TOKENIZER = fbt.CharTokenizer.from_vocabulary("abcdefghijklmnopqrs")
RTOL = 1e-4  # of the largest size; the page sums float32 numbers
RUN = """(jobs) => jobs.map(({ packed, tokens, target }) => {
  const told = [];
  const found = new Reach(packed, (done) => told.push(done)).sizes(tokens, target);
  if (told.some((done, i) => done < (told[i - 1] ?? 0) || done > 1)) throw told;
  return [...found];
})"""

pytestmark = pytest.mark.skipif(not NODE.exists(), reason="playwright has no Node")


def in_page(*jobs: tuple[dict, Tensor, int]) -> list[Tensor]:
    """Return the sizes that reach.js finds, in one process of Node."""
    scripts = [name for name in fbt.LiveModel.worker if name != "live_worker.js"]
    names = ("packed", "tokens", "target")
    data = [
        dict(zip(names, (packed, tokens.tolist(), target), strict=True))
        for packed, tokens, target in jobs
    ]
    return [torch.tensor(sizes) for sizes in node(RUN, data, scripts)]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < RTOL * wanted.max()


SIZES = {"d_model": 14, "n_heads": 2, "d_ff": 37, "span": 7}
CASES = [
    {"variant": variant, "n_layers": n_layers, **options}
    for variant, n_layers, options in (
        ("shared-kv", 3, {}),
        ("shared-kv", 1, {"memory": "top"}),
        ("shared-kv", 2, {"memory": "embedding"}),
        ("feedback", 1, {}),
        ("parallel", 3, {}),
    )
]


def test_sizes_equal_gradients_of_torch():
    """At length 1, odd lengths and beyond the span."""
    models = []
    for i, case in enumerate(CASES):
        torch.manual_seed(i)
        config = fbt.Config(VOCABULARY, **SIZES, **case)
        lm = fbt.LanguageModel(config, TOKENIZER).eval()
        with torch.no_grad():  # nothing is zero or one
            for weight in lm.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        assert has_reach(config)
        models.append(lm)
    tokens = some_tokens(1, 31)[0]
    jobs = [
        (lm, tokens[:length], 5) for lm in models for length in (1, 2, 7, len(tokens))
    ]
    found = in_page(*((pack(lm, exact=True), *rest) for lm, *rest in jobs))
    for sizes, (lm, text, target) in zip(found, jobs, strict=True):
        assert_close(sizes, gradient_sizes(lm.double(), text, target).float())


def test_shipped_model_equals_torch_over_all_characters_of_the_window():
    name = "tiny-shakespeare"
    lm = fbt.LanguageModel.from_pretrained(name).eval()
    text = fbt.load_tiny_shakespeare()[-WEIGHED:]
    tokens = lm.tokenizer.encode(text)
    (sizes,) = in_page((pack(lm), tokens, 3))
    assert_close(sizes, gradient_sizes(rounded(lm).eval(), tokens, 3))


def test_models_of_other_kinds_are_not_offered():
    for options in (
        {"activation": "gelu"},
        {"memory": "uniform"},
        {"relative": "shared"},
        {"memory_norm": False},
        {"variant": "feedback", "n_layers": 2},
    ):
        assert not has_reach(fbt.Config(VOCABULARY, **options))
