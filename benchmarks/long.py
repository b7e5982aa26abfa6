"""One long text: peak memory and CPU time of a training step, up to 8,192 characters.

    .venv/bin/python benchmarks/long.py [--quick]

A language model of four layers, 128 wide, with a span of 256, reads the beginning of
Tiny Shakespeare as a single sequence. A step is forward, loss and backward. The
yardstick, a plain transformer on PyTorch's fused attention, has no span: it sees the
whole text before each character. With "blocks" the model reads 512 characters at a
time and carries its memory from block to block without gradient, while parameter
gradients accumulate. `fbt.train` with `carry` does the same, but updates the weights
after every block.

Writes `fbt/measurements/long.json`, in ten minutes. With --quick it only prints, and
stops at 1,024 characters.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from contenders import YARDSTICK
from measure import in_a_fork, peak_increase, seconds_of
from run import heading
from sdpa import Transformer
from torch import Tensor, nn

import fbt
from fbt._files import write_file
from fbt.config import Backend, Variant
from fbt.language_model import LanguageModel
from fbt.shared_kv import SharedKVBody

RESULTS = Path(fbt.__file__).parent / "measurements" / "long.json"
MODEL: dict[str, Any] = {"d_model": 128, "n_heads": 4, "n_layers": 4, "span": 256}
BLOCK = 512
LENGTHS = (512, 1024, 2048, 4096, 8192)
# The longest text of each way. The plain loop stops earlier, as it takes most memory.
WAYS = {
    YARDSTICK: 8192,
    "parallel": 8192,
    "reference": 4096,
    "sequence": 8192,
    "native": 8192,
    "native, recompute": 8192,
    "native, recompute, blocks": 8192,
}


# Maps tokens [1, T] and the state before them to logits and the state after them.
Read = Callable[[Tensor, fbt.State | None], tuple[Tensor, fbt.State | None]]


def step(read: Read, tokens: Tensor, block: int) -> None:
    """Run forward, loss and backward over a text [1, T + 1], block by block."""
    state = None
    length = tokens.shape[1] - 1
    for start in range(0, length, block):
        window = tokens[:, start : start + block + 1]
        logits, next_state = read(window[:, :-1], state)
        loss = F.cross_entropy(logits[0], window[0, 1:], reduction="sum") / length
        loss.backward()
        state = None if next_state is None else next_state.detach()


def build(way: str, vocab_size: int) -> tuple[nn.Module, Read]:
    """Return a model and the function that reads a block of text with it."""
    variant: Variant = "parallel" if way == "parallel" else "shared-kv"
    config = fbt.Config(vocab_size, variant=variant, **MODEL)
    if way == YARDSTICK:
        d = config.d_model
        yardstick = nn.Sequential(
            nn.Embedding(vocab_size, d),
            Transformer(d, config.n_heads, config.d_ff, config.n_layers),
            nn.LayerNorm(d),
            nn.Linear(d, vocab_size),
        )
        return yardstick, lambda tokens, state: (yardstick(tokens), None)
    model = LanguageModel(config)
    if isinstance(model.body, SharedKVBody):
        model.backend = cast(Backend, way.partition(",")[0])
        model.body.recompute = "recompute" in way
    return model, lambda tokens, state: model(tokens, state, return_state=True)


def measured(way: str, text: str) -> dict[str, Any]:
    """Return memory and time of one step over a text; call it in a fresh process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = fbt.CharTokenizer(text)
    tokens = tokenizer.encode(text)[None]
    length = tokens.shape[1] - 1
    model, read = build(way, tokenizer.vocab_size)
    # One-time work of the process is not part of a step.
    step(read, tokens[:, :3], 2)
    model.zero_grad()
    block, seconds = BLOCK if "blocks" in way else length, list[float]()

    def timed() -> None:
        seconds.append(seconds_of(lambda: step(read, tokens, block), 1))

    megabytes = peak_increase(timed)
    line = f"{way:<28}{length:>6}{megabytes:>10.0f} MB{seconds[0]:>8.1f} s"
    print(line, file=sys.stderr, flush=True)
    result = {"memory_mb": round(megabytes, 1), "seconds": round(seconds[0], 2)}
    return {"name": way, "T": length} | result


def main() -> None:
    """Measure every way at every length, then write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="stop at 1,024 characters and write no record",
    )
    quick = parser.parse_args().quick
    fbt.build_native()
    text = fbt.load_tiny_shakespeare()
    rows = [
        in_a_fork(measured, way, text[: length + 1])
        for length in LENGTHS[: 2 if quick else None]
        for way, longest in WAYS.items()
        if length <= longest
    ]
    if quick:
        return
    settings = {"model": MODEL, "block": BLOCK, "dtype": "float32", "threads": 1}
    record = heading() | {"settings": settings, "rows": rows}
    write_file(RESULTS, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
