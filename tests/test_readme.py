"""What the README promises: its commands, links, code and numbers."""

import json
import re
from statistics import mean
from typing import Any

import pytest
from notebooks import chapters, read
from repo import ROOT

from fbt._repository import BRANCH, URL

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNS = ROOT / "fbt" / "measurements" / "tiny_shakespeare.json"
SHIPPED = ROOT / "fbt" / "measurements" / "shipped.json"
SPEED = ROOT / "fbt" / "measurements" / "speed.json"
COLAB = f"https://colab.research.google.com/github/{URL.removeprefix('https://github.com/')}/blob/{BRANCH}/"


def test_the_first_screen_shows_the_commands_a_picture_and_the_code():
    first = "\n".join(README.splitlines()[:30])
    for part in ("make book", "make test", "<img src=", "import fbt"):
        assert part in first


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_command_named_is_a_target_of_the_makefile(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert commands
    assert commands <= targets


def test_every_chapter_is_listed_with_its_title_and_opens_in_colab():
    for number, path in enumerate(chapters(), start=1):
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        place = f"book/{path.name}"
        assert f"| {number} · [{title}]({place}) | [open]({COLAB}{place}) |" in README


def test_the_code_runs_and_is_that_of_the_start_page(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert f"```python\n{code}```" in (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    exec(code, {})
    assert len(capsys.readouterr().out) == int(re.search(r", (\d+), temperature", code)[1])


def expected_loss(record: dict[str, Any]) -> str:
    """The README's table of losses, from the record of the runs."""
    lines = ["| variant | parameters | validation loss | seconds |", "|---|---|---|---|"]
    for variant in dict.fromkeys(run["job"]["variant"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["job"]["variant"] == variant]
        losses = [run["summary"]["val_loss"] for run in runs]
        lines.append(
            f"| {variant} | {runs[0]['parameters'] / 1e6:.2f} M "
            f"| **{mean(losses):.2f}** ({min(losses):.3f} to {max(losses):.3f}) "
            f"| {mean(run['seconds'] for run in runs):.0f} |"
        )
    return "\n".join(lines)


def test_the_losses_are_those_of_the_recorded_runs():
    record = json.loads(RUNS.read_text(encoding="utf-8"))
    assert expected_loss(record) in README, f"README.md should say:\n{expected_loss(record)}"
    assert record["machine"]["cpu"] in README
    assert f"torch {record['machine']['torch'].split('+')[0]}" in README
    assert {run["recipe"]["steps"] for run in record["runs"]} == {2000}
    assert "2000 steps" in README


def expected_shipped(record: dict[str, Any]) -> str:
    """The README's table of the models that ship, from the record of their training."""
    lines = ["| name | parameters | validation loss | hours |", "|---|---|---|---|"]
    for (name, losses), run in zip(record["losses"].items(), record["runs"], strict=True):
        size, hours = run["parameters"] / 1e6, run["seconds"] / 3600
        lines.append(f"| {name} | {size:.2f} M | **{losses['float16']:.3f}** | {hours:.1f} |")
    return "\n".join(lines)


def test_the_shipped_models_are_as_good_as_said():
    record = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert expected_shipped(record) in README, f"README.md should say:\n{expected_shipped(record)}"
    assert {run["recipe"]["seq_len"] for run in record["runs"]} == {256}


def expected_speed(record: dict[str, Any]) -> str:
    """The README's table of training steps, from the record of `make bench`."""
    columns = [("M", 1), ("M", 2), ("L", 1), ("L", 2)]
    titles = [f"{size}, {threads} thread{'s' * (threads > 1)}" for size, threads in columns]
    lines = [f"| a training step | {' | '.join(titles)} |", "|---|" + "---|" * len(columns)]
    rows = {(row["name"], row["label"], row["threads"]): row for row in record["rows"]}
    for name in ("native", "sequence", "stack", "labml shared KV", "feedback-transformer-pytorch"):
        ratios = [rows.get((name, *column), {}).get("ratio") for column in columns]
        lines.append(f"| {name} | {' | '.join('' if r is None else f'{r:.1f}' for r in ratios)} |")
    return "\n".join(lines)


def test_the_speeds_are_those_of_the_benchmark():
    record = json.loads(SPEED.read_text(encoding="utf-8"))
    assert not record["quick"]
    assert expected_speed(record) in README, f"README.md should say:\n{expected_speed(record)}"
    assert record["machine"]["cpu"] in README
