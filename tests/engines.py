"""Run `engine.js` under the Node of playwright and in a browser, for tests."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import playwright
import torch
from torch import Tensor

import fbt
from fbt.views.packing import pack
from fbt.views.view import joined

NODE = Path(playwright.__file__).parent / "driver" / "node"
# All that a model computes at the last steps of a text, as lists by name.
READ = """
function readAll({ packed, tokens, last }) {
  const reader = new Reader(packed.config, unpack(packed));
  tokens.slice(0, -last).forEach((token) => reader.step(token));
  const steps = tokens.slice(-last).map((token) => ({
    logits: [...reader.step(token)],
    weights: reader.weights.map((heads) =>
      heads.map((values) => [...values.subarray(0, reader.seen)])),
    memory: [...reader.memory],
    shares: reader.isParallel ? [] : reader.memoryShares(),
  }));
  return { steps, mixture: [...(reader.mixture ?? [])] };
}
"""


def node(code: str, data: Any, scripts: Sequence[str] = ("engine.js",)) -> Any:
    """Return what a function expression returns for data, both as JSON.

    It may call `readAll` and whatever the scripts define.
    """
    source = (
        f"{joined(*scripts)}{READ}\nconst run = {code};\n"
        "const data = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
        "process.stdout.write(JSON.stringify(run(data)));"
    )
    done = subprocess.run(
        [NODE, "-e", f'"use strict";{source}'],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def job(model: fbt.LanguageModel, tokens: Tensor, last: int) -> dict[str, Any]:
    """Return the exact weights of a model, and the tokens [T] it should read."""
    packed = pack(model, exact=True)
    return {"packed": packed, "tokens": tokens.tolist(), "last": last}


def tensors(
    model: fbt.LanguageModel, read: dict[str, Any], length: int
) -> dict[str, Tensor]:
    """Return what `readAll` returned for a text of some length, in fbt's shapes."""
    steps = read["steps"]
    own = int(model.config.variant == "parallel")
    first = length - len(steps)
    weights = torch.zeros(
        model.config.n_layers, model.config.n_heads, len(steps), length
    )
    for i, step in enumerate(steps):
        row = torch.tensor(step["weights"])  # over the newest keys
        end = first + i + own
        weights[:, :, i, end - row.shape[-1] : end] = row
    found = {
        "logits": torch.tensor([step["logits"] for step in steps]),
        "weights": weights,
    }
    if own:
        return found
    return found | {
        "memory": torch.tensor([step["memory"] for step in steps]),
        "shares": torch.tensor([step["shares"] for step in steps]),
        "mixture": torch.tensor(read["mixture"]),
    }
