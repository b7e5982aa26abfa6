"""The command line: `python -m fbt.training --help`."""

import argparse
import inspect
import os
import re
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from fbt._text import one_line
from fbt.config import VARIANTS, Config
from fbt.training.folder import resume_command
from fbt.training.processes import by_torchrun
from fbt.training.recipe import PRESETS, Recipe
from fbt.training.run import Run, resume, train

PROGRAM = "python -m fbt.training"


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say.

    Args:
        arguments: the words of the command line; None takes them from the shell.

    Returns:
        The exit status: 0 finished, 130 interrupted, 2 something is wrong and a line
        on stderr says what.
    """
    given = vars(_parser().parse_args(arguments))
    try:
        run = _start(given)
        said = _said(run)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        return _refused(str(error), error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _refused(f"it does not fit into memory: {one_line(str(error))}", error)
    except KeyboardInterrupt:
        print(
            f"{PROGRAM}: stopped at once; the last checkpoint is as it was",
            file=sys.stderr,
        )
        return 130
    # of several processes the first one speaks
    if not (by_torchrun() and int(os.environ["RANK"])):
        print(said)
    return 0 if run.finished else 130


def _refused(reason: str, error: Exception) -> int:
    """Say why there is no run, or no more of it; notes say what is left of it and how to go on."""
    print(
        "; ".join([f"{PROGRAM}: {reason}", *getattr(error, "__notes__", [])]),
        file=sys.stderr,
    )
    return 2


def _said(run: Run) -> str:
    """How a run ended."""
    if run.finished:
        loss = f"validation loss {run.val_loss:.4f}{run.when}"
        return f"{loss}; weights, metrics and loss curve are in {run.folder}"
    return f"stopped after step {run.step}; go on with: {resume_command(str(run.folder))}"


def _start(given: dict[str, Any]) -> Run:
    """Start or resume the run; `given` holds what was said on the command line and nothing else."""
    data = given.pop("data", None)
    text = None if data is None else Path(data)
    if "resume" not in given:
        preset, variant = (
            given.get("preset", "small"),
            given.get("variant", "shared-kv"),
        )
        return train(text, **{"folder": f"runs/{variant}-{preset}"} | given)
    folder = given.pop("resume")
    surplus = sorted(set(given) - {"device", "log"})
    if surplus:
        raise ValueError(
            f"--resume takes all settings from {folder}; it leaves no room for {surplus}"
        )
    return resume(folder, text, **given)


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(
        f"  {name:<6} {preset.about}" for name, preset in PRESETS.items()
    )
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"Train a character language model.\n\npresets:\n{presets}",
        epilog="Ctrl-C saves a checkpoint after the step under way and ends the run; twice stops at once.\n"
        "Several processes share a run: torchrun --nproc-per-node=2 -m fbt.training ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    about = _descriptions(Config)
    parser.add_argument(
        "--preset", choices=PRESETS, help="size and schedule to start from [small]"
    )
    parser.add_argument(
        "--variant", choices=VARIANTS, help=f"{about['variant']} [shared-kv]"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="a text in UTF-8 [Tiny Shakespeare]"
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", help="where the run goes [runs/VARIANT-PRESET]"
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="go on with the run in FOLDER, with its own settings",
    )
    parser.add_argument(
        "--init-from",
        metavar="FOLDER",
        help="start from the parallel model saved in FOLDER",
    )
    parser.add_argument(
        "--log",
        choices=["tensorboard"],
        help="also write event files into the run's folder",
    )
    parser.add_argument(
        "--device", help="where to compute [a CUDA GPU if there is one]"
    )
    model = parser.add_argument_group("model, where it differs from the preset")
    for field in fields(Config):
        if field.name not in ("vocab_size", "variant"):
            _add_option(model, field, about[field.name])
    recipe = parser.add_argument_group("recipe, where it differs from the preset")
    about = _descriptions(Recipe)
    for field in fields(Recipe):
        _add_option(recipe, field, about[field.name])
    return parser


def _add_option(group: Any, field: Field[Any], about: str) -> None:
    """One option a field; left out, the field keeps the preset's value, which the help gives in brackets."""
    flag = "--" + field.name.replace("_", "-")
    values = {
        name: (preset.model | preset.recipe).get(field.name, field.default)
        for name, preset in PRESETS.items()
    }
    if len(set(values.values())) > 1:
        about += (
            f" [{', '.join(f'{name} {value}' for name, value in values.items())}]"
        )
    elif field.default is not None:
        about += f" [{field.default}]"
    kind: Any = field.type
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
    else:
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=about)


def _descriptions(cls: type) -> dict[str, str]:
    """What the docstring of a class says about each argument: the one place that says it."""
    entries = re.findall(
        r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(cls) or "", re.MULTILINE
    )
    return {
        name: " ".join(text.split()).rstrip(".").replace("`", "").replace("%", "%%")
        for name, text in entries
    }


if __name__ == "__main__":
    sys.exit(main())
