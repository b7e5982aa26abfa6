"""The language model: steps, states, attention, saving and loading."""

import json
from dataclasses import replace

import plain
import pytest
import torch
from exact import (
    AROUND,
    BATCH,
    FEEDBACK,
    LENGTHS,
    ON_CPU,
    OPTIONS,
    VARIANTS,
    VOCABULARY,
    assert_same,
    config,
    everything,
    gradients,
    leaves,
    model,
    some_tokens,
)
from safetensors import safe_open
from safetensors.torch import load_file

import fbt
from fbt.pretrained import WEIGHTS_FILE

CASES = [
    ("parallel", "reference"),
    *((v, b) for v in FEEDBACK for b in ("reference", "stack")),
]
each_case = pytest.mark.parametrize("variant, backend", CASES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)
TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")


def with_backend(variant, backend, **changes) -> fbt.LanguageModel:
    lm = model(variant, **changes)
    lm.backend = backend
    return lm


@each_variant
@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal_the_equations(variant, length):
    lm, tokens = model(variant), some_tokens(BATCH, length)
    p = dict(lm.named_parameters())
    inner = {name.removeprefix("body."): tensor for name, tensor in p.items()}
    y, _, _ = plain.body(inner, lm.config, p["token_embedding.weight"][tokens])
    expected = plain.linear(p, "head", plain.layer_norm(p, "norm", y))
    assert_same(lm(tokens), expected)
    assert_same(gradients([lm(tokens)], p), gradients([expected], p))


@each_case
@pytest.mark.parametrize("span", [3, 13])
def test_step_by_step_equals_the_whole_text(variant, backend, span):
    """Logits, the final state, and gradients through the states of all steps."""
    lm, tokens = with_backend(variant, backend, span=span), some_tokens(BATCH, 17)
    whole = everything(*lm(tokens, return_state=True))
    state, logits = None, []
    for column in tokens.T:
        row, state = lm.step(column, state)
        assert row.shape == (BATCH, VOCABULARY)
        logits.append(row)
    stepped = everything(torch.stack(logits, dim=1), state)
    assert_same(stepped, whole)
    assert_same(gradients(stepped, leaves(lm)), gradients(whole, leaves(lm)))


@each_case
def test_detach_cuts_the_gradient_at_the_border_of_a_block(variant, backend):
    """A detached block has the gradients it would have with a constant state."""
    lm, tokens = with_backend(variant, backend), some_tokens(BATCH, 11)
    _, state = lm(tokens[:, :6], return_state=True)
    cut = state.detach()
    constants = fbt.State(
        *(
            tuple(t.detach().clone() for t in kind)
            for kind in (state.keys, state.values)
        )
    )
    assert not any(t.requires_grad for t in cut.keys + cut.values)
    detached = gradients([lm(tokens[:, 6:], cut)], leaves(lm))
    assert_same(detached, gradients([lm(tokens[:, 6:], constants)], leaves(lm)))
    through = gradients([lm(tokens[:, 6:], state)], leaves(lm))
    name = (
        "body.key_values.0.key.weight"
        if variant in FEEDBACK
        else "body.layers.0.key_value.key.weight"
    )
    assert not torch.allclose(through[name], detached[name])


@each_case
def test_a_state_can_be_continued_twice(variant, backend):
    lm, start = with_backend(variant, backend), some_tokens(BATCH, 6)
    one, other = some_tokens(BATCH, 4, seed=7), some_tokens(BATCH, 4, seed=8)
    _, state = lm(start, return_state=True)
    for ending in (one, other, one):
        assert_same(lm(ending, state), lm(torch.cat([start, ending], dim=1))[:, 6:])


@each_variant
def test_the_state_grows_to_the_span_and_no_further(variant):
    lm, state = model(variant, span=3), None
    for length in (1, 2, 3, 3, 3):
        _, state = lm.step(some_tokens(BATCH, 1)[:, 0], state)
        caches = 1 if variant == "shared-kv" else 3
        assert (len(state.keys), len(state.values)) == (caches, caches)
        assert (state.length, state.batch_size) == (length, BATCH)
        assert {tuple(t.shape) for t in state.keys + state.values} == {
            (BATCH, 2, length, 7)
        }
        assert state.nbytes == 2 * caches * BATCH * 14 * length * 8


@each_case
@pytest.mark.parametrize("length", LENGTHS)
def test_attention(variant, backend, length):
    lm, tokens = (
        with_backend(variant, backend, dropout=0.5),
        some_tokens(BATCH, length),
    )
    lm.train()
    weights = lm.attention(tokens)
    assert lm.training
    assert weights.shape == (3, BATCH, 2, length, length)
    assert not weights.requires_grad
    sums = torch.ones_like(weights[..., 0])
    if variant in FEEDBACK:
        sums[..., 0] = 0.0
        assert not weights[..., 0, :].any()
    assert_same(weights.sum(-1), sums)
    p = {name.removeprefix("body."): tensor for name, tensor in lm.named_parameters()}
    _, _, expected = plain.body(p, lm.config, lm.token_embedding(tokens))
    assert_same(weights, expected)


@pytest.mark.parametrize("variant", FEEDBACK)
def test_layer_weights(variant):
    lm = model(variant)
    weights = lm.layer_weights()
    logits = lm.body.memory.layer_logits
    assert weights.shape == (4,)
    assert not weights.requires_grad
    assert_same(weights, logits.exp().detach() / logits.exp().sum().detach())
    fresh = fbt.LanguageModel(config(variant))
    assert fresh.layer_weights().tolist() == [0.25] * 4
    for memory, expected in {
        "uniform": [1 / 3] * 3,
        "top": [0, 0, 1],
        "embedding": [1, 0, 0],
    }.items():
        fixed = model(variant, memory=memory, n_layers=2)
        # bit for bit, in float64
        assert fixed.layer_weights().tolist() == expected
        assert "body.memory.layer_logits" not in fixed.state_dict()


@each_variant
@pytest.mark.parametrize("relative", ["per-layer", "shared"])
def test_number_of_parameters(variant, relative):
    lm = model(variant, relative=relative)
    d, H, D, L, F, S, V = 14, 2, 7, 3, 11, 13, VOCABULARY
    rows = S + 1 if variant == "parallel" else S
    tables = (L if relative == "per-layer" else 1) * (H * rows * D + H * rows + H * D)
    layer = 2 * 2 * d + d * d + (d * d + d) + (d * F + F) + (F * d + d)
    keys_and_values = (1 if variant == "shared-kv" else L) * 2 * d * d
    memory = 0 if variant == "parallel" else (L + 1) + 2 * d
    around = V * d + 2 * d + (d * V + V)
    assert (
        lm.num_parameters() == tables + L * layer + keys_and_values + memory + around
    )


def test_frozen_parameters_do_not_count():
    lm = model("parallel")
    lm.head.requires_grad_(requires_grad=False)
    frozen = lm.head.weight.numel() + lm.head.bias.numel()
    assert lm.num_parameters() == sum(p.numel() for p in lm.parameters()) - frozen


@each_case
def test_dropout_is_active_in_training_only(variant, backend):
    lm, tokens = with_backend(variant, backend, dropout=0.5), some_tokens(BATCH, 9)
    without = with_backend(variant, backend)
    without.load_state_dict(lm.state_dict())
    lm.train()
    assert not torch.equal(lm(tokens), lm(tokens))
    lm.eval()
    assert torch.equal(lm(tokens), without(tokens))


@each_case
def test_the_backend_reaches_the_body(variant, backend):
    lm, tokens, used = model(variant), some_tokens(BATCH, 9), []
    lm.body.register_forward_pre_hook(
        lambda _, __, options: used.append(options["backend"]), with_kwargs=True
    )
    for name in ("auto", backend):
        lm.backend = name
        lm(tokens)
        lm.step(tokens[:, 0])
        lm.attention(tokens)
    assert used == ["auto"] * 3 + [backend] * 3


@pytest.mark.parametrize("variant", FEEDBACK)
def test_each_backend_uses_its_own_stack(variant, monkeypatch):
    made = []
    for kind in (fbt.MemoryStack, fbt.TorchStack):
        init = kind.__init__
        monkeypatch.setattr(
            kind,
            "__init__",
            lambda self, *args, init=init: (
                made.append(type(self)) or init(self, *args)
            ),
        )
    caches = 2 * (1 if variant == "shared-kv" else 3)
    for backend, kind in {
        "auto": fbt.MemoryStack,
        "stack": fbt.MemoryStack,
        "reference": fbt.TorchStack,
    }.items():
        made.clear()
        with_backend(variant, backend).attention(some_tokens(BATCH, 2))
        assert made == [kind] * caches


@each_case
def test_int32_tokens(variant, backend):
    lm, tokens = with_backend(variant, backend), some_tokens(BATCH, 9)
    assert torch.equal(lm(tokens.int()), lm(tokens))


# Saving and loading.


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokenizer", [None, TOKENIZER])
def test_round_trip(tmp_path, variant, dtype, tokenizer):
    lm = model(variant, tokenizer, dropout=0.1, relative="shared").to(dtype)
    path = lm.save_pretrained(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "model.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for name in (path.parent, str(path.parent)):
        loaded = fbt.LanguageModel.from_pretrained(name)
        assert not loaded.training
        assert (loaded.config, loaded.tokenizer) == (lm.config, lm.tokenizer)
        tokens = some_tokens(BATCH, 9)
        assert torch.equal(loaded(tokens), lm.eval()(tokens))
        assert_same(loaded.state_dict(), lm.state_dict(), rtol=0, atol=0)


@each_variant
def test_outputs_go_to_the_head_as_they_are_without_a_final_norm(variant):
    lm, tokens = model(variant, final_norm=False), some_tokens(BATCH, 9)
    outputs = lm.body(lm.token_embedding(tokens))[0]
    torch.testing.assert_close(lm(tokens), lm.head(outputs))
    assert not [name for name in lm.state_dict() if name.startswith("norm")]


@each_variant
@pytest.mark.parametrize(
    "changes",
    [{}, *OPTIONS, *AROUND, {"memory": "top", "memory_norm": False}],
    ids=str,
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_restores_a_model_completely(variant, changes, assign):
    """Also a model that was made on the meta device."""
    lm, tokens = model(variant, **changes), some_tokens(BATCH, 9)
    with torch.device("meta"):
        empty = fbt.LanguageModel(lm.config)
    for part in empty.modules():
        assert not part._non_persistent_buffers_set
        assert not [
            name
            for name, value in vars(part).items()
            if isinstance(value, torch.Tensor)
        ]
    if not assign:
        empty.double().to_empty(device="cpu")
        for tensor in [*empty.parameters(), *empty.buffers()]:
            tensor.data.fill_(torch.nan)
    empty.load_state_dict(lm.state_dict(), assign=assign)
    for backend in ON_CPU[variant]:
        lm.backend = empty.backend = backend
        assert torch.equal(empty(tokens), lm(tokens))
    if variant != "parallel":
        assert torch.equal(empty.layer_weights(), lm.layer_weights())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, stored):
    lm = model("shared-kv").to(stored)
    lm.save_pretrained(tmp_path)
    loaded = fbt.LanguageModel.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_same(loaded.state_dict(), lm.float().state_dict(), rtol=0, atol=0)


def test_one_file_contains_weights_config_and_vocabulary(tmp_path):
    path = model("shared-kv", TOKENIZER).save_pretrained(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["variant"] == "shared-kv"
    assert json.loads(metadata["vocabulary"]) == TOKENIZER.vocabulary
    assert load_file(path).keys() == model("shared-kv").state_dict().keys()


def test_saving_again_replaces_and_a_failed_save_keeps_the_old_file(
    tmp_path, monkeypatch
):
    path = model("shared-kv").save_pretrained(tmp_path)
    model("parallel").save_pretrained(tmp_path)
    before = path.read_bytes()
    assert fbt.LanguageModel.from_pretrained(tmp_path).config.variant == "parallel"

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        model("shared-kv").save_pretrained(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_takes_precedence_over_a_shipped_name(tmp_path, monkeypatch):
    assert (
        fbt.LanguageModel.from_pretrained("tiny-shakespeare").config.vocab_size == 65
    )
    monkeypatch.chdir(tmp_path)
    model("shared-kv").save_pretrained("tiny-shakespeare")
    assert (
        fbt.LanguageModel.from_pretrained("tiny-shakespeare").config.vocab_size
        == VOCABULARY
    )


@pytest.mark.parametrize("name", ["no-such-model", "", "/no/such/folder"])
def test_a_missing_model_is_named(name):
    with pytest.raises(
        FileNotFoundError, match=rf"no model.safetensors in '{name}'; names that ship"
    ):
        fbt.LanguageModel.from_pretrained(name)


def test_the_file_has_the_usual_name():
    assert WEIGHTS_FILE == "model.safetensors"


def test_the_path_of_a_file_is_accepted(tmp_path):
    lm = model("shared-kv", TOKENIZER)
    path = lm.save_pretrained(tmp_path)
    other = tmp_path / "another name"
    other.write_bytes(path.read_bytes())
    for name in (path, str(path), other):
        loaded = fbt.LanguageModel.from_pretrained(name)
        assert loaded.tokenizer == TOKENIZER
        assert_same(loaded.state_dict(), lm.state_dict(), rtol=0, atol=0)


def test_a_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("not weights")
    with pytest.raises(
        ValueError, match=r"README\.md must be a safetensors file with a header"
    ):
        fbt.LanguageModel.from_pretrained(path)
    path.write_text("{}")
    with pytest.raises(
        ValueError,
        match=r"README\.md is not a valid model of this version of fbt: the header",
    ):
        fbt.LanguageModel.from_pretrained(path)


# The tokenizer.


@pytest.mark.parametrize(
    "tokenizer, error, message",
    [
        (
            fbt.CharTokenizer("abc"),
            ValueError,
            "must have vocab_size=19 tokens, as the model, got 3",
        ),
        ("abc", TypeError, "must have the methods .* got 'abc'"),
    ],
)
def test_a_tokenizer_is_checked(tokenizer, error, message):
    with pytest.raises(error, match=message):
        fbt.LanguageModel(config("shared-kv"), tokenizer)
    lm = model("shared-kv", TOKENIZER)
    with pytest.raises(error, match=message):
        lm.tokenizer = tokenizer
    assert lm.tokenizer is TOKENIZER


def test_a_tokenizer_can_be_replaced_and_removed(tmp_path):
    lm, other = (
        model("shared-kv"),
        fbt.CharTokenizer.from_vocabulary(TOKENIZER.vocabulary[::-1]),
    )
    for tokenizer in (TOKENIZER, other, None):
        lm.tokenizer = tokenizer
        lm.save_pretrained(tmp_path)
        assert fbt.LanguageModel.from_pretrained(tmp_path).tokenizer == tokenizer
    assert "tokenizer" not in lm.state_dict()


def test_a_tokenizer_that_no_longer_fits_is_not_saved(tmp_path):
    lm = model("shared-kv", TOKENIZER)
    path = lm.save_pretrained(tmp_path)
    before = path.read_bytes()
    lm.config = replace(lm.config, vocab_size=20)
    lm.token_embedding, lm.head = (
        torch.nn.Embedding(20, 14).double(),
        torch.nn.Linear(14, 20).double(),
    )
    with pytest.raises(
        ValueError,
        match="tokenizer must have vocab_size=20 tokens, as the model, got 19",
    ):
        lm.save_pretrained(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lm: lm.body.half(), "all tensors must have the same dtype"),
        (
            lambda lm: lm.to(torch.float8_e4m3fn),
            "'body.key_values.0.key.weight' must have one of the dtypes ",
        ),
        (
            lambda lm: setattr(lm, "head", torch.nn.Linear(14, 20)),
            "misshapen 'head.weight",
        ),
        (
            lambda lm: lm.register_parameter(
                "more", torch.nn.Parameter(torch.ones(1))
            ),
            "unknown 'more'",
        ),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path, change, message):
    lm = model("shared-kv")
    lm.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    change(lm)
    with pytest.raises(ValueError, match=message):
        lm.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer_outputs_and_memory_are_those_of_the_body(variant):
    """Beyond the span, with dropout off; keys are projections of the memory."""
    lm, tokens = model(variant, dropout=0.5).train(), some_tokens(BATCH, 17)
    outputs = lm.layer_outputs(tokens)
    lm.eval()
    x = lm.token_embedding(tokens)
    y, state, _ = lm.body(x)
    assert_same([outputs[0], outputs[-1]], [x.detach(), y.detach()])
    assert not outputs.requires_grad
    if variant == "parallel":
        with pytest.raises(ValueError, match="got 'parallel'"):
            lm.memory(tokens)
        return
    m = lm.memory(tokens)[:, -lm.config.span :]
    keys, _ = lm.body.key_values[0](lm.body.memory.norm(m))
    assert_same(keys.detach(), state.keys[0].detach())
