"""Tests of attention and the feed-forward block."""

import math

import plain
import pytest
import torch
import torch.nn.functional as F
from exact import assert_same, config, gradients, normal, perturbed

from fbt.attention import (
    BLOCK,
    Attention,
    Dropout,
    FeedForward,
    KeyValue,
    RelativeTerms,
    attend,
    attend_in_blocks,
    distance_scores,
    dropout_from,
    merge_heads,
    skew,
    split_heads,
)


@pytest.mark.parametrize("length", [1, 2, 5, 11])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_skew_indexes_scores_by_key(length, n):
    by_distance = normal(3, length, n)
    by_key = skew(by_distance)
    assert by_key.shape == (3, length, n + length - 1)
    expected = torch.full_like(by_key, -torch.inf)
    for t in range(length):
        for c in range(n):
            expected[:, t, t + c] = by_distance[:, t, c]
    assert torch.equal(by_key, expected)


@pytest.mark.parametrize("length", [1, 2, 5, 11])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_skew_to_fewer_keys_equals_last_columns_before_the_mask(length, n):
    by_distance = normal(3, length, n)
    whole = skew(by_distance)
    for keys in range(max(1, n - 1, length), n + length):
        expected, future = (
            whole[..., -keys:],
            torch.ones(length, keys).triu(keys - length + 1).bool(),
        )
        by_key = skew(by_distance, keys)
        assert by_key.shape == expected.shape
        assert torch.equal(
            by_key.masked_fill(future, 0), expected.masked_fill(future, 0)
        )


@pytest.mark.parametrize("length", [1, 2, 11])
def test_distance_scores_equal_einsum(length):
    query, table = normal(5, 2, length, 7), normal(2, 3, 7, seed=4)
    expected = torch.einsum("bhtd,hrd->bhtr", query, table)
    named = {"query": query, "table": table}
    assert_same(distance_scores(query, table), expected)
    assert_same(
        gradients([distance_scores(query, table)], named),
        gradients([expected], named),
    )


@pytest.mark.parametrize("queries, length", [(1, 9), (9, 9), (9, 13)])
def test_dropout_mask_is_drawn_in_order_batch_head_query_key(queries, length):
    """The layout of products does not matter: a seed means the same everywhere."""
    relative = perturbed(RelativeTerms(config("feedback"), range(1, 14)))
    q, k, v = (
        normal(5, 2, n, 7, seed=i) for i, n in enumerate((queries, length, length))
    )
    torch.manual_seed(0)
    dropped, weights = attend(q, k, v, relative, dropout=0.3)
    assert weights.is_contiguous()
    torch.manual_seed(0)
    ones = torch.ones(5, 2, queries, length, dtype=torch.float64)
    dropout_mask = F.dropout(ones, 0.3)
    assert_same(dropped, (weights * dropout_mask) @ v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [(0, 1, 2), (2, 0, 1)])
def test_dropout_from_generator_equals_torch_dropout(dtype, layout):
    x = torch.randn(5, 7, 11).to(dtype).permute(layout).requires_grad_()
    dropout = Dropout(0.3)
    torch.manual_seed(4)
    expected = F.dropout(x, 0.3)
    after = torch.rand(1)
    generator = torch.Generator().manual_seed(4)
    before = torch.get_rng_state()
    with dropout_from(generator, dropout):
        dropped = dropout(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(dropped, expected)
    assert torch.equal(torch.rand(1, generator=generator), after)
    assert_same(
        torch.autograd.grad(dropped.sum(), x),
        torch.autograd.grad(expected.sum(), x),
        rtol=0,
        atol=0,
    )


def test_dropout_uses_generator_only_inside_context():
    dropout, x, generator = (
        Dropout(0.5),
        torch.ones(99),
        torch.Generator().manual_seed(1),
    )
    with pytest.raises(RuntimeError), dropout_from(generator, dropout):
        raise RuntimeError
    state = generator.get_state()
    torch.manual_seed(2)
    first = dropout(x)
    torch.manual_seed(2)
    assert torch.equal(dropout(x), first)
    with dropout_from(generator, dropout):
        assert dropout.eval()(x) is x
    assert torch.equal(generator.get_state(), state)


def test_attention_dropout_module_respects_hooks_and_probability():
    attention = Attention(config("feedback", dropout=0.5))
    relative, z = (
        RelativeTerms(config("feedback"), range(1, 14)),
        torch.randn(2, 9, 14),
    )
    keys, values = KeyValue(config("feedback"))(z)
    dropped = []
    attention.dropout.register_forward_hook(
        lambda _, given, out: dropped.append((out == 0).sum().item())
    )
    for p in (0.5, 0.0):
        attention.dropout.p = p
        attention(z, keys, values, relative)
    attention.eval()(z, keys, values, relative)
    masked = dropped[1]  # keys after the query
    assert dropped[0] > masked == dropped[2] == 2 * 2 * 36


@pytest.mark.parametrize(
    "queries, keys", [(1, 1), (1, 6), (1, 7), (2, 2), (5, 5), (5, 11), (11, 17)]
)
def test_attend_equals_loop_over_queries_heads_and_keys(queries, keys):
    """With seven rows per table, a query sees at most its seven newest keys."""
    c = config("parallel", span=6)
    relative = perturbed(RelativeTerms(c, range(c.span + 1)))
    q, k, v = (
        normal(5, 2, n, 7, seed=i) for i, n in enumerate((queries, keys, keys))
    )
    named = dict(relative.named_parameters()) | {"query": q, "keys": k, "values": v}

    rows, trace = [], torch.zeros(5, 2, queries, keys, dtype=torch.float64)
    for t in range(queries):
        newest = keys - queries + t
        seen = range(max(0, newest - 6), newest + 1)
        row = []
        for h in range(2):
            o, w = plain.attend_one_head(
                c,
                q[:, h, t],
                [k[:, h, j] for j in seen],
                [v[:, h, j] for j in seen],
                [newest - j for j in seen],
                relative.key_embedding[h],
                relative.key_bias[h],
                relative.query_bias[h],
            )
            row.append(o)
            trace[:, h, t, seen.start : seen.stop] = w.detach()
        rows.append(torch.stack(row, dim=1))
    expected = torch.stack(rows, dim=2)

    attended, weights = attend(q, k, v, relative)
    assert_same(attended, expected)
    assert_same(weights, trace, "weights")
    assert_same(gradients([attended], named), gradients([expected], named))


@pytest.mark.parametrize("span", [1, 6, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
@pytest.mark.parametrize("queries", [1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
@pytest.mark.parametrize("past", [0, 1, BLOCK + 2])
def test_attend_in_blocks_equals_attend(span, queries, past):
    """Values and all gradients, around block borders, with and without past keys."""
    relative = perturbed(
        RelativeTerms(config("parallel", span=span), range(span + 1))
    )
    past = min(past, span)  # as in a state
    sizes = (queries, queries + past, queries + past)
    q, k, v = (normal(2, 2, n, 7, seed=i) for i, n in enumerate(sizes))
    named = dict(relative.named_parameters()) | {"query": q, "keys": k, "values": v}
    expected, _ = attend(q, k, v, relative)
    attended = attend_in_blocks(q, k, v, relative)
    assert_same(attended, expected)
    assert_same(gradients([attended], named), gradients([expected], named))


def test_attend_in_blocks_applies_dropout():
    """With values of one, the output is the sum of the kept weights, scaled up."""
    relative = RelativeTerms(config("parallel", span=6), range(7))
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 2, 300, 7)
    dropped = attend_in_blocks(q, k, torch.ones_like(k), relative, dropout=0.5)[
        ..., 0
    ]
    assert dropped.std() > 0.1
    assert abs(dropped.mean().item() - 1) < 0.05


def test_attend_returns_weights_before_dropout():
    c = config("feedback")
    relative = perturbed(RelativeTerms(c, range(1, c.span + 1)))
    q, k, v = (normal(5, 2, n, 7, seed=i) for i, n in enumerate((1, 9, 9)))
    without, weights = attend(q, k, v, relative)
    torch.manual_seed(0)
    dropped, same_weights = attend(q, k, v, relative, dropout=0.5)
    assert torch.equal(weights, same_weights)
    assert not torch.allclose(dropped, without)
    average = torch.stack(
        [attend(q, k, v, relative, dropout=0.5)[0] for _ in range(2000)]
    ).mean(0)
    # kept weights are scaled up
    assert torch.allclose(average, without, atol=0.15)


def test_heads_are_consecutive_slices_of_the_width():
    x = normal(5, 3, 14)
    split = split_heads(x, 2)
    for h, piece in enumerate((x[..., :7], x[..., 7:])):
        assert torch.equal(split[:, h], piece)
    assert torch.equal(merge_heads(split), x)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward(activation):
    c = config("feedback", activation=activation)
    module = perturbed(FeedForward(c))
    x = normal(5, 3, 14)
    inner = plain.activate(activation, x @ module.inner.weight.T + module.inner.bias)
    expected = inner @ module.outer.weight.T + module.outer.bias
    named = dict(module.named_parameters()) | {"x": x}
    assert_same(module(x), expected)
    assert_same(gradients([module(x)], named), gradients([expected], named))


@pytest.mark.parametrize("n_layers", [1, 8])
def test_output_projections_are_scaled_by_number_of_layers(n_layers):
    """nn.Linear draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    torch.manual_seed(0)
    c = config("feedback", n_layers=n_layers, d_model=96, d_ff=101)
    for linear in (Attention(c).output, FeedForward(c).outer):
        limit = 1 / math.sqrt(linear.in_features * 2 * n_layers)
        largest = linear.weight.abs().max().item()
        assert 0.99 * limit < largest <= limit
        assert not linear.bias.any()


def test_keys_values_and_queries_have_no_bias():
    c = config("feedback")
    assert [name for name, _ in KeyValue(c).named_parameters()] == [
        "key.weight",
        "value.weight",
    ]
    assert "query.bias" not in dict(Attention(c).named_parameters())


@pytest.mark.parametrize("distances, nearest", [(range(1, 14), 1), (range(14), 0)])
def test_key_bias_starts_as_penalty_on_distance(distances, nearest):
    """After division by sqrt(D): 1 per step in the first head, 1/64 in the last."""
    relative = RelativeTerms(config("feedback", n_heads=4, d_model=12), distances)
    for head, slope in enumerate((1, 1 / 4, 1 / 16, 1 / 64)):
        expected = torch.tensor(
            [-1.0 * slope * (13 - row - nearest) for row in range(len(distances))]
        )
        torch.testing.assert_close(relative.key_bias[head] / 3**0.5, expected)
    assert not relative.key_embedding.any()
    assert not relative.query_bias.any()
    (one,) = RelativeTerms(config("feedback", n_heads=1), range(1, 3)).key_bias
    assert one[0] < one[1] == 0
    assert (
        RelativeTerms(
            config("feedback", n_heads=1, d_model=4), range(1, 514)
        ).key_bias.min()
        == -32 * 2
    )
