"""`make audit`: what cannot be looked up is not clean, and what is accepted is accepted for a while."""

from datetime import date

import audit
import pytest

TODAY = date(2026, 11, 26)
PINS = {"good==1.0", "bad==2.0"}
GOOD = {"name": "Good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0"} | {
    "vulns": [
        {"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"], "fix_versions": ["2.1"], "description": "..."}
    ]
}


def accepted(*, id: str = "GHSA-1", until: date = TODAY) -> list[audit.Ignored]:
    return [audit.Ignored(id, "cannot be reached", until)]


def test_a_vulnerability_is_a_problem_until_it_is_accepted_under_any_of_its_names():
    (line,) = audit.problems(PINS, [GOOD, BAD], [], TODAY)
    assert line == "bad==2.0 has PYSEC-1, mended in 2.1"
    for name in ("PYSEC-1", "CVE-1", "GHSA-1"):
        assert not audit.problems(PINS, [GOOD, BAD], accepted(id=name), TODAY)


def test_it_is_accepted_up_to_its_day():
    assert audit.problems(PINS, [GOOD, BAD], accepted(until=date(2026, 11, 25)), TODAY)


@pytest.mark.parametrize(
    "answers",
    [
        [{"name": "good", "skip_reason": "not found on PyPI"}, BAD],
        [BAD],
        [GOOD | {"version": "1.1"}, BAD],
    ],
    ids=["skipped", "not mentioned", "another version"],
)
def test_what_was_not_looked_up_is_a_problem(answers):
    assert audit.problems(PINS, answers, accepted(), TODAY) == ["not looked up, 1 of 2: good==1.0"]


def test_what_is_accepted_and_gone_is_a_problem():
    assert not audit.stale([GOOD, BAD], accepted())
    assert audit.stale([GOOD], accepted()) == ["GHSA-1: no package has it any more"]


def test_it_fails_where_everything_is_skipped(monkeypatch, capsys):
    def skip(pins):
        return [{"name": pin.split("==")[0], "skip_reason": "no connection"} for pin in pins]

    monkeypatch.setattr(audit, "ask", skip)
    with pytest.raises(SystemExit, match="Not clean"):
        audit.main()
    assert "requirements.txt: not looked up" in capsys.readouterr().out


def test_it_passes_where_everything_is_clean(monkeypatch, capsys):
    def clean(pins):
        return [dict(zip(("name", "version"), pin.split("=="), strict=True), vulns=[]) for pin in pins]

    monkeypatch.setattr(audit, "ask", clean)
    monkeypatch.setattr(audit, "ignored", list)
    audit.main()
    assert "Clean" in capsys.readouterr().out


def test_every_list_is_asked_about_and_torch_too():
    found = audit.wanted()
    assert set(found) == {"requirements.txt", "tools/requirements.txt", "benchmarks/requirements.txt"}
    assert {pin.split("==")[0] for pin in found["requirements.txt"]} >= {
        "torch",
        "numpy",
        "setuptools",
        "jinja2",
    }


def test_what_is_accepted_has_an_id_a_reason_and_a_day(tmp_path):
    assert all(isinstance(entry.until, date) and entry.reason for entry in audit.ignored())
    path = tmp_path / "audit.toml"
    path.write_text('[[ignored]]\nid = "GHSA-1"\nreason = "why"\nuntil = 2027-01-31\n')
    assert audit.ignored(path) == [audit.Ignored("GHSA-1", "why", date(2027, 1, 31))]
    path.write_text('[[ignored]]\nid = "GHSA-1"\nuntil = 2027-01-31\n')
    with pytest.raises(TypeError, match="reason"):
        audit.ignored(path)


def test_two_versions_of_a_package_are_two_questions(monkeypatch):
    asked = []
    monkeypatch.setattr(audit, "_ask", lambda pins: asked.append(pins) or [])
    audit.ask({"a==1", "b==2", "a==3"})
    assert asked == [["a==1", "b==2"], ["a==3"]]


def test_packages_of_other_systems_are_asked_about_too():
    pins = audit.wanted()["requirements.txt"]
    assert {pin.partition("==")[0] for pin in pins} >= {
        "appnope",
        "colorama",
        "pywinpty",
        "torch",
        "soupsieve",
    }
    assert len(pins) == 192  # torch, and the list in full
