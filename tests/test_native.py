"""Building and calling the native backend; test_sequence.py compares its numbers."""

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
    MatrixLayout,
)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache folder, with a space in its path."""
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


@pytest.fixture
def quick_compiler(tmp_path, monkeypatch):
    """A compiler that copies a library compiled before."""
    code, compiler = tmp_path / "code", tmp_path / "compiler"
    code.write_bytes(fbt.build_native().read_bytes()[: -native.DIGEST])
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n'
        f'cp {shlex.quote(str(code))} "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@pytest.fixture
def library(quick_compiler, empty_cache, monkeypatch):
    """A library in a cache folder of its own, which this process has not loaded."""
    monkeypatch.setattr(build, "TEST", "")
    native._build(native.library_path())
    native._warn.cache_clear()
    return native.library_path()


def assert_refused(reason):
    """Check that nothing is loaded, "auto" warns once and "native" raises."""
    module, x = body("shared-kv"), normal(2, 5, 14)
    with pytest.warns(
        RuntimeWarning, match=rf'"auto" does not use the compiled loop: .*{reason}'
    ) as warned:
        assert not native.is_built()
        assert_same(module(x)[0], module(x, backend="sequence")[0], rtol=0, atol=0)
    assert len(warned) == 1
    with pytest.raises(RuntimeError, match=reason):
        module(x, backend="native")


def test_library_is_built_once(quick_compiler, empty_cache, monkeypatch):
    assert not native.is_built()
    library = fbt.build_native()
    assert library.is_relative_to(empty_cache) and native.is_built()
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fbt.build_native() == library


def test_error_without_library_names_build_native(empty_cache):
    with pytest.raises(
        RuntimeError,
        match=r'backend="native" is not built here: call fbt.build_native\(\)',
    ):
        body("shared-kv")(normal(2, 5, 14), backend="native")


def test_error_without_compiler_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeError,
        match=r"could not find the C.. compiler 'no-such-compiler'",
    ):
        fbt.build_native()
    assert not empty_cache.exists()


def test_error_of_the_compiler_is_quoted(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(
        RuntimeError, match=r"build_native: false .* failed with status 1"
    ):
        fbt.build_native()
    assert not empty_cache.exists()


def test_build_on_another_system_raises(empty_cache, monkeypatch):
    monkeypatch.setattr(native.sys, "platform", "win32")
    with pytest.raises(
        RuntimeError, match="build_native works on Linux, got 'win32'"
    ):
        fbt.build_native()


@pytest.mark.parametrize("length", [0, 1, 64, 9_000, 0.5, -65, -1], ids=str)
def test_truncated_library_is_rebuilt(library, length):
    """Loading it would end this process with SIGBUS."""
    whole = library.read_bytes()
    if isinstance(length, float):
        length = int(len(whole) * length)
    library.write_bytes(whole[:length])
    assert_refused("is damaged: call fbt.build_native")
    fbt.build_native()
    assert library.read_bytes() == whole
    assert native.is_built()


def test_library_with_a_flipped_bit_is_not_loaded(library):
    whole = bytearray(library.read_bytes())
    whole[len(whole) // 2] ^= 1
    library.write_bytes(whole)
    assert_refused("is damaged")


def test_file_that_is_not_a_library_is_not_loaded(library):
    code = b"not a library"
    library.write_bytes(code + _files.sha256(code).encode())
    assert_refused("does not load: .* Call fbt.build_native")


def test_crashing_library_is_not_installed(quick_compiler, empty_cache, monkeypatch):
    code = native._compile()[:9000]
    monkeypatch.setattr(native, "_compile", lambda: code)
    with pytest.raises(RuntimeError, match="the process that tested the new library"):
        fbt.build_native()
    assert list(native.library_path().parent.iterdir()) == []


def test_library_with_wrong_numbers_is_not_installed(
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


# Permissions, and the number of another user and group.
MINE, OTHERS = 0o755, 54321
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can change the owner of a file"
)


@as_root
@pytest.mark.parametrize("parent", [0, 1, 2], ids=["library", "folder", "cache"])
@pytest.mark.parametrize(
    "user, group, mode, reason",
    [
        (OTHERS, 0, MINE, "belongs to the user with id 54321"),
        (0, 0, 0o757, "is writable by everyone"),
        (0, OTHERS, 0o775, "is writable by its group"),
    ],
)
def test_library_writable_for_others_is_not_loaded(
    library, monkeypatch, parent, user, group, mode, reason
):
    path = [library, *library.parents][parent]
    os.chown(path, user, group)
    path.chmod(mode)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: pytest.fail(f"{name} was loaded")
    )
    assert_refused(f"{path.name} {reason}")
    monkeypatch.undo()
    monkeypatch.setenv("FBT_CACHE", str(library.parents[1]))
    monkeypatch.setattr(build, "TEST", "")
    monkeypatch.setattr(
        native, "_compile", lambda: library.read_bytes()[: -native.DIGEST]
    )
    if parent:  # a folder of another user is left as it is
        with pytest.raises(RuntimeError, match=f"{path.name} {reason}"):
            fbt.build_native()
    else:
        fbt.build_native()
        assert native.is_built()


@as_root
def test_link_of_another_user_is_not_followed(library, tmp_path):
    """Even if it points to a file of ours."""
    library.rename(tmp_path / "ours.so")
    library.symlink_to(tmp_path / "ours.so")
    os.chown(library, OTHERS, OTHERS, follow_symlinks=False)
    assert_refused("belongs to the user with id 54321")


@as_root
def test_files_of_root_are_accepted_and_of_other_users_refused(library, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    _files.check_owned(library)
    os.chown(library, OTHERS, OTHERS)
    with pytest.raises(PermissionError, match="belongs to the user with id 54321"):
        _files.check_owned(library)


@pytest.mark.parametrize("members, primary, acl, allowed", [
    ([], [], False, True),
    (["me"], [], False, True),
    (["another"], [], False, False),
    ([], ["another"], False, False),
    ([], [], True, False),
])  # fmt: skip
def test_group_with_a_single_user_may_write(
    tmp_path, monkeypatch, members, primary, acl, allowed
):
    """Where each user has a group, the umask is often 002; an ACL may name others."""
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
        with pytest.raises(PermissionError, match="is writable by its group"):
            _files.check_owned(tmp_path)


def test_cache_in_a_sticky_folder_is_accepted(library):
    library.parents[1].chmod(0o1777)
    assert native.is_built()


def test_relative_cache_folder_is_refused(library, monkeypatch):
    monkeypatch.chdir(library.parents[1])
    monkeypatch.setenv("FBT_CACHE", ".")
    assert_refused("FBT_CACHE must be an absolute path")
    with pytest.raises(RuntimeError, match="FBT_CACHE must be an absolute path"):
        fbt.build_native()


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077], ids=oct)
def test_built_library_is_not_writable_for_others(library, umask):
    library.unlink()
    library.parent.rmdir()
    library.parents[1].rmdir()
    before = os.umask(umask)
    try:
        fbt.build_native()
    finally:
        os.umask(before)
    assert native.is_built()
    for path in (library, *library.parents[:2]):
        assert not path.stat().st_mode & 0o022


def test_warning_for_an_unknown_cache_folder_is_given_once(monkeypatch):
    native._warn.cache_clear()
    monkeypatch.setenv("FBT_CACHE", "~nobody-of-this-name/cache")
    assert_refused("FBT_CACHE must name a folder, got '~nobody-of-this-name/cache'")
    native._warn.cache_clear()
    model = fbt.LanguageModel(fbt.Config(3, d_model=4), fbt.CharTokenizer("abc"))
    with pytest.warns(RuntimeWarning, match="FBT_CACHE must name a folder"):
        assert len(model.generate("ab", 5)) == 7
    with pytest.raises(RuntimeError, match="FBT_CACHE must name a folder"):
        fbt.build_native()


def test_cache_folder_without_a_home_raises(monkeypatch):
    """No folder named "~" is created."""
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
    "prints bytes that are not text": (
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
def test_faulty_compiler_raises(empty_cache, tmp_path, monkeypatch, name):
    """A short message, in time; no process and no file is left."""
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
def test_invalid_compiler_command_raises(
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
    MatrixLayout,
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
    assert kind == ("Int" if struct in (ChunkLayout, MatrixLayout) else "S")
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
def test_out_of_memory_raises(direction, dtype, threads):
    """The memory for a group of sequences is allocated before any tensor is read."""
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
def test_matrices_too_large_for_blas_raise(changes):
    """The integers of BLAS have 32 bits."""
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
    # From 256 on, threads share the products of a group.
    [(1, 32), (5, 32), (150, 32), (1, 256), (2, 256)],
)
def test_number_of_threads_changes_no_number(batch, width):
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


@pytest.mark.parametrize(
    ("batch", "width", "inner"),
    # The last two leave products to BLAS, the last one only without AVX-512.
    [(1, 1, 1), (2, 9, 31), (7, 33, 47), (23, 20, 8), (3, 16, 8209), (35, 16, 1033)],
)
def test_products_of_all_sizes_agree(batch, width, inner, monkeypatch):
    """Numbers that a product must overwrite are NaN before."""
    fbt.build_native()
    module = body("shared-kv", n_heads=1, d_model=width, d_ff=inner, span=9)
    x = normal(batch, 11, width)
    named = leaves(module, x)

    def run(backend):
        outputs = everything(*module(x, backend=backend)[:2])
        return [*outputs, *gradients(outputs, named).values()]

    expected, new_empty = run("stack"), torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan)
    )
    results = run("native")
    assert_same(results, expected)
    assert_same(run("native"), results, rtol=0, atol=0)


def test_every_head_width_agrees_in_single_precision():
    """There are special programs for parts of a register, and for up to eight."""
    fbt.build_native()
    for width in (4, 5, 8, 16, 32, 64, 128):
        module, x = (
            body("shared-kv", n_heads=1, d_model=width, span=40).float(),
            normal(3, 37, width).float(),
        )
        module.requires_grad_(True)
        x = x.detach().requires_grad_()
        named, results = leaves(module, x), []
        for backend in ("stack", "native"):
            y = module(x, backend=backend)[0]
            computed = torch.autograd.grad(
                y.square().mean(),
                list(named.values()),
                materialize_grads=True,
                allow_unused=True,
            )
            results.append([y, *computed])
        assert_same(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_gelu_in_single_precision_equals_that_of_torch():
    """loop.cpp has its own exponential and error function."""
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
        # These are the inputs of the activation.
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
def test_half_precision_raises(dtype):
    module, x = body("shared-kv").to(dtype), normal(2, 9, 14).to(dtype)
    with pytest.raises(
        TypeError, match=rf'"native" computes in float32 or float64, got {dtype}'
    ):
        module(x, backend="native")


@pytest.mark.parametrize("built", [False, True])
def test_auto_takes_the_fastest_engine(built, monkeypatch):
    fbt.build_native()
    if not built:
        monkeypatch.setattr(native, "why_not", lambda x: native.NotBuilt())
    module, x, used = body("shared-kv"), normal(2, 9, 14), []
    run = engines.run_sequence

    def recorded(body, x, state, engine, *args, **options):
        used.append(engine)
        return run(body, x, state, engine, *args, **options)

    monkeypatch.setattr(engines, "run_sequence", recorded)
    assert_same(
        everything(*module(x)[:2]), everything(*module(x, backend="reference")[:2])
    )
    module(x, need_weights=True)
    module(x[:, :1])
    module.bfloat16()(x.bfloat16())
    assert used == ["native" if built else "sequence", "sequence"]


def test_auto_runs_hooks_and_replaced_modules():
    plain, x = body("shared-kv"), normal(2, 9, 14)
    hooked, changed, calls = copy.deepcopy(plain), copy.deepcopy(plain), []
    hooked.layers[1].attention.query.register_forward_hook(lambda *_: calls.append(1))
    assert_same(hooked(x)[0], plain(x)[0])
    assert len(calls) == 8  # the very first step does not attend

    class Doubled(torch.nn.Linear):
        def forward(self, z):
            return 2 * super().forward(z)

    changed.layers[1].attention.query = Doubled(14, 14, bias=False).double()
    changed.load_state_dict(plain.state_dict())
    plain.layers[1].attention.query.weight.data *= 2
    assert_same(changed(x)[0], plain(x)[0])


def test_modules_that_are_not_called_may_have_any_class():
    module, x = body("shared-kv"), normal(2, 9, 14)
    module.probe = torch.nn.Sequential(torch.nn.Identity())
    assert_same(module(x, backend="sequence")[0], module(x, backend="stack")[0])


def test_auto_runs_hooks_on_all_modules():
    module, x, calls = body("shared-kv"), normal(2, 9, 14), []
    hook = register_module_forward_hook(lambda part, *_: calls.append(part))
    try:
        module(x)
    finally:
        hook.remove()
    assert calls.count(module.layers[1].attention.query) == 8


def test_backward_has_no_more_threads_than_groups(monkeypatch):
    """Each thread allocates sums of its own."""
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
            module(normal(batch, 17, 14).requires_grad_(), backend="native")[
                0
            ].sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert made == [1, 1, 2, 2, 3, 3]  # two chunks each


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
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
    "owner, name, value",
    [
        (torch, "__version__", "2.99"),
        (native, "FLAGS", ("-O0",)),
        (native.platform, "machine", lambda: "another"),
        (native, "SOURCE", native.SOURCE.parent / "__init__.py"),
        (native.Path, "read_text", lambda *_, **__: "flags: another"),
    ],
    ids=["torch", "flags", "machine", "source", "processor"],
)
def test_library_depends_on_source_torch_and_processor(
    monkeypatch, owner, name, value
):
    before = native.library_path()
    native._key.cache_clear()
    monkeypatch.setattr(owner, name, value)
    try:
        assert native.library_path() != before
    finally:
        native._key.cache_clear()
