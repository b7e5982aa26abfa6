"""The lists of packages: each is written out in full, with hashes, and what is listed is installed."""

import re
import sysconfig
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version

import lock
import pytest
from notebooks import ROOT
from packaging.utils import canonicalize_name

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
every_list = pytest.mark.parametrize("name", lock.LISTS)


def pins(path) -> set[tuple[str, str]]:
    return {(pin.name, str(pin.specifier)) for pin in lock.requirements(path)}


@every_list
def test_all_of_a_list_is_in_the_list_in_full(name):
    short, full = pins(ROOT / name), pins(lock.locked(name))
    assert {pin for pin in short if pin[0] != "torch"} <= full, "run `make lock`"
    assert all(re.fullmatch(r"==[\w.]+", specifier) for _, specifier in short | full)


@every_list
def test_each_package_has_hashes_and_none_depends_on_the_build_of_torch(name):
    entries = re.split(r"\n(?=\S)", lock.locked(name).read_text(encoding="utf-8").strip())
    assert entries[0] == f"# Made by `make lock` from {name}."
    for entry in entries[1:]:
        assert re.fullmatch(r"[\w.-]+==[^\n]+(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+", entry), entry
        assert not lock.BY_BUILD.match(entry)


def test_what_is_installed_is_what_is_listed():
    different = {}
    for pin in lock.requirements(lock.locked("requirements.txt")):
        if pin.marker is None or pin.marker.evaluate():
            try:
                found = version(pin.name)
            except PackageNotFoundError:
                found = "nothing"
            if not pin.specifier.contains(found, prereleases=True):
                different[str(pin)] = found
    assert not different, "run `make environment`"


def test_what_is_not_listed_is_not_installed():
    listed = {canonicalize_name(pin.name) for pin in lock.requirements(lock.locked("requirements.txt"))}
    here = {canonicalize_name(found.name) for found in distributions(path=[sysconfig.get_path("purelib")])}
    rest = {name for name in here - listed if not lock.BY_BUILD.match(f"{name}==")}
    assert rest == {"fbt-book", "pip"}, "run `make environment`"


def test_the_packages_own_requirements_are_among_what_is_pinned():
    listed = {pin.name for pin in lock.requirements(ROOT / "requirements.txt")}
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"], *extras["views"], *extras["book"][1:]]
    assert {re.split("[<>=]", name)[0] for name in wanted} <= listed
    assert set(extras["bench"]) <= {
        str(pin) for pin in lock.requirements(ROOT / "benchmarks/requirements.txt")
    }
