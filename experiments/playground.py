"""What the playground of the book's pages shows after training, for pages on paper.

    .venv/bin/python experiments/playground.py [--quick]

Trains the models of each task as a reader does who presses *Train*: in JavaScript,
with the first seed and the settings of the view, in the Node.js that playwright
brings. Takes a minute on one core. Writes `fbt/measurements/playground.json`: for
each task and model the loss of the last update, and which answers are right in the
twelve tests that the view shows, a character for each, 1 for a right one.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import playwright
from record import write_record

import fbt
from fbt.views.playground import TASKS, Playground
from fbt.views.view import joined

NODE = Path(playwright.__file__).parent / "driver" / "node"
RESULTS = Path(fbt.__file__).parent / "measurements" / "playground.json"
SEED, SHOWN, GAMES, STEPS = 1, 12, 64, 128  # as in playground.js and its worker
VARIANTS = {"feedback": "shared-kv", "parallel": "parallel", "LSTM": "lstm"}
TRAIN = """
const { job } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { task, seed, variant, shown, games, steps } = job;
const rate = TASKS[task].rate * (variant === "lstm" ? 2 : 1);
const learner = new Learner({ task, seed, rate, model: { variant } });
let loss;
while (learner.update < learner.updates) loss = learner.step();
const length = task === "copy" ? TASKS[task].lengths.at(-1) : steps;
const right = learner.test(length, games);
const asked = [...Array(right.length / games).keys()]
  .filter((t) => right[t * games] !== 2);
const rows = Array.from({ length: shown }, (_, game) =>
  asked.map((t) => right[t * games + game]).join(""));
const { updates, lengths } = learner;
const result = { updates, trained: lengths.at(-1), loss, rows };
process.stdout.write(JSON.stringify(result));
"""


def trained(task: str, variant: str) -> dict[str, object]:
    """Return the answers of a model after its training."""
    job = {"task": task, "seed": SEED, "variant": variant, "shown": SHOWN}
    job |= {"games": GAMES, "steps": STEPS}
    source = joined(*Playground.worker[:-1])
    done = subprocess.run(
        [NODE, "-e", f'"use strict";{source}{TRAIN}'],
        input=json.dumps({"job": job}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    """Train all models of all tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="train one model, and write nothing"
    )
    if parser.parse_args().quick:
        print(trained("cups", VARIANTS["feedback"])["loss"])
        return
    runs = []
    for task, (model, variant) in itertools.product(TASKS, VARIANTS.items()):
        runs.append({"task": task, "model": model} | trained(task, variant))
        print(task, model, runs[-1]["loss"], file=sys.stderr)
    write_record(RESULTS, {"seed": SEED, "games": GAMES, "runs": runs})


if __name__ == "__main__":
    main()
