"""The engine of the live page computes what the package computes."""

import pytest
import torch
from engines import NODE, READ, job, node, tensors
from exact import AROUND, OPTIONS, VARIANTS, VOCABULARY, model, some_tokens
from torch import Tensor

import fbt
from fbt.generation import probabilities
from fbt.views.packing import pack
from fbt.views.trace import shares_in_memory
from fbt.views.view import joined

TOKENIZER = fbt.CharTokenizer.from_vocabulary("abcdefghijklmnopqrs")
NAMES = ("tiny-shakespeare", "tiny-shakespeare-parallel")
RTOL = 1e-5  # the engine and PyTorch sum float32 numbers in other orders

pytestmark = pytest.mark.skipif(not NODE.exists(), reason="playwright has no Node")


@torch.no_grad()
def expected(lm: fbt.LanguageModel, tokens: Tensor, last: int) -> dict[str, Tensor]:
    """Return what a model computes at the last steps of tokens [T], in its dtype."""
    batch = tokens[None]
    found = {
        "logits": lm(batch)[0, -last:],
        "weights": lm.attention(batch)[:, 0, :, -last:],
    }
    if lm.config.variant == "parallel":
        return found
    outputs = lm.layer_outputs(batch)[:, 0, -last:].transpose(0, 1)
    mixture = lm.layer_weights()
    return found | {
        "memory": mixture @ outputs,
        "shares": shares_in_memory(outputs, mixture),
        "mixture": mixture,
    }


def assert_close(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare, relative to the largest number of each kind."""
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        assert actual[name].shape == value.shape, name
        error = (actual[name] - value).abs().max() / value.abs().max()
        assert error < RTOL, f"{name} differs by {error:.1e}"


def test_engine_equals_models_of_every_kind_and_size():
    """Beyond the span; one process of Node for all."""
    cases = [model(variant, TOKENIZER) for variant in VARIANTS]
    cases += [
        model("feedback", TOKENIZER, **options) for options in (*OPTIONS, *AROUND)
    ]
    cases += [model("parallel", TOKENIZER, **options) for options in OPTIONS[4:]]
    models = [lm.float().double() for lm in cases]  # weights that float32 can hold
    tokens = some_tokens(1, 31)[0]
    length = len(tokens)
    jobs = [job(lm, tokens, last=length) for lm in models]
    read = node("(jobs) => jobs.map(readAll)", jobs)
    for lm, result in zip(models, read, strict=True):
        assert_close(tensors(lm, result, length), expected(lm, tokens, last=length))


@pytest.fixture(scope="module")
def passage() -> str:
    """Return a text longer than the span of the shipped models."""
    return fbt.load_tiny_shakespeare()[-260:]


@pytest.mark.parametrize("name", NAMES)
def test_engine_equals_shipped_models_beyond_their_span(name, passage):
    lm = fbt.LanguageModel.from_pretrained(name)
    tokens = lm.tokenizer.encode(passage)
    assert len(tokens) > lm.config.span + 1
    read = node("readAll", job(lm, tokens, last=3))
    assert_close(tensors(lm, read, len(tokens)), expected(lm, tokens, last=3))


def test_engine_in_chromium_equals_node(window):
    tokens = some_tokens(1, 31)[0]
    jobs = [job(model(v, TOKENIZER).float(), tokens, last=9) for v in VARIANTS]
    run = "(jobs) => jobs.map(readAll)"
    source = f"{joined('engine.js')}{READ}\nreturn ({run})(jobs);"
    window.page.set_content("<p>A page</p>")
    found = window.page.evaluate(
        "([source, jobs]) => new Function('jobs', source)(jobs)", [source, jobs]
    )
    # Engines may round exp differently in the last bit.
    for here, there in zip(found, node(run, jobs), strict=True):
        for step, other in zip(here["steps"], there["steps"], strict=True):
            assert step["logits"] == pytest.approx(
                other["logits"], rel=1e-6, abs=1e-6
            )


def test_rewound_reader_reads_another_ending():
    lm = model("shared-kv", TOKENIZER).float()
    tokens = some_tokens(2, 31)
    tokens[1, :20] = tokens[0, :20]
    again = """({ packed, first, second }) => {
      const reader = new Reader(packed.config, unpack(packed));
      first.forEach((token) => reader.step(token));
      reader.rewind(20);
      const logits = second.slice(20).map((token) => [...reader.step(token)]);
      return logits.at(-1);
    }"""
    first, second = tokens.tolist()
    data = {"packed": pack(lm, exact=True), "first": first, "second": second}
    logits = torch.tensor(node(again, data))
    torch.testing.assert_close(logits, lm(tokens[1:])[0, -1].detach())


SAMPLING = [(1.0, None), (0.7, 5), (1.3, 1), (0.0, None), (0.0, 3), (1e-300, None)]


def test_sampler_has_the_distribution_of_generate():
    logits = [
        torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(s))
        for s in range(3)
    ]
    cases = [
        {"logits": row.tolist(), "temperature": temperature, "k": k or VOCABULARY}
        for row in logits
        for temperature, k in SAMPLING
    ]
    found = node(
        "(cases) => cases.map(({ logits, temperature, k }) => "
        "[...probabilities(logits, temperature, k)])",
        cases,
    )
    wanted = [
        probabilities(torch.tensor([row.tolist()]), temperature, k)[0].tolist()
        for row in logits
        for temperature, k in SAMPLING
    ]
    assert found == [pytest.approx(row, rel=1e-6, abs=1e-12) for row in wanted]


def test_draws_follow_the_probabilities():
    """Frequencies of 100,000 draws for three seeds, by the chi-squared test."""
    shares = [0.4, 0.0, 0.3, 0.2, 0.05, 0.05]
    draws = 100_000
    counts = node(
        """({ shares, draws, seeds }) => seeds.map((seed) => {
          const counts = shares.map(() => 0);
          for (let i = 0; i < draws; i++) counts[draw(shares, uniform(seed, i))]++;
          return counts;
        })""",
        {"shares": shares, "draws": draws, "seeds": [0, 1, 9999]},
    )
    assert len({tuple(row) for row in counts}) == 3
    for row in counts:
        assert row[1] == 0
        statistic = sum(
            (count - draws * share) ** 2 / (draws * share)
            for count, share in zip(row, shares, strict=True)
            if share
        )
        assert statistic < 23.5  # once in 10,000, at 4 degrees of freedom
