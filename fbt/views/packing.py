"""The weights of a model as text for a page, where `engine.js` unpacks them.

A matrix of more than `SMALL` numbers is stored in bytes: each row is divided by a
scale, the 127th part of its largest number, and rounded. The scale is stored in
float16. Everything else is stored in float32.
"""

import base64
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fbt._checks import check_bool, check_instance, shorten
from fbt._weights import check_tensors
from fbt.evaluation_copy import evaluation_copy, uncompiled
from fbt.inspection import describe_override
from fbt.language_model import LanguageModel, weight_shapes
from fbt.tokenizer import CharTokenizer
from fbt.views.view import check_finite

SMALL = 2000
MAX_PARAMETERS = 20_000_000  # of a model in a page, about 27 MB of text
LARGEST = 127  # of a byte with a sign
SMALLEST_SCALE = 2**-24  # above 0, in float16
ALIGNMENT = 4  # bytes


def pack(model: LanguageModel, exact: bool = False) -> dict[str, Any]:
    """Return a model as JSON values for `engine.js`.

    Args:
        model: any variant, with a tokenizer.
        exact: store all weights in float32, in four times the space.

    Returns:
        "config": the fields of the config; "vocabulary": the characters;
        "tensors": name, shape, "int8" or "float32", and first byte of each weight;
        "data": the bytes in base64.

    Raises:
        TypeError: if `model` is not a `LanguageModel`.
        ValueError: if the model has no `CharTokenizer`, is too large for a page,
            computes something that its config does not tell (hooks, a module of its
            own), or a weight is NaN, infinite or too large for a scale.
    """
    check_bool("exact", exact)
    model = checked(model)
    tensors, data = [], bytearray()
    for name, weight in float_weights(model):
        if exact or not is_rounded(weight):
            kind, parts = "float32", [weight]
        else:
            kind, parts = "int8", [*levels_of(name, weight)]
        tensors.append([name, [*weight.shape], kind, len(data)])
        for part in parts:
            data += little_endian(part)
            data += bytes(-len(data) % ALIGNMENT)
    return {
        "config": asdict(model.config),
        "vocabulary": characters_of(model).vocabulary,
        "tensors": tensors,
        "data": base64.b64encode(data).decode(),
    }


def rounded(model: LanguageModel) -> LanguageModel:
    """Return a copy of a model with the weights that a page has.

    Raises:
        TypeError, ValueError: as in `pack`.
    """
    copied = copy.deepcopy(checked(model))
    weights = dict(copied.state_dict())
    for name, weight in float_weights(copied):
        if is_rounded(weight):
            scales, levels = levels_of(name, weight)
            product = (
                levels.float().view(-1, weight.shape[-1]) * scales.float()[:, None]
            )
            weights[name].copy_(product.view(weight.shape))
    return copied


def checked(model: LanguageModel) -> LanguageModel:
    """Return a model in evaluation mode; raise unless a page can compute it."""
    model = uncompiled(model)
    check_instance("model", model, LanguageModel)
    characters_of(model)
    if (size := model.num_parameters()) > MAX_PARAMETERS:
        raise ValueError(
            f"model must have at most {MAX_PARAMETERS} parameters for a page, "
            f"got {size}"
        )
    if type(model) is not LanguageModel:
        raise ValueError(
            "model must be a LanguageModel itself, whose config a page computes, got "
            f"the subclass {shorten(type(model).__name__)}"
        )
    for name, module in model.named_modules():
        if change := describe_override(module):
            raise ValueError(
                f"a page computes the model from its weights alone, but "
                f"{name or 'model'} has {change}"
            )
    check_tensors(model.state_dict(), weight_shapes(model.config))
    return evaluation_copy(model)


def characters_of(model: LanguageModel) -> CharTokenizer:
    """Return the tokenizer of a model that reads characters; raise for others."""
    if not isinstance(model.tokenizer, CharTokenizer):
        raise ValueError(
            "model must have a tokenizer of characters: LanguageModel(config, "
            f"CharTokenizer(text)), got {shorten(model.tokenizer)}"
        )
    return model.tokenizer


def float_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the finite weights of a model by name, in float32 on the CPU."""
    for name, tensor in model.state_dict().items():
        weight = tensor.detach().to("cpu", torch.float32).contiguous()
        check_finite(name, weight)
        yield name, weight


def is_rounded(weight: Tensor) -> bool:
    """Return whether a weight is stored in bytes."""
    return weight.ndim > 1 and weight.numel() > SMALL


def levels_of(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales [rows] in float16, and the levels in int8, of a weight."""
    rows = weight.flatten(0, -2)
    scales = (rows.abs().amax(1) / LARGEST).half()
    check_finite(f"scales of {name}", scales)
    divisors = scales.float().clamp_min(SMALLEST_SCALE)  # not 0 for a row of zeros
    levels = (rows / divisors[:, None]).round().clamp(-LARGEST, LARGEST)
    return scales, levels.to(torch.int8)


def little_endian(values: Tensor) -> bytes:
    """Return the bytes of a tensor, the lowest of each number first."""
    array = values.numpy()
    return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())


def weights_script(name: str) -> str:
    """Return a script that hands the weights of a shipped model to a page.

    A page that was opened from a disk cannot read files, but it can load scripts.

    Args:
        name: of the model, as for `LanguageModel.from_pretrained`.
    """
    packed = json.dumps(pack(LanguageModel.from_pretrained(name)))
    return f"(globalThis.fbtModels ??= {{}})[{json.dumps(name)}] = {packed};\n"
