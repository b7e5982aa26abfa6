"""One long text: peak memory and CPU time of a training step on up to 8,192 characters.

    .venv/bin/python benchmarks/long.py [--quick]

A language model of four layers, 128 wide, with a span of 256, reads the beginning of Tiny Shakespeare as a
single sequence; a step is forward, loss and backward. With "blocks" it reads 512 characters at a time and
carries its memory from block to block, cut from the graph, while gradients add up: what `fbt.train` does with
`carry`, but for its update after every block. Writes `fbt/measurements/long.json`, in ten minutes;
--quick, up to 1,024 characters, only prints.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import in_a_fork, raised, seconds_of
from run import machine
from torch import Tensor

import fbt
from fbt._files import write_whole
from fbt.language_model import LanguageModel
from fbt.shared_kv import SharedKVBody

RESULTS = Path(fbt.__file__).parent / "measurements" / "long.json"
MODEL: dict[str, Any] = {"d_model": 128, "n_heads": 4, "n_layers": 4, "span": 256}
BLOCK = 512
LENGTHS = (512, 1024, 2048, 4096, 8192)
# The longest text of each: the first two keep what grows with the square of it, or with steps times span.
WAYS = {
    "parallel": 4096,
    "reference": 4096,
    "sequence": 8192,
    "native": 8192,
    "native, recompute": 8192,
    "native, recompute, blocks": 8192,
}


def step(model: LanguageModel, tokens: Tensor, block: int) -> None:
    """Forward, loss and backward over a text [1, T + 1], block by block."""
    state = None
    length = tokens.shape[1] - 1
    for start in range(0, length, block):
        part = tokens[:, start : start + block + 1]
        logits, after = model(part[:, :-1], state, return_state=True)
        loss = F.cross_entropy(logits[0], part[0, 1:], reduction="sum") / length
        loss.backward()
        state = after.detach()


def measured(way: str, text: str) -> dict[str, Any]:
    """Memory and time of one step over a text, in a process that has done nothing else."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = fbt.CharTokenizer(text)
    tokens = tokenizer.encode(text)[None]
    length = tokens.shape[1] - 1
    variant = "parallel" if way == "parallel" else "shared-kv"
    model = LanguageModel(fbt.Config(tokenizer.vocab_size, variant=variant, **MODEL))
    if isinstance(model.body, SharedKVBody):
        model.backend = way.partition(",")[0]
        model.body.recompute = "recompute" in way
    step(model, tokens[:, :3], 2)  # what a process does once is not part of a step
    model.zero_grad()
    block, seconds = BLOCK if "blocks" in way else length, list[float]()
    megabytes = raised(lambda: seconds.append(seconds_of(lambda: step(model, tokens, block), 1)))
    row = {"name": way, "T": length, "memory_mb": round(megabytes, 1), "seconds": round(seconds[0], 2)}
    print(f"{way:<28}{length:>6}{megabytes:>10.0f} MB{seconds[0]:>8.1f} s", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measure every way at every length it is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to 1,024 characters, no record")
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
    record: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
    record |= {"settings": settings, "rows": rows}
    write_whole(RESULTS, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
