"""Initial weights: as after `torch.manual_seed`, without the global generator."""

import pytest
import torch
from exact import VARIANTS, config

import fbt
from fbt.initialisation import initialising
from fbt.language_model import weight_shapes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 3, 2**31 - 1])
def test_the_weights_equal_those_after_manual_seed(variant: str, seed: int) -> None:
    torch.manual_seed(seed)
    expected = fbt.LanguageModel(config(variant)).state_dict()
    before = torch.get_rng_state()
    with initialising(seed):
        actual = fbt.LanguageModel(config(variant)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_the_context_ends_completely() -> None:
    with pytest.raises(RuntimeError), initialising():
        raise RuntimeError
    torch.manual_seed(1)
    first = fbt.LanguageModel(config("parallel")).head.weight
    assert not torch.equal(fbt.LanguageModel(config("parallel")).head.weight, first)


def test_contexts_of_the_caller_are_ignored() -> None:
    with initialising():
        expected = fbt.LanguageModel(config("shared-kv")).head.weight
    with torch.inference_mode(), torch.device("meta"), initialising():
        actual = fbt.LanguageModel(config("shared-kv")).head.weight
    assert torch.equal(actual, expected) and not actual.is_inference()


def test_loading_saving_and_warm_starts_do_not_use_the_global_generator(
    tmp_path,
) -> None:
    parallel = fbt.LanguageModel(config("parallel"))
    before = torch.get_rng_state()
    parallel.save_pretrained(tmp_path)
    fbt.LanguageModel.from_pretrained(tmp_path)
    fbt.LanguageModel.from_parallel(parallel)
    list(weight_shapes(parallel.config))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("context", [torch.inference_mode(), torch.device("meta")])
def test_loaded_models_and_warm_starts_are_on_the_cpu_and_trainable(
    tmp_path, context
) -> None:
    parallel = fbt.LanguageModel(config("parallel"))
    parallel.save_pretrained(tmp_path)
    with context:
        models = [
            fbt.LanguageModel.from_pretrained(tmp_path),
            fbt.LanguageModel.from_parallel(parallel),
        ]
    for lm in models:
        assert torch.equal(lm.head.weight, parallel.head.weight)
        lm(torch.tensor([[1, 2, 3]])).sum().backward()


def test_a_warm_start_under_autocast_is_exact() -> None:
    parallel = fbt.LanguageModel(config("parallel"))
    with torch.no_grad():
        for layer in parallel.body.layers:
            layer.norm1.bias.normal_()
    expected = fbt.LanguageModel.from_parallel(parallel).state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        actual = fbt.LanguageModel.from_parallel(parallel).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
