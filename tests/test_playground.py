"""Tests of the playground: a reader trains models in a page from the disk."""

import re

import pytest
from watching import slowness, task_times

from fbt.views.playground import TASKS, TESTED, Playground, grid, measured

# Milliseconds of computing, not of waiting for a busy machine's processor.
LONGEST_TASK = 50  # milliseconds of processor time at 3 GHz


def test_task_is_checked():
    with pytest.raises(ValueError, match=r"task must be .*'cups'.*, got 'cup'"):
        Playground("cup")
    for tested in (0, 25, 256):
        with pytest.raises(ValueError, match=rf"tested must be .*, got {tested}"):
            Playground(tested=tested)
    with pytest.raises(TypeError, match="lstm must be True or False"):
        Playground(lstm=1)
    assert repr(Playground("S3")) == "Playground('S3')"


def test_figure_draws_a_dash_for_each_run_of_right_answers():
    drawing = grid(["1101", "0111", "0000"], trained=2)
    wide, high = 192 / 4, 96 / 3
    for x, y, length in ((0, 0, 2), (3, 0, 1), (1, 1, 3)):
        place = f"M{x * wide:g} {(y + 0.5) * high:g}h{length * wide:g}"
        assert drawing.count(place) == 1
    assert "fbt-end" in drawing
    assert "fbt-end" not in grid(["11"], trained=2)


def test_figure_is_for_the_task_and_says_what_it_shows():
    runs = {(run["task"], run["model"]): run for run in measured()["runs"]}
    assert len(runs) == 3 * len(TASKS)
    for task in TASKS:
        assert "LSTM" not in Playground(task)._still()
        for tested in TESTED:
            still = Playground(task, tested=tested, lstm=True)._still()
            assert still.count("<svg") == 3
            run = runs[task, "feedback"]
            length = min(tested, len(run["rows"][0]))
            assert f"{length} " in still and f"at most {run['trained']}" in still
    rows = runs["S3", "feedback"]["rows"]
    right = [row[8:24].count("1") for row in rows]
    share = f"feedback {100 * sum(right) / (16 * len(rows)):.3g} %"
    assert share in Playground("S3")._still()


def test_figure_is_there_on_paper_and_without_scripts(chromium):
    page = Playground("S3", tested=96, lstm=True).to_html()
    for scripts in (True, False):
        with chromium.new_context(java_script_enabled=scripts) as opened:
            shown = opened.new_page()
            shown.set_content(page)
            figure = shown.locator("figure")
            assert figure.is_visible() != scripts
            if scripts:
                assert shown.locator(".fbt-player canvas").count() == 6
                assert shown.locator("label output").text_content() == "96 shuffles"
                shown.emulate_media(media="print")
                assert not shown.locator(".fbt-playground").is_visible()
            assert figure.is_visible()


def test_reader_trains_cups(chromium, window, tmp_path):
    """The feedback model finds the ball; keys work; nothing blocks the page."""
    page, home = window.page, tmp_path.as_uri()
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html>{Playground().to_html()}", encoding="utf-8")
    page.emulate_media(reduced_motion="no-preference")
    window.goto(path.as_uri())
    feedback, parallel = page.locator(".fbt-player").all()
    button = page.locator(".fbt-main")
    words = page.locator("[aria-live]")
    feedback.get_by_text("update 0 of 400").wait_for()
    page.wait_for_timeout(200)  # after the first layout of the page
    chromium.start_tracing(page=page, categories=["toplevel"])
    button.press("Enter")
    assert button.text_content() == "Pause"
    feedback.get_by_text(re.compile(r"after 24 swaps \d+ %")).wait_for()
    button.press("Enter")
    assert page.evaluate("document.activeElement.textContent").startswith("Train")
    # An update that had begun may still arrive, late on a busy machine.
    for _ in range(20):
        before = [card.text_content() for card in (feedback, parallel)]
        page.wait_for_timeout(300)
        if [card.text_content() for card in (feedback, parallel)] == before:
            break
    else:
        pytest.fail("training goes on while it is paused")
    button.press("Enter")
    # To the end: in between the accuracy goes up and down.
    page.get_by_text("Train on", exact=True).wait_for(timeout=90_000)
    trace = chromium.stop_tracing()
    assert max(task_times(trace)) < LONGEST_TASK * slowness(page)
    assert re.search(
        r"feedback names the right cup in (9\d|100) %", words.text_content()
    )
    assert "1 layer names" in words.text_content()
    assert words.text_content().count("not in these steps") == 1  # the parallel one
    page.locator("input[type=range]").press("End")
    feedback.get_by_text("after 128 swaps").wait_for()
    page.get_by_role("button", name="Reset").press("Enter")
    feedback.get_by_text("update 0 of 400").wait_for()
    page.get_by_role("button", name="Step").press("Enter")
    parallel.get_by_text("update 1 of 400").wait_for()
    assert not words.text_content()
    assert not window.complaints
    assert not window.outside(home)


def test_settings_make_new_models(window, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html>{Playground('S3').to_html()}", encoding="utf-8")
    window.goto(path.as_uri())
    page = window.page
    cards = page.locator(".fbt-player")
    page.locator("summary").click()
    page.get_by_role("checkbox").check()
    cards.nth(2).get_by_text("update 0 of 400").wait_for()
    page.get_by_role("combobox", name="memory").select_option("embedding")
    page.get_by_role("combobox", name="longest").select_option("4")
    page.get_by_role("combobox", name="parallel").select_option("4")
    page.get_by_role("button", name="Step").click()
    for card in cards.all():
        card.get_by_text("after 4 shuffles").wait_for()
        card.get_by_text("update 1 of 400").wait_for()
    for task in TASKS:
        page.get_by_role("combobox", name="task").select_option(task)
        cards.last.get_by_text("update 0 of").wait_for()
    assert not window.complaints
