"""The shell game as a figure, and as a view in which reader and models play."""

import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from shell_game import PLAYERS as EXPERIMENT
from shell_game import RESULTS, SETTINGS, play

import fbt
from fbt.tasks import ShellGame
from fbt.views.cups import (
    CUPS,
    GAME,
    PAIRS,
    PLAYERS,
    WORDS,
    Cups,
    map_of,
    player,
    read_memory,
    shell_game,
)
from fbt.views.figures import INK, style_of

SWAPS = [(0, 2), (1, 4), (2, 3)]


def lines(figure):
    return figure.axes[0].lines


def test_the_thick_line_follows_the_ball():
    figure = shell_game(SWAPS)
    thick = [line for line in lines(figure) if line.get_linewidth() > 3]
    ends = [(line.get_ydata()[0], line.get_ydata()[-1]) for line in thick]
    assert ends == [(0, 2), (2, 2), (2, 3)]
    plt.close(figure)


def test_only_known_moves_are_drawn():
    figure = shell_game(SWAPS, known=1)
    assert sum(line.get_linewidth() > 3 for line in lines(figure)) == 1
    thin = [line for line in lines(figure) if line.get_linewidth() < 1]
    assert len(thin) == 5 * len(SWAPS)
    assert {line.get_color() for line in thin} == {INK}
    plt.close(figure)


def test_guesses_are_dots_in_the_colour_of_their_model():
    guesses = {"parallel": [2, 2, 0], "feedback": [2, 2, 3]}
    figure = shell_game(SWAPS, guesses)
    dots = {line.get_label(): line for line in lines(figure)}
    for name, places in guesses.items():
        assert list(dots[name].get_ydata()) == places
        assert dots[name].get_color() == style_of(name)["color"]
    plt.close(figure)


def test_unknown_model_and_too_many_known_swaps_are_refused():
    with pytest.raises(ValueError, match="model must be one of"):
        shell_game(SWAPS, {"rnn": [0, 0, 0]})
    with pytest.raises(ValueError, match=r"known must be .*3.*got 4"):
        shell_game(SWAPS, known=4)
    plt.close("all")


# The players


@pytest.mark.parametrize("name", PLAYERS)
def test_shipped_players_play_as_recorded(name):
    (run,) = (
        run
        for run in json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
        if run["job"] == SETTINGS | EXPERIMENT[name]
    )
    model = player(name)
    assert model.config == fbt.Config.from_dict(run["config"])
    assert model.num_parameters() == run["parameters"] < 20_000
    played = play(model)
    for kind in ("right", "sure"):
        assert played[kind] == pytest.approx(run["summary"][kind], abs=0.003)
    if name == "feedback":
        assert min(played["right"].values()) > 0.99
        assert played["sure"]["48"] > 0.99
    else:
        assert played["right"]["2"] > 0.9
        assert played["sure"]["48"] == pytest.approx(0.2, abs=0.01)


def test_words_of_the_players_are_those_of_the_task():
    task = ShellGame(CUPS)
    assert len(WORDS) == len(task.words)
    names = [task.words[a] + task.words[b] for a, b in PAIRS]
    assert names == list(task.words[CUPS:])
    assert [*WORDS[:CUPS]] == list(task.words[:CUPS])


def test_memories_of_new_games_lie_in_the_cloud_of_their_place():
    model = player("feedback")
    projection, clouds = (torch.tensor(part) for part in map_of(model))
    swaps, places = ShellGame(CUPS).sample(50, 48, torch.Generator().manual_seed(9))
    points = read_memory(model, swaps) @ projection[:-1] + projection[-1]
    distances = (points[:, :, None] - clouds.mean(1)).norm(dim=-1)
    assert (distances.argmin(-1) == places).float().mean() > 0.98


# The view


@pytest.fixture
def view(window):
    window.page.set_content(Cups().to_html())
    return window.page.locator(".fbt-cups")


def words_of(view) -> str:
    return view.locator("[aria-live]").text_content()


def swap_of(words: str) -> tuple[int, int]:
    first, second = re.search(r"(\d) and (\d) change places", words).groups()
    return int(first) - 1, int(second) - 1


def watch(view, swaps: int) -> list[tuple[int, int]]:
    """Step through swaps, and return them as the page says them."""
    seen = []
    for _ in range(swaps):
        view.get_by_role("button", name="next swap").click()
        seen.append(swap_of(words_of(view)))
    return seen


def after(swaps, ball: int = 0) -> int:
    for first, second in swaps:
        ball = {first: second, second: first}.get(ball, ball)
    return ball


def test_reader_finds_the_ball_with_keys_alone(window, view):
    keys = window.page.keyboard
    assert words_of(view) == "The ball is in place 1."
    view.get_by_role("button", name="place 4").click()
    assert words_of(view) == "Press play first."
    for game in range(3):
        view.get_by_role("button", name="next swap").focus()
        seen = []
        for _ in range(8):
            keys.press("Enter")
            seen.append(swap_of(words_of(view)))
        assert words_of(view).endswith("Where is the ball now? Choose a cup.")
        ball = after(seen)
        if game == 0:  # a wrong choice first
            keys.press(str((ball + 1) % CUPS + 1))
            assert f"the ball is in place {ball + 1}." in words_of(view)
            keys.press("Home")
            for _ in range(ball):
                keys.press("ArrowRight")
            keys.press("Enter")
        else:
            keys.press(str(ball + 1))
        assert words_of(view).startswith(f"Right: the ball is in place {ball + 1}.")
        view.get_by_role("button", name="new game").press("Enter")
        assert words_of(view) == "The ball is in place 1."
    assert not window.complaints


def shown(row) -> list[int]:
    return [
        int(text.split()[0]) for text in row.locator("span").all_text_contents()[::2]
    ]


@pytest.mark.parametrize("is_new", [False, True], ids=["first game", "new game"])
def test_models_play_what_the_package_computes(window, view, is_new):
    if is_new:
        view.get_by_role("button", name="new game").click()
    view.get_by_role("button", name="let the models play").click()
    seen = [swap_of(words_of(view))]
    rows = view.locator(".fbt-bars")
    rows.first.get_by_text("%").first.wait_for()
    steps = []
    for swap in range(1, len(GAME) + 1):
        if swap > 1:
            seen += watch(view, 1)
        style = view.locator(".fbt-memory").get_attribute("style")
        point = [float(part) for part in re.findall(r"-?[\d.]+(?=px)", style)]
        steps.append((words_of(view), [shown(row) for row in rows.all()], point))
        assert is_new or PAIRS.index(seen[-1]) == GAME[swap - 1]
        assert f"The ball is in place {after(seen) + 1}." in words_of(view)
    tokens = torch.tensor([[CUPS + PAIRS.index(pair) for pair in seen]])
    for row, name in enumerate(PLAYERS):
        shares = player(name)(tokens)[0].softmax(-1)[:, :CUPS]
        for (words, bars, _), wanted in zip(steps, shares, strict=True):
            assert bars[row] == pytest.approx((100 * wanted).tolist(), abs=0.51)
            assert f"{name} says {wanted.argmax() + 1}, " in words.lower()
    model = player("feedback")
    projection = torch.tensor(map_of(model)[0])
    points = read_memory(model, tokens)[0] @ projection[:-1] + projection[-1]
    for (*_, point), (x, y) in zip(steps, points.tolist(), strict=True):
        assert point == pytest.approx([100 * x, -100 * y], abs=0.06)
    assert "Right so far: feedback after 24, parallel after " in words_of(view)
    assert not window.complaints


def test_models_play_to_the_end_for_readers_who_like_motion(window):
    page = window.page
    page.emulate_media(reduced_motion="no-preference")
    page.clock.install()
    page.set_content(Cups().to_html())
    view = page.locator(".fbt-cups")
    view.get_by_role("button", name="play", exact=False).first.click()
    page.clock.run_for(20_000)
    assert "Where is the ball now?" in words_of(view)
    view.get_by_role("button", name="let the models play").click()
    page.clock.run_for(5_000)
    view.get_by_role("button", name="pause").click()
    paused = words_of(view)
    page.clock.run_for(5_000)
    assert words_of(view) == paused
    view.get_by_role("button", name="▶ play").click()
    page.clock.run_for(30_000)
    assert view.locator("output").text_content() == "24 of 24"
    assert not window.complaints


@pytest.mark.parametrize("width", [390, 1300])
def test_what_follows_does_not_move(window, view, width):
    window.page.set_viewport_size({"width": width, "height": 900})
    heights = {view.bounding_box()["height"]}
    watch(view, 8)
    view.get_by_role("button", name="place 1").click()
    heights.add(view.bounding_box()["height"])
    view.get_by_role("button", name="let the models play").click()
    view.locator(".fbt-bars").first.get_by_text("%").first.wait_for()
    for _ in range(len(GAME)):
        view.locator("input").press("ArrowRight")
        heights.add(view.bounding_box()["height"])
    assert len(heights) == 1
    assert window.page.evaluate("document.documentElement.scrollWidth") == width


def test_figure_is_shown_on_paper_and_without_scripts(window, view):
    figure = window.page.locator(".fbt-still")
    assert view.is_visible() and not figure.is_visible()
    window.page.emulate_media(media="print")
    assert figure.is_visible() and not view.is_visible()
    text = figure.locator("img").get_attribute("alt")
    assert (
        f"The ball is in place {after(PAIRS[pair] for pair in GAME[:3]) + 1}" in text
    )
    assert set(Cups()._repr_mimebundle_()) == {"text/plain", "text/html"}
