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
        assert {pin for pin in listed if pin[0] != "torch"} <= locked, (
            "run `make lock`"
        )
        assert all(
            re.fullmatch(r"==[\w.]+", specifier) for _, specifier in listed | locked
        )


def test_every_locked_package_has_hashes_and_none_depends_on_the_build_of_torch():
    for name, lock in LISTS.items():
        entries = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip())
        assert entries[0] == f"# Made by `make lock` from {name}."
        for entry in entries[1:]:
            pattern = r"[\w.-]+==[^\n]+(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+"
            assert re.fullmatch(pattern, entry) and not BY_BUILD.match(entry), entry


def test_installed_packages_are_the_locked_ones():
    found = distributions(path=[sysconfig.get_path("purelib")])
    here = {canonicalize_name(one.name): one.version for one in found}
    needed = [
        pin
        for pin in requirements(BOOK)
        if pin.marker is None or pin.marker.evaluate()
    ]
    wrong = [
        str(pin)
        for pin in needed
        if not pin.specifier.contains(here.get(pin.name, "0"), prereleases=True)
    ]
    assert not wrong, "run `make environment`"
    extra = set(here) - {canonicalize_name(pin.name) for pin in requirements(BOOK)}
    assert {name for name in extra if not BY_BUILD.match(f"{name}==")} == {
        "fbt-book",
        "pip",
    }


def test_the_packages_own_requirements_are_pinned():
    listed = {pin.name for pin in requirements(ROOT / "requirements.txt")}
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [
        *PYPROJECT["project"]["dependencies"],
        *extras["views"],
        *extras["book"][1:],
    ]
    assert {re.split("[<>=]", name)[0] for name in wanted} <= listed
    peers = {
        str(pin) for pin in requirements(ROOT / "benchmarks" / "requirements.txt")
    }
    assert set(extras["bench"]) <= peers
