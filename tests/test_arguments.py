"""Each invalid argument raises an error with its name, value and allowed range."""

import json
import re
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch
from exact import FEEDBACK, VARIANTS, model, normal, some_state, some_tokens

import fbt
from fbt._checks import describe, shorten
from fbt.language_model import BODIES

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
TOKENS = some_tokens(5, 9)

AT_LEAST_ONE = r"an int in \[1, 268435456\]"
CONFIG = [
    (ValueError, {"vocab_size": 0}, AT_LEAST_ONE),
    (TypeError, {"vocab_size": 19.0}, AT_LEAST_ONE),
    (TypeError, {"vocab_size": True}, AT_LEAST_ONE),
    (TypeError, {"vocab_size": None}, AT_LEAST_ONE),
    (ValueError, {"d_model": 0}, AT_LEAST_ONE),
    (TypeError, {"d_model": "64"}, AT_LEAST_ONE),
    (ValueError, {"n_heads": 0}, AT_LEAST_ONE),
    (ValueError, {"n_heads": 3}, r"must divide d_model, .* d_model=128"),
    (ValueError, {"n_heads": 256}, r"must divide d_model, .* d_model=128"),
    (TypeError, {"n_heads": True}, AT_LEAST_ONE),
    (ValueError, {"n_layers": 0}, AT_LEAST_ONE),
    (ValueError, {"n_layers": -2}, AT_LEAST_ONE),
    (TypeError, {"n_layers": 2.5}, AT_LEAST_ONE),
    (ValueError, {"d_ff": 0}, AT_LEAST_ONE),
    (TypeError, {"d_ff": True}, AT_LEAST_ONE),
    (ValueError, {"span": -1}, AT_LEAST_ONE),
    (ValueError, {"span": 0}, AT_LEAST_ONE),
    (TypeError, {"span": torch.tensor(3)}, AT_LEAST_ONE),
    (
        ValueError,
        {"variant": "recurrent"},
        "one of 'parallel', 'feedback', 'shared-kv'",
    ),
    (ValueError, {"variant": None}, "one of 'parallel', 'feedback', 'shared-kv'"),
    (ValueError, {"activation": "tanh"}, "one of 'relu', 'gelu'"),
    (
        ValueError,
        {"memory": "bottom"},
        "one of 'learned', 'uniform', 'top', 'embedding'",
    ),
    (ValueError, {"relative": "none"}, "one of 'per-layer', 'shared'"),
    (TypeError, {"memory_norm": 1}, "True or False"),
    (TypeError, {"memory_norm": None}, "True or False"),
    (TypeError, {"final_norm": 1}, "True or False"),
    (ValueError, {"dropout": -0.1}, re.escape("a number in [0.0, 1.0)")),
    (ValueError, {"dropout": 1.0}, re.escape("a number in [0.0, 1.0)")),
    (ValueError, {"dropout": float("nan")}, re.escape("a number in [0.0, 1.0)")),
    (ValueError, {"dropout": float("inf")}, re.escape("a number in [0.0, 1.0)")),
    (TypeError, {"dropout": "0.1"}, re.escape("a number in [0.0, 1.0)")),
    (TypeError, {"dropout": False}, re.escape("a number in [0.0, 1.0)")),
]


@pytest.mark.parametrize(
    "error, bad, allowed", CONFIG, ids=[str(bad) for _, bad, _ in CONFIG]
)
def test_config(error, bad, allowed):
    ((name, value),) = bad.items()
    with pytest.raises(error, match=f"{name}.*{allowed}") as raised:
        fbt.Config(**{"vocab_size": 19, **bad})
    assert shorten(value) in str(raised.value)


def test_config_has_keyword_arguments_and_is_immutable():
    with pytest.raises(TypeError):
        fbt.Config(19, "feedback")
    with pytest.raises(TypeError, match="width"):
        fbt.Config(19, width=3)
    config = fbt.Config(19)
    with pytest.raises(FrozenInstanceError):
        config.span = 3
    with pytest.raises(
        ValueError, match=r"span must be an int in \[1, 268435456\], got -3"
    ):
        replace(config, span=-3)
    assert (config.d_ff, config.d_head) == (512, 32)


def test_replace_keeps_the_default_factor_of_d_ff():
    small = fbt.Config(19, d_model=64)
    assert small.replace(d_model=512).d_ff == 2048
    assert small.replace(d_model=512, d_ff=100).d_ff == 100
    assert small.replace(span=3) == fbt.Config(19, d_model=64, span=3)
    assert fbt.Config(19, d_model=64, d_ff=100).replace(d_model=512).d_ff == 100
    # as in a file
    stored = fbt.Config(**json.loads(json.dumps(asdict(small))))
    assert stored == small
    assert stored.replace(d_model=512).d_ff == 2048
    assert type(small.replace(d_model=512).d_ff) is int
    with pytest.raises(TypeError, match="width"):
        small.replace(width=3)
    with pytest.raises(
        ValueError, match=r"span must be an int in \[1, 268435456\], got -3"
    ):
        small.replace(span=-3)


QUOTED_VALUES = {
    "a tensor": (torch.zeros(3, 4), "Tensor [3, 4] of torch.float32"),
    "a parameter": (
        torch.nn.Parameter(torch.zeros(2)),
        "Parameter [2] of torch.float32",
    ),
    "an array": (np.zeros((2, 3)), "ndarray [2, 3] of float64"),
    "a number of numpy's": (np.float64(0.5), repr(np.float64(0.5))),
    "a module": (torch.nn.Linear(3, 4), "Linear module"),
    "tensors in a list": (
        [torch.zeros(3), None],
        "[Tensor [3] of torch.float32, None]",
    ),
    "a short text": ("a\nb", "'a\\nb'"),
    "a huge int": (10**5000, "an int of 16610 bits"),
}


@pytest.mark.parametrize("case", QUOTED_VALUES)
def test_values_in_messages(case):
    value, expected = QUOTED_VALUES[case]
    assert shorten(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        ["x" * 100] * 10**4,
        {"x" * 100: 1},
        fbt.Config(3),
        range(10**9),
    ],
)
def test_long_values_are_shortened_to_a_line(value):
    text = shorten(value)
    assert len(text) <= 80
    assert "\n" not in text
    assert text[:3] == repr(value)[:3]


def test_a_type_is_given_once():
    assert describe(3) == "3 of type int"
    assert describe(torch.zeros(2)) == "Tensor [2] of torch.float32"
    assert describe(torch.nn.Linear(3, 4)) == "Linear module"


BAD_TOKENS = [
    (ValueError, TOKENS.clone().fill_(19), r"tokens must be in \[0, 18\], got 19"),
    (ValueError, TOKENS.clone().fill_(-1), r"tokens must be in \[0, 18\], got -1"),
    (
        TypeError,
        TOKENS.float(),
        r"tokens must be an int64 or int32 tensor \[B, T\], got torch.float32",
    ),
    (
        TypeError,
        TOKENS > 3,
        r"tokens must be an int64 or int32 tensor \[B, T\], got torch.bool",
    ),
    (
        TypeError,
        TOKENS.tolist(),
        r"tokens must be an int64 or int32 tensor \[B, T\], got \[\[",
    ),
    (
        TypeError,
        None,
        r"tokens must be an int64 or int32 tensor \[B, T\], "
        "got None of type NoneType",
    ),
    (
        TypeError,
        "abc",
        r"tokens must be an int64 or int32 tensor \[B, T\], got 'abc' of type str",
    ),
    (
        ValueError,
        TOKENS[:, :0],
        r"tokens must have shape \[B, T\] with every size >= 1, got \[5, 0\]",
    ),
    (
        ValueError,
        TOKENS[:0],
        r"tokens must have shape \[B, T\] with every size >= 1, got \[0, 9\]",
    ),
    (
        ValueError,
        TOKENS[0],
        r"tokens must have shape \[B, T\] with every size >= 1, got \[9\]",
    ),
    (
        ValueError,
        TOKENS[None],
        r"tokens must have shape \[B, T\] with every size >= 1, got \[1, 5, 9\]",
    ),
]


@pytest.mark.parametrize(
    "error, tokens, message", BAD_TOKENS, ids=[message for *_, message in BAD_TOKENS]
)
def test_tokens(error, tokens, message):
    lm = model("shared-kv")
    for call in (lm, lm.attention):
        with pytest.raises(error, match=message):
            call(tokens)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_invalid_token_among_many(variant):
    tokens = TOKENS.clone()
    tokens[3, 7] = 19
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 18\], got 19"):
        model(variant)(tokens)


BAD_STEPS = [
    (
        ValueError,
        TOKENS,
        r"tokens must have shape \[B\] with every size >= 1, got \[5, 9\]",
    ),
    (
        ValueError,
        TOKENS[0, :0],
        r"tokens must have shape \[B\] with every size >= 1, got \[0\]",
    ),
    (ValueError, TOKENS[0] + 19, r"tokens must be in \[0, 18\], got \d\d"),
    (
        TypeError,
        3,
        r"tokens must be an int64 or int32 tensor \[B\], got 3 of type int",
    ),
]


@pytest.mark.parametrize(
    "error, tokens, message", BAD_STEPS, ids=[message for *_, message in BAD_STEPS]
)
def test_tokens_of_a_step(error, tokens, message):
    with pytest.raises(error, match=message):
        model("shared-kv").step(tokens)


def changed(state, keys=lambda k: k, values=lambda v: v):
    return fbt.State(keys(state.keys), values(state.values))


def each(change):
    return lambda tensors: tuple(change(t) for t in tensors)


STATE_MESSAGE = (
    r"state must have 3 keys and values \[5, 2, 1\.\.13, 7\] for these .*, "
    "got keys .* and values "
)
BAD_STATES = {
    "another batch size": (
        ValueError,
        lambda s: changed(s, each(lambda t: t[:4]), each(lambda t: t[:4])),
        STATE_MESSAGE,
    ),
    "another width": (
        ValueError,
        lambda s: changed(s, each(lambda t: t[..., :6]), each(lambda t: t[..., :6])),
        STATE_MESSAGE,
    ),
    "other heads": (
        ValueError,
        lambda s: changed(s, each(lambda t: t[:, :1]), each(lambda t: t[:, :1])),
        STATE_MESSAGE,
    ),
    "beyond the span": (
        ValueError,
        lambda s: changed(
            s,
            each(lambda t: t.repeat(1, 1, 3, 1)),
            each(lambda t: t.repeat(1, 1, 3, 1)),
        ),
        STATE_MESSAGE,
    ),
    "no steps": (
        ValueError,
        lambda s: changed(
            s, each(lambda t: t[:, :, :0]), each(lambda t: t[:, :, :0])
        ),
        STATE_MESSAGE,
    ),
    "no batch axis": (
        ValueError,
        lambda s: changed(s, each(lambda t: t[0]), each(lambda t: t[0])),
        STATE_MESSAGE,
    ),
    "another variant": (
        ValueError,
        lambda s: changed(s, lambda k: k[:1], lambda v: v[:1]),
        STATE_MESSAGE,
    ),
    "a value missing": (
        ValueError,
        lambda s: changed(s, values=lambda v: v[:2]),
        STATE_MESSAGE,
    ),
    "uneven lengths": (
        ValueError,
        lambda s: changed(s, values=each(lambda t: t[:, :, :2])),
        STATE_MESSAGE,
    ),
    "one uneven length": (
        ValueError,
        lambda s: changed(s, lambda k: (k[0][:, :, :2], *k[1:])),
        STATE_MESSAGE,
    ),
    "nothing": (ValueError, lambda s: fbt.State((), ()), STATE_MESSAGE),
    "a tuple": (
        TypeError,
        lambda s: (s.keys, s.values),
        r"state must be a State or None, got \(\(Tensor .* of type tuple",
    ),
    "values of another dtype": (
        TypeError,
        lambda s: changed(s, values=each(torch.Tensor.float)),
        "state must be torch.float64 like the model, got torch.float32",
    ),
    "another dtype": (
        TypeError,
        lambda s: changed(s, each(torch.Tensor.float), each(torch.Tensor.float)),
        "state must be torch.float64 like the model, got torch.float32",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
@pytest.mark.parametrize("variant", ["parallel", "feedback"])
def test_states(variant, case):
    error, change, message = BAD_STATES[case]
    lm = model(variant)
    state = change(some_state(lm.config, 6))
    with pytest.raises(error, match=message):
        lm(TOKENS, state)
    with pytest.raises(error, match=message):
        lm.step(TOKENS[:, 0], state)
    for backend in lm.body.backends:
        with pytest.raises(error, match=message):
            lm.body(lm.token_embedding(TOKENS), state, backend=backend)


def test_a_state_of_another_variant_is_refused():
    lm, other = model("shared-kv"), model("feedback")
    state = some_state(other.config, 6)
    with pytest.raises(ValueError, match=r"state must have 1 keys and values"):
        lm(TOKENS, state)
    for backend in lm.body.backends:
        with pytest.raises(ValueError, match=r"state must have 1 keys and values"):
            lm.body(lm.token_embedding(TOKENS), state, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "stack", "sequence"])
def test_a_state_of_another_batch_size_is_refused(backend):
    """With one head its shape could be broadcast."""
    body = fbt.SharedKVBody(fbt.Config(19, d_model=6, n_heads=1, n_layers=2, span=9))
    _, state, _ = body(torch.randn(1, 4, 6))
    with pytest.raises(
        ValueError, match=r"state must have 1 keys and values \[3, 1, 1..9, 6\]"
    ):
        body(torch.randn(3, 4, 6), state, backend=backend)


SAMPLING = [
    (TypeError, {"prompt": 5}, "prompt must be a text, .* got 5"),
    (TypeError, {"prompt": None}, "prompt must be a text, .* got None"),
    (TypeError, {"prompt": b"a"}, "prompt must be a text, .* got b'a'"),
    (
        TypeError,
        {"prompt": ["a", 1]},
        "a prompt of the list must be of type str, got 1",
    ),
    (ValueError, {"prompt": ""}, "prompt must have at least 1 character, got ''"),
    (
        ValueError,
        {"prompt": []},
        r"prompt must be a text or a list of at least one, got \[\]",
    ),
    (
        ValueError,
        {"prompt": ["a", ""]},
        "prompt must have at least 1 character, got ''",
    ),
    (
        ValueError,
        {"prompt": "abz"},
        r"text must contain only the 19 characters .* "
        r"got 'z' \(U\+007A\) at position 2",
    ),
    (
        ValueError,
        {"max_new_tokens": -1},
        "max_new_tokens must be an int >= 0, got -1",
    ),
    (
        TypeError,
        {"max_new_tokens": 2.0},
        "max_new_tokens must be an int >= 0, got 2.0",
    ),
    (
        TypeError,
        {"max_new_tokens": True},
        "max_new_tokens must be an int >= 0, got True",
    ),
    (
        ValueError,
        {"temperature": -0.5},
        r"temperature must be a number in \[0.0, inf\), got -0.5",
    ),
    (
        ValueError,
        {"temperature": float("nan")},
        r"temperature must be a number in \[0.0, inf\), got nan",
    ),
    (
        ValueError,
        {"temperature": float("inf")},
        r"temperature must be a number in \[0.0, inf\), got inf",
    ),
    (
        TypeError,
        {"temperature": "hot"},
        r"temperature must be a number in \[0.0, inf\), got 'hot'",
    ),
    (
        TypeError,
        {"temperature": True},
        r"temperature must be a number in \[0.0, inf\), got True",
    ),
    (ValueError, {"top_k": 0}, r"top_k must be an int in \[1, 19\], got 0"),
    (ValueError, {"top_k": 20}, r"top_k must be an int in \[1, 19\], got 20"),
    (TypeError, {"top_k": 2.0}, r"top_k must be an int in \[1, 19\], got 2.0"),
    (
        ValueError,
        {"seed": -1},
        r"seed must be an int in \[0, 4611686018427387904\], got -1",
    ),
    (
        ValueError,
        {"seed": 2**63},
        r"seed must be an int in \[0, 4611686018427387904\], got 9223372036854775808",
    ),
    (
        TypeError,
        {"seed": 1.5},
        r"seed must be an int in \[0, 4611686018427387904\], got 1.5",
    ),
]


@pytest.mark.parametrize(
    "error, bad, message", SAMPLING, ids=[str(bad) for _, bad, _ in SAMPLING]
)
def test_sampling(error, bad, message):
    lm = model("shared-kv", TOKENIZER)
    with pytest.raises(error, match=message):
        lm.generate(**{"prompt": "a", "max_new_tokens": 2, **bad})
    with pytest.raises(error, match=message):
        # at the call, not at the first character
        lm.stream(**{"prompt": "a", "max_new_tokens": 2, **bad})


PARALLEL, SHARED = model("parallel"), model("shared-kv")
MODELS = {
    "no tokenizer": (
        ValueError,
        lambda: SHARED.generate("a"),
        "a text as prompt needs a tokenizer: .* got tokenizer=None",
    ),
    "a tokenizer of another size": (
        ValueError,
        lambda: fbt.LanguageModel(fbt.Config(20), TOKENIZER),
        "tokenizer must have vocab_size=20 tokens, as the model, got 19",
    ),
    "a tokenizer that is none": (
        TypeError,
        lambda: fbt.LanguageModel(fbt.Config(3), "abc"),
        "tokenizer must have the methods encode and decode .* got 'abc'",
    ),
    "a config that is none": (
        TypeError,
        lambda: fbt.LanguageModel(19),
        "config must be of type Config, got 19",
    ),
    "unknown backend": (
        ValueError,
        lambda: setattr(SHARED, "backend", "fast"),
        "backend of a 'shared-kv' model must be one of 'auto', 'reference', 'stack', "
        "'sequence', 'native', 'triton', got 'fast'",
    ),
    "embeddings of no steps": (
        ValueError,
        lambda: SHARED.body(torch.zeros(2, 0, 14)),
        r"x must have shape \[B, T, 14\] with B, T >= 1, got \[2, 0, 14\]",
    ),
    "embeddings of another width": (
        ValueError,
        lambda: PARALLEL.body(torch.zeros(2, 3, 5)),
        r"x must have shape \[B, T, 14\] with B, T >= 1, got \[2, 3, 5\]",
    ),
    "a backend of another variant": (
        ValueError,
        lambda: setattr(PARALLEL, "backend", "stack"),
        "backend of a 'parallel' model must be one of 'auto', 'reference', "
        "got 'stack'",
    ),
    "layer weights of a parallel model": (
        ValueError,
        PARALLEL.layer_weights,
        "layer_weights needs variant 'feedback' or 'shared-kv', got 'parallel'",
    ),
    "from nothing": (
        TypeError,
        lambda: fbt.LanguageModel.from_parallel(None),
        "parallel must be of type LanguageModel, got None",
    ),
    "from a feedback model": (
        ValueError,
        lambda: fbt.LanguageModel.from_parallel(SHARED),
        "variant of the model to start from must be one of 'parallel', "
        "got 'shared-kv'",
    ),
    "to a parallel model": (
        ValueError,
        lambda: fbt.LanguageModel.from_parallel(PARALLEL, "parallel"),
        "variant must be one of 'shared-kv', 'feedback', got 'parallel'",
    ),
    "with other sizes": (
        ValueError,
        lambda: fbt.LanguageModel.from_parallel(PARALLEL, d_model=3),
        "a changed field must be one of 'dropout', 'memory', 'memory_norm', "
        "got 'd_model'",
    ),
    "with a wrong option": (
        ValueError,
        lambda: fbt.LanguageModel.from_parallel(PARALLEL, memory="low"),
        "memory must be one of .* got 'low'",
    ),
    "loading nothing": (
        TypeError,
        lambda: fbt.LanguageModel.from_pretrained(None),
        "name must be of type str or Path, got None",
    ),
    "no caches": (
        ValueError,
        lambda: fbt.FeedbackBody(SHARED.config, n_caches=0),
        r"n_caches must be an int in \[1, 3\], got 0",
    ),
    "caches for some layers": (
        ValueError,
        lambda: fbt.FeedbackBody(SHARED.config, n_caches=2),
        r"n_caches must be 1 or n_layers=3, got 2",
    ),
    "a span of no steps": (
        ValueError,
        lambda: fbt.MemoryStack(0, 3),
        "span must be an int >= 1, got 0",
    ),
    "a negative span": (
        ValueError,
        lambda: fbt.TorchStack(-1),
        "span must be an int >= 1, got -1",
    ),
    "a negative capacity": (
        ValueError,
        lambda: fbt.MemoryStack(3, -1),
        "capacity must be an int >= 0, got -1",
    ),
    "a capacity that is not a number": (
        TypeError,
        lambda: fbt.MemoryStack(3, None),
        "capacity must be an int >= 0, got None",
    ),
    "showing a number": (
        TypeError,
        lambda: fbt.show(3),
        "obj must be a class, .* got 3 of type int",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case):
    error, call, message = MODELS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("variant", FEEDBACK)
def test_unknown_backend_of_a_body(variant):
    names = ", ".join(map(repr, ("auto", *BODIES[variant].backends)))
    with pytest.raises(
        ValueError, match=f"backend must be one of {names}, got 'fast'"
    ):
        model(variant).body(normal(5, 9, 14), backend="fast")
    with pytest.raises(
        ValueError, match="backend must be one of 'auto', 'reference', got 'stack'"
    ):
        model("parallel").body(normal(5, 9, 14), backend="stack")
