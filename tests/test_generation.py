"""`generate` and `stream`."""

import pytest
import torch
from exact import VARIANTS, model

import fbt
from fbt.generation import probabilities

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
# unequal lengths, one beyond the span
PROMPTS = ["a", "abcdefghijklmno", "\n", "be a cog", "qq"]


@pytest.fixture(params=VARIANTS)
def lm(request) -> fbt.LanguageModel:
    """In float64, where a batch and its single sequences give the same texts."""
    return model(request.param, TOKENIZER)


def greedy_without_cache(lm, prompt, count):
    """The definition: read the whole text for every character."""
    text = prompt
    with torch.no_grad():
        for _ in range(count):
            logits = lm.eval()(TOKENIZER.encode(text)[None])
            text += TOKENIZER.vocabulary[int(logits[0, -1].argmax())]
    return text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_temperature_zero_takes_the_most_likely_character(lm, prompt):
    text = lm.generate(prompt, 20, temperature=0)
    assert text == greedy_without_cache(lm, prompt, 20)
    assert text == lm.generate(prompt, 20, temperature=0, seed=5)
    assert text == lm.generate(prompt, 20, top_k=1)
    assert text == lm.generate(prompt, 20, temperature=1e-320)


def test_the_continuation_follows_the_prompt(lm):
    text = lm.generate("abc", 17, seed=1)
    assert text.startswith("abc")
    assert len(text) == 20
    assert lm.generate("abc", 0) == "abc"
    assert lm.generate(["abc", "d"], 0) == ["abc", "d"]
    # the default: a newline and 200 characters
    assert len(lm.generate(seed=1)) == 1 + 200


def test_only_a_seed_makes_the_text_reproducible(lm):
    assert lm.generate("a", 40, seed=3) == lm.generate("a", 40, seed=3)
    assert lm.generate("a", 40, seed=3) != lm.generate("a", 40, seed=4)
    torch.manual_seed(0)
    one = lm.generate("a", 40)
    torch.manual_seed(0)
    assert lm.generate("a", 40) != one


def test_sampling_does_not_use_the_global_generator(lm):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    lm.generate("a", 5)
    lm.generate("a", 5, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}], ids=str
)
def test_texts_of_a_list_are_independent(lm, options):
    texts = lm.generate(PROMPTS, 20, seed=11, **options)
    alone = [
        lm.generate(prompt, 20, seed=11 + i, **options)
        for i, prompt in enumerate(PROMPTS)
    ]
    assert texts == alone
    assert lm.generate(PROMPTS[:1], 20, seed=11, **options) == alone[:1]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_characters_join_to_the_generated_text(lm, prompt):
    pieces = list(lm.stream(prompt, 20, seed=2))
    assert [len(piece) for piece in pieces] == [1] * 20
    assert prompt + "".join(pieces) == lm.generate(prompt, 20, seed=2)


def test_all_texts_of_a_streamed_list_start_at_once(lm):
    pieces = list(lm.stream(PROMPTS, 4, seed=2))
    assert [len(piece) for step in pieces for piece in step] == [1] * 4 * len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        joined = prompt + "".join(piece[i] for piece in pieces)
        assert joined == lm.generate(PROMPTS, 4, seed=2)[i]


def test_a_stream_can_be_stopped_and_interleaved(lm):
    expected = lm.generate("abc", 10, seed=2)
    stream = lm.stream("abc", 10, seed=2)
    pieces = [next(stream) for _ in range(4)]
    lm.generate("q", 3)
    lm(TOKENIZER.encode("abc")[None]).sum().backward()
    pieces += stream
    assert "abc" + "".join(pieces) == expected
    next(lm.stream("abc", 10))  # never finished


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_unchanged(lm, training):
    lm.train(training)
    lm.head.eval()  # frozen
    modes = [part.training for part in lm.modules()]
    for _ in lm.stream(["a", "bc"], 3):
        assert [part.training for part in lm.modules()] == modes
        assert torch.is_grad_enabled()
    lm.attention(torch.tensor([[1, 2]]))
    assert [part.training for part in lm.modules()] == modes
    assert all(p.grad is None for p in lm.parameters())


def test_dropout_is_off_while_sampling():
    with_dropout, without = (
        model("shared-kv", TOKENIZER, dropout=p) for p in (0.5, 0.0)
    )
    with_dropout.train()
    assert with_dropout.generate("a", 30, seed=1) == without.generate("a", 30, seed=1)


def test_prompts_are_read_at_once_and_then_token_by_token(lm):
    shapes = []
    lm.token_embedding.register_forward_hook(
        lambda _, tokens, __: shapes.append(tuple(tokens[0].shape))
    )
    lm.generate(["abcd", "abcdefg"], 5)
    assert shapes == [(2, 7)] + [(2, 1)] * 4


def test_probabilities_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64))

    def close(found, *expected):
        torch.testing.assert_close(
            found, torch.tensor([expected], dtype=torch.float64)
        )

    close(probabilities(logits, 1.0, None), 0.1, 0.2, 0.3, 0.4)
    close(probabilities(logits, 0.5, None), 1 / 30, 4 / 30, 9 / 30, 16 / 30)
    close(probabilities(logits, 1.0, 2), 0, 0, 3 / 7, 4 / 7)
    close(probabilities(logits, 0.5, 3), 0, 4 / 29, 9 / 29, 16 / 29)
    close(probabilities(logits, 0.0, None), 0, 0, 0, 1)
    close(probabilities(logits, 1e-320, None), 0, 0, 0, 1)
    close(probabilities(logits, 1e300, None), 0.25, 0.25, 0.25, 0.25)


def test_top_k_keeps_exactly_k_of_equal_logits():
    result = probabilities(torch.zeros(2, 7), 1.0, 3)
    assert [(row > 0).sum().item() for row in result] == [3, 3]


def test_characters_are_drawn_with_the_probabilities_of_the_model():
    """A chi-squared test of 2000 first characters, at 99.99 %."""
    lm = model("shared-kv", TOKENIZER)
    with torch.no_grad():
        expected = (
            torch.softmax(lm(TOKENIZER.encode("a")[None])[0, -1], dim=-1) * 2000
        )
    drawn = "".join(text[1] for text in lm.generate(["a"] * 2000, 1, seed=0))
    counts = torch.bincount(TOKENIZER.encode(drawn), minlength=19)
    assert ((counts - expected) ** 2 / expected).sum() < 50.0  # 18 degrees of freedom


def test_a_hook_on_a_module_of_the_body_affects_the_text():
    lm = model("shared-kv", TOKENIZER)
    before = lm.generate("abc", 20, temperature=0)
    lm.body.layers[0].feed_forward.outer.register_forward_hook(
        lambda _, __, out: -9 * out
    )
    after = lm.generate("abc", 20, temperature=0)
    assert before != after == greedy_without_cache(lm, "abc", 20)


def remove_best(module, inputs, out):
    """A forward hook that removes the most likely character."""
    logits, *rest = out if isinstance(out, tuple) else (out,)
    logits = logits.scatter(-1, logits.argmax(-1, keepdim=True), -torch.inf)
    return (logits, *rest) if rest else logits


class Louder(fbt.LanguageModel):
    def forward(self, tokens, state=None, return_state=False):
        return remove_best(self, None, super().forward(tokens, state, return_state))


@pytest.mark.parametrize(
    "change",
    [
        lambda lm: lm.register_forward_hook(remove_best),
        lambda lm: lm.body.register_forward_hook(
            lambda _, __, out: (-out[0], *out[1:])
        ),
        lambda lm: lm.dropout.register_forward_hook(lambda _, __, out: -out),
        lambda lm: setattr(lm, "__class__", Louder),
        lambda lm: setattr(
            lm,
            "forward",
            lambda *args, **kwargs: remove_best(
                lm, None, Louder.__base__.forward(lm, *args, **kwargs)
            ),
        ),
    ],
    ids=["model", "body", "dropout", "a subclass", "a function in place of forward"],
)
def test_hooks_and_changed_methods_affect_every_character(change):
    lm = model("shared-kv", TOKENIZER)
    before = lm.generate("abc", 20, temperature=0)
    change(lm)
    after = lm.generate("abc", 20, temperature=0)
    assert before != after == greedy_without_cache(lm, "abc", 20)


@pytest.mark.parametrize("backend", ["auto", "sequence"])
def test_text_is_generated_under_autocast(backend):
    lm = model("shared-kv", TOKENIZER).float()
    lm.backend = backend
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text = lm.generate("be a cog", 20, temperature=0)
    assert text.startswith("be a cog") and len(text) == 28
