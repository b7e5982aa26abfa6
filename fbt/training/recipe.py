"""Settings of a training run, its schedules, and the presets."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from fbt._checks import check_bool, check_choice, check_int, check_real
from fbt.config import LARGEST_SIZE, Backend

LARGEST_COUNT = 2**63 - 1  # the largest int64, which also converts to a float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run.

    Args:
        steps: optimiser steps.
        batch_size: sequences per step.
        seq_len: tokens per sequence, T.
        lr: peak learning rate of AdamW.
        min_lr_ratio: final learning rate as a fraction of `lr`, in [0, 1].
        warmup: steps of linear warm-up.
        weight_decay: weight decay of the matrices of linear layers; other weights do
            not decay.
        beta2: decay rate of AdamW's squared gradients, in [0, 1); beta1 is 0.9.
        clip: largest norm of the gradient; 0 disables clipping.
        curriculum: length of the first sequences, at most `seq_len`. It doubles up to
            `seq_len` over the first half of the steps, with about as many tokens per
            step; 0 disables it.
        carry: read the text in order, and carry the detached memory from block to
            block.
        eval_every: steps between evaluations.
        eval_windows: validation windows per evaluation, always the same; the last
            evaluation uses all of them, or evenly spaced ones with 131,072 tokens in
            total if there are more.
        sample: tokens of text to generate at each evaluation.
        checkpoint_every: steps between checkpoints.
        seed: seed of initial weights, batches and dropout.
        backend: how the body is computed, "auto", "reference", "stack" (feedback and
            shared-kv), "sequence", "native" or "triton" (shared-kv only). "auto" is
            resolved once, when the run begins; a resumed run keeps its backend.
        recompute: store less for the backward pass, and recompute the rest; for
            shared-kv with the backends "auto", "sequence", "native" and "triton".

    Raises:
        TypeError, ValueError: if a setting is of the wrong type or out of range; the
            message names the setting.
    """

    steps: int = 2000
    batch_size: int = 12
    seq_len: int = 64
    lr: float = 2e-3
    min_lr_ratio: float = 0.1
    warmup: int = 100
    weight_decay: float = 0.1
    beta2: float = 0.99
    clip: float = 1.0
    curriculum: int = 0
    carry: bool = False
    eval_every: int = 250
    eval_windows: int = 256
    sample: int = 100
    checkpoint_every: int = 250
    seed: int = 0
    backend: Backend = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch_size", "seq_len"):
            check_int(name, getattr(self, name), low=1, high=LARGEST_SIZE)
        for name in ("steps", "eval_every", "eval_windows", "checkpoint_every"):
            check_int(name, getattr(self, name), low=1, high=LARGEST_COUNT)
        for name in ("warmup", "sample"):
            check_int(name, getattr(self, name), low=0, high=LARGEST_COUNT)
        check_int("seed", self.seed, low=0, high=2**31 - 1)
        check_int("curriculum", self.curriculum, low=0, high=self.seq_len)
        for name in ("lr", "weight_decay", "clip"):
            check_real(name, getattr(self, name), low=0.0)
        check_real("min_lr_ratio", self.min_lr_ratio, low=0.0, high=1.0)
        check_real("beta2", self.beta2, low=0.0, high=1.0, open_high=True)
        for name in ("lr", "weight_decay", "clip", "min_lr_ratio", "beta2"):
            # Any real number is accepted, but a checkpoint stores floats.
            object.__setattr__(self, name, float(getattr(self, name)))
        for field in fields(self):
            # An integer of NumPy is accepted, but JSON has only ints.
            if field.type is int:
                object.__setattr__(self, field.name, int(getattr(self, field.name)))
        check_bool("carry", self.carry)
        check_bool("recompute", self.recompute)
        check_choice("backend", self.backend, get_args(Backend))
        if self.recompute and self.backend in ("reference", "stack"):
            raise ValueError(
                "recompute needs backend 'auto', 'sequence', 'native' or 'triton', "
                f"got {self.backend!r}"
            )
        if self.carry and self.curriculum:
            got = self.curriculum
            raise ValueError(
                f"carry needs blocks of one length: curriculum must be 0, got {got}"
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        It rises linearly, then falls along half a cosine to `lr * min_lr_ratio`.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)

    def batch_shape(self, step: int) -> tuple[int, int]:
        """Return the number B and the length T of the sequences of a step.

        A curriculum uses more sequences while they are shorter.
        """
        if not self.curriculum:
            return self.batch_size, self.seq_len
        # Each length from the first one to seq_len is used for as many steps.
        lengths = ((self.seq_len - 1) // self.curriculum).bit_length() + 1
        index = min(lengths - 1, 2 * lengths * step // self.steps)
        length = min(self.seq_len, self.curriculum * 2**index)
        return self.batch_size * self.seq_len // length, length


@dataclass(frozen=True)
class Preset:
    """A named size of a run.

    Attributes:
        model: fields of `Config`.
        recipe: fields of `Recipe`.
        about: the size and the training time, in a line.
    """

    model: dict[str, Any]
    recipe: dict[str, Any]
    about: str


PresetName = Literal["tiny", "small", "base"]
PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "span": 32},
        {
            "steps": 600,
            "batch_size": 32,
            "seq_len": 32,
            "warmup": 50,
            "lr": 4e-3,
            "eval_every": 100,
        },
        "2 layers, 64 wide, 32 characters: half a minute on two cores",
    ),
    "small": Preset(
        {"d_model": 128, "n_heads": 4, "n_layers": 4, "span": 64},
        {"lr": 4e-3},
        "nanoGPT's CPU setting: 4 layers, 128 wide, 64 characters, 2000 steps of 12 "
        "sequences",
    ),
    "base": Preset(
        {"d_model": 192, "n_heads": 6, "n_layers": 6, "span": 128, "dropout": 0.1},
        {
            "steps": 5000,
            "batch_size": 32,
            "seq_len": 128,
            "lr": 1e-3,
            "eval_every": 500,
        },
        "6 layers, 192 wide, 128 characters, 5000 steps of 32 sequences: an hour or "
        "two",
    ),
}
