"""Schedules, presets and checks of `fbt.training.recipe`."""

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest

from fbt.config import Config
from fbt.training.recipe import PRESETS, Recipe


def test_learning_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    recipe = Recipe(steps=12, warmup=4, lr=2.0, min_lr_ratio=0.1)
    rates = [recipe.learning_rate(step) for step in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    # (1 + cos 45 degrees) / 2
    assert rates[6] == pytest.approx(2.0 * (0.1 + 0.9 * 0.8535533905932737))
    assert rates[8] == pytest.approx(2.0 * 0.55)
    assert rates[12] == pytest.approx(2.0 * 0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 5, 9])
def test_learning_rate_is_positive_for_any_warmup(warmup: int) -> None:
    recipe = Recipe(steps=5, warmup=warmup, min_lr_ratio=0.0)
    assert all(0 < recipe.learning_rate(step) <= recipe.lr for step in range(5))


@pytest.mark.parametrize(
    ("seq_len", "first", "lengths"),
    [
        (64, 8, [8, 16, 32, 64]),
        (65, 8, [8, 16, 32, 64, 65]),
        (100, 16, [16, 32, 64, 100]),
        (48, 6, [6, 12, 24, 48]),
        (7, 1, [1, 2, 4, 7]),
        (13, 13, [13]),
        (13, 12, [12, 13]),
        (1, 1, [1]),
    ],
)
@pytest.mark.parametrize("steps", [40, 41, 999])
def test_curriculum_doubles_up_to_seq_len(
    seq_len: int, first: int, lengths: list[int], steps: int
) -> None:
    recipe = Recipe(steps=steps, batch_size=24, seq_len=seq_len, curriculum=first)
    shapes = [recipe.batch_shape(step) for step in range(steps)]
    assert list(dict.fromkeys(length for _, length in shapes)) == lengths
    assert all(length == seq_len for _, length in shapes[steps // 2 + 1 :])
    for size, length in shapes:
        # About as many characters as 24 full sequences, without a part of one.
        assert 24 * seq_len - length < size * length <= 24 * seq_len
    shares = [sum(length == kind for _, length in shapes) for kind in lengths[:-1]]
    assert max(shares, default=0) - min(shares, default=0) <= 1


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_curriculum_reaches_seq_len_in_few_steps(steps: int) -> None:
    recipe = Recipe(steps=steps, seq_len=64, curriculum=1)
    assert recipe.batch_shape(0)[1] == 1
    assert recipe.batch_shape(steps - 1) == (recipe.batch_size, 64)


def test_without_curriculum_every_step_has_the_same_shape() -> None:
    recipe = Recipe(batch_size=5, seq_len=17)
    assert {recipe.batch_shape(step) for step in range(50)} == {(5, 17)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_described(name: str) -> None:
    preset = PRESETS[name]
    config, recipe = Config(65, **preset.model), Recipe(**preset.recipe)
    assert f"{config.d_model} wide" in preset.about
    assert f"{recipe.seq_len} characters" in preset.about
    assert config.span == recipe.seq_len


def test_small_preset_equals_the_cpu_setting_of_nanogpt() -> None:
    config, recipe = (
        Config(65, **PRESETS["small"].model),
        Recipe(**PRESETS["small"].recipe),
    )
    assert (config.n_layers, config.d_model, config.n_heads, config.span) == (
        4,
        128,
        4,
        64,
    )
    assert (recipe.steps, recipe.batch_size, recipe.seq_len) == (2000, 12, 64)


def test_every_setting_is_described_once() -> None:
    described = [
        line.split(":")[0].strip()
        for line in (Recipe.__doc__ or "").splitlines()
        if ": " in line
    ]
    assert [name for name in described if "," not in name] == [
        field.name for field in fields(Recipe)
    ]


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (
            {"steps": 0},
            ValueError,
            r"steps must be an int in \[1, 9223372036854775807\], got 0",
        ),
        (
            {"steps": 1.5},
            TypeError,
            r"steps must be an int in \[1, 9223372036854775807\], got 1.5 of type",
        ),
        (
            {"batch_size": True},
            TypeError,
            r"batch_size must be an int in \[1, 268435456\], got True",
        ),
        (
            {"seq_len": -1},
            ValueError,
            r"seq_len must be an int in \[1, 268435456\], got -1",
        ),
        (
            {"warmup": -1},
            ValueError,
            r"warmup must be an int in \[0, 9223372036854775807\], got -1",
        ),
        (
            {"sample": -1},
            ValueError,
            r"sample must be an int in \[0, 9223372036854775807\], got -1",
        ),
        (
            {"eval_every": 0},
            ValueError,
            r"eval_every must be an int in \[1, 9223372036854775807\], got 0",
        ),
        (
            {"eval_windows": 0},
            ValueError,
            r"eval_windows must be an int in \[1, 9223372036854775807\], got 0",
        ),
        (
            {"checkpoint_every": 0},
            ValueError,
            r"checkpoint_every must be an int in \[1, 9223372036854775807\], got 0",
        ),
        (
            {"seed": 2**31},
            ValueError,
            r"seed must be an int in \[0, 2147483647\], got 2147483648",
        ),
        (
            {"curriculum": 65},
            ValueError,
            r"curriculum must be an int in \[0, 64\], got 65",
        ),
        (
            {"lr": float("nan")},
            ValueError,
            r"lr must be a number in \[0.0, inf\), got nan",
        ),
        (
            {"lr": "fast"},
            TypeError,
            r"lr must be a number in \[0.0, inf\), got 'fast'",
        ),
        (
            {"weight_decay": -0.1},
            ValueError,
            r"weight_decay must be a number in \[0.0, inf\), got -0.1",
        ),
        (
            {"clip": float("inf")},
            ValueError,
            r"clip must be a number in \[0.0, inf\), got inf",
        ),
        (
            {"min_lr_ratio": 1.1},
            ValueError,
            r"min_lr_ratio must be a number in \[0.0, 1.0\], got 1.1",
        ),
        (
            {"beta2": 1.0},
            ValueError,
            r"beta2 must be a number in \[0.0, 1.0\), got 1.0",
        ),
        ({"carry": 1}, TypeError, r"carry must be True or False, got 1"),
        (
            {"carry": True, "curriculum": 8},
            ValueError,
            r"curriculum must be 0, got 8",
        ),
    ],
)
def test_bad_settings_are_refused(
    setting: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Recipe(**setting)  # type: ignore[arg-type]


COUNTS = [
    "steps",
    "warmup",
    "eval_every",
    "eval_windows",
    "sample",
    "checkpoint_every",
]
SIZES = ["batch_size", "seq_len"]
MODEL_SIZES = ["vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "span"]


def test_every_int_has_a_largest_value() -> None:
    """A larger value would raise an unclear error when it is used."""
    limits = dict.fromkeys(COUNTS, 2**63 - 1) | dict.fromkeys(SIZES, 2**28)
    limits |= {"seed": 2**31 - 1, "curriculum": 64}
    assert limits.keys() == {
        field.name for field in fields(Recipe) if field.type is int
    }
    for name, largest in limits.items():
        assert getattr(Recipe(**{name: largest}), name) == largest
        for value in (largest + 1, 2**64, 10**400):
            with pytest.raises(
                ValueError,
                match=rf"^{name} must be an int in \[[01], {largest}\], "
                r"got (an int of )?\d",
            ):
                Recipe(**{name: value})
    assert [
        field.name for field in fields(Config) if field.type is int
    ] == MODEL_SIZES
    for name in MODEL_SIZES:
        for value in (2**28 + 1, 2**64, 10**400):
            with pytest.raises(
                ValueError,
                match=rf"^{name} must be an int in \[1, 268435456\], "
                r"got (an int of )?\d",
            ):
                Config(**{"vocab_size": 5, "d_ff": 3, name: value})
    with pytest.raises(ValueError, match=r"^d_ff must be .* got 536870912$"):
        Config(5, d_model=2**27, n_heads=1)  # four times as wide


def test_largest_counts_give_finite_schedules() -> None:
    most = 2**63 - 1
    recipe = Recipe(steps=most, warmup=most)
    assert recipe.learning_rate(0) == recipe.lr / most
    assert recipe.learning_rate(most - 1) == recipe.lr
    assert Recipe(steps=most, curriculum=1).batch_shape(most - 1) == (12, 64)
    assert Recipe(batch_size=2**28, seq_len=2**28, curriculum=1).batch_shape(0) == (
        2**56,
        1,
    )


def test_real_numbers_are_converted_to_float():
    numbers = {
        "lr": np.float32(1e-3),
        "weight_decay": Fraction(1, 10),
        "clip": 1,
        "beta2": np.float64(0.9),
    }
    recipe = Recipe(**numbers, min_lr_ratio=0)
    config = Config(5, dropout=np.float32(0.5))
    for settings, name in [
        *((recipe, name) for name in (*numbers, "min_lr_ratio")),
        (config, "dropout"),
    ]:
        assert type(getattr(settings, name)) is float
