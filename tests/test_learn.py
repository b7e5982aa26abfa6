"""Tests of the training in a page against torch, under playwright's node."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from engines import NODE
from torch import nn

from fbt import Config, LanguageModel
from fbt.initialisation import initialising
from fbt.tasks import IGNORE, Copy, Parity, Permutations, ShellGame
from fbt.views.playground import Playground
from fbt.views.view import joined

HERE = Path(__file__).parent
TASKS = {
    "cups": ShellGame(5),
    "parity": Parity(),
    "S3": Permutations("S3"),
    "copy": Copy(8),
}
SIZES = {"d_model": 10, "n_heads": 2, "span": 5}


def run(*cases: dict) -> list:
    """Run cases of learn.mjs in node and return their results."""
    source = joined(*Playground.worker[:-1])
    given = json.dumps({"source": source, "cases": cases})
    done = subprocess.run(
        [NODE, HERE / "learn.mjs"], input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class LSTMModel(nn.Module):
    """The LSTM of chapter 2."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)
        self.head = nn.Linear(d_model, vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.token_embedding(tokens))[0])


def torch_model(options: dict) -> nn.Module:
    """Return the package's model, with weights away from their start."""
    torch.manual_seed(0)
    if options["variant"] == "lstm":
        return LSTMModel(7, options["d_model"])
    names = {name: value for name, value in options.items() if name != "head_norm"}
    model = LanguageModel(Config(7, **names))
    if not options["head_norm"]:
        model.norm = nn.Identity()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def by_step(rows: torch.Tensor) -> list[int]:
    """Flatten [B, T] in the order of learn.js: by step."""
    return rows.T.flatten().tolist()


def train(model: nn.Module, batches: list, rate: float, clip: float) -> tuple:
    """Train with torch; return the losses and the first gradients."""
    matrices = [
        p for name, p in model.named_parameters() if ".weight" in name and p.ndim == 2
    ]
    decayed = {id(p) for p in matrices} - {id(model.token_embedding.weight)}
    groups = [
        {
            "params": [p for p in model.parameters() if (id(p) in decayed) == decays],
            "weight_decay": 0.01 * decays,
        }
        for decays in (True, False)
    ]
    optimizer, losses, first = (
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99)),
        [],
        None,
    )
    for tokens, labels in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())
        loss.backward()
        losses.append(loss.item())
        first = first or {n: p.grad.clone() for n, p in model.named_parameters()}
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return losses, first


MODELS = {
    "feedback": {"variant": "shared-kv", "n_layers": 1, "memory": "learned"},
    "feedback, 2 layers": {
        "variant": "shared-kv",
        "n_layers": 2,
        "memory": "learned",
    },
    "feedback, top": {"variant": "shared-kv", "n_layers": 2, "memory": "top"},
    "no feedback": {"variant": "shared-kv", "n_layers": 2, "memory": "embedding"},
    "parallel": {"variant": "parallel", "n_layers": 1},
    "parallel, 2 layers": {"variant": "parallel", "n_layers": 2},
    "lstm": {"variant": "lstm"},
}


def test_gradients_and_losses_equal_torch():
    """Gradients of a batch, and losses of 50 updates, beyond the span and odd."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(50):
        tokens = torch.randint(7, (3, 9), generator=generator)
        labels = torch.randint(7, (3, 9), generator=generator)
        batches.append((tokens, labels.masked_fill(labels == 6, IGNORE)))
    given = [
        {
            "tokens": by_step(tokens),
            "labels": by_step(labels),
            "batch": 3,
            "length": 9,
        }
        for tokens, labels in batches
    ]
    cases, expected = [], []
    for number, options in enumerate(MODELS.values()):
        options = SIZES | {"head_norm": bool(number % 2)} | options
        model = torch_model(options)
        parameters = {
            name: p.flatten().tolist() for name, p in model.named_parameters()
        }
        case = {"config": {"vocab_size": 7, **options}, "parameters": parameters}
        cases.append(
            case | {"run": "train", "batches": given, "rate": 1e-2, "clip": 1}
        )
        expected.append(train(model, batches, 1e-2, 1.0))
    for name, result, (losses, gradients) in zip(
        MODELS, run(*cases), expected, strict=True
    ):
        assert result["gradients"].keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            ours = torch.tensor(result["gradients"][parameter])
            error = (ours - gradient.flatten()).abs().max() / gradient.abs().max()
            assert error < 1e-4, f"{name}: {parameter} differs by {error:.1e}"
        assert result["losses"] == pytest.approx(losses, abs=1e-3), name


def test_tasks_are_those_of_the_package():
    """The words are the same, and the oracle gives the same labels."""
    batch, options = 4, {"run": "draw", "batch": 4, "length": 11}
    results = run(*(options | {"task": name} for name in TASKS))
    for task, drawn in zip(TASKS.values(), results, strict=True):
        assert tuple(drawn["words"]) == task.words
        tokens = torch.tensor(drawn["tokens"]).view(-1, batch).T
        labels = torch.tensor(drawn["labels"]).view(-1, batch).T
        assert torch.equal(task.solve(tokens), labels)
        assert len(tokens.unique()) > 1


def test_initial_weights_are_distributed_as_the_package_s():
    """The same names, shapes, means and deviations; constants are equal."""
    sizes = {"d_model": 32, "n_heads": 2, "n_layers": 2, "span": 16}
    for variant in ("shared-kv", "parallel"):
        config = Config(15, variant=variant, **sizes)
        with initialising(0):
            expected = dict(LanguageModel(config).named_parameters())
        options = {"memory": "learned", "head_norm": True, "variant": variant}
        (ours,) = run(
            {"run": "initial", "config": {"vocab_size": 15} | sizes | options}
        )
        assert ours.keys() == expected.keys()
        for name, parameter in expected.items():
            assert ours[name]["shape"] == list(parameter.shape)
            drawn = torch.tensor(ours[name]["data"], dtype=torch.float32)
            spread = parameter.std().item()
            assert drawn.std().item() == pytest.approx(spread, rel=0.35, abs=1e-6), (
                name
            )
            mean = parameter.mean().item()
            assert drawn.mean().item() == pytest.approx(mean, abs=spread + 1e-6), name
