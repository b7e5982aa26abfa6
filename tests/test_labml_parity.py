"""Parity with labml's Feedback Transformer.

The code below follows the equations and parameter names of labml-nn 0.5.1,
labml_nn/transformers/feedback/__init__.py. With parameters converted by
`our_parameters`, our bodies compute the same outputs and the same gradients with
respect to labml's parameters.
"""

import pytest
import torch
import torch.nn.functional as F
from exact import BACKENDS, LENGTHS, assert_same, config, gradients, normal
from torch import Tensor

from fbt.language_model import BODIES

D_MODEL, HEADS, LAYERS, D_FF, SPAN, ROWS = 14, 2, 3, 11, 23, 4096
D = D_MODEL // HEADS
KINDS = {"FeedbackTransformer": "feedback", "FeedbackTransformerKV": "shared-kv"}


def labml_parameters(kind: str) -> dict[str, Tensor]:
    """Return random parameters with labml's names.

    The last of the 4096 rows of its tables belongs to distance 1.
    """
    shapes = {
        "weights": (LAYERS + 1,),
        "norm.weight": (D_MODEL,),
        "norm.bias": (D_MODEL,),
    }
    if kind == "FeedbackTransformerKV":
        shapes |= {
            "key.linear.weight": (D_MODEL, D_MODEL),
            "value.linear.weight": (D_MODEL, D_MODEL),
        }
    for l in range(LAYERS):
        attention = {"query.linear.weight": (D_MODEL, D_MODEL)}
        if kind == "FeedbackTransformer":
            attention |= {
                "key.linear.weight": (D_MODEL, D_MODEL),
                "value.linear.weight": (D_MODEL, D_MODEL),
                "value.linear.bias": (D_MODEL,),
            }
        attention |= {
            "output.weight": (D_MODEL, D_MODEL),
            "output.bias": (D_MODEL,),
            "key_pos_embeddings": (ROWS, HEADS, D),
            "key_pos_bias": (ROWS, HEADS),
            "query_pos_bias": (HEADS, D),
        }
        layer = {f"attn.{name}": shape for name, shape in attention.items()} | {
            "norm_self_attn.weight": (D_MODEL,),
            "norm_self_attn.bias": (D_MODEL,),
            "norm_ff.weight": (D_MODEL,),
            "norm_ff.bias": (D_MODEL,),
            "feed_forward.layer1.weight": (D_FF, D_MODEL),
            "feed_forward.layer1.bias": (D_FF,),
            "feed_forward.layer2.weight": (D_MODEL, D_FF),
            "feed_forward.layer2.bias": (D_MODEL,),
        }
        shapes |= {f"layers.{l}.{name}": shape for name, shape in layer.items()}
    return {
        name: (0.4 * normal(*shape, seed=i)).detach().requires_grad_()
        for i, (name, shape) in enumerate(shapes.items())
    }


def labml(kind: str, p: dict[str, Tensor], x_seq: Tensor) -> Tensor:
    """Run labml's forward pass from x [T, B, d] to normalised outputs [T, B, d]."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D_MODEL,), p[f"{name}.weight"], p[f"{name}.bias"])

    def prepare(name: str, x: Tensor) -> Tensor:
        y = F.linear(x, p[f"{name}.linear.weight"], p.get(f"{name}.linear.bias"))
        return y.view(*y.shape[:-1], HEADS, D)

    def attention(name: str, z: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the J stored steps, and project the result."""
        q = prepare(f"{name}.query", z)
        J = key.shape[0]
        a_and_c = torch.einsum("bhd,jbhd->jbh", q + p[f"{name}.query_pos_bias"], key)
        b = torch.einsum(
            "bhd,jhd->jbh", q, p[f"{name}.key_pos_embeddings"][ROWS - J :]
        )
        d = p[f"{name}.key_pos_bias"][ROWS - J :, None]
        weights = torch.softmax((a_and_c + b + d) / D**0.5, dim=0)
        mixed = torch.einsum("jbh,jbhd->bhd", weights, value).flatten(1)
        return F.linear(mixed, p[f"{name}.output.weight"], p[f"{name}.output.bias"])

    shares = torch.softmax(p["weights"], dim=0)
    memories: list[Tensor] = []
    results = []
    for x in x_seq:
        outputs = [x]
        for l in range(LAYERS):
            name = f"layers.{l}"
            if memories:
                prefix = "" if kind == "FeedbackTransformerKV" else f"{name}.attn."
                stored = torch.stack(memories)
                key = prepare(f"{prefix}key", stored)
                value = prepare(f"{prefix}value", stored)
                x = x + attention(
                    f"{name}.attn", norm(f"{name}.norm_self_attn", x), key, value
                )
            z = norm(f"{name}.norm_ff", x)
            inner = F.relu(
                F.linear(
                    z,
                    p[f"{name}.feed_forward.layer1.weight"],
                    p[f"{name}.feed_forward.layer1.bias"],
                )
            )
            x = x + F.linear(
                inner,
                p[f"{name}.feed_forward.layer2.weight"],
                p[f"{name}.feed_forward.layer2.bias"],
            )
            outputs.append(x)
        memories.append(torch.einsum("lbd,l->bd", torch.stack(outputs), shares))
        results.append(x)
    return norm("norm", torch.stack(results))


def our_parameters(kind: str, p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert labml's parameters to ours, as differentiable functions of them."""
    ours = {"memory.layer_logits": p["weights"]}
    for l in range(LAYERS):
        layer = f"layers.{l}"  # the same in both
        attn = f"{layer}.attn"
        for our_name, labml_name in {
            "norm1": "norm_self_attn",
            "norm2": "norm_ff",
            "feed_forward.inner": "feed_forward.layer1",
            "feed_forward.outer": "feed_forward.layer2",
        }.items():
            for suffix in ("weight", "bias"):
                ours[f"{layer}.{our_name}.{suffix}"] = p[
                    f"{layer}.{labml_name}.{suffix}"
                ]
        output = p[f"{attn}.output.weight"]
        ours[f"{layer}.attention.query.weight"] = p[f"{attn}.query.linear.weight"]
        ours[f"{layer}.attention.output.weight"] = output
        ours[f"{layer}.attention.output.bias"] = p[f"{attn}.output.bias"]
        ours[f"relative.{l}.key_embedding"] = p[f"{attn}.key_pos_embeddings"][
            -SPAN:
        ].transpose(0, 1)
        ours[f"relative.{l}.key_bias"] = p[f"{attn}.key_pos_bias"][-SPAN:].T
        ours[f"relative.{l}.query_bias"] = p[f"{attn}.query_pos_bias"]
        if kind == "FeedbackTransformer":
            ours[f"key_values.{l}.key.weight"] = p[f"{attn}.key.linear.weight"]
            ours[f"key_values.{l}.value.weight"] = p[f"{attn}.value.linear.weight"]
            # Attention weights sum to one, so a bias on values is one on outputs.
            bias = p[f"{attn}.output.bias"] + output @ p[f"{attn}.value.linear.bias"]
            ours[f"{layer}.attention.output.bias"] = bias
    if kind == "FeedbackTransformerKV":
        ours["key_values.0.key.weight"] = p["key.linear.weight"]
        ours["key_values.0.value.weight"] = p["value.linear.weight"]
    return ours


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_outputs_and_gradients_as_labml(kind, length, backend):
    """Without the memory norm and with a long span, because labml has neither."""
    p, x = labml_parameters(kind), normal(5, length, D_MODEL)
    body = BODIES[KINDS[kind]](
        config(KINDS[kind], span=SPAN, memory_norm=False)
    ).double()
    ours = our_parameters(kind, p)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in body.named_parameters()
    }
    y = torch.func.functional_call(body, ours, (x,), {"backend": backend})[0]
    y = F.layer_norm(y, (D_MODEL,), p["norm.weight"], p["norm.bias"])
    expected = labml(kind, p, x.transpose(0, 1)).transpose(0, 1)
    named = p | {"x": x}
    assert_same(y, expected)
    assert_same(gradients([y], named), gradients([expected], named))
