"""Building the native backend, and what is said where it cannot be built. Its numbers: test_sequence.py."""

import pytest
import torch
from exact import assert_same, body, everything, gradients, leaves, normal

import fbt
from fbt import native


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


@pytest.mark.parametrize("batch", [1, 5, 150])
def test_threads_change_no_number(batch):
    fbt.build_native()
    module, x = body("shared-kv", d_model=32, span=9), normal(batch, 19, 32)
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
