"""Lock files are complete, with hashes, and .venv has exactly their packages."""

import re
import sysconfig
import tomllib
from importlib.metadata import distributions

from environment import BY_BUILD, LISTS, requirements
from packaging.utils import canonicalize_name
from repo import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BOOK = LISTS["requirements.txt"]


def pins(path) -> set[tuple[str, str]]:
    return {(pin.name, str(pin.specifier)) for pin in requirements(path)}


def test_lock_files_contain_their_lists_with_exact_versions():
    for name, lock in LISTS.items():
        listed, locked = pins(ROOT / name), pins(lock)
        by_build = {pin for pin in listed if BY_BUILD.match("".join(pin))}
        assert listed - by_build <= locked, "run `make lock`"
        for _, specifier in listed | locked:
            assert re.fullmatch(r"==[\w.]+", specifier)


def test_locked_packages_have_hashes_and_exclude_those_of_torch_builds():
    for name, lock in LISTS.items():
        entries = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip())
        assert entries[0] == f"# Made by `make lock` from {name}."
        for entry in entries[1:]:
            pattern = r"[\w.-]+==[^\n]+(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+"
            assert re.fullmatch(pattern, entry) and not BY_BUILD.match(entry), entry


def test_installed_packages_are_the_locked_ones():
    packages = distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(one.name): one.version for one in packages}
    locked = requirements(BOOK)
    for pin in locked:
        if pin.marker is None or pin.marker.evaluate():
            version = installed.get(pin.name, "0")
            is_pinned = pin.specifier.contains(version, prereleases=True)
            assert is_pinned, f"{pin}: run `make environment`"
    extra = set(installed) - {canonicalize_name(pin.name) for pin in locked}
    extra = {name for name in extra if not BY_BUILD.match(f"{name}==")}
    assert extra == {"fbt-book", "pip"}


def test_requirements_in_pyproject_are_pinned():
    listed = {pin.name for pin in requirements(ROOT / "requirements.txt")}
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = PYPROJECT["project"]["dependencies"] + extras["views"]
    needed += extras["book"][1:]  # the first is the package itself
    assert {re.split("[<>=]", name)[0] for name in needed} <= listed
    peers = requirements(ROOT / "benchmarks" / "requirements.txt")
    assert set(extras["bench"]) <= set(map(str, peers))
