"""The backend "triton", without a card: interpreted, compiled, and when it is chosen.

What needs a card is in `test_cuda.py`.
"""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import fbt
from fbt import engines, native
from fbt.sequence import proof, triton_engine
from fbt.sequence.proof import TIMED_WIDTHS, Verdict
from fbt.sequence.triton_engine import TritonEngine

HERE = Path(__file__).parent
SHARED = {75: 64, 80: 163, 90: 227}  # KiB that a program may use, by capability
FASTER = Verdict("", ((1.0, 2.0), (1.0, 2.0), (3.0, 2.0)))
SLOWER = Verdict("", ((2.0, 1.0),) * len(TIMED_WIDTHS))
WRONG = Verdict("in example 1, output x is off by 0.1", ())

# There Triton is a requirement of the tests, so it is not skipped if it is missing.
needs_triton = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="Triton is installed on Linux on x86-64",
)


def script(name: str, *arguments: str, **variables: str) -> str:
    """Run a script of this folder with Triton in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", HERE / name, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_every_gradient_in_the_interpreter_and_the_proof():
    assert "check_the_proof" in script("triton_interpreted.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_random_models_in_the_interpreter():
    """Takes a minute. The output ends with the configuration that failed."""
    script("triton_interpreted.py", "1", TRITON_INTERPRET="1")


def check_compiled(folder: Path, types: str, *capabilities: int) -> None:
    lines = script(
        "triton_compiled.py",
        types,
        *map(str, capabilities),
        TRITON_CACHE_DIR=str(folder),
        TRITON_DEFAULT_FP_FUSION="1",  # the default, but unset it is deprecated
    ).splitlines()
    assert len(lines) == 4 * len(types.split(",")) * len(capabilities)
    for line in lines:
        capability, shared, spilled = map(int, line.split())
        assert spilled == 0 and shared <= 1024 * SHARED[capability], line


@needs_triton
def test_size_m_compiles_without_spilling_registers(tmp_path: Path):
    check_compiled(tmp_path, "fp32", 80)


@needs_triton
@pytest.mark.slow
def test_size_m_compiles_for_older_and_newer_cards(tmp_path: Path):
    check_compiled(tmp_path, "bf16,fp16", 80)
    check_compiled(tmp_path, "fp32,bf16,fp16", 75, 90)


class OnDevice(NamedTuple):
    """What is asked of a tensor when an engine is chosen."""

    device: torch.device = torch.device("cuda", 0)
    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = (2, 5, 64)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that sets what the proof finds on an invented card."""
    monkeypatch.setenv("FBT_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "is_plain", lambda x: True)
    monkeypatch.setattr(triton_engine, "triton_version", lambda: "3.7.1")
    monkeypatch.setattr(triton_engine, "card", lambda device: "Invented 9.9")
    monkeypatch.setattr(triton_engine, "_verdicts", {})
    native._warn.cache_clear()
    runs = []

    def finds(verdict: Verdict | Exception) -> list[str]:
        def prove(engine, trusted, device, time_trusted) -> Verdict:
            runs.append(engine)
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

        monkeypatch.setattr(proof, "prove", prove)
        return runs

    return finds


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"device": torch.device("cpu")}, ValueError, "on CUDA, got cpu"),
        ({"dtype": torch.float64}, TypeError, "in float32, got torch.float64"),
        (
            {"dtype": torch.bfloat16},
            TypeError,
            "float32, got torch.bfloat16. Under autocast, .* in torch.bfloat16",
        ),
        ({"shape": (2, 5, 520)}, ValueError, "d_model <= 512, .* got 520"),
    ],
)
def test_what_it_cannot_compute_is_an_error_with_the_reason(
    gpu, change, kind, message
):
    gpu(FASTER)
    error = TritonEngine.why_not(OnDevice(**change))
    assert type(error) is kind and re.search(message, str(error))
    assert TritonEngine.why_not(OnDevice()) is None


def test_without_triton_auto_is_silent_and_says_why(gpu, monkeypatch):
    monkeypatch.setattr(triton_engine, "triton_version", lambda: None)
    assert isinstance(TritonEngine.why_not(OnDevice()), native.NotBuilt)
    choice = engines.first_for(OnDevice())
    assert choice.engine == "sequence" and "needs the package triton" in choice.reason


def test_auto_takes_it_where_it_was_right_and_faster(gpu):
    runs = gpu(FASTER)
    choice = engines.first_for(OnDevice())
    assert choice.engine == "sequence" and not runs  # "auto" never waits for a proof
    assert "fbt.build_native()" in choice.reason
    assert TritonEngine.why_not(OnDevice()) is None
    for width, engine in ((1, "triton"), (256, "triton"), (257, "sequence")):
        assert engines.first_for(OnDevice(shape=(2, 5, width))).engine == engine
    assert "slower" in engines.first_for(OnDevice(shape=(2, 5, 512))).reason
    assert TritonEngine.why_not(OnDevice()) is None and len(runs) == 1


def test_under_autocast_it_says_in_which_dtype_it_multiplies():
    x = torch.zeros(2, 5, 6)
    for name, expected in (
        ("triton", "matrices in torch.float16; all else is in torch.float32"),
        ("sequence", "It computes in torch.float32 under autocast too"),
        ("native", "It computes in torch.float32 under autocast too"),
    ):
        assert engines.autocast_in(name, x) == ""
        with torch.autocast("cpu", torch.float16):
            assert engines.autocast_in(name, x).endswith(expected)
    with torch.autocast("cpu", torch.float16):
        assert engines.autocast_in("stack", x) == engines.autocast_in(None, x) == ""


def test_its_times_are_per_step_and_layer(gpu):
    gpu(FASTER)
    assert TritonEngine.seconds(OnDevice()) is None  # not timed yet
    TritonEngine.why_not(OnDevice())
    assert TritonEngine.seconds(OnDevice(shape=(0, 0, 9))) == (1 / 512, 2 / 512)
    assert TritonEngine.seconds(OnDevice(shape=(0, 0, 512))) == (3 / 512, 2 / 512)
    assert TritonEngine.seconds(OnDevice(shape=(0, 0, 513))) is None
    assert TritonEngine.seconds(OnDevice(device=torch.device("cpu"))) is None


def test_wrong_kernels_have_no_times(gpu):
    gpu(WRONG)
    assert TritonEngine.why_not(OnDevice()) is not None
    assert TritonEngine.seconds(OnDevice()) is None


@pytest.mark.parametrize("found", [WRONG, RuntimeError("no kernel image\nx")])
def test_wrong_kernels_are_refused_and_auto_warns_once(gpu, found):
    gpu(found)
    error = TritonEngine.why_not(OnDevice())
    assert type(error) is RuntimeError
    expected = (
        r"refused on Invented 9.9.*(off by 0.1|RuntimeError: no kernel image x)"
    )
    assert re.search(expected, str(error))
    with pytest.warns(RuntimeWarning, match="is refused on Invented"):
        assert engines.first_for(OnDevice()).engine == "sequence"
    assert engines.first_for(OnDevice()).engine == "sequence"


@pytest.mark.parametrize("verdict", [FASTER, SLOWER, WRONG])
def test_a_verdict_is_remembered_until_anything_changes(gpu, monkeypatch, verdict):
    runs = gpu(verdict)
    first = str(TritonEngine.why_not(OnDevice()))
    triton_engine._verdicts.clear()  # as in another process
    assert str(TritonEngine.why_not(OnDevice())) == first and len(runs) == 1
    for name, value in (
        ("card", lambda device: "Other 1.0"),
        ("triton_version", lambda: "3.8.0"),
        ("source", lambda: "another kernel"),
    ):
        monkeypatch.setattr(triton_engine, name, value)
        TritonEngine.why_not(OnDevice())
    monkeypatch.setattr(torch, "__version__", "2.99")
    TritonEngine.why_not(OnDevice())
    assert len(runs) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        '["", []]',
        "{}",
        '["", [[1, 2]]]',
        "[3, []]",
        "[" * 9000,
        "9" * 20_000,
    ],
)
def test_a_damaged_verdict_is_ignored(gpu, text):
    runs = gpu(SLOWER)
    TritonEngine.why_not(OnDevice())
    path = triton_engine.verdict_file(OnDevice().device)
    assert json.loads(path.read_bytes()) == json.loads(json.dumps(SLOWER))
    path.write_text(text, encoding="utf-8")
    triton_engine._verdicts.clear()
    TritonEngine.why_not(OnDevice())
    assert len(runs) == 2 and proof.remembered(path) == SLOWER


def test_a_verdict_that_others_could_change_is_ignored(gpu):
    runs = gpu(SLOWER)
    TritonEngine.why_not(OnDevice())
    triton_engine.verdict_file(OnDevice().device).chmod(0o666)
    triton_engine._verdicts.clear()
    TritonEngine.why_not(OnDevice())
    assert len(runs) == 2


def test_a_verdict_that_cannot_be_written_is_used_with_a_warning(gpu, tmp_path):
    gpu(FASTER)
    (tmp_path / "triton").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="each process will check"):
        assert TritonEngine.why_not(OnDevice()) is None
    assert engines.first_for(OnDevice()).engine == "triton"


def test_importing_the_package_does_not_import_triton():
    code = "import sys, fbt; sys.exit('fbt.sequence.triton_kernels' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_proof_accepts_an_engine_that_computes_the_same(native):
    """The examples and the timing themselves, on the CPU."""
    same = engines.ENGINES["native"], engines.ENGINES["sequence"]
    example = proof.EXAMPLES[3]
    timed = lambda width, device: 3.0  # noqa: E731
    device = torch.device("cpu")
    verdict = proof.prove(*same, device, timed, [example], widths=[32])
    assert not verdict.problem and [b for _, b in verdict.seconds] == [3.0]


def test_build_native_tries_the_kernels_where_there_is_a_card(gpu, monkeypatch):
    runs = gpu(FASTER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: OnDevice(shape=shape))
    monkeypatch.setattr(native, "build_native", lambda: Path("library"))
    assert fbt.build_native() == Path("library") and runs == [TritonEngine]
