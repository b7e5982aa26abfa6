"""`from_parallel`: every sentence of its docstring."""

import plain
import pytest
import torch
from exact import (
    BACKENDS,
    BATCH,
    FEEDBACK,
    LENGTHS,
    assert_same,
    config,
    model,
    normal,
    some_tokens,
)

import fbt

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
each_variant = pytest.mark.parametrize("variant", FEEDBACK)


def pair(
    variant, relative="per-layer", **changes
) -> tuple[fbt.LanguageModel, fbt.LanguageModel]:
    parallel = model("parallel", TOKENIZER, relative=relative)
    return parallel, fbt.LanguageModel.from_parallel(parallel, variant, **changes)


@each_variant
@pytest.mark.parametrize("relative", ["per-layer", "shared"])
def test_weights_that_are_copied(variant, relative):
    parallel, started = pair(variant, relative)
    theirs, ours = parallel.state_dict(), started.state_dict()
    same = [
        "token_embedding.weight",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]
    for l in range(3):
        for part in (
            "norm1",
            "norm2",
            "attention.query",
            "attention.output",
            "feed_forward.inner",
            "feed_forward.outer",
        ):
            same += [f"body.layers.{l}.{part}.weight", f"body.layers.{l}.{part}.bias"]
    same = [
        name
        for name in same
        if name in theirs and not name.endswith("attention.output.bias")
    ]
    tables = range(3 if relative == "per-layer" else 1)
    same += [f"body.relative.{l}.query_bias" for l in tables]
    assert_same(
        {name: ours[name] for name in same},
        {name: theirs[name] for name in same},
        rtol=0,
        atol=0,
    )
    # rows from distance 13 down to 1; the parallel tables end with distance 0
    for l in tables:
        for table in ("key_embedding", "key_bias"):
            name = f"body.relative.{l}.{table}"
            assert torch.equal(ours[name], theirs[name][:, :13])
    mapped = {f"body.layers.{l}.attention.output.bias" for l in range(3)}
    new = {
        "body.memory.layer_logits",
        "body.memory.norm.weight",
        "body.memory.norm.bias",
    }
    rest = ours.keys() - set(same) - mapped - new
    assert all(name.startswith(("body.relative", "body.key_values")) for name in rest)


@each_variant
def test_weights_that_are_mapped(variant):
    """W_k diag(g), W_v diag(g), b_o + W_o W_v beta, or their means over layers."""
    parallel, started = pair(variant)
    keys, values, biases = [], [], []
    for layer in parallel.body.layers:
        gain = torch.diag(layer.norm1.weight)
        keys.append(layer.key_value.key.weight @ gain)
        values.append(layer.key_value.value.weight @ gain)
        biases.append(layer.key_value.value.weight @ layer.norm1.bias)
    if variant == "shared-kv":
        keys, values, biases = (
            [sum(keys) / 3],
            [sum(values) / 3],
            [sum(biases) / 3] * 3,
        )
    assert len(started.body.key_values) == len(keys)
    for project, key, value in zip(
        started.body.key_values, keys, values, strict=True
    ):
        assert_same(project.key.weight, key, "key")
        assert_same(project.value.weight, value, "value")
    for ours, theirs, bias in zip(
        started.body.layers, parallel.body.layers, biases, strict=True
    ):
        output = theirs.attention.output
        assert_same(
            ours.attention.output.bias,
            output.bias + output.weight @ bias,
            "output bias",
        )


@each_variant
def test_weights_that_are_new(variant):
    _, started = pair(variant)
    memory = started.body.memory
    assert not memory.layer_logits.any()
    assert torch.equal(memory.norm.weight, torch.ones_like(memory.norm.weight))
    assert not memory.norm.bias.any()


def test_attention_to_given_memories_equals_the_parallel_layer():
    """Attention to m_1..m_J is the same although biases were dropped or moved."""
    parallel, started = pair("feedback")
    x, memories = normal(BATCH, 1, 14), normal(BATCH, 6, 14, seed=5)
    for l, (theirs, ours) in enumerate(
        zip(parallel.body.layers, started.body.layers, strict=True)
    ):
        relative = started.body.relative[l]
        z = theirs.norm1(x)
        expected, weights = theirs.attention(
            z, *theirs.key_value(theirs.norm1(memories)), relative
        )
        keys, values = started.body.key_values[l](started.body.memory.norm(memories))
        actual, found_weights = ours.attention(ours.norm1(x), keys, values, relative)
        assert_same(found_weights, weights, f"weights of layer {l}")
        assert_same(actual, expected, f"output of layer {l}")


@each_variant
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_one_layer_on_the_embedding_is_the_parallel_layer_under_a_strict_mask(
    variant, backend, length
):
    parallel, tokens = model("parallel", n_layers=1), some_tokens(BATCH, length)
    started = fbt.LanguageModel.from_parallel(parallel, variant, memory="embedding")
    started.backend = backend
    p = dict(parallel.named_parameters())
    inner = {name.removeprefix("body."): tensor for name, tensor in p.items()}
    y, _, weights = plain.parallel(
        inner, parallel.config, p["token_embedding.weight"][tokens], strict=True
    )
    assert_same(
        started(tokens), plain.linear(p, "head", plain.layer_norm(p, "norm", y))
    )
    assert_same(started.attention(tokens), weights, "weights")


@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.25}, {"memory": "top"}, {"memory_norm": False}],
    ids=str,
)
@each_variant
def test_fields_that_may_change(variant, changes):
    parallel, started = pair(variant, **changes)
    assert started.config == config(variant, **changes)
    assert started.tokenizer is parallel.tokenizer
    assert started(some_tokens(BATCH, 9)).isfinite().all()


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_parallel_model_is_unchanged_and_shares_nothing(variant, dtype):
    parallel = model("parallel").to(dtype)
    before = {name: tensor.clone() for name, tensor in parallel.state_dict().items()}
    started = fbt.LanguageModel.from_parallel(parallel, variant)
    assert {p.dtype for p in started.parameters()} == {dtype}
    assert all(p.requires_grad for p in started.parameters())
    with torch.no_grad():
        for parameter in started.parameters():
            parameter.fill_(torch.nan)
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in parallel.state_dict().items()
    )


def test_shared_keys_and_values_are_the_default():
    assert (
        fbt.LanguageModel.from_parallel(model("parallel")).config.variant
        == "shared-kv"
    )
