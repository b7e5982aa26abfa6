"""The shell game as a figure."""

import matplotlib.pyplot as plt
import pytest

from fbt.views.cups import shell_game
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
