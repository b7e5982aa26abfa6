import pytest

from fbt._plays import PLAYS, REPLACEMENTS, rebuild, speeches


def test_a_speech_becomes_an_empty_line_a_name_and_its_lines() -> None:
    markdown = (
        "**FIRST LORD**  \nWho's there?  \nStand\\--and speak.\n\n"
        "**SECOND LORD**  \nA friend.\n"
    )
    assert speeches(markdown) == [
        "",
        "FIRST LORD:",
        "Who's there?",
        "Stand--and speak.",
        "",
        "SECOND LORD:",
        "A friend.",
    ]


@pytest.mark.parametrize(
    ("markdown", "lines"),
    [
        pytest.param(
            "**A**  \none\n\n\n\ntwo", ["one", "two"], id="blank lines are skipped"
        ),
        pytest.param(
            "**A**  \none\n# ACT II\nnot spoken\n",
            ["one"],
            id="a heading ends a speech",
        ),
        pytest.param(
            "**A**  \none\n\n_Exit B_\n\ntwo",
            ["one", "two"],
            id="a direction is dropped",
        ),
        pytest.param(
            "**A**  \none\n\n_Exit B\nand C_\ntwo",
            ["one", "two"],
            id="a direction over two lines",
        ),
        pytest.param(
            "**A**  \none\n\n_Exit B\n\ntwo",
            ["one", "two"],
            id="a blank line ends a direction",
        ),
        pytest.param(
            "**A**  \n_\\[To B]_  \none\ntwo",
            [],
            id="a direction under the name takes the speech",
        ),
        pytest.param(
            "**A**  \none\n_\\[To B]_  \ntwo",
            ["one", "two"],
            id="a direction further down does not",
        ),
        pytest.param(
            "**A**  \nAnd _\\[he,]_  \ntwo",
            ["And ", "two"],
            id="a direction at the end of a line",
        ),
    ],
)
def test_lines_of_a_speech(markdown: str, lines: list[str]) -> None:
    assert speeches(markdown) == ["", "A:", *lines]


def test_a_speech_lost_to_a_direction_does_not_take_the_next() -> None:
    assert speeches("**A**  \n_aside_\none\n\n**B**\ntwo") == [
        "",
        "A:",
        "",
        "B:",
        "two",
    ]


def test_text_before_any_speaker_is_dropped() -> None:
    assert speeches("# Title\n\nPrinted in London\n\n**A**\none") == ["", "A:", "one"]


def test_a_name_is_cut_at_its_ampersand() -> None:
    assert speeches("**GRUMIO & BIONDELLO**\nHe!") == ["", "GRUMIO:", "He!"]


def test_a_prologue_becomes_an_empty_line() -> None:
    assert speeches("**Prologue**\nTwo households\n\n**A**\none") == [
        "",
        "",
        "A:",
        "one",
    ]


def test_the_name_of_a_ghost_spans_two_lines() -> None:
    markdown = (
        "Ghost\n\n**of CLARENCE**\none\n\n"
        "Ghosts\n\n**of Princes**\ntwo\n\n**C**\nthree"
    )
    assert [line for line in speeches(markdown) if line.endswith(":")] == [
        "Ghost of CLARENCE:",
        "Ghosts of Princes:",
        "C:",
    ]


def test_the_scene_mark_replaces_every_scene_but_the_first() -> None:
    markdown = (
        "## ACT I\n### SCENE I. A\n**A**\none\n### SCENE II. B\n**B**\ntwo\n"
        "## ACT II\n### SCENE I. C\n"
    )
    assert speeches(markdown, scene_mark="MARK") == [
        "",
        "A:",
        "one",
        "MARK",
        "",
        "B:",
        "two",
        "MARK",
    ]
    assert "MARK" not in speeches(markdown)


def test_rebuild_lists_missing_plays() -> None:
    plays = dict.fromkeys(PLAYS, "")
    del plays["romances/the-tempest"], plays["roman/coriolanus"]
    with pytest.raises(
        ValueError,
        match=r"plays must contain .*; "
        "missing: roman/coriolanus, romances/the-tempest$",
    ):
        rebuild(plays)


@pytest.mark.parametrize("count", [0, 2])
def test_rebuild_refuses_a_passage_that_does_not_occur_once(count: int) -> None:
    plays = dict.fromkeys(PLAYS, "")
    plays["roman/coriolanus"] = "**A**  \n" + "was with in my\n" * count
    with pytest.raises(
        ValueError,
        match=f"'was with in my' must occur exactly once in the plays, got {count} times",
    ):
        rebuild(plays)


def test_there_are_39_replacements_and_each_changes_something() -> None:
    assert len(REPLACEMENTS) == len({old for old, _ in REPLACEMENTS}) == 39
    assert all(old != new for old, new in REPLACEMENTS)
