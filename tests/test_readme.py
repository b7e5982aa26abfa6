"""README: its commands, code and numbers are right, and it is short."""

import re

import fbt_numbers
from chapters import chapters, read
from nightly import targets
from repo import ROOT

from fbt._repository import BRANCH, URL
from fbt.training.recipe import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
SLUG = URL.removeprefix("https://github.com/")
COLAB = f"https://colab.research.google.com/github/{SLUG}/blob/{BRANCH}/"


def test_first_screen_shows_commands_picture_and_code():
    lines = README.splitlines()
    assert len(lines) <= 80
    for part in ("make book", "make test", "<img src=", "import fbt"):
        assert part in "\n".join(lines[:30])


def test_commands_are_targets_of_the_makefile():
    for document in ("README.md", "CONTRIBUTING.md", "tools/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        command = r"(?:`|^)make (?:\w+=\S+ )*([a-z-]+)"
        commands = set(re.findall(command, text, re.MULTILINE))
        assert commands and commands <= {*targets(), "help-all"}, document


def test_chapters_are_listed_with_title_and_colab_link():
    for number, path in enumerate(chapters(), start=1):
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        file = f"book/{path.name}"
        assert f"| {number} · [{title}]({file}) | [open]({COLAB}{file}) |" in README


def test_code_runs_and_is_also_on_the_start_page(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    start_page = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in start_page
    exec(code, {})
    length = int(re.search(r", (\d+), temperature", code)[1])
    assert len(capsys.readouterr().out) == length


def test_numbers_agree_with_the_records():
    numbers = fbt_numbers.numbers(ROOT)

    def spread(name: str) -> str:
        return "{least} to {most}".format(**numbers[name])

    small, shipped = numbers["small"], numbers["shipped"]
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
        f"On this text feedback gains about {numbers['gain']} nats",
        f"| 128 steps | {spread('cpu')} | {spread('cpu_bfloat16')} |",
        f"| 512 steps | {spread('cpu_long')} | {spread('cpu_long_bfloat16')} |",
        f"On a GPU it takes {spread('gpu_torch')} times as long",
        f"or {spread('gpu_torch_graph')} times if both are captured as CUDA graphs",
    ]
    text = " ".join(README.split())
    for sentence in sentences:
        assert " ".join(sentence.split()) in text
    preset = PRESETS["small"].model  # "the sizes of nanoGPT's CPU setting"
    assert (preset["n_layers"], preset["d_model"]) == (4, 128)
    records = fbt_numbers.Records(ROOT / "fbt" / "measurements")
    runs = records["tiny_shakespeare"]["runs"]
    assert len(runs) == 2 * 3 and {run["recipe"]["steps"] for run in runs} == {2000}
    assert not records["speed"]["quick"]
