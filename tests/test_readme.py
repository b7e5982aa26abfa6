"""README: its commands, code and numbers are right, and it is short."""

import re

import fbt_numbers
from chapters import chapters, read
from nightly import targets
from repo import ROOT

from fbt._repository import BRANCH, URL
from fbt.training.recipe import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
COLAB = f"https://colab.research.google.com/github/{URL.removeprefix('https://github.com/')}/blob/{BRANCH}/"


def test_the_first_screen_shows_commands_picture_and_code():
    lines = README.splitlines()
    assert len(lines) <= 80
    for part in ("make book", "make test", "<img src=", "import fbt"):
        assert part in "\n".join(lines[:30])


def test_commands_are_targets_of_the_makefile():
    for document in ("README.md", "CONTRIBUTING.md", "tools/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        commands = set(
            re.findall(r"(?:`|^)make (?:\w+=\S+ )*([a-z-]+)", text, re.MULTILINE)
        )
        assert commands and commands <= {*targets(), "help-all"}, document


def test_every_chapter_has_its_title_and_opens_in_colab():
    for number, path in enumerate(chapters(), start=1):
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        place = f"book/{path.name}"
        assert f"| {number} · [{title}]({place}) | [open]({COLAB}{place}) |" in README


def test_the_code_runs_and_is_also_on_the_start_page(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert f"```python\n{code}```" in (ROOT / "book" / "index.md").read_text(
        encoding="utf-8"
    )
    exec(code, {})
    assert len(capsys.readouterr().out) == int(
        re.search(r", (\d+), temperature", code)[1]
    )


def test_numbers_agree_with_the_records():
    found = fbt_numbers.numbers(ROOT)
    small, shipped = found["small"], found["shipped"]
    models = {
        "parallel": small["parallel"],
        "shared-kv, with feedback": small["shared_kv"],
        "tiny-shakespeare-parallel": shipped["parallel"],
        "tiny-shakespeare, with feedback": shipped["feedback"],
    }
    cells = [
        [name, m["parameters"], m["loss"], m["minutes"]] for name, m in models.items()
    ]
    sentences = [
        "\n".join(f"| {' | '.join(row)} |" for row in cells),
        f"On this text feedback gains about {found['gain']} nats",
        f"takes {found['cpu']['least']} to {found['cpu']['most']} times as long as a parallel",
        f"{found['gpu']['least']} to {found['gpu']['most']} times",
    ]
    text = " ".join(README.split())
    assert not [
        sentence for sentence in sentences if " ".join(sentence.split()) not in text
    ]
    preset = PRESETS["small"].model  # "the sizes of nanoGPT's CPU setting"
    assert (preset["n_layers"], preset["d_model"]) == (4, 128)
    records = fbt_numbers.Records(ROOT / "fbt" / "measurements")
    runs = records["tiny_shakespeare"]["runs"]
    assert len(runs) == 2 * 3 and {run["recipe"]["steps"] for run in runs} == {2000}
    assert not records["speed"]["quick"]
