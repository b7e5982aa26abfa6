"""Values of the wrong type, shape and range for each public argument.

A call must succeed, or raise a TypeError or ValueError whose message names the
argument and is short.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from exact import config, model, some_state, some_tokens
from matplotlib.figure import Figure

import fbt
from fbt import tasks
from fbt.data import even_windows, random_windows, split
from fbt.training import evaluate, resume
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings
from fbt.views import figures
from fbt.views.arrows import MissingArrows
from fbt.views.choices import Choices
from fbt.views.memory import MemoryExplorer, snapshot
from fbt.views.recurrence import RecurrenceExplorer
from fbt.views.stacks import StackSteps
from fbt.views.trace import memory_shares, trace
from fbt.views.view import View

LONGEST = 500  # characters of a message
LONG = "to be, or not to be " * 1000
WRONG = {
    "None": None,
    "True": True,
    "zero": 0,
    "a negative int": -1,
    "an int": 7,
    "a huge int": 10**5000,
    "a float": 2.5,
    "nan": float("nan"),
    "a complex number": 1j,
    "an empty text": "",
    "a text": "text",
    "half a character": "\ud800",
    "NUL": "a\0b",
    "a long text": LONG,
    "bytes": b"bytes",
    "long bytes": LONG.encode(),
    "many lines": LONG.split(),
    "an empty list": [],
    "numbers": [1, 2],
    "an empty dict": {},
    "a dict": {"a": 1},
    "a path": Path("nowhere"),
    "an object": object(),
    "a class": dict,
    "a module": torch.nn.Linear(2, 3),
    "a namespace": SimpleNamespace(shape=3, keys=4),
    "a generator": (i for i in ()),
    "no axes": torch.tensor(3),
    "ids": torch.arange(3),
    "ids [2, 3]": torch.arange(6).view(2, 3),
    "ids [2, 3, 4]": torch.arange(24).view(2, 3, 4),
    "ids beyond": torch.full((2, 3), 99),
    "no ids": torch.zeros(2, 0, dtype=torch.long),
    "floats [3]": torch.rand(3),
    "floats [2, 3]": torch.rand(2, 3),
    "floats [2, 3, 4]": torch.rand(2, 3, 4),
    "floats [2, 2, 3, 4]": torch.rand(2, 2, 3, 4),
    "nans": torch.full((2, 3), torch.nan),
    "bools": torch.ones(2, 3, dtype=torch.bool),
    "on meta": torch.zeros(2, 3, dtype=torch.long, device="meta"),
    "a state of nothing": fbt.State((), ()),
    "a state of scalars": fbt.State((torch.tensor(1.0),), (torch.tensor(1.0),)),
    "a config": fbt.Config(3),
}

TOKENIZER = fbt.CharTokenizer("\n abcdefghijklmnopq")
READER, PARALLEL = model("shared-kv", TOKENIZER), model("parallel", TOKENIZER)
TOKENS, STATE = some_tokens(2, 5), some_state(READER.config, 3, batch=2)
X = torch.rand(2, 5, 14, dtype=torch.float64)
WEIGHTS = READER.attention(TOKENS)[:, 0]
READ, SEEN = trace(READER, TOKENS[0]), snapshot(READER, TOKENS[0])
SETTINGS = Settings(READER.config, Recipe(), None, "0" * 64, None)
RUN = {
    "a": [
        {"step": 1, "loss": 2.0, "seconds": 0.1},
        {"step": 1, "val_loss": 2.0, "seconds": 0.1},
    ]
}


def push_to(kind):
    def push(item):
        stack = kind(3) if kind is fbt.TorchStack else kind(3, 9)
        stack.push(torch.rand(2, 2, 1, 7))
        stack.push(item)
        return stack.window()

    return push


def stack_of(span=3, capacity=4, initial=None):
    return fbt.MemoryStack(span, capacity, initial).window()


def plain_stack_of(span=3, initial=None):
    return fbt.TorchStack(span, initial).window()


def set_backend(backend):
    PARALLEL.backend = backend


def close(figure):
    """Close a figure."""
    figures.plt.close(figure)


G = torch.Generator()
TASKS = [
    tasks.Parity(),
    tasks.Permutations(),
    tasks.ShellGame(3),
    tasks.Walk(3),
    tasks.CodeExecution(),
    tasks.Copy(),
]
WORDS = {
    "Parity": ["0", "1"],
    "Permutations": ["123", "213"],
    "ShellGame": ["AB", "BC"],
    "Walk": ["N", "E"],
}
WORDS |= {"CodeExecution": ["x", "=", "1", ";"], "Copy": ["a", "?"]}
CALLS = {
    "Config": (
        fbt.Config,
        {
            "vocab_size": 3,
            **{
                k: v for k, v in vars(config("parallel")).items() if k != "vocab_size"
            },
        },
    ),
    "Config.replace": (READER.config.replace, {"d_model": 4, "n_heads": 2}),
    "LanguageModel": (
        fbt.LanguageModel,
        {"config": READER.config, "tokenizer": TOKENIZER},
    ),
    "LanguageModel.backend": (set_backend, {"backend": "auto"}),
    "LanguageModel.forward": (
        READER,
        {"tokens": TOKENS, "state": STATE, "return_state": True},
    ),
    "LanguageModel.forward, parallel": (PARALLEL, {"tokens": TOKENS, "state": None}),
    "LanguageModel.step": (READER.step, {"tokens": TOKENS[:, 0], "state": STATE}),
    "LanguageModel.attention": (READER.attention, {"tokens": TOKENS}),
    "LanguageModel.generate": (
        lambda **given: READER.generate(max_new_tokens=1, **given),
        {
            "prompt": "a",
            "temperature": 1.0,
            "top_k": 3,
            "top_p": 0.5,
            "stop": "b",
            "seed": 1,
            "return_log_probs": True,
        },
    ),
    "LanguageModel.score": (READER.score, {"text": "abc"}),
    "LanguageModel.loss": (
        READER.loss,
        {"tokens": TOKENS, "targets": TOKENS, "ignore_index": -100},
    ),
    "Config.from_dict": (fbt.Config.from_dict, {"values": READER.config.to_dict()}),
    "SubwordTokenizer": (fbt.SubwordTokenizer, {"tokenizer": None}),
    "SubwordTokenizer.from_json": (fbt.SubwordTokenizer.from_json, {"text": "{}"}),
    "LanguageModel.stream": (READER.stream, {"prompt": "a", "max_new_tokens": 1}),
    "LanguageModel.save_pretrained": (READER.save_pretrained, {"folder": "saved"}),
    "LanguageModel.from_pretrained": (
        fbt.LanguageModel.from_pretrained,
        {
            "name": "tiny-shakespeare",
            "tokenizer": None,
            "device": "cpu",
            "dtype": None,
        },
    ),
    "LanguageModel.from_parallel": (
        fbt.LanguageModel.from_parallel,
        {
            "parallel": PARALLEL,
            "variant": "shared-kv",
            "dropout": 0.0,
            "memory": "top",
            "memory_norm": True,
        },
    ),
    "State": (fbt.State, {"keys": STATE.keys, "values": STATE.values}),
    "State.map": (STATE.map, {"function": torch.neg}),
    "ParallelBody": (fbt.ParallelBody, {"config": PARALLEL.config}),
    "FeedbackBody": (fbt.FeedbackBody, {"config": READER.config, "n_caches": 1}),
    "SharedKVBody": (fbt.SharedKVBody, {"config": READER.config}),
    "ParallelBody.forward": (
        PARALLEL.body,
        {"x": X, "state": None, "backend": "auto", "need_weights": True},
    ),
    "SharedKVBody.forward": (
        READER.body,
        {"x": X, "state": STATE, "backend": "auto", "need_weights": True},
    ),
    "State.select": (STATE.select, {"rows": torch.tensor([0])}),
    "TorchStack": (plain_stack_of, {"span": 3, "initial": None}),
    "MemoryStack": (stack_of, {"span": 3, "capacity": 4, "initial": None}),
    "TorchStack.push": (push_to(fbt.TorchStack), {"item": torch.rand(2, 2, 1, 7)}),
    "MemoryStack.push": (push_to(fbt.MemoryStack), {"items": torch.rand(2, 2, 1, 7)}),
    "Recipe": (Recipe, vars(Recipe())),
    "Settings": (Settings, vars(SETTINGS)),
    "Settings.from_json": (Settings.from_json, {"text": SETTINGS.to_json()}),
    "Settings.differences": (SETTINGS.differences, {"other": SETTINGS}),
    "train": (
        fbt.train,
        {
            "text": "abc " * 5,
            "preset": "tiny",
            "variant": "shared-kv",
            "folder": "run",
            "resume": False,
        }
        | {
            "init_from": PARALLEL,
            "device": "cpu",
            "progress": False,
            "log": None,
            "steps": 1,
            "dropout": 0.1,
            "tokenizer": TOKENIZER,
            "recipe": Recipe(steps=1, seq_len=2, batch_size=1),
            "callback": None,
        },
    ),
    "resume": (
        resume,
        {
            "folder": "run",
            "text": "abc",
            "tokens": None,
            "tokenizer": TOKENIZER,
            "steps": None,
            "callback": None,
            "device": "cpu",
            "progress": False,
            "log": None,
        },
    ),
    "evaluate": (evaluate, {"model": READER, "windows": TOKENS, "batch_size": 2}),
    "load_tiny_shakespeare": (
        fbt.load_tiny_shakespeare,
        {"folder": "corpus", "sources": ()},
    ),
    "CharTokenizer": (fbt.CharTokenizer, {"text": "abc"}),
    "CharTokenizer.from_vocabulary": (
        fbt.CharTokenizer.from_vocabulary,
        {"vocabulary": "abc"},
    ),
    "CharTokenizer.encode": (TOKENIZER.encode, {"text": "abc"}),
    "CharTokenizer.decode": (TOKENIZER.decode, {"numbers": [1, 2]}),
    "split": (split, {"data": "abc", "validation": 0.5}),
    "random_windows": (
        random_windows,
        {"tokens": TOKENS[0], "length": 2, "batch_size": 3, "generator": G},
    ),
    "even_windows": (even_windows, {"tokens": TOKENS[0], "length": 2, "count": 1}),
    "Parity": (tasks.Parity, {"dense": True}),
    "Permutations": (tasks.Permutations, {"group": "S3", "dense": True}),
    "ShellGame": (tasks.ShellGame, {"cups": 3, "dense": True}),
    "Walk": (tasks.Walk, {"size": 3, "facing": True, "heading": True, "dense": True}),
    "CodeExecution": (
        tasks.CodeExecution,
        {"variables": 2, "ask": "prints", "dense": True},
    ),
    "Copy": (tasks.Copy, {"symbols": 3, "reverse": False, "dense": True}),
    "accuracy": (
        tasks.accuracy,
        {"logits": torch.rand(2, 3, 4), "labels": torch.zeros(2, 3).long()},
    ),
    "WordTokenizer": (tasks.WordTokenizer, {"words": ["a", "b"]}),
    "WordTokenizer.encode": (tasks.WordTokenizer(["a"]).encode, {"text": "a a"}),
    "WordTokenizer.decode": (
        tasks.WordTokenizer(["a"]).decode,
        {"numbers": torch.zeros(2).long()},
    ),
    "show": (fbt.show, {"obj": fbt.State, "docstring": True}),
    "AttentionExplorer": (
        fbt.AttentionExplorer,
        {"tokens": "abcde", "weights": WEIGHTS, "query": 1, "layer": 1, "head": 1},
    ),
    "MemoryExplorer": (
        MemoryExplorer,
        {"tokens": "abcde", "snapshots": {0: SEEN}, "query": 1},
    ),
    "snapshot": (snapshot, {"model": READER, "tokens": TOKENS[0]}),
    "RecurrenceExplorer": (
        RecurrenceExplorer,
        {"tokens": "abcde", "read": READ, "moment": 1},
    ),
    "StackSteps": (StackSteps, {}),
    "MissingArrows": (MissingArrows, {"kind": "feedback", "played": True}),
    "trace": (trace, {"model": READER, "tokens": TOKENS[0]}),
    "memory_shares": (memory_shares, {"read": READ}),
    "Choices": (Choices, {"function": lambda a: str(a), "a": [1, 2]}),
    "View": (View, {"name": "choices", "data": {}, "start": {}, "text": ""}),
    "svg_of": (figures.svg_of, {"figure": Figure()}),
    "save_svg": (figures.save_svg, {"figure": Figure(), "path": "a.svg"}),
    "loss_curves": (
        lambda **a: close(figures.loss_curves(**a)),
        {"runs": RUN, "over": "step"},
    ),
    "attention_maps": (
        lambda **a: close(figures.attention_maps(**a)),
        {"weights": WEIGHTS[:1, :1, :3, :3], "tokens": "abc"},
    ),
    "layer_weights_over_time": (
        lambda **a: close(figures.layer_weights_over_time(**a)),
        {"steps": [0, 1], "weights": [torch.rand(3), torch.rand(3)]},
    ),
    "cost_against_length": (
        lambda **a: close(figures.cost_against_length(**a)),
        {
            "lengths": [1, 2],
            "costs": {"a": [1.0, 2.0]},
            "unit": "s",
            "ylabel": "time",
        },
    ),
}
for task in TASKS:
    kind = type(task).__name__
    CALLS |= {
        f"{kind}.sample": (task.sample, {"batch": 1, "length": 2, "generator": G}),
        f"{kind}.stream": (task.stream, {"batch": 1, "length": 2, "seed": 1}),
        f"{kind}.solve": (task.solve, {"tokens": task.sample(2, 3, G)[0]}),
        f"{kind}.answer": (task.answer, {"words": WORDS[kind]}),
    }
# What a message may name instead of an argument that contains it.
PARTS = {
    ("LanguageModel", "config"): "tokenizer",
    ("MemoryExplorer", "tokens"): "query",
    ("Settings.from_json", "text"): "settings",
    ("Config.from_dict", "values"): "config",
    ("SubwordTokenizer.from_json", "text"): "JSON",
}
UNAVAILABLE = ("resume", "load_tiny_shakespeare")  # without a run or a source
CASES = [
    (call, argument)
    for call, (_, arguments) in CALLS.items()
    for argument in arguments
]


@pytest.mark.parametrize("call, argument", CASES, ids=[f"{c}-{a}" for c, a in CASES])
def test_invalid_values_of_each_argument(call, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, arguments = CALLS[call]
    wrong = []
    for name, value in WRONG.items():
        if argument == "function" and callable(value):
            continue  # it may raise anything
        if (call, argument) == ("train", "text") and name in ("None", "a long text"):
            continue  # valid
        try:
            function(**arguments | {argument: value})
        except (TypeError, ValueError) as error:
            message = str(error)
            names = {argument, PARTS.get((call, argument), argument)}
            if call == "train":
                names.add("seq_len")  # the text may be too short for it
            if not any(re.search(rf"\b{part}\b", message) for part in names):
                wrong.append(
                    f"{name}: {type(error).__name__} does not name it: "
                    f"{message[:200]}"
                )
            elif len(message) > LONGEST:
                wrong.append(
                    f"{name}: a message of {len(message)} characters: {message[:200]}"
                )
        except (OSError, ImportError) as error:
            if not isinstance(value, str | Path) and call not in UNAVAILABLE:
                wrong.append(f"{name}: {error!r}")
        except Exception as error:
            wrong.append(f"{name}: {error!r}"[:300])
    assert not wrong, "\n".join(wrong)
