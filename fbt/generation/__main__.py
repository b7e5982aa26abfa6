"""Generate text on the command line: `python -m fbt.generation --help`."""

import argparse
import sys
from typing import Any

from fbt._text import one_line
from fbt.language_model import LanguageModel

PROGRAM = "python -m fbt.generation"


def main(arguments: list[str] | None = None) -> int:
    """Print a continuation of a prompt, token by token.

    Args:
        arguments: the arguments; None reads those of the process.

    Returns:
        The exit status: 0, 130 after Ctrl-C, or 2 after an error, which is printed to
        stderr in one line.
    """
    options = vars(_parser().parse_args(arguments))
    try:
        model = LanguageModel.from_pretrained(
            options.pop("name"), device=options.pop("device")
        )
        prompt = options.pop("prompt")
        pieces = model.stream(prompt, options.pop("max_new_tokens"), **options)
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
    except KeyboardInterrupt:
        print()
        return 130
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        FloatingPointError,
        RuntimeError,
    ) as error:
        print(f"{PROGRAM}: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Continue a text with a trained model."
    )

    def add(flag: str, about: str, **options: Any) -> None:
        parser.add_argument(flag, help=about, **options)

    parser.add_argument(
        "name",
        metavar="FOLDER",
        help="folder of a run or of saved weights, a file, or a name such as "
        "tiny-shakespeare",
    )
    add("--prompt", "text to continue [a line break]", default="\n", metavar="TEXT")
    add("--max-new-tokens", "tokens to add [500]", type=int, default=500, metavar="N")
    add("--temperature", "0 is the most likely [1]", type=float, default=1.0)
    add("--top-k", "draw from the K most likely tokens", type=int, metavar="K")
    about = "draw from the most likely tokens that together have this probability"
    add("--top-p", about, type=float, metavar="P")
    add("--stop", "end with this text; can be repeated", action="append")
    add("--seed", "makes the text reproducible", type=int)
    add("--device", "such as cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main())
