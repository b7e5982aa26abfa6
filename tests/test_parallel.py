"""Compare the parallel body with its equations and with torch's attention."""

import plain
import pytest
import torch
import torch.nn.functional as F
from exact import (
    BATCH,
    LENGTHS,
    OPTIONS,
    assert_same,
    body,
    config,
    everything,
    gradients,
    leaves,
    normal,
    some_state,
)

import fbt
from fbt import attention


def check(length, state=None, **changes):
    c = config("parallel", **changes)
    module, x = body("parallel", **changes), normal(BATCH, length, c.d_model)
    named = leaves(module, x, state)
    y, after, weights = module(x, state, need_weights=True)
    past = None if state is None else (state.keys, state.values)
    plain_y, (keys, values), plain_weights = plain.parallel(
        dict(module.named_parameters()), c, x, past
    )
    expected = [plain_y, *keys, *values]
    assert_same(everything(y, after), expected)
    assert_same(weights, plain_weights, "weights")
    assert_same(gradients(everything(y, after), named), gradients(expected, named))


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_loop_over_steps(length):
    check(length)


@pytest.mark.parametrize(
    "changes",
    [o for o in OPTIONS if not {"memory", "memory_norm"} & o.keys()],
    ids=str,
)
def test_every_option_equals_loop_over_steps(changes):
    check(9, **changes)


@pytest.mark.parametrize("past", [1, 6, 13])
@pytest.mark.parametrize("length", LENGTHS)
def test_continuing_from_state_equals_loop_over_steps(length, past):
    check(length, some_state(config("parallel"), past))


@pytest.mark.parametrize(
    "blocks, span", [((8, 9), 3), ((1, 2, 3, 11), 13), ((1,) * 17, 3)], ids=str
)
def test_block_by_block_equals_one_pass(blocks, span):
    module, x = body("parallel", span=span), normal(BATCH, 17, 14)
    y, after, _ = module(x)
    state, outputs = None, []
    for block in x.split(blocks, dim=1):
        output, state, _ = module(block, state)
        outputs.append(output)
    in_blocks = everything(torch.cat(outputs, dim=1), state)
    assert_same(in_blocks, everything(y, after))
    named = leaves(module, x)
    assert_same(gradients(in_blocks, named), gradients(everything(y, after), named))


@pytest.mark.parametrize("past", [0, 2])
def test_long_text_is_computed_in_blocks(past, monkeypatch):
    """Outputs, state and gradients do not change; requested weights are complete."""
    module, x = body("parallel", span=5), normal(2, 301, 14)
    state = some_state(config("parallel", span=5), past, batch=2) if past else None
    named = leaves(module, x, state)
    y, after, weights = module(x, state, need_weights=True)
    widths = []
    softmax = torch.softmax
    monkeypatch.setattr(
        torch, "softmax", lambda s, dim: widths.append(s.shape[-1]) or softmax(s, dim)
    )
    monkeypatch.setattr(attention, "LONG", 300)
    in_blocks, after_blocks, no_weights = module(x, state)
    assert no_weights is None
    # a block computes scores for the keys of its span only
    assert max(widths) == attention.BLOCK + 5
    outputs = everything(in_blocks, after_blocks)
    assert_same(outputs, everything(y, after))
    assert_same(gradients(outputs, named), gradients(everything(y, after), named))
    _, _, all_weights = module(x, state, need_weights=True)
    assert torch.equal(all_weights, weights)


def test_returned_state_shares_no_memory():
    """It keeps no larger tensor alive, and writing to it does not affect backward."""
    for span in (3, 13):
        module, x = body("parallel", span=span), normal(BATCH, 9, 14)
        y, state, _ = module(x)
        for tensor in state.keys + state.values:
            assert (
                tensor.untyped_storage().nbytes()
                == tensor.numel() * tensor.element_size()
            )
        expected = gradients([y], leaves(module, x), retain=True)
        for tensor in state.detach().keys:
            tensor.zero_()
        assert_same(gradients([y], leaves(module, x)), expected)


def with_torch_attention(
    module: fbt.ParallelBody, x: torch.Tensor, span: int
) -> torch.Tensor:
    """Run the layers with `scaled_dot_product_attention` and a mask."""
    B, T, d = x.shape
    D = d // 2
    distance = torch.arange(T)[:, None] - torch.arange(T)
    hidden = (distance < 0) | (distance > span)
    row = (span - distance).clamp(0, span)
    for layer, relative in zip(module.layers, module.relative, strict=True):
        z = layer.norm1(x)
        q, k, v = (
            project(z).view(B, T, 2, D).transpose(1, 2)
            for project in (
                layer.attention.query,
                layer.key_value.key,
                layer.key_value.value,
            )
        )
        position = torch.einsum("bhtd,htjd->bhtj", q, relative.key_embedding[:, row])
        mask = ((position + relative.key_bias[:, row]) / D**0.5).masked_fill(
            hidden, -torch.inf
        )
        o = F.scaled_dot_product_attention(
            q + relative.query_bias[:, None], k, v, attn_mask=mask
        )
        x = x + layer.attention.output(o.transpose(1, 2).reshape(B, T, d))
        x = x + layer.feed_forward(layer.norm2(x))
    return x


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_scaled_dot_product_attention_with_same_bias(length):
    module, x = body("parallel"), normal(BATCH, length, 14)
    y, expected = module(x)[0], with_torch_attention(module, x, 13)
    assert_same(y, expected)
    assert_same(
        gradients([y], leaves(module, x)), gradients([expected], leaves(module, x))
    )


def test_step_sees_itself_and_its_span_only():
    """Each further layer reaches one span further back."""
    for n_layers in (1, 2):
        module, x = body("parallel", n_layers=n_layers, span=3), normal(1, 11, 14)
        (reach,) = torch.autograd.grad(module(x)[0][0, 9].sum(), x)
        seen = reach[0].abs().sum(-1).nonzero().flatten().tolist()
        assert seen == list(range(9 - 3 * n_layers, 10))
