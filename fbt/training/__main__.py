"""The command line: `python -m fbt.training --help`."""

import argparse
import inspect
import os
import re
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from fbt._text import one_line
from fbt.config import VARIANTS, Config
from fbt.training.folder import resume_command
from fbt.training.processes import by_torchrun
from fbt.training.recipe import PRESETS, Recipe
from fbt.training.result import LOSS_FIGURE, Run
from fbt.training.run import resume, train

PROGRAM = "python -m fbt.training"


def main(arguments: list[str] | None = None) -> int:
    """Train a model with the settings of the command line.

    Args:
        arguments: the arguments; None reads those of the process.

    Returns:
        The exit status: 0 if the run has finished, 130 if it was interrupted, 2 after
        an error, which is printed to stderr in one line.
    """
    options = vars(_parser().parse_args(arguments))
    try:
        run = _start(options)
        summary = _summary(run)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        return _report(str(error), error)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _report(f"not enough memory: {one_line(str(error))}", error)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; the last checkpoint is intact", file=sys.stderr)
        return 130
    # Of several processes, only the first one prints.
    if not (by_torchrun() and int(os.environ["RANK"])):
        print(summary)
    return 0 if run.finished else 130


def _report(message: str, error: Exception) -> int:
    """Print an error and its notes to stderr, and return the exit status."""
    notes = getattr(error, "__notes__", [])
    print("; ".join([f"{PROGRAM}: {message}", *notes]), file=sys.stderr)
    return 2


def _summary(run: Run) -> str:
    """Return a line about the end of a run."""
    if run.finished:
        loss = f"validation loss {run.val_loss:.4f}{run.when}"
        has_curve = run.folder is not None and (run.folder / LOSS_FIGURE).exists()
        files = (
            "weights, metrics and loss curve" if has_curve else "weights and metrics"
        )
        return f"{loss}; {files} are in {run.folder}"
    command = resume_command(str(run.folder))
    return f"stopped after step {run.step}; resume with: {command}"


def _start(options: dict[str, Any]) -> Run:
    """Start or resume the run; `options` are those of the command line only."""
    data = options.pop("data", None)
    text = None if data is None else Path(data)
    if "tokens" in options:
        options["tokens"] = Path(options["tokens"])
    if "resume" not in options:
        preset = options.get("preset", "small")
        variant = options.get("variant", "shared-kv")
        return train(text, **{"folder": f"runs/{variant}-{preset}"} | options)
    folder = options.pop("resume")
    if unused := sorted(set(options) - {"device", "log", "steps", "tokens"}):
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise ValueError(
            f"--resume takes all settings from {folder} and cannot be combined with "
            f"{flags}"
        )
    return resume(folder, text, **options)


def _parser() -> argparse.ArgumentParser:
    presets = "\n".join(
        f"  {name:<6} {preset.about}" for name, preset in PRESETS.items()
    )
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"Train a language model.\n\npresets:\n{presets}",
        epilog="Ctrl-C finishes the step, saves a checkpoint and ends the run.\n"
        "Pressed twice, it stops immediately.\n"
        "To train with two processes:\n"
        "  torchrun --nproc-per-node=2 -m fbt.training ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    about = _descriptions(Config)
    parser.add_argument("--preset", choices=PRESETS, help="size and schedule [small]")
    parser.add_argument(
        "--variant", choices=VARIANTS, help=f"{about['variant']} [shared-kv]"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="text to learn, in UTF-8 [Tiny Shakespeare]"
    )
    parser.add_argument(
        "--tokens", metavar="FILE", help="token file to learn instead, *.npy"
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", help="folder of the run [runs/VARIANT-PRESET]"
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="resume the run in FOLDER with its own settings; --steps may differ",
    )
    parser.add_argument(
        "--init-from",
        metavar="FOLDER",
        help="start from the model saved in FOLDER, or from a name such as "
        "tiny-shakespeare",
    )
    parser.add_argument(
        "--log",
        choices=["tensorboard"],
        help="also write event files into the folder of the run",
    )
    parser.add_argument(
        "--device", help="device to train on [the faster one for this model]"
    )
    model = parser.add_argument_group("model; replaces values of the preset")
    for field in fields(Config):
        if field.name not in ("vocab_size", "variant"):
            _add_option(model, field, about[field.name])
    recipe = parser.add_argument_group("recipe; replaces values of the preset")
    about = _descriptions(Recipe)
    for field in fields(Recipe):
        _add_option(recipe, field, about[field.name])
    return parser


def _add_option(group: Any, field: Field[Any], about: str) -> None:
    """Add the option of a field; its help ends with the default in brackets."""
    flag = "--" + field.name.replace("_", "-")
    values = {
        name: (preset.model | preset.recipe).get(field.name, field.default)
        for name, preset in PRESETS.items()
    }
    if len(set(values.values())) > 1:
        defaults = ", ".join(f"{name} {value}" for name, value in values.items())
        about += f" [{defaults}]"
    elif field.default is not None:
        about += f" [{field.default}]"
    kind: Any = field.type
    if choices := get_args(kind):
        group.add_argument(flag, choices=choices, help=about)
    elif kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about)
    else:
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=about)


def _descriptions(cls: type) -> dict[str, str]:
    """Return the descriptions of the arguments in the docstring of a class."""
    entries = re.findall(
        r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.getdoc(cls) or "", re.MULTILINE
    )
    return {
        name: " ".join(text.split()).rstrip(".").replace("`", "").replace("%", "%%")
        for name, text in entries
    }


if __name__ == "__main__":
    sys.exit(main())
