"""Files that change while they are read: one process writes, another loads.

Each file contains one of two models, whose weights are all 1 or all 2. The loader
must return one of the two or raise an error of one line.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from hostile_files import reason
from small_runs import WARNINGS, save_checkpoint

import fbt
from fbt.pretrained import CHECKPOINT_FILE, WEIGHTS_FILE
from fbt.training.checkpoint import Checkpoint
from fbt.training.recipe import Recipe
from fbt.training.settings import Settings

VOCABULARIES = {1.0: "abcdefg", 2.0: "gfedcba"}
CONFIG = fbt.Config(7, d_model=60, n_heads=1, n_layers=2, span=4)


def written(folder: Path, value: float) -> dict[str, bytes]:
    """Return the files of a model whose weights all have this value."""
    lm = fbt.LanguageModel(
        CONFIG, fbt.CharTokenizer.from_vocabulary(VOCABULARIES[value])
    )
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.fill_(value)
    lm.save_pretrained(folder)
    settings = Settings(CONFIG, Recipe(), None, "", None)
    save_checkpoint(folder, 0, settings, lm, torch.optim.AdamW(lm.parameters()), None)
    return {
        name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, CHECKPOINT_FILE)
    }


def rewrite(path: Path, data: bytes, chance: random.Random) -> None:
    """Replace the file, or overwrite it piece by piece."""
    way = chance.choice(
        ["replaced", "from nothing", "in place", "in place", "in part"]
    )
    if way == "replaced":
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)
        return
    piece = chance.choice([100, 10_000, len(data)])
    first, last = 0, len(data)
    if way == "in part":
        first, last = sorted(chance.sample(range(len(data)), 2))
    with path.open("wb" if way == "from nothing" else "r+b", buffering=0) as file:
        file.seek(first)
        for start in range(first, last, piece):
            file.write(data[start : min(start + piece, last)])
            if chance.random() < 0.01:
                time.sleep(0.001)


def rewritten_while_loaded(
    folder: Path, seconds: float, seed: int = 0
) -> dict[str, int]:
    """Rewrite files while another process loads them.

    Returns:
        How many files it loaded, and how many it refused.

    Raises:
        AssertionError: if the process died, or loaded a mixture; the message contains
            its output.
    """
    models = [written(folder, value) for value in VOCABULARIES]
    command = [sys.executable, *WARNINGS, __file__, str(folder), str(seconds)]
    chance = random.Random(seed)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as loader:
        while loader.poll() is None:
            for name, data in chance.choice(models).items():
                rewrite(folder / name, data, chance)
            time.sleep(chance.choice([0, 0, 0.02]))
        said, errors = loader.communicate()
    assert loader.returncode == 0, f"status {loader.returncode}: {errors}"
    counts: dict[str, int] = json.loads(said)
    return counts


def load(folder: Path, seconds: float) -> dict[str, int]:
    """Load the files repeatedly."""
    counts = {"loaded": 0, "refused": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in (WEIGHTS_FILE, CHECKPOINT_FILE):
            try:
                if name == WEIGHTS_FILE:
                    lm = fbt.LanguageModel.from_pretrained(folder)
                    assert isinstance(lm.tokenizer, fbt.CharTokenizer)
                    vocabulary, tensors = lm.tokenizer.vocabulary, lm.state_dict()
                else:
                    checkpoint = Checkpoint.load(folder)
                    assert isinstance(checkpoint.tokenizer, fbt.CharTokenizer)
                    vocabulary = checkpoint.tokenizer.vocabulary
                    tensors = checkpoint.tensors
            except ValueError as error:
                reason(folder / name, error)
                counts["refused"] += 1
                continue
            values = (
                torch.cat([tensor.flatten() for tensor in tensors.values()])
                .unique()
                .tolist()
            )
            assert len(values) == 1 and vocabulary == VOCABULARIES[values[0]], (
                name,
                values,
                vocabulary,
            )
            counts["loaded"] += 1
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(load(Path(sys.argv[1]), float(sys.argv[2]))))
