"""`make bench`: its numbers are right and its records complete."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import contenders
import gpu
import long
import measure
import pytest
import report
import run
import sdpa
import torch
from contenders import (
    COMPILED,
    EVERYONE,
    FORMS,
    OURS,
    PARALLEL,
    YARDSTICK,
    Size,
    Unavailable,
)

from fbt import Config, LanguageModel
from fbt._modes import autocast_dtype

SMALL = Size(d=10, H=2, F=14, L=3, T=7, B=5)
RECORDS = {part: run.MEASUREMENTS / f"{part}.json" for part in run.PARTS}


def record(part: str) -> dict:
    return json.loads(RECORDS[part].read_text(encoding="utf-8"))


@pytest.fixture
def uncompiled(monkeypatch):
    """Record what would be compiled, which takes half a minute, and run that."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


# The yardstick


def test_yardstick_step_by_step_equals_one_pass():
    torch.manual_seed(0)
    model = sdpa.Transformer(SMALL.d, SMALL.H, SMALL.F, SMALL.L)
    x = torch.randn(SMALL.B, SMALL.T, SMALL.d)
    whole = model(x).detach()
    for prompt in (0, 1, 4):
        decoder = sdpa.Decoder(model, SMALL.B, SMALL.T)
        parts = [decoder.extend(x[:, :prompt])] if prompt else []
        parts += [decoder.extend(x[:, t : t + 1]) for t in range(prompt, SMALL.T)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_compiled_decoder_equals_the_plain_one_whatever_its_cache_holds(uncompiled):
    torch.manual_seed(0)
    model = sdpa.Transformer(SMALL.d, SMALL.H, SMALL.F, SMALL.L)
    x = torch.randn(SMALL.B, SMALL.T, SMALL.d)
    decoders = [
        decoder(model, SMALL.B, SMALL.T)
        for decoder in (sdpa.Decoder, sdpa.CompiledDecoder)
    ]
    for tensor in (t for pair in decoders[1].cache for t in pair):
        tensor.normal_()
    for token in x.split(1, dim=1):
        plain, compiled = (decoder.extend(token) for decoder in decoders)
        torch.testing.assert_close(compiled, plain)


def test_yardstick_is_causal():
    torch.manual_seed(0)
    model = sdpa.Transformer(SMALL.d, SMALL.H, SMALL.F, SMALL.L)
    x = torch.randn(SMALL.B, SMALL.T, SMALL.d, requires_grad=True)
    (seen,) = torch.autograd.grad(model(x)[:, 3].sum(), x)
    reached = seen.abs().amax((0, 2)) > 0
    assert reached.tolist() == [t <= 3 for t in range(SMALL.T)]


# Contenders


def test_our_contenders_compute_the_same():
    x, outputs = torch.randn(SMALL.B, SMALL.T, SMALL.d), {}
    for name in OURS:
        torch.manual_seed(0)
        try:
            outputs[name] = contenders.build(name, SMALL).run(x).detach()
        except Unavailable:
            assert name.startswith("native")
    for name, output in outputs.items():
        torch.testing.assert_close(output, outputs["reference"], msg=name)


@pytest.mark.parametrize("name", [*EVERYONE, *FORMS])
def test_contenders_compute_all_gradients_or_say_why_not(name, uncompiled):
    x = torch.randn(SMALL.B, SMALL.T, SMALL.d, requires_grad=True)
    try:
        contender = contenders.build(name, SMALL)
    except Unavailable as reason:
        assert "not" in str(reason) or "times" in str(reason)
        return
    contender.run(x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in contender.module.parameters())


# What is measured


def test_every_kind_of_job_returns_complete_rows(monkeypatch, uncompiled):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    names = [YARDSTICK, "sequence"]
    compiled = YARDSTICK + COMPILED
    limits = {"threads": 1, "rounds": 2, "patience": 1.0}
    results = {
        "steps": measure.steps(SMALL, names=[*names, compiled], **limits),
        "grow": measure.grow([{"size": SMALL._asdict(), "names": names}], **limits),
        "decode": measure.decode(SMALL, steps=3, **limits),
        "ingest": measure.ingest(SMALL, names=names, **limits),
    }
    for what, rows in results.items():
        for row in rows:
            assert row.items() >= SMALL._asdict().items(), what
            assert row["name"] and row["threads"] == 1
            assert "gemm" in row or row["low"] <= row["seconds"] <= row["high"]
    for what in ("steps", "decode"):
        (row,) = (row for row in results[what] if row["name"] == compiled)
        assert row["compile_seconds"] > 0
    by_name = {YARDSTICK, compiled, "decoder"}
    assert {row["name"] for row in results["decode"]} == by_name
    assert all(
        row["tokens_per_second"] == row["B"] * row["steps"] / row["seconds"]
        for row in results["decode"]
    )
    cache = {row["name"]: row["cache_bytes_per_token"] for row in results["decode"]}
    assert cache[YARDSTICK] == SMALL.L * cache["decoder"]
    assert cache["decoder"] == 2 * SMALL.d * 4


def test_ratios_are_taken_within_a_round():
    assert measure.ratio([9.0, 2.0, 6.0, 4.0], [1.0, 1.0, 2.0, 4.0]) == 2.0
    assert measure.ratio([6.0], [9.0, 1.0, 2.0, 3.0]) == 3.0
    assert measure.ratio([6.0], [3.0]) == 2.0


# Tables and targets


def fake(part: str, label: str, seconds: dict[str, float]) -> dict:
    about = SMALL._asdict() | {"what": "steps", "label": label, "threads": 1}
    rows = [
        about
        | {
            "name": name,
            "seconds": s,
            "low": s,
            "high": s,
            "ratio": s / 2,
            "parameters": 1234,
        }
        for name, s in seconds.items()
    ]
    rows.append(about | {"name": "native", "not_run": "no compiler"})
    machine = {
        "cpu": "A processor",
        "cores": 2,
        "capability": "AVX2",
        "torch": "2.13.0",
    }
    targets = report.judged(part, rows)
    return {"part": part, "quick": False, "date": "a day", "machine": machine} | {
        "rows": rows,
        "targets": targets,
    }


def test_targets_are_judged_from_the_rows():
    verdicts = {
        (t["top"], t["bottom"]): (t["value"], t["met"])
        for t in fake(
            "speed", "M", {YARDSTICK: 2.0, "sequence": 5.0, "labml shared KV": 15.0}
        )["targets"]
        if t["where"] == {"label": "M", "threads": 1}
    }
    assert verdicts == {
        ("sequence", YARDSTICK): (2.5, False),
        ("native", YARDSTICK): (None, None),
        ("labml shared KV", "sequence"): (3.0, True),
        ("labml shared KV", "native"): (None, None),
    }


def test_record_is_printed_as_tables():
    text = report.report(fake("speed", "M", {YARDSTICK: 2.0, "sequence": 5.0}))
    lines = text.splitlines()
    assert lines[0] == "speed: A processor, 2 cores, AVX2, torch 2.13.0, a day"
    assert "steps M: d10 H2 F14 L3 T7 B5, 1 thread, CPU time" in lines
    assert ["sequence", "5", "5", "5", "2.50", "1,234"] in [
        line.split() for line in lines
    ]
    assert "not run, no compiler: native" in lines
    assert any(
        "NOT MET" in line and "sequence / parallel (SDPA)" in line for line in lines
    )
    grown = report.report(fake("growth", "T", {YARDSTICK: 2.0}))
    cells = [line.split() for line in grown.splitlines()[-2:]]
    assert cells == [["T", "parallel", "(SDPA)", "native"], ["7", "2", "-"]]


def test_decoding_is_printed_as_one_table():
    settings = [(threads, batch) for threads in (1, 2) for batch in (1, 64)]
    record = fake("decoding", "d = 10", {})
    record["rows"] = [
        row
        | {
            "what": "decode",
            "threads": threads,
            "B": batch,
            "steps": 3,
            "tokens_per_second": 5.0,
        }
        for threads, batch in settings
        for row in fake("decoding", "d = 10", {YARDSTICK: 2.0, "decoder": 1.0})[
            "rows"
        ]
    ]
    lines = report.report(record).splitlines()
    first = lines.index("decode, T = 7; 1 thread: CPU time, 2: wall time") + 1
    assert lines[first].split()[:7] == ["d", "H", "F", "L", "threads", "B", "steps"]
    ours = [line.split() for line in lines[first + 1 :] if line.startswith("decoder")]
    assert [cells[1:8] for cells in ours] == [
        ["10", "2", "14", "3", str(threads), str(batch), "3"]
        for threads, batch in settings
    ]
    assert lines.count("not run, no compiler: native") == 1


# The plan


@pytest.mark.parametrize("quick", [False, True])
def test_plans_name_known_contenders_and_the_yardstick(quick):
    for job in (job for plan in run.PLANS.values() for job in plan(quick)):
        assert callable(getattr(measure, job["what"]))
        for point in job.get("points", [job]):
            Size(**point["size"])
            names = point.get("names", [YARDSTICK])
            assert names[0] == YARDSTICK
            assert set(names) <= {*EVERYONE, *FORMS}
        json.dumps(job)


def test_full_run_measures_every_target():
    for target in report.TARGETS:
        jobs = [
            {**job.get("size", {}), **job} for job in run.PLANS[target.part](False)
        ]
        assert any(job.items() >= target.where.items() for job in jobs), target


def test_finished_job_is_loaded_and_not_measured_again(tmp_path):
    job = run.step("M", SMALL, 1, (YARDSTICK,), 1, 0.0)
    store = tmp_path / "job.json"
    store.write_text('[{"name": "measured before"}]', encoding="utf-8")
    assert run.run(job, "no such python", store, "a job") == [
        {"name": "measured before"}
    ]


# The records in the package


@pytest.mark.parametrize("part", run.PARTS)
def test_record_names_machine_and_settings(part):
    measured = record(part)
    assert measured["part"] == part
    assert all(measured["machine"][name] for name in ("cpu", "cores", "torch"))
    assert measured["settings"]["yardstick"] == YARDSTICK
    assert set(measured["settings"]["differences"]) <= set(EVERYONE)
    assert [t["where"] for t in measured["targets"]] == [
        t.where for t in report.TARGETS if t.part == part
    ]
    for row in measured["rows"]:
        assert {"what", "label", "name", "threads", *Size._fields} <= set(row)
        assert {"not_run", "seconds", "memory_mb", "gemm"} & set(row)
    assert report.report(measured)


def test_records_contain_what_the_book_plots():
    def names(part: str, **where: object) -> set[str]:
        return {
            row["name"]
            for row in record(part)["rows"]
            if row.items() >= where.items() and "not_run" not in row
        }

    ours = set(OURS) | {YARDSTICK, PARALLEL}
    everyone = {*EVERYONE, *FORMS}
    assert names("speed", label="M", threads=1) == everyone
    assert names("speed", label="L", threads=2) == everyone
    assert names("speed", label="L", threads=1) >= {PARALLEL, "native", *FORMS}
    assert names("memory", label="M") >= ours
    for axis in ("T", "B"):
        points = [row for row in record("growth")["rows"] if row["label"] == axis]
        assert len({row[axis] for row in points}) >= 3
        assert {row["what"] for row in points} == {"steps", "floor", "memory"}
    for batch in (1, 64):
        where = {"d": 128, "threads": 1, "B": batch}
        assert names("decoding", what="decode", **where) >= {
            YARDSTICK,
            YARDSTICK + COMPILED,
            "decoder",
        }
        assert names("decoding", what="ingest", **where) >= {
            YARDSTICK,
            "sequence",
            "native",
        }


def test_records_are_in_the_wheel():
    configured = (run.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"measurements/*.json"' in configured
    assert {path.suffix for path in Path(run.MEASUREMENTS).iterdir()} == {".json"}


# On a GPU, in a dry run


@pytest.fixture
def dry_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "WORK", tmp_path)
    return lambda *more: gpu.main([str(tmp_path / "record"), "--dry-run", *more])


def test_dry_run_measures_all_but_the_kernels(dry_run, tmp_path):
    dry_run()
    record = json.loads((tmp_path / "record").read_text(encoding="utf-8"))
    expected = [job.fields() for job in gpu.jobs(gpu.DRY)]
    assert [
        {name: row[name] for name in expected[0]} for row in record["rows"]
    ] == expected
    for row in record["rows"]:
        if row["name"] == "triton":
            assert "on CUDA, got cpu" in row["not_run"]
        elif row["name"] in gpu.OTHERS and "not_run" in row:
            assert " is not installed: No module named" in row["not_run"]
        else:
            assert row["seconds"] == row["samples"][1]
    assert record["machine"]["gpu"] == "none: a dry run"
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


@pytest.mark.parametrize("precision", gpu.PRECISIONS + gpu.OF_TRITON)
def test_a_precision_is_set_for_the_products_and_ends(precision):
    before = torch.get_float32_matmul_precision()
    half = getattr(torch, precision) if "float16" in precision else None
    with gpu.products_in(precision), gpu.autocast_to(precision, "cpu"):
        assert autocast_dtype("cpu") == half
        expected = "high" if precision == "TF32" else "highest"
        assert torch.get_float32_matmul_precision() == expected
    assert autocast_dtype("cpu") is None
    assert torch.get_float32_matmul_precision() == before


def test_a_backward_pass_has_the_precision_of_its_forward_pass(monkeypatch):
    seen = []

    class Logged(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(torch.get_float32_matmul_precision())
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(torch.get_float32_matmul_precision())
            return gradient

    contender = SimpleNamespace(module=torch.nn.Identity(), run=Logged.apply)
    monkeypatch.setattr(gpu, "build", lambda name, size: contender)
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    gpu.measure(gpu.Job("step", "M", SMALL, YARDSTICK, precision="TF32"), "cpu")
    assert seen == 4 * ["high"]


def test_interrupted_measurements_continue(dry_run, monkeypatch, tmp_path):
    planned, measured = gpu.jobs(gpu.DRY), []

    def measure(job, device):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(job)
        return job.fields() | {"seconds": 1.0}

    monkeypatch.setattr(gpu, "measure", measure)
    dry_run("--minutes=0")
    assert not measured
    for first in (0, 3):
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            dry_run()
        assert measured == planned[first : first + 3]
    shared = gpu.about("cpu")
    monkeypatch.setattr(gpu, "about", lambda device: shared | {"machine": "another"})
    measured.clear()
    with pytest.raises(KeyboardInterrupt):
        dry_run()
    assert measured == planned[:3]
    assert not (tmp_path / "record").exists()


def test_the_full_plan_has_what_the_pages_compare():
    planned = gpu.jobs(gpu.FULL)
    assert len(set(planned)) == len(planned)
    fields = [job.fields() for job in planned]
    for row in json.loads(gpu.RECORD.read_text(encoding="utf-8"))["rows"]:
        about = {k: v for k, v in row.items() if k not in ("seconds", "samples")}
        assert about in fields
    for name in ("triton", YARDSTICK):
        sizes = {
            job.size for job in planned if (job.what, job.name) == ("step", name)
        }
        assert {(s.d, s.B) for s in sizes if s.T == 128} >= {
            (d, B) for d in (128, 256, 512) for B in (16, 64, 256, 1024)
        }
        assert {s.T for s in sizes if s.d == 128} == {64, 128, 256, 512}


# One long text


@pytest.mark.parametrize("way", long.WAYS)
def test_long_text_is_measured(way):
    row = measure.in_a_fork(
        long.measured, way, "to be or not to be, that is the question" * 4
    )
    assert (row["name"], row["T"]) == (way, 159)
    assert row["memory_mb"] > 0 and row["seconds"] > 0


def test_blocks_equal_the_whole_text_but_for_gradients_between_them():
    torch.manual_seed(0)
    lm = LanguageModel(Config(11, d_model=8, n_heads=2, n_layers=2, span=5)).double()
    tokens = torch.randint(11, (1, 14))

    def gradients(block):
        lm.zero_grad()
        long.step(partial(lm, return_state=True), tokens, block)
        return {name: p.grad.clone() for name, p in lm.named_parameters()}

    whole, blocks = gradients(13), gradients(4)
    # The outputs are the same.
    torch.testing.assert_close(whole["head.weight"], blocks["head.weight"])
    assert not torch.allclose(
        whole["token_embedding.weight"], blocks["token_embedding.weight"]
    )
