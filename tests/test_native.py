"""Building the native backend, and what is said where it cannot be built. Its numbers: test_sequence.py."""

import copy

import pytest
import torch
from exact import assert_same, body, everything, gradients, leaves, normal
from torch.nn.modules.module import register_module_forward_hook

import fbt
from fbt import native, shared_kv
from fbt.sequence.native import NativeBackward


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder of its own, with a space in its path."""
    monkeypatch.setenv("FBT_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


def test_it_is_built_once_and_kept(empty_cache, monkeypatch):
    assert not native.is_built()
    library = fbt.build_native()
    assert library.is_relative_to(empty_cache) and native.is_built()
    assert [path.name for path in library.parent.iterdir()] == [library.name]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert fbt.build_native() == library


def test_unbuilt_it_says_what_to_call(empty_cache):
    with pytest.raises(RuntimeError, match=r'backend="native" is not built here: call fbt.build_native\(\)'):
        body("shared-kv")(normal(2, 5, 14), backend="native")


def test_without_a_compiler_it_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"needs a C.. compiler, and there is no 'no-such-compiler' here"):
        fbt.build_native()
    assert not empty_cache.exists()


def test_a_compiler_that_fails_is_quoted(empty_cache, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match=r"build_native: false .* failed with status 1"):
        fbt.build_native()
    assert not empty_cache.exists()


def test_another_system_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(native.sys, "platform", "win32")
    with pytest.raises(RuntimeError, match="build_native works on Linux, and this is 'win32'"):
        fbt.build_native()


def test_a_broken_library_is_built_again(empty_cache):
    library = native.library_path()
    library.parent.mkdir(parents=True)
    library.write_bytes(b"not a library")
    with pytest.raises(RuntimeError, match="does not load"):
        body("shared-kv")(normal(2, 5, 14), backend="native")
    fbt.build_native()
    assert native.is_built()


@pytest.mark.parametrize(
    ("batch", "width"),
    [(1, 32), (5, 32), (150, 32), (1, 256), (2, 256)],  # from 256 on, idle threads share a group's products
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
        module, x = body("shared-kv", n_heads=1, d_model=width, span=40).float(), normal(3, 37, width).float()
        module.requires_grad_(True)
        x = x.detach().requires_grad_()
        named, results = leaves(module, x), []
        for backend in ("stack", "native"):
            y = module(x, backend=backend)[0]
            found = torch.autograd.grad(
                y.square().mean(), list(named.values()), materialize_grads=True, allow_unused=True
            )
            results.append([y, *found])
        assert_same(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_gelu_in_single_precision_is_torchs():
    """The exponential and the error function of loop.cpp are its own."""
    fbt.build_native()
    module = body(
        "shared-kv", n_heads=1, d_model=16, n_layers=1, d_ff=4001, activation="gelu", span=5
    ).float()
    feed_forward = module.layers[0].feed_forward
    with torch.no_grad():
        feed_forward.inner.weight.zero_()
        feed_forward.inner.bias.copy_(torch.linspace(-12, 12, 4001))  # what the activation gets to see
    x, named, results = normal(2, 3, 16).float(), leaves(module), []
    for backend in ("stack", "native"):
        y = module(x, backend=backend)[0]
        results.append(
            [
                y,
                *torch.autograd.grad(
                    y.sum(), list(named.values()), materialize_grads=True, allow_unused=True
                ),
            ]
        )
    assert_same(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_it_cannot_compute_in_is_named(dtype):
    module, x = body("shared-kv").to(dtype), normal(2, 9, 14).to(dtype)
    with pytest.raises(TypeError, match=rf'"native" computes in float32 or float64, got {dtype}'):
        module(x, backend="native")


@pytest.mark.parametrize("built", [False, True])
def test_auto_takes_the_fastest_that_is_here(built, monkeypatch):
    fbt.build_native()
    monkeypatch.setattr(shared_kv, "is_built", lambda: built)
    module, x, used = body("shared-kv"), normal(2, 9, 14), []
    run = shared_kv.run_sequence

    def noted(*args, native):
        used.append("native" if native else "sequence")
        return run(*args, native=native)

    monkeypatch.setattr(shared_kv, "run_sequence", noted)
    assert_same(everything(*module(x)[:2]), everything(*module(x, backend="reference")[:2]))
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
    with pytest.raises(ValueError, match="a part of this body has hooks or is not as it was made"):
        module.decoder(state, "sequence")


def test_backward_has_no_more_threads_than_groups(monkeypatch):
    """Each would make sums of its own for nothing."""
    made, threads = [], torch.get_num_threads()
    run = NativeBackward.steps
    monkeypatch.setattr(
        NativeBackward, "steps", lambda loop, *args: made.append(loop.threads) or run(loop, *args)
    )
    module = body("shared-kv")
    torch.set_num_threads(3)
    try:
        for batch in (1, 2, 5):
            module(normal(batch, 9, 14).requires_grad_(), backend="native")[0].sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert made == [1, 1, 2, 2, 3, 3]  # two chunks each


def test_a_library_that_cannot_be_written_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FBT_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "_compile", lambda: b"machine code")
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left")))
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
def test_a_library_is_for_one_source_torch_and_processor(monkeypatch, place, name, other):
    before = native.library_path()
    native._key.cache_clear()
    monkeypatch.setattr(place, name, other)
    try:
        assert native.library_path() != before
    finally:
        native._key.cache_clear()
