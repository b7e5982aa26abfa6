"""The shipped models: small, quick to load, as good as recorded."""

import json
import time

import pytest
import torch
from safetensors import safe_open

import fbt
from fbt.data import even_windows, split
from fbt.pretrained import PRETRAINED, WEIGHTS_FILE
from fbt.training import evaluate
from fbt.views.packing import rounded

NAMES = ("tiny-shakespeare", "tiny-shakespeare-parallel")
RECORD = json.loads(
    (PRETRAINED.parent / "measurements" / "shipped.json").read_text(encoding="utf-8")
)
each_model = pytest.mark.parametrize("name", NAMES)


def run_of(name: str) -> dict:
    variant = "parallel" if name.endswith("parallel") else "shared-kv"
    (run,) = (run for run in RECORD["runs"] if run["job"]["variant"] == variant)
    return run


def test_names_and_total_size():
    files = sorted(PRETRAINED.glob(f"*/{WEIGHTS_FILE}"))
    assert tuple(file.parent.name for file in files) == NAMES
    assert sum(file.stat().st_size for file in files) < 15e6


@each_model
def test_loading_takes_less_than_a_second(name):
    times = []
    for _ in range(3):  # the minimum: a busy machine may interrupt one
        start = time.perf_counter()
        fbt.LanguageModel.from_pretrained(name)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


@each_model
def test_stored_in_float16_and_loaded_as_float32(name):
    with safe_open(PRETRAINED / name / WEIGHTS_FILE, framework="pt") as file:
        names = [*file.keys()]
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    losses = RECORD["losses"][name]
    assert abs(losses["float16"] - losses["float32"]) < 0.001
    model = fbt.LanguageModel.from_pretrained(name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_both_models_have_the_same_sizes_and_training():
    feedback, parallel = (run_of(name) for name in NAMES)
    for part in ("config", "recipe"):
        different = {"variant", "lr"}
        assert {k: v for k, v in feedback[part].items() if k not in different} == {
            k: v for k, v in parallel[part].items() if k not in different
        }


@each_model
def test_loss_equals_the_record(name):
    """On the validation text, in windows of the span."""
    model = fbt.LanguageModel.from_pretrained(name)
    assert model.num_parameters() == run_of(name)["parameters"] < 3e6
    tokens = model.tokenizer.encode(fbt.load_tiny_shakespeare())
    loss = evaluate(model, even_windows(split(tokens)[1], length=model.config.span))
    assert loss == pytest.approx(RECORD["losses"][name]["float16"], abs=1e-4)
    assert loss <= 1.52


@each_model
def test_bytes_of_a_page_cost_hardly_any_loss(name):
    """Over all windows in the record, and now over a few."""
    losses = RECORD["losses"][name]
    assert abs(losses["int8"] - losses["float16"]) < 0.002
    model = fbt.LanguageModel.from_pretrained(name)
    tokens = model.tokenizer.encode(fbt.load_tiny_shakespeare())
    windows = even_windows(split(tokens)[1], length=model.config.span, count=16)
    assert evaluate(rounded(model), windows) == pytest.approx(
        evaluate(model, windows), abs=0.002
    )


@each_model
def test_cards_agree_with_the_record(name):
    card = (PRETRAINED / name / "README.md").read_text(encoding="utf-8")
    run = run_of(name)
    assert f"**{RECORD['losses'][name]['float16']:.4f}** nats" in card
    assert f"{run['parameters']:,} parameters" in card
    for evaluation in run["evaluations"]:
        assert f"| {evaluation['step']} | {evaluation['val_loss']:.4f} |" in card
