"""`make audit`: unknown packages fail, and accepted vulnerabilities expire."""

from datetime import date

import audit
import pytest

TODAY = date(2026, 11, 26)
PINS = {"good==1.0", "bad==2.0"}
GOOD = {"name": "Good", "version": "1.0", "vulns": []}
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["2.1"]}
BAD = {"name": "bad", "version": "2.0", "vulns": [FOUND]}


def accepted(name: str = "GHSA-1", until: date = TODAY) -> list[audit.Accepted]:
    return [audit.Accepted(name, "cannot be reached", until)]


def test_a_vulnerability_is_a_problem_unless_accepted_and_not_expired():
    line = "bad==2.0 has PYSEC-1, fixed in 2.1"
    assert audit.problems(PINS, [GOOD, BAD], [], TODAY) == [line]
    for name in ("PYSEC-1", "CVE-1", "GHSA-1"):
        assert not audit.problems(PINS, [GOOD, BAD], accepted(name), TODAY)
    expired = accepted(until=date(2026, 11, 25))
    assert audit.problems(PINS, [GOOD, BAD], expired, TODAY) == [line]


def test_an_accepted_vulnerability_that_no_package_has_is_a_problem():
    assert not audit.stale([GOOD, BAD], accepted())
    assert audit.stale([GOOD], accepted()) == ["GHSA-1: no package has it any more"]


def test_packages_that_were_not_looked_up_are_a_problem():
    skipped = {"name": "good", "skip_reason": "not found on PyPI"}
    for results in ([skipped, BAD], [BAD], [GOOD | {"version": "1.1"}, BAD]):
        lines = audit.problems(PINS, results, accepted(), TODAY)
        assert lines == ["not looked up, 1 of 2: good==1.0"]


def test_main_fails_if_everything_is_skipped_and_passes_if_everything_is_clean(
    monkeypatch, capsys
):
    def result(pin, **rest):
        return dict(zip(("name", "version"), pin.split("=="), strict=True)) | rest

    monkeypatch.setattr(audit, "accepted", list)

    def answer_with(**rest):
        def look_up(pins):
            return [result(pin, **rest) for pin in pins]

        monkeypatch.setattr(audit, "pip_audit", look_up)

    answer_with(skip_reason="")
    with pytest.raises(SystemExit, match="Not clean"):
        audit.main()
    assert "requirements.txt: not looked up" in capsys.readouterr().out
    answer_with(vulns=[])
    audit.main()
    assert "Clean" in capsys.readouterr().out


def test_every_package_of_every_list_is_looked_up():
    packages = audit.packages()
    assert set(packages) == set(audit.LISTS)
    names = {pin.split("==")[0] for pin in packages["requirements.txt"]}
    locked = audit.requirements(audit.LISTS["requirements.txt"])
    assert names == {pin.name for pin in locked} | {"torch"}
    assert names >= {"appnope", "pywinpty"}  # packages of other systems


def test_accepted_entries_have_an_id_a_reason_and_a_date(tmp_path):
    for entry in audit.accepted():
        assert isinstance(entry.until, date) and entry.reason
    path = tmp_path / "audit.toml"
    path.write_text('[[ignored]]\nid = "GHSA-1"\nuntil = 2027-01-31\n')
    with pytest.raises(TypeError, match="reason"):
        audit.accepted(path)


def test_two_versions_of_a_package_are_looked_up_in_two_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(audit, "pip_audit", lambda pins: calls.append(pins) or [])
    audit.look_up({"a==1", "b==2", "a==3"})
    assert calls == [["a==1", "b==2"], ["a==3"]]
