"""Building the native backend, and what is said where it cannot be built. Its numbers: test_sequence.py."""

import copy
import ctypes
import os
import re
import shlex
import time
from pathlib import Path

import pytest
import torch
from exact import assert_same, body, everything, gradients, leaves, normal
from torch.nn.modules.module import register_module_forward_hook

import fbt
from fbt import _files, engines, native
from fbt.native import build
from fbt.sequence import layout
from fbt.sequence.native_engine import (
    BackwardTensors,
    ChunkLayout,
    ForwardTensors,
    LayerInputs,
)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder of its own, with a space in its path."""
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


@pytest.fixture
def quick_compiler(tmp_path, monkeypatch):
    """A compiler that copies what has been compiled before."""
    code, compiler = tmp_path / "code", tmp_path / "compiler"
    code.write_bytes(fbt.build_native().read_bytes()[: -native.DIGEST])
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {shlex.quote(str(code))} "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@pytest.fixture
def kept(quick_compiler, empty_cache, monkeypatch):
    """A library in a cache of its own, which this process has not loaded."""
    monkeypatch.setattr(build, "TEST", "")
    native._build(native.library_path())
    native._warn.cache_clear()
    return native.library_path()


def assert_refused(reason):
    """Nothing is loaded; "auto" warns once and does without; "native" raises."""
    module, x = body("shared-kv"), normal(2, 5, 14)
    with pytest.warns(
        RuntimeWarning, match=rf'"auto" does not use the native loop: .*{reason}'
    ) as warned:
        assert not native.is_built()
        assert_same(module(x)[0], module(x, backend="sequence")[0], rtol=0, atol=0)
    assert len(warned) == 1
    with pytest.raises(RuntimeError, match=reason):
        module(x, backend="native")


def test_it_is_built_once_and_kept(empty_cache, monkeypatch):
    assert not native.is_built()
    library = fbt.build_native()
    assert library.is_relative_to(empty_cache) and native.is_built()
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fbt.build_native() == library


def test_unbuilt_it_says_what_to_call(empty_cache):
    with pytest.raises(
        RuntimeError,
        match=r'backend="native" is not built here: call fbt.build_native\(\)',
    ):
        body("shared-kv")(normal(2, 5, 14), backend="native")


def test_without_a_compiler_it_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeError,
        match=r"could not find the C.. compiler 'no-such-compiler'",
    ):
        fbt.build_native()
    assert not empty_cache.exists()


def test_a_compiler_that_fails_is_quoted(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(
        RuntimeError, match=r"build_native: false .* failed with status 1"
    ):
        fbt.build_native()
    assert not empty_cache.exists()


def test_another_system_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(native.sys, "platform", "win32")
    with pytest.raises(
        RuntimeError, match="build_native works on Linux, got 'win32'"
    ):
        fbt.build_native()


@pytest.mark.parametrize("left", [0, 1, 64, 9_000, 0.5, -65, -1], ids=str)
def test_a_library_cut_short_is_not_loaded_but_built_again(kept, left):
    """Loading it would end this process by SIGBUS."""
    whole = kept.read_bytes()
    kept.write_bytes(
        whole[: int(len(whole) * left) if isinstance(left, float) else left]
    )
    assert_refused("is damaged: call fbt.build_native")
    fbt.build_native()
    assert kept.read_bytes() == whole
    assert native.is_built()


def test_a_library_with_one_other_bit_is_not_loaded(kept):
    whole = bytearray(kept.read_bytes())
    whole[len(whole) // 2] ^= 1
    kept.write_bytes(whole)
    assert_refused("is damaged")


def test_what_is_no_library_is_not_loaded(kept):
    code = b"not a library"
    kept.write_bytes(code + _files.sha256(code).encode())
    assert_refused("does not load: .* Call fbt.build_native")


def test_a_library_that_crashes_gets_no_name(
    quick_compiler, empty_cache, monkeypatch
):
    code = native._compile()[:9000]
    monkeypatch.setattr(native, "_compile", lambda: code)
    with pytest.raises(RuntimeError, match="the process that tested the new library"):
        fbt.build_native()
    assert list(native.library_path().parent.iterdir()) == []


def test_a_library_that_computes_something_else_gets_no_name(
    empty_cache, monkeypatch, tmp_path
):
    text = native.SOURCE.read_text()
    assert "a[i] < 0 ? 0 : a[i]" in text
    (tmp_path / "loop.cpp").write_text(
        text.replace("a[i] < 0 ? 0 : a[i]", "a[i] < 0 ? 1 : a[i]")
    )
    monkeypatch.setattr(native, "SOURCE", tmp_path / "loop.cpp")
    monkeypatch.setattr(native, "FLAGS", ("-O0", "-std=c++17", "-fopenmp"))
    with pytest.raises(
        RuntimeError, match=r"(?s)failed with status 1.*Tensor-likes are not close"
    ):
        fbt.build_native()
    assert list(native.library_path().parent.iterdir()) == []


# permissions; the number of a user and group that is not ours
MINE, OTHERS = 0o755, 54321
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="files can be given away by root only"
)


@as_root
@pytest.mark.parametrize("parent", [0, 1, 2], ids=["library", "folder", "cache"])
@pytest.mark.parametrize(
    "user, group, mode, reason",
    [
        (OTHERS, 0, MINE, "belongs to the user with number 54321"),
        (0, 0, 0o757, "is writable for everyone"),
        (0, OTHERS, 0o775, "is writable for its group"),
    ],
)
def test_what_others_can_have_written_is_not_loaded(
    kept, monkeypatch, parent, user, group, mode, reason
):
    place = [kept, *kept.parents][parent]
    os.chown(place, user, group)
    place.chmod(mode)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda path: pytest.fail(f"{path} was loaded")
    )
    assert_refused(f"{place.name} {reason}")
    monkeypatch.undo()
    monkeypatch.setenv("FBT_CACHE", str(kept.parents[1]))
    monkeypatch.setattr(build, "TEST", "")
    monkeypatch.setattr(
        native, "_compile", lambda: kept.read_bytes()[: -native.DIGEST]
    )
    if parent:  # it is not for us to change whose folder this is
        with pytest.raises(RuntimeError, match=f"{place.name} {reason}"):
            fbt.build_native()
    else:
        fbt.build_native()
        assert native.is_built()


@as_root
def test_a_link_that_others_made_is_not_followed(kept, tmp_path):
    """Though what it points to is ours."""
    kept.rename(tmp_path / "ours.so")
    kept.symlink_to(tmp_path / "ours.so")
    os.chown(kept, OTHERS, OTHERS, follow_symlinks=False)
    assert_refused("belongs to the user with number 54321")


@as_root
def test_an_ordinary_user_is_refused_what_another_wrote_but_not_what_root_did(
    kept, monkeypatch
):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    _files.check_owned(kept)
    os.chown(kept, OTHERS, OTHERS)
    with pytest.raises(
        PermissionError, match="belongs to the user with number 54321"
    ):
        _files.check_owned(kept)


@pytest.mark.parametrize("members, primary, acl, allowed", [
    ([], [], False, True),
    (["me"], [], False, True),
    (["another"], [], False, False),
    ([], ["another"], False, False),
    ([], [], True, False),
])  # fmt: skip
def test_the_group_of_one_user_may_write(
    tmp_path, monkeypatch, members, primary, acl, allowed
):
    """The umask is often 002 where each user has a group; a list may name more users."""
    uid, gid = os.geteuid(), tmp_path.stat().st_gid
    user = type("User", (), {"pw_name": "me", "pw_uid": uid, "pw_gid": gid})
    others = [
        type("User", (), {"pw_name": n, "pw_uid": uid + 1, "pw_gid": gid})
        for n in primary
    ]
    monkeypatch.setattr(_files.pwd, "getpwuid", lambda number: user)
    monkeypatch.setattr(_files.pwd, "getpwall", lambda: [user, *others])
    monkeypatch.setattr(
        _files.grp, "getgrgid", lambda number: type("Group", (), {"gr_mem": members})
    )
    monkeypatch.setattr(_files, "_has_acl", lambda path: acl)
    tmp_path.chmod(0o775)
    if allowed:
        _files.check_owned(tmp_path)
    else:
        with pytest.raises(PermissionError, match="is writable for its group"):
            _files.check_owned(tmp_path)


def test_a_folder_like_tmp_may_hold_the_cache(kept):
    kept.parents[1].chmod(0o1777)
    assert native.is_built()


def test_a_cache_in_the_current_folder_is_not_loaded(kept, monkeypatch):
    """Wherever one happens to be."""
    monkeypatch.chdir(kept.parents[1])
    monkeypatch.setenv("FBT_CACHE", ".")
    assert_refused("FBT_CACHE must be an absolute path")
    with pytest.raises(RuntimeError, match="FBT_CACHE must be an absolute path"):
        fbt.build_native()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077], ids=oct)
def test_others_cannot_write_to_what_is_built(kept, umask):
    kept.unlink()
    kept.parent.rmdir()
    kept.parents[1].rmdir()
    before = os.umask(umask)
    try:
        fbt.build_native()
    finally:
        os.umask(before)
    assert native.is_built()
    assert not [
        place for place in (kept, *kept.parents[:2]) if place.stat().st_mode & 0o022
    ]


def test_a_cache_folder_of_nobody_is_said_once(monkeypatch):
    native._warn.cache_clear()
    monkeypatch.setenv("FBT_CACHE", "~nobody-of-this-name/cache")
    assert_refused("FBT_CACHE must name a folder, got '~nobody-of-this-name/cache'")
    native._warn.cache_clear()
    model = fbt.LanguageModel(fbt.Config(3, d_model=4), fbt.CharTokenizer("abc"))
    with pytest.warns(RuntimeWarning, match="FBT_CACHE must name a folder"):
        assert len(model.generate("ab", 5)) == 7
    with pytest.raises(RuntimeError, match="FBT_CACHE must name a folder"):
        fbt.build_native()


def test_a_user_without_a_home_is_told_so(monkeypatch):
    """Not given a folder named "~" in the current one."""
    monkeypatch.delenv("FBT_CACHE", raising=False)
    monkeypatch.setattr(
        _files.platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/fbt"
    )
    with pytest.raises(
        ValueError, match="FBT_CACHE must name a folder, since this user has no home"
    ):
        _files.cache_folder()


WRONG_COMPILERS = {
    "hangs": (
        "sleep 300 & echo $! >PID; sleep 300",
        "did not finish within 1 seconds",
    ),
    "prints much": ("exec yes", r"printed more than \d+ bytes"),
    "prints what is no text": (
        r"printf '\377\376 bad \303' >&2; exit 3",
        "(?s)status 3.*\ufffd bad",
    ),
    "prints nothing": ("exit 1", "(?s)failed with status 1.*It printed nothing"),
    "writes nothing": ("exit 0", "wrote no library"),
    "writes an empty file": (
        'while [ "$1" != -o ]; do shift; done; : >"$2"',
        "tested the new library",
    ),
    "is killed": ("kill -SEGV $$", "was ended by signal 11"),
}


@pytest.mark.parametrize("name", WRONG_COMPILERS)
def test_a_compiler_that_misbehaves_is_named(
    empty_cache, tmp_path, monkeypatch, name
):
    """In few words, in time, with all that it started ended and no file left."""
    script, message = WRONG_COMPILERS[name]
    compiler, pid = tmp_path / "compiler", tmp_path / "pid"
    compiler.write_text(
        "#!/bin/sh\n" + script.replace("PID", shlex.quote(str(pid))) + "\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    if name == "hangs":
        monkeypatch.setattr(build, "TIME_LIMIT", 1.0)
    with pytest.raises(RuntimeError, match=message) as raised:
        fbt.build_native()
    assert len(str(raised.value)) < 6000
    assert not [path for path in empty_cache.rglob("*") if path.is_file()]
    if name == "hangs":
        ended = time.monotonic() + 10
        while Path(f"/proc/{pid.read_text().strip()}").exists():
            assert time.monotonic() < ended
            time.sleep(0.01)


@pytest.mark.parametrize(
    "command, message",
    [
        ("'", 'CXX must be a command, got "\'": No closing quotation'),
        ("", "could not find the C.. compiler ''"),
        ("TEXT", "does not start: .*Exec format error"),
    ],
)
def test_what_is_no_compiler_is_named(
    empty_cache, tmp_path, monkeypatch, command, message
):
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    monkeypatch.setenv("CXX", command.replace("TEXT", str(text)))
    with pytest.raises(RuntimeError, match=message):
        fbt.build_native()
    assert not empty_cache.exists()


STRUCTS = (
    ChunkLayout,
    layout.Weights,
    layout.Outputs,
    layout.Chunk,
    layout.ChunkGradients,
    LayerInputs,
    layout.SequenceGradients,
)


def struct_fields(name):
    """Return types and names of the fields of a struct in loop.cpp, in order."""
    source = native.SOURCE.read_text(encoding="utf-8")
    (body,) = re.findall(
        rf"^(?:template .*)?struct {name} {{(.*?)^}};", source, re.M | re.S
    )
    body = re.sub(r"//.*|.*\(.*", "", body)  # comments and methods
    return [
        (kind.removesuffix("<S>"), field)
        for kind, names in re.findall(r"(\S+)\s+([^;]+);", body)
        for field in re.findall(r"\w+", names)
    ]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_structs_of_cpp_have_the_fields_that_python_passes(struct):
    (kind,) = {kind for kind, _ in struct_fields(struct.__name__)}
    assert kind == ("Int" if struct is ChunkLayout else "S")
    assert [field for _, field in struct_fields(struct.__name__)] == list(
        struct._fields
    )


@pytest.mark.parametrize(
    "name, tensors", [("Forward", ForwardTensors), ("Backward", BackwardTensors)]
)
def test_arguments_of_cpp_have_the_structs_that_python_passes(name, tensors):
    passed = [
        (kind.__name__, field) for field, kind in tensors.__annotations__.items()
    ]
    assert struct_fields(name) == passed


def test_structs_of_cpp_have_the_size_that_python_passes():
    """The compiler counts the fields, so that none escapes the two tests above."""
    library = native._open(fbt.build_native())
    assert library.layout_fields() == len(ChunkLayout._fields)
    for name, tensors in ("forward", ForwardTensors), ("backward", BackwardTensors):
        structs = tensors.__annotations__.values()
        count = sum(len(struct._fields) for struct in structs)
        assert getattr(library, f"{name}_fields")() == count


def chunk_layout(**changes):
    """Return sizes that are 0, unless they are changed."""
    return ChunkLayout(
        **dict.fromkeys(ChunkLayout._fields, 0) | {"threads": 1} | changes
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_out_of_memory_is_an_error_and_not_the_end(direction, dtype, threads):
    """What a group of sequences needs is asked for before any tensor is read."""
    fbt.build_native()
    huge = chunk_layout(
        T=1,
        B=2**30,
        H=1,
        D=2**29,
        L=1,
        F=8,
        stop=1,
        width=1,
        group=2**30,
        threads=threads,
    )
    with pytest.raises(
        MemoryError, match=f'"native" ran out of memory in its {direction} pass'
    ):
        native.run(direction, dtype, huge, [None] * 40)


@pytest.mark.parametrize(
    "changes",
    [{"F": 2**31}, {"D": 2**30}, {"group": 2**31}, {"L": 2**10, "width": 2**21}],
    ids=str,
)
def test_what_blas_cannot_count_is_refused(changes):
    """It counts in 32 bits."""
    fbt.build_native()
    large = chunk_layout(
        **{"T": 1, "B": 1, "H": 1, "D": 8, "L": 1, "F": 8, "stop": 1, "group": 1}
        | changes
    )
    for direction in ("forward", "backward"):
        with pytest.raises(ValueError, match=r"less than 2\*\*31 rows and columns"):
            native.run(direction, torch.float32, large, [None] * 40)


@pytest.mark.parametrize(
    ("batch", "width"),
    # from 256 on, idle threads share a group's products
    [(1, 32), (5, 32), (150, 32), (1, 256), (2, 256)],
)
def test_threads_change_no_number(batch, width):
    fbt.build_native()
    module, x = body("shared-kv", d_model=width, span=9), normal(batch, 19, width)
    named, results = leaves(module, x), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            outputs = everything(*module(x, backend="native")[:2])
            results.append([*outputs, *gradients(outputs, named).values()])
        finally:
            torch.set_num_threads(1)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_every_width_of_a_head_agrees_in_single_precision():
    """Widths of one, two, four and eight registers are programs of their own."""
    fbt.build_native()
    for width in (5, 8, 16, 32, 64, 128):
        module, x = (
            body("shared-kv", n_heads=1, d_model=width, span=40).float(),
            normal(3, 37, width).float(),
        )
        module.requires_grad_(True)
        x = x.detach().requires_grad_()
        named, results = leaves(module, x), []
        for backend in ("stack", "native"):
            y = module(x, backend=backend)[0]
            found = torch.autograd.grad(
                y.square().mean(),
                list(named.values()),
                materialize_grads=True,
                allow_unused=True,
            )
            results.append([y, *found])
        assert_same(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_gelu_in_single_precision_is_torchs():
    """The exponential and the error function of loop.cpp are its own."""
    fbt.build_native()
    module = body(
        "shared-kv",
        n_heads=1,
        d_model=16,
        n_layers=1,
        d_ff=4001,
        activation="gelu",
        span=5,
    ).float()
    feed_forward = module.layers[0].feed_forward
    with torch.no_grad():
        feed_forward.inner.weight.zero_()
        # what the activation gets to see
        feed_forward.inner.bias.copy_(torch.linspace(-12, 12, 4001))
    x, named, results = normal(2, 3, 16).float(), leaves(module), []
    for backend in ("stack", "native"):
        y = module(x, backend=backend)[0]
        results.append(
            [
                y,
                *torch.autograd.grad(
                    y.sum(),
                    list(named.values()),
                    materialize_grads=True,
                    allow_unused=True,
                ),
            ]
        )
    assert_same(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_it_cannot_compute_in_is_named(dtype):
    module, x = body("shared-kv").to(dtype), normal(2, 9, 14).to(dtype)
    with pytest.raises(
        TypeError, match=rf'"native" computes in float32 or float64, got {dtype}'
    ):
        module(x, backend="native")


@pytest.mark.parametrize("built", [False, True])
def test_auto_takes_the_fastest_that_is_here(built, monkeypatch):
    fbt.build_native()
    if not built:
        monkeypatch.setattr(native, "why_not", lambda x: native.NotBuilt())
    module, x, used = body("shared-kv"), normal(2, 9, 14), []
    run = engines.run_sequence

    def noted(body, x, state, engine, *options):
        used.append(engine)
        return run(body, x, state, engine, *options)

    monkeypatch.setattr(engines, "run_sequence", noted)
    assert_same(
        everything(*module(x)[:2]), everything(*module(x, backend="reference")[:2])
    )
    module(x, need_weights=True)
    module(x[:, :1])
    module.bfloat16()(x.bfloat16())
    assert used == ["native" if built else "sequence", "sequence"]


def test_auto_runs_hooks_and_modules_put_in_place_of_others():
    plain, x = body("shared-kv"), normal(2, 9, 14)
    hooked, changed, calls = copy.deepcopy(plain), copy.deepcopy(plain), []
    hooked.layers[1].attention.query.register_forward_hook(lambda *_: calls.append(1))
    assert_same(hooked(x)[0], plain(x)[0])
    assert len(calls) == 8  # the first step of all has nothing to ask

    class Doubled(torch.nn.Linear):
        def forward(self, z):
            return 2 * super().forward(z)

    changed.layers[1].attention.query = Doubled(14, 14, bias=False).double()
    changed.load_state_dict(plain.state_dict())
    plain.layers[1].attention.query.weight.data *= 2
    assert_same(changed(x)[0], plain(x)[0])


def test_auto_runs_hooks_on_all_modules():
    module, x, calls = body("shared-kv"), normal(2, 9, 14), []
    hook = register_module_forward_hook(lambda part, *_: calls.append(part))
    try:
        module(x)
    finally:
        hook.remove()
    assert calls.count(module.layers[1].attention.query) == 8


def test_a_decoder_of_a_changed_body_is_refused():
    module = body("shared-kv")
    state = module(normal(2, 3, 14))[1].detach()
    module.layers[1].norm2.eps = 0.1
    with pytest.raises(
        ValueError, match=r"but layers\.1\.norm2 has eps=0\.1 .*: use \"reference\""
    ):
        module.decoder(state, "sequence")


def test_backward_has_no_more_threads_than_groups(monkeypatch):
    """Each would make sums of its own for nothing."""
    made, threads = [], torch.get_num_threads()
    run = native.run

    def recorded(direction, dtype, chunk, tensors):
        if direction == "backward":
            made.append(chunk.threads)
        run(direction, dtype, chunk, tensors)

    monkeypatch.setattr(native, "run", recorded)
    module = body("shared-kv")
    torch.set_num_threads(3)
    try:
        for batch in (1, 2, 5):
            module(normal(batch, 9, 14).requires_grad_(), backend="native")[
                0
            ].sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert made == [1, 1, 2, 2, 3, 3]  # two chunks each


def test_a_library_that_cannot_be_written_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_compile", lambda: b"machine code")
    monkeypatch.setattr(native, "verify_library", lambda library: None)
    monkeypatch.setattr(
        "os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        fbt.build_native()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "place, name, other",
    [
        (torch, "__version__", "2.99"),
        (native, "FLAGS", ("-O0",)),
        (native.platform, "machine", lambda: "another"),
        (native, "SOURCE", native.SOURCE.parent / "__init__.py"),
        (native.Path, "read_text", lambda *_, **__: "flags: another"),
    ],
    ids=["torch", "flags", "machine", "source", "processor"],
)
def test_a_library_is_for_one_source_torch_and_processor(
    monkeypatch, place, name, other
):
    before = native.library_path()
    native._key.cache_clear()
    monkeypatch.setattr(place, name, other)
    try:
        assert native.library_path() != before
    finally:
        native._key.cache_clear()
