"""How the check of an exercise is reported."""

import pytest

from fbt.views.exercises import grade


def test_an_untouched_exercise_prints_nothing(capsys):
    grade(lambda: None)
    assert capsys.readouterr().out == ""


def test_the_verdict_is_printed(capsys):
    grade(lambda: "Correct: yes.")
    assert capsys.readouterr().out == "Correct: yes.\n"


def test_an_exception_becomes_a_hint(capsys):
    grade(lambda: [][1])
    assert capsys.readouterr().out == "Not yet: IndexError: list index out of range\n"


def test_a_check_must_be_callable():
    with pytest.raises(TypeError, match="check"):
        grade("Correct")
