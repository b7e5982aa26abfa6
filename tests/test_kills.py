"""Training killed by SIGKILL at random moments, and resumed.

All files stay complete, and all numbers equal those of an uninterrupted run. Here a
run is killed three times; `make test-kills` kills twenty times and prints a log.
"""

import json
import os
import random
import re
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from dying import Moment, Orders
from serving import serving
from small_runs import TEXT, assert_same_run, small_command, small_run, untimed

import fbt
from fbt import LanguageModel
from fbt._files import sha256
from fbt.config import VARIANTS
from fbt.corpus import FILE_NAME
from fbt.native import DIGEST
from fbt.pretrained import CHECKPOINT_FILE
from fbt.training import Run, resume
from fbt.training.checkpoint import Checkpoint
from fbt.training.folder import RunFolder
from fbt.training.metrics import METRICS_FILE
from fbt.training.result import LOSS_FIGURE

PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
KIND: dict[str, Any] = {"carry": True, "dropout": 0.2, "eval_windows": 20}
# Upper limits of the call in which a process is killed, of the line in this call, and
# of the seconds after this line.
LIMITS = {
    "build": (1, 140, 0.4),
    "download": (1, 230, 0.1),
    "step": (7, 1200, 0.01),
    "evaluation": (2, 2300, 0.01),
    "checkpoint": (3, 400, 0.01),
    "append": (3, 60, 0.01),
    "write": (3, 90, 0.01),
    "ending": (1, 190, 0.01),
}


class Machine:
    """The folder of a run, a cache, a compiler, and the commands that train there."""

    def __init__(self, root: Path, url: str, **settings: Any) -> None:
        self.folder, self.cache = root / "run", root / "cache"
        self.corpus, self.errors = self.cache / FILE_NAME, root / "errors"
        self.url, self.text = url, TEXT.encode()
        built = fbt.build_native()
        self.library, self.machine_code = (
            self.cache / "native" / built.name,
            built.read_bytes(),
        )
        compiler, scratch, code = root / "compiler", root / "scratch", root / "code"
        code.write_bytes(self.machine_code[:-DIGEST])
        quoted = shlex.quote(str(code))
        # A compiler that copies the compiled library, slowly and in two parts.
        compiler.write_text(
            '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
            f'head -c 9999 {quoted} > "$2"; sleep 0.2; cat {quoted} > "$2"\n'
        )
        compiler.chmod(0o755)
        scratch.mkdir()
        self.library.parent.mkdir(parents=True)
        self.library.write_bytes(self.machine_code)
        self.corpus.write_bytes(self.text)
        places = {"FBT_CACHE": self.cache, "CXX": compiler, "TMPDIR": scratch}
        # The order of floating-point sums depends on the number of threads; both
        # processes have the same.
        threads = str(torch.get_num_threads())
        self.environment = os.environ | {
            name: str(place) for name, place in places.items()
        }
        self.environment |= {"OMP_NUM_THREADS": threads, "no_proxy": "127.0.0.1"}
        self.words = [
            word
            for word in small_command(root, self.folder, **settings)
            if "--data" not in word
        ]
        self.expected = small_run(**settings)

    def kill(self, moment: Moment) -> str:
        """Start or resume the run, kill it at a moment, and return the line."""
        if moment.kind == "download":
            self.corpus.unlink(missing_ok=True)
        if moment.kind == "build":
            self.library.unlink(missing_ok=True)
        saved = (self.folder / CHECKPOINT_FILE).exists()
        reading, writing = os.pipe()
        orders = Orders(moment, writing, self.url, sha256(self.text), len(self.text))
        command = [
            sys.executable,
            "-W",
            "error",
            str(Path(__file__).with_name("dying.py")),
            orders.to_json(),
        ]
        command += ["--resume", str(self.folder)] if saved else self.words
        with self.errors.open("wb") as errors:
            process = subprocess.Popen(
                command,
                env=self.environment,
                pass_fds=[writing],
                stdout=errors,
                stderr=errors,
            )
        os.close(writing)
        try:
            ready, _, _ = select.select([reading], [], [], 120)
            where = os.read(reading, 1000).decode().strip() if ready else ""
            assert where, f"{moment} did not come: {self.errors.read_text()}"
            if moment.kind not in ("build", "download"):
                place = RunFolder(self.folder)
                with (
                    pytest.raises(
                        BlockingIOError, match="another process is training"
                    ),
                    place.locked(),
                ):
                    pass
            time.sleep(moment.seconds)
        finally:
            process.kill()
            process.wait()
            os.close(reading)
        assert process.returncode == -signal.SIGKILL
        return where

    def check_files(self) -> list[str]:
        """Check that all files are complete; return the names of temporary ones."""
        leftovers = []
        for path in [
            p
            for place in (self.folder, self.cache)
            for p in place.rglob("*")
            if p.is_file()
        ]:
            if PART.fullmatch(path.name):
                leftovers.append(path.name)
            elif path == self.corpus:
                assert path.read_bytes() == self.text
            elif path == self.library:
                assert path.read_bytes() == self.machine_code
            elif path.name == METRICS_FILE:
                self.check_metrics(path.read_text())
            elif path.name == "model.safetensors":
                LanguageModel.from_pretrained(self.folder)
            elif path.name == LOSS_FIGURE:
                ElementTree.parse(path)
            else:
                assert path.name == CHECKPOINT_FILE
                assert (
                    Checkpoint.load(self.folder).settings.config
                    == self.expected.settings.config
                )
        return leftovers

    def check_metrics(self, text: str) -> None:
        """Compare metrics with the uninterrupted run, up to the checkpoint or beyond.

        The last line may be incomplete.
        """
        whole = text[: text.rfind("\n") + 1]
        metrics = untimed(map(json.loads, whole.splitlines()))
        assert metrics == untimed(self.expected.metrics)[: len(metrics)]
        assert self.step() <= (metrics[-1]["step"] if metrics else 0)

    def step(self) -> int:
        saved = (self.folder / CHECKPOINT_FILE).exists()
        return Checkpoint.load(self.folder).step if saved else 0

    def end(self) -> Run:
        """Resume the run in this process until it ends, and compare it."""
        run = resume(self.folder, TEXT, progress=False)
        assert run.finished
        assert self.check_files() == []
        assert_same_run(run, self.expected)
        assert_same_run(resume(self.folder, TEXT, progress=False), self.expected)
        return run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the address of a server that sends the text slowly."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            body = TEXT.encode()
            try:
                for start in range(0, len(body), 100):
                    self.wfile.write(body[start : start + 100])
                    time.sleep(0.005)
            except ConnectionError:
                self.close_connection = True  # the client was killed

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        yield address


def draw(kind: str, source: random.Random) -> Moment:
    calls, lines, longest = LIMITS[kind]
    seconds = longest / 10 ** source.uniform(0, 3)  # long or short, whatever the call
    return Moment(kind, source.randint(1, calls), source.randint(1, lines), seconds)


@pytest.mark.parametrize(
    ("variant", "kinds"),
    [
        ("shared-kv", ("download", "write", "evaluation")),
        ("feedback", ("append", "checkpoint", "ending")),
    ],
)
def test_run_killed_three_times_equals_an_uninterrupted_run(
    variant: str, kinds: tuple[str, ...], tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path, url, steps=30, variant=variant, **KIND)
    source = random.Random(11)
    for kind in kinds:
        machine.kill(draw(kind, source))
        machine.check_files()
    machine.end()


@pytest.mark.kills
def test_run_killed_twenty_times_equals_an_uninterrupted_run(
    tmp_path: Path, url: str
) -> None:
    began, seed = (
        time.monotonic(),
        int(os.environ.get("SEED") or secrets.randbelow(10**6)),
    )
    print(f"\nSEED={seed}")
    source = random.Random(seed)
    variant = source.choice(VARIANTS)
    machine = Machine(tmp_path, url, steps=200, variant=variant, **KIND)
    # Each kind at least twice in random order, and "ending" last.
    kinds = [kind for kind in LIMITS if kind != "ending"]
    kinds = 2 * kinds + source.choices(kinds, k=6)
    source.shuffle(kinds)
    kinds += 2 * ["ending"]
    leftovers: set[str] = set()
    for number, kind in enumerate(kinds, start=1):
        moment = draw(kind, source)
        where = machine.kill(moment)
        temporary = machine.check_files()
        leftovers.update(temporary)
        ms = moment.seconds * 1000
        when = f"{kind}, call {moment.call}, {ms:.1f} ms after {where}"
        files = ", ".join(temporary) or "none"
        after = f"checkpoint of step {machine.step()}, temporary files: {files}"
        print(f"[{number}/{len(kinds)}] {when}: {after}", flush=True)
    run = machine.end()
    print(
        json.dumps(
            {
                "seed": seed,
                "kills": Counter(kinds),
                "files left unfinished": len(leftovers),
                "steps": run.step,
                "validation loss": run.val_loss,
                "seconds": round(time.monotonic() - began),
            }
        )
    )
