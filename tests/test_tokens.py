"""Any tokenizer, token ids instead of texts, log-probabilities and losses."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from exact import model
from small_runs import SMALL, TEXT, assert_same_run, small_run, untimed

import fbt
from fbt import scoring
from fbt.generation import probabilities
from fbt.generation.__main__ import main
from fbt.training.tokens import data_of_tokens

CHARACTERS = fbt.CharTokenizer("\n abcdefghijklmnopq")
WORDS = fbt.tasks.WordTokenizer([f"w{i}" for i in range(19)])
SNOW = "to be ☃ or née"


@pytest.fixture(scope="module")
def subwords() -> fbt.SubwordTokenizer:
    """A byte-level BPE: every text has tokens, some characters have several."""
    level = tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = level(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=level.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([TEXT], trainer)
    return fbt.SubwordTokenizer(bpe)


# Tokenizers


def test_subwords_are_saved_and_loaded_with_the_model(subwords, tmp_path):
    assert subwords.decode(subwords.encode(SNOW)) == SNOW
    assert len(subwords.encode(TEXT)) < 0.6 * len(TEXT)
    config = fbt.Config(subwords.vocab_size, d_model=8, n_heads=2, n_layers=1, span=5)
    lm = fbt.LanguageModel(config, subwords)
    path = lm.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = fbt.LanguageModel.from_pretrained(tmp_path)
    assert loaded.tokenizer == subwords
    text = loaded.generate(SNOW, 40, seed=1)
    assert text == lm.generate(SNOW, 40, seed=1) and text.startswith(SNOW)
    ids = loaded.generate(subwords.encode(SNOW), 40, seed=1)
    assert subwords.decode(ids) == text
    # Characters of several tokens appear at once.
    pieces = list(loaded.stream(SNOW, 40, seed=1))
    assert SNOW + "".join(pieces) == text and len(pieces) == 40


def test_a_character_of_several_tokens_is_streamed_whole(subwords, monkeypatch):
    ids = subwords.encode("☃ née").tolist()
    assert len(ids) > len("☃ née")
    config = fbt.Config(subwords.vocab_size, d_model=8, n_heads=2, n_layers=1)
    lm = fbt.LanguageModel(config, subwords)
    chances = iter(F.one_hot(torch.tensor(ids), subwords.vocab_size).double())
    monkeypatch.setattr(
        fbt.generation, "probabilities", lambda *_: next(chances)[None]
    )
    pieces = list(lm.stream("to", len(ids)))
    assert "".join(pieces) == "☃ née" and "" in pieces


def test_another_tokenizer_has_to_be_passed_again(tmp_path):
    lm = model("shared-kv", WORDS)
    lm.save_pretrained(tmp_path)
    loaded = fbt.LanguageModel.from_pretrained(tmp_path)
    assert loaded.tokenizer is None
    with pytest.raises(ValueError, match="pass tokenizer= to from_pretrained"):
        loaded.generate("w1 w2")
    loaded = fbt.LanguageModel.from_pretrained(tmp_path, tokenizer=WORDS)
    text = loaded.generate("w1 w2", 3, seed=0)
    assert text == lm.generate("w1 w2", 3, seed=0)
    assert len(text.split()) == 5  # the spaces between words too


def test_a_tokenizer_of_the_library_is_refused_with_advice(subwords):
    with pytest.raises(TypeError, match=r"pass fbt\.SubwordTokenizer\(tokenizer\)"):
        model("shared-kv", subwords.tokenizer)
    with pytest.raises(ValueError, match="not the JSON of a tokenizer"):
        fbt.SubwordTokenizer.from_json("{}")


def test_ids_of_a_tokenizer_are_checked():
    class Odd:
        vocab_size = 19

        def encode(self, text):
            return [1, 19]

        def decode(self, ids):
            return ""

    with pytest.raises(ValueError, match=r"tokenizer\.encode must be in \[0, 18\]"):
        model("shared-kv", Odd()).generate("a")


# Generation


def test_ids_give_what_texts_give():
    lm = model("shared-kv", CHARACTERS)
    texts = ["abc", "be", "qqqq"]
    ids = [CHARACTERS.encode(text) for text in texts]
    expected = [CHARACTERS.encode(text) for text in lm.generate(texts, 9, seed=3)]
    lm.tokenizer = None
    found = lm.generate([row.tolist() for row in ids], 9, seed=3)
    assert found == [row.tolist() for row in expected]
    one = lm.generate(ids[0].int(), 9, seed=3)
    assert one.dtype == torch.long and torch.equal(one, expected[0])
    batch = lm.generate(torch.stack([ids[0], ids[0]]), 9, seed=3)
    assert batch.shape == (2, 12) and torch.equal(batch[0], expected[0])
    new = list(lm.stream(ids[0], 9, seed=3))
    assert new == expected[0][3:].tolist()
    with pytest.raises(ValueError, match=r"prompt must be in \[0, 18\], got 19"):
        lm.generate(torch.tensor([19]))


def test_a_sequence_ends_with_a_stop():
    lm = model("shared-kv", CHARACTERS)
    text = lm.generate("abc", 30, seed=5)
    stop = text[11:13]  # two characters, perhaps with earlier ones
    end = text.index(stop, 3) + 2
    assert lm.generate("abc", 30, seed=5, stop=stop) == text[:end]
    assert lm.generate("abc", 30, seed=5, stop=["\n\n\n\n", stop]) == text[:end]
    assert "".join(lm.stream("abc", 30, seed=5, stop=stop)) == text[3:end]
    last = int(CHARACTERS.encode(text[14]))
    ids = lm.generate(CHARACTERS.encode("abc"), 30, seed=5, stop=[last])
    assert CHARACTERS.decode(ids) == text[: text.index(text[14], 3) + 1]
    # A row that ends earlier is filled.
    rows = CHARACTERS.encode("abc").expand(2, 3)
    both = lm.generate(rows, 30, seed=5, stop=last)
    assert (
        torch.equal(both[0, : len(ids)], ids) and (both[0, len(ids) :] == -100).all()
    )
    with pytest.raises(ValueError, match="stop needs a tokenizer"):
        model("shared-kv").generate(rows, stop="a")


def test_top_p_keeps_the_fewest_most_likely_tokens():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64))

    def close(top_p, *expected, top_k=None):
        torch.testing.assert_close(
            probabilities(logits, 1.0, top_k, top_p),
            torch.tensor([expected], dtype=torch.float64),
        )

    close(0.39, 0, 1, 0, 0)
    close(0.41, 0, 4 / 7, 0, 3 / 7)
    close(0.69, 0, 4 / 7, 0, 3 / 7)
    close(0.71, 0, 4 / 9, 2 / 9, 3 / 9)
    close(1.0, 0.1, 0.4, 0.2, 0.3)
    close(0.6, 0, 4 / 7, 0, 3 / 7, top_k=2)
    lm = model("shared-kv", CHARACTERS)
    assert lm.generate("a", 20, top_p=1e-9) == lm.generate("a", 20, temperature=0)
    with pytest.raises(
        ValueError, match=r"top_p must be a number in \(0, 1\], got 0"
    ):
        lm.generate("a", top_p=0)


# Scores and losses


def test_scores_are_the_log_probabilities_of_the_definition(monkeypatch):
    lm = model("feedback", CHARACTERS)
    tokens = CHARACTERS.encode("to be or not".replace("t", "a").replace("r", "b"))
    with torch.no_grad():
        logs = torch.log_softmax(lm.eval()(tokens[None, :-1])[0], dim=-1)
    expected = logs[torch.arange(len(tokens) - 1), tokens[1:]]
    monkeypatch.setattr(scoring, "SCORED", 5)  # in three blocks
    torch.testing.assert_close(lm.score(tokens), expected)
    several = lm.score([tokens.tolist(), tokens[:4].tolist(), [3]])
    assert [len(row) for row in several] == [11, 3, 0]
    torch.testing.assert_close(several[1], expected[:3])
    text = CHARACTERS.decode(tokens)
    torch.testing.assert_close(lm.score(text), expected)
    assert lm.score(tokens[None]).shape == (1, 11)


@pytest.mark.parametrize("variant", ["parallel", "shared-kv"])
def test_log_probabilities_of_drawn_tokens_are_their_scores(variant):
    lm = model(variant, CHARACTERS)
    text, logs = lm.generate(
        "abc", 9, seed=1, temperature=0.7, top_k=5, return_log_probs=True
    )
    torch.testing.assert_close(logs, lm.score(text)[2:].double())
    texts, logs = lm.generate(["abc", "d"], 9, seed=1, return_log_probs=True)
    assert len(texts) == 2 and logs.shape == (2, 9)


def test_loss_ignores_targets_and_has_gradients():
    lm = model("shared-kv", CHARACTERS)
    tokens = torch.randint(19, (2, 6), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, 2:] = -100
    logits = lm(tokens)
    kept = [(b, t) for b in range(2) for t in range(6) if b or t < 2]
    each = [-torch.log_softmax(logits[b, t], 0)[targets[b, t]] for b, t in kept]
    loss = lm.loss(tokens, targets)
    torch.testing.assert_close(loss, torch.stack(each).mean())
    loss.backward()
    assert lm.head.weight.grad is not None
    targets[targets == -100] = 7
    torch.testing.assert_close(
        lm.loss(tokens, targets, ignore_index=7).isfinite(), torch.tensor(True)
    )
    with pytest.raises(ValueError, match="targets must have the shape of tokens"):
        lm.loss(tokens, targets[:, 1:])
    with pytest.raises(ValueError, match=r"targets must be in \[0, 18\]"):
        lm.loss(tokens, targets + 12)
    with pytest.raises(ValueError, match="not all targets may be ignore_index=-100"):
        lm.loss(tokens, torch.full_like(tokens, -100))


# Training


def test_tokens_of_any_kind_train_as_their_text(tmp_path):
    expected = small_run()
    tokenizer = fbt.CharTokenizer(TEXT)
    tokens = tokenizer.encode(TEXT)
    path = tmp_path / "tokens.npy"
    np.save(path, tokens.numpy().astype(np.uint16))
    mapped = np.memmap(tmp_path / "raw", np.uint32, "w+", shape=(len(tokens),))
    mapped[:] = tokens.numpy()
    for given in (tokens, mapped, path):
        run = small_run(None, tokens=given, tokenizer=tokenizer)
        assert_same_run(run, expected)
    # Without a tokenizer there is no sample, and V is the largest token + 1.
    run = small_run(None, tokens=path, folder=tmp_path / "run", steps=5)
    assert run.model.tokenizer is None and run.evaluations[0]["sample"] == ""
    assert run.model.config.vocab_size == tokenizer.vocab_size
    more = fbt.resume(tmp_path / "run", steps=7, progress=False)
    assert more.step == 7
    np.save(path, tokens.numpy()[1:])
    with pytest.raises(ValueError, match="is not the text that the run"):
        fbt.resume(tmp_path / "run", progress=False)


def test_carried_memory_reads_an_array_in_order():
    tokens = fbt.CharTokenizer(TEXT).encode(TEXT)
    runs = [
        small_run(None, tokens=t, carry=True) for t in (tokens, tokens.byte().numpy())
    ]
    assert untimed(runs[0].metrics) == untimed(runs[1].metrics)


def test_a_token_file_is_not_loaded(tmp_path):
    """Its 12 MB are hashed a megabyte at a time, and so are those of a text."""
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(6_000_000, dtype=np.uint16))
    tracemalloc.start()
    try:
        data = data_of_tokens(path, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data.vocab_size == 65536 and len(data.tokens) == 6_000_000
    assert peak < 9_000_000


def wrong_tokens(tmp_path: Path) -> dict[str, tuple[type[Exception], object, str]]:
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    objects = np.array([{}], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    return {
        "floats": (TypeError, torch.rand(9), "tokens must be a tensor of integers"),
        "a list": (TypeError, [1, 2], "tokens must be a tensor or an array"),
        "rows": (ValueError, np.zeros((2, 3), int), r"tokens must have shape \[N\]"),
        "negative": (ValueError, np.array([1, -2]), "got -2"),
        "no array": (ValueError, tmp_path / "bad.npy", "a file of numpy.save"),
        "pickle": (ValueError, tmp_path / "objects.npy", "a file of numpy.save"),
        "raw": (ValueError, tmp_path / "train.bin", "map another file with numpy"),
        "missing": (FileNotFoundError, tmp_path / "no.npy", "is not a file"),
    }


def test_wrong_tokens_are_refused(tmp_path):
    for error, tokens, message in wrong_tokens(tmp_path).values():
        with pytest.raises(error, match=message):
            small_run(None, tokens=tokens)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 2\], got 3"):
        small_run(None, tokens=np.arange(4), tokenizer=fbt.CharTokenizer("abc"))
    with pytest.raises(ValueError, match="either text or tokens"):
        small_run(TEXT, tokens=np.arange(4))


def test_subwords_train_and_resume(subwords, tmp_path):
    text = TEXT * 3
    options = {"tokenizer": subwords, "variant": "shared-kv", "steps": 6}
    expected = small_run(text, **options)
    assert expected.evaluations[-1]["sample"]
    # Stopped by its callback, then continued with the tokenizer of the checkpoint.
    run = small_run(text, **options, folder=tmp_path, callback=lambda run: True)
    assert run.finished and run.step == 4
    run = fbt.resume(tmp_path, text, steps=6, progress=False)
    assert run.model.tokenizer == subwords
    assert run.metrics[3]["loss"] == expected.metrics[3]["loss"]


# Starting from any model, going on, ending early


def test_fine_tuning_continues_from_the_weights(tmp_path):
    first = small_run(variant="shared-kv", folder=tmp_path)
    few = {k: v for k, v in SMALL.items() if k not in first.settings.config.to_dict()}
    options = few | {"steps": 1, "lr": 0.0, "dropout": 0.3}
    run = fbt.train(TEXT, init_from=tmp_path, progress=False, **options)
    assert run.settings.config == first.settings.config.replace(dropout=0.3)
    assert run.val_loss == pytest.approx(first.val_loss)
    assert run.model is not first.model


@pytest.mark.parametrize("variant", ["feedback", "shared-kv"])
def test_a_feedback_model_starts_another_variant(variant):
    source = model("shared-kv" if variant == "feedback" else "feedback", CHARACTERS)
    text = CHARACTERS.vocabulary * 20
    options = {"variant": variant, "lr": 0.0, "steps": 1, "weight_decay": 0.0}
    settings = {k: v for k, v in SMALL.items() if k not in source.config.to_dict()}
    run = fbt.train(text, init_from=source, progress=False, **settings | options)
    tokens = CHARACTERS.encode("abcdefgh")[None]
    if variant == "feedback":  # every layer has the shared keys and values
        torch.testing.assert_close(run.model(tokens), source.eval()(tokens))
    else:
        keys = [part.key.weight for part in source.body.key_values]
        torch.testing.assert_close(
            run.model.body.key_values[0].key.weight, sum(keys) / len(keys)
        )
    with pytest.raises(ValueError, match="variant of a run that starts from a model"):
        small_run(text, init_from=source, variant="parallel")


def test_a_finished_run_gets_more_steps(tmp_path):
    """The learning rate is that of the longer run, and so is the best evaluation."""
    small_run(folder=tmp_path, steps=8)
    run = fbt.resume(tmp_path, TEXT, steps=12, progress=False)
    assert run.finished and run.step == run.settings.recipe.steps == 12
    rates = [m["lr"] for m in run.metrics if "lr" in m]
    assert rates[8:] == [run.settings.recipe.learning_rate(t) for t in range(8, 12)]
    assert rates[8] > rates[7]
    windows = fbt.data.even_windows(
        fbt.CharTokenizer(TEXT).encode(fbt.data.split(TEXT)[1]), length=7
    )
    assert run.val_loss == pytest.approx(fbt.evaluate(run.model, windows))
    with pytest.raises(ValueError, match=r"steps must be an int in \[12"):
        fbt.resume(tmp_path, TEXT, steps=11, progress=False)


def test_a_callback_sees_each_evaluation_and_ends_the_run(tmp_path):
    seen = []

    def callback(run):
        seen.append((run.step, run.val_loss, run.finished))
        return run.step == 8

    run = small_run(folder=tmp_path, callback=callback)
    assert [step for step, _, _ in seen] == [4, 8]
    assert run.finished and run.step == run.settings.recipe.steps == 8
    assert (tmp_path / "model.safetensors").exists()
    assert not any(finished for *_, finished in seen)
    expected = small_run()
    losses = [m["loss"] for m in expected.metrics if "loss" in m]
    assert [m["loss"] for m in run.metrics if "loss" in m] == losses[:8]
    assert seen[0][1] == expected.evaluations[0]["val_loss"]


def test_recompute_is_a_setting(tmp_path):
    plain = small_run(backend="sequence", folder=tmp_path / "plain")
    run = small_run(backend="sequence", recompute=True, folder=tmp_path / "run")
    assert run.model.body.recompute and run.settings.recipe.recompute
    assert run.val_loss == pytest.approx(plain.val_loss, rel=1e-4)
    stored = fbt.training.checkpoint.Checkpoint.load(tmp_path / "run")
    assert stored.settings.recipe.recompute
    for changes in ({"variant": "feedback"}, {"backend": "stack"}):
        with pytest.raises(ValueError, match="recompute"):
            small_run(recompute=True, **changes)


def test_a_recipe_replaces_that_of_the_preset():
    recipe = fbt.Recipe(steps=3, batch_size=2, seq_len=5, warmup=0, sample=0)
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 1, "span": 3}
    run = fbt.train(TEXT, recipe=recipe, seed=2, progress=False, **sizes)
    assert run.settings.recipe == fbt.Recipe(
        steps=3, batch_size=2, seq_len=5, warmup=0, sample=0, seed=2
    )


# Python as people write it


def test_integers_of_numpy_and_dictionaries_of_configs():
    config = fbt.Config(np.int64(19), d_model=np.uint8(14), n_heads=2, n_layers=3)
    assert fbt.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    recipe = fbt.Recipe(steps=np.int32(5))
    assert json.dumps(recipe.steps) == "5"
    with pytest.raises(TypeError, match="vocab_size must be an int"):
        fbt.Config(np.True_)
    with pytest.raises(ValueError, match="config must only have the fields"):
        fbt.Config.from_dict({"vocab_size": 3, "width": 4})


def test_weights_load_with_a_dtype_from_a_file(tmp_path):
    path = model("feedback", CHARACTERS).save_pretrained(tmp_path)
    lm = fbt.LanguageModel.from_pretrained(path, dtype=torch.bfloat16, device="cpu")
    assert lm.head.weight.dtype == torch.bfloat16 and lm.tokenizer == CHARACTERS
    assert fbt.LanguageModel.from_pretrained(path).head.weight.dtype == torch.float64
    with pytest.raises(TypeError, match="dtype must be a floating-point"):
        fbt.LanguageModel.from_pretrained(path, dtype=torch.int64)
    with pytest.raises(ValueError, match="device must be a name like 'cpu'"):
        fbt.LanguageModel.from_pretrained(path, device="abacus")


def test_a_state_is_shown_by_its_shape():
    _, state = model("feedback")(
        torch.ones(2, 5, dtype=torch.long), return_state=True
    )
    assert repr(state) == "State(3 keys and values [2, 2, 5, 7])"


def test_completion_lists_no_module_named_like_a_class():
    names = dir(fbt)
    assert len({name.lower() for name in names}) == len(names)


# The command line


def test_the_command_prints_a_continuation(tmp_path, capsys):
    lm = model("shared-kv", CHARACTERS)
    lm.save_pretrained(tmp_path)
    options = ["--prompt", "abc", "--max-new-tokens", "20", "--seed", "3"]
    assert main([str(tmp_path), *options, "--top-k=5"]) == 0
    assert capsys.readouterr().out == lm.generate("abc", 20, seed=3, top_k=5) + "\n"
    assert main([str(tmp_path / "nothing"), *options]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "no model.safetensors" in err
    assert main([str(tmp_path), "--prompt", "ABC"]) == 2
    assert "prompt cannot be encoded" in capsys.readouterr().err
