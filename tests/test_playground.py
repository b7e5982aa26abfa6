"""Tests of the playground: a reader trains models in a page from the disk."""

import json
import re

import pytest

from fbt.views.playground import TASKS, Playground

# Milliseconds of computing, not of waiting for a busy machine's processor.
LONGEST_TASK = 50


def longest_task(trace: bytes) -> float:
    """Return the longest task of a page's main thread, in ms of CPU time."""
    events = json.loads(trace)["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name"
        and event["args"]["name"] == "CrRendererMain"
    }
    return max(
        event["tdur"] / 1000
        for event in events
        if (event["pid"], event["tid"]) in mains and "tdur" in event
    )


def test_task_is_checked():
    with pytest.raises(ValueError, match=r"task must be .*'cups'.*, got 'cup'"):
        Playground("cup")
    assert repr(Playground("S3")) == "Playground('S3')"


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
    feedback.get_by_text(re.compile(r"after 24 swaps (9[5-9]|100) %")).wait_for()
    button.press("Enter")
    trace = chromium.stop_tracing()
    assert longest_task(trace) < LONGEST_TASK
    assert re.search(
        r"feedback names the right cup in (9\d|100) %", words.text_content()
    )
    assert "1 layer names" in words.text_content()
    assert words.text_content().count("not in these steps") == 1  # the parallel one
    assert page.evaluate("document.activeElement.textContent").startswith("Train")
    page.wait_for_timeout(100)
    before = [card.text_content() for card in (feedback, parallel)]
    page.wait_for_timeout(300)
    assert [card.text_content() for card in (feedback, parallel)] == before
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
