"""The parity machine of chapter 7: a reader flips bits, and the page follows."""

import math

import pytest
import torch
from chapters import chapters, read

import fbt
from fbt.views.parity import BITS, NUMBERS, ParityMachine

(CHAPTER,) = (path for path in chapters() if path.name.startswith("07"))


@pytest.fixture(scope="module")
def machine() -> fbt.LanguageModel:
    """Return the model that the chapter sets by hand."""
    (cell,) = (cell for cell in read(CHAPTER).cells if cell.id == "c07-010")
    names = {"fbt": fbt, "math": math, "torch": torch}
    exec(cell.source, names)
    return names["parity_machine"]()


def rows_of(page) -> list[list[str]]:
    return page.locator("tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((cell) => cell.textContent))"
    )


def expected(machine: fbt.LanguageModel, bits: list[int]) -> list[list[str]]:
    """Return the rows that a page should show."""
    tokens = torch.tensor([bits])
    memory = machine.memory(tokens)[0].T.round().int().tolist()
    odd = machine(tokens)[0].argmax(-1).tolist()
    assert odd == [sum(bits[: step + 1]) % 2 for step in range(len(bits))]
    numbers = [[str(value).replace("-", "−") for value in row] for row in memory]
    rows = zip(["bit", *NUMBERS], [map(str, bits), *numbers], strict=True)
    return [
        *([name, *row] for name, row in rows),
        ["odd?", *("yes" if answer else "no" for answer in odd)],
    ]


def test_reader_flips_every_bit(window, machine):
    before = torch.get_rng_state()
    window.page.set_content(ParityMachine(machine).to_html())
    assert torch.equal(torch.get_rng_state(), before)
    page, bits = window.page, [int(bit) for bit in BITS]
    assert rows_of(page) == expected(machine, bits)
    buttons, words = page.get_by_role("button"), page.locator("[aria-live]")
    buttons.first.focus()
    for step in range(len(bits)):
        page.keyboard.press("Enter" if step % 2 else " ")
        bits[step] = 1 - bits[step]
        page.get_by_text(f"Bit {step + 1} is now {bits[step]}: p changes").wait_for()
        assert rows_of(page) == expected(machine, bits)
        changed = page.locator("tr").nth(3).locator(".fbt-changed").count()
        assert changed == len(bits) - step
        end = "odd" if sum(bits) % 2 else "even"
        assert words.text_content().endswith(f"the number of ones is {end}.")
        page.keyboard.press("ArrowRight")
    assert not window.complaints


def test_bits_fit_a_phone_and_what_follows_does_not_move(window, machine):
    window.page.set_viewport_size({"width": 390, "height": 800})
    window.page.set_content(ParityMachine(machine).to_html())
    view, heights = window.page.locator(".fbt-view-root"), set()
    for button in view.get_by_role("button").all():
        heights.add(view.bounding_box()["height"])
        button.click()
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 40
    heights.add(view.bounding_box()["height"])
    assert len(heights) == 1
    assert window.page.evaluate("document.documentElement.scrollWidth") == 390


def test_values_are_shown_without_scripts(machine):
    view = ParityMachine(machine)
    still = view.to_html().split("<script>")[0]
    for row in expected(machine, [int(bit) for bit in BITS]):
        cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
        assert f'<th scope="row">{row[0]}</th>{cells}' in still
    assert set(view._repr_mimebundle_()) == {"text/plain", "text/html"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 3}, "vocab_size of model"),
        ({"d_model": 8}, "d_model of model"),
        ({"variant": "parallel"}, "variant of model"),
    ],
)
def test_other_models_are_refused(changes, words):
    config = fbt.Config(**{"vocab_size": 2, "d_model": 4, "n_heads": 1} | changes)
    with pytest.raises(ValueError, match=words):
        ParityMachine(fbt.LanguageModel(config))
    with pytest.raises(TypeError, match="model must be of type LanguageModel"):
        ParityMachine(3)
