"""Numbers in prose: a sentence that quotes a measurement stands in its document, and its record says so."""

import json
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
from notebooks import ROOT, read

from fbt.recipe import PRESETS


def record(name: str) -> Any:
    return json.loads((ROOT / "fbt" / "measurements" / f"{name}.json").read_text(encoding="utf-8"))


def prose(document: str) -> str:
    path = ROOT / document
    if path.suffix == ".ipynb":
        return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def small_runs(variant: str) -> list[dict[str, Any]]:
    """The runs of the small preset that chapter 5 compares."""
    return [run for run in record("tiny_shakespeare")["runs"] if run["job"]["variant"] == variant]


def loss(variant: str) -> float:
    return mean(run["summary"]["val_loss"] for run in small_runs(variant))


def gain_is_three_hundredths() -> bool:
    spread = [run["summary"]["val_loss"] for run in small_runs("shared-kv")]
    gain = loss("parallel") - loss("shared-kv")
    return 0.025 < gain < 0.035 and max(spread) - min(spread) < gain


def shares_are_as_said() -> bool:
    last = [run["evaluations"][-1]["layer_weights"] for run in small_runs("shared-kv")]
    embedding, layers = [w[0] for w in last], [share for w in last for share in w[1:]]
    return 0.4 < min(embedding) <= max(embedding) < 0.5 and 1 / 9 < min(layers) <= max(layers) < 1 / 6


CLAIMS: list[tuple[str, str, Callable[[], bool]]] = [
    ("README.md", "On this text feedback gains about three hundredths of a nat", gain_is_three_hundredths),
    ("book/index.md", "is ahead by about three hundredths of a nat", gain_is_three_hundredths),
    (
        "book/05-training.ipynb",
        "about three hundredths of a nat in the mean: small, but wider than the spread of the seeds",
        gain_is_three_hundredths,
    ),
    (
        "book/05-training.ipynb",
        "Both models here do better than the 1.88 that",
        lambda: max(loss("parallel"), loss("shared-kv")) < 1.88,
    ),
    (  # nanoGPT's is 1e-3
        "book/05-training.ipynb",
        "nor the learning rate (ours is four times as high)",
        lambda: PRESETS["small"].recipe["lr"] == 4e-3,
    ),
    ("README.md", "a quarter of our learning rate", lambda: PRESETS["small"].recipe["lr"] == 4e-3),
    (
        "book/05-training.ipynb",
        "The embedding gets nearly half, and each layer between a ninth and a sixth",
        shares_are_as_said,
    ),
]


@pytest.mark.parametrize(
    "document, sentence, holds", CLAIMS, ids=[f"{d.split('/')[-1]}: {s[:40]}" for d, s, _ in CLAIMS]
)
def test_a_sentence_says_what_the_record_says(document, sentence, holds):
    assert sentence in prose(document)
    assert holds()


@pytest.mark.parametrize("name", ["tiny_shakespeare"])
def test_a_record_is_of_a_clean_commit_and_names_its_machine(name):
    found = record(name)
    assert found["commit"] != "unknown"
    assert {"cpu", "cores", "threads", "python", "torch", "fbt"} <= found["machine"].keys()
