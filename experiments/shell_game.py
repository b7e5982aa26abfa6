"""The two players of the shell game: one layer with feedback, four parallel ones.

    .venv/bin/python experiments/shell_game.py [--quick] [--workers N]

Both are 16 wide and see equally many games. Games get longer as training goes on, up
to 48 swaps. At the end each player is tested on 1,000 new games.

Takes two minutes of CPU time. Writes the weights that `fbt.views.cups.Cups` shows to
`fbt/views/players/`, and the runs to `fbt/measurements/shell_game.json`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import (
    Job,
    Result,
    arguments,
    done_anew,
    done_once,
    folder_of,
    write_record,
)
from training import update

import fbt
from fbt._files import write_file
from fbt.pretrained import WEIGHTS_FILE
from fbt.tasks import ShellGame
from fbt.views.cups import CUPS, WORDS

PACKAGE = Path(fbt.__file__).parent
RESULTS = PACKAGE / "measurements" / "shell_game.json"
PLAYERS: dict[str, Job] = {
    "feedback": {"variant": "shared-kv", "n_layers": 1, "rate": 1e-2},
    "parallel": {"variant": "parallel", "n_layers": 4, "rate": 5e-3},
}
SETTINGS: Job = {"updates": 5000, "seed": 0}
SIZES: dict[str, Any] = {"d_model": 16, "n_heads": 1, "span": 64}
LENGTHS = (2, 4, 8, 16, 48)  # of games, each for a fifth of the updates
GAMES, SWAPS = 32, 512  # the least of each in a batch
WARMUP, DECAY = 10, 0.4  # updates; the last part of training
TESTED = (1, 2, 4, 8, 16, 24, 48, 64)


def train(job: Job, name: str = "shell-game") -> Result:
    """Train a player, and store its weights beside the results."""
    torch.manual_seed(job["seed"])
    config = fbt.Config(
        len(WORDS), variant=job["variant"], n_layers=job["n_layers"], **SIZES
    )
    tokenizer = fbt.CharTokenizer.from_vocabulary(WORDS)
    model = fbt.LanguageModel(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["rate"])
    task, updates = ShellGame(CUPS), job["updates"]
    generator = torch.Generator().manual_seed(1_000_000 + job["seed"])
    seconds = 0.0
    for number in range(updates):
        length = LENGTHS[len(LENGTHS) * number // updates]
        games = max(GAMES, SWAPS // length)
        factor = min(1, (number + 1) / WARMUP, (1 - number / updates) / DECAY)
        for group in optimizer.param_groups:
            group["lr"] = factor * job["rate"]
        seconds += update(model, optimizer, *task.sample(games, length, generator))
    model.eval().save_pretrained(folder_of(name, job))
    return {
        "summary": play(model),
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 1),
        "config": config.to_dict(),
    }


@torch.no_grad()
def play(model: fbt.LanguageModel) -> dict[str, Any]:
    """Return what a player does in new games, after some numbers of swaps.

    "right" is the share of games in which its best guess is the ball's place, "sure"
    the mean share that it gives to this place.
    """
    swaps, places = ShellGame(CUPS).sample(
        1000, max(TESTED), torch.Generator().manual_seed(2_000_000)
    )
    shares = model(swaps).softmax(-1)
    right = (shares.argmax(-1) == places).double().mean(0)
    sure = shares.gather(-1, places[..., None]).double().mean((0, 2))
    at = [count - 1 for count in TESTED]
    return {
        name: dict(zip(map(str, TESTED), values, strict=True))
        for name, values in (
            ("right", [round(right[i].item(), 3) for i in at]),
            ("sure", [round(sure[i].item(), 3) for i in at]),
        )
    }


def main() -> None:
    """Train the players, unless they are cached; write weights and record."""
    quick, workers = arguments(__doc__, quick="ten updates; writes nothing")
    jobs = [SETTINGS | player for player in PLAYERS.values()]
    if quick:
        quick_jobs = [job | {"updates": 10} for job in jobs]
        name = "shell-game-quick"
        done_anew(name, quick_jobs, partial(train, name=name), workers)
        return
    runs = done_once("shell-game", jobs, train, workers)
    for name, job in zip(PLAYERS, jobs, strict=True):
        weights = (folder_of("shell-game", job) / WEIGHTS_FILE).read_bytes()
        write_file(PACKAGE / "views" / "players" / f"{name}.safetensors", weights)
    write_record(RESULTS, {"tested": list(TESTED), "runs": runs})


if __name__ == "__main__":
    main()
