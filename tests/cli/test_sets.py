"""conntrackctl set: what it asks, and how it prints the answers."""

import json

import pytest

from conntrackd.cli import ctl
from conntrackd.errors import NotPermittedError
from tests.bus.private import PrivateBus, Served, as_user

pytestmark = pytest.mark.privileged


def test_sets_are_listed_with_their_numbers_and_uses(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl.run(["set", "list"])
    lines = capsys.readouterr().out.splitlines()
    ctl.run(["set", "list", "--json"])

    assert [" ".join(line.split()) for line in lines] == [
        "SET ENTRIES ADDED REMOVED FIRST END FILE USED BY",
        "bad 1234 2 1 1 min 30 s /etc/bad.txt rule 1, rule 2 of sink loki",
        "own 0 0 0 - /etc/own.txt no rule",
    ]
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "bad",
        "file": "/etc/bad.txt",
        "entries": 1234,
        "added": 2,
        "removed": 1,
        "expires_s": 90,
        "used_by": ["rule 1", "rule 2 of sink loki"],
    }


def test_that_there_are_no_sets_is_said_with_how_to_make_one(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.control.sets.clear()

    assert ctl.run(["set", "list"]) == 0
    told = capsys.readouterr()
    assert ctl.run(["set", "list", "--json"]) == 0
    assert (told.out, capsys.readouterr().out) == ("", "[]\n")
    assert told.err == (
        "conntrackctl: there are no sets\nhint: in conntrackd.yaml: sets: {bad: /etc/conntrackd/bad.txt}\n"
    )


def test_what_is_shown_of_a_set_is_a_file_of_one(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    ctl.run(["set", "show", "bad"])
    shown = capsys.readouterr().out
    asked = list(served.control.asked)
    ctl.run(["set", "show", "bad", "--json"])

    assert shown.splitlines() == [
        "10.0.0.0/8",
        "192.0.2.7  # added at run time, for 1 min 30 s more",
        "# 2001:db8::1  # removed at run time, until a reload or restart",
    ]
    assert asked == [("show_set", "bad", after) for after in ("", "192.0.2.7", "2001:db8::1")]
    assert json.loads(capsys.readouterr().out) == [
        {"entry": "10.0.0.0/8", "change": "", "expires_s": 0},
        {"entry": "192.0.2.7", "change": "added", "expires_s": 90},
        {"entry": "2001:db8::1", "change": "removed", "expires_s": 0},
    ]


def test_changes_are_asked_for_as_they_are_typed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["add", "bad", "192.0.2.7", "::1", "--for", "1h"],
        ["remove", "bad", "::1"],
        ["reload"],
        ["reload", "bad", "own"],
    ):
        ctl.run(["set", *words])

    assert served.control.asked == [
        ("add_to_set", "bad", ("192.0.2.7", "::1"), 3600),
        ("remove_from_set", "bad", ("::1",), 0),
        ("reload_sets", ()),
        ("reload_sets", ("bad", "own")),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "added to @bad",
        "removed from @bad",
        "nothing has changed",
        "nothing has changed",
    ]


def test_who_may_not_changes_nothing(served: Served, bus: PrivateBus) -> None:
    for words in (["add", "bad", "::1"], ["remove", "bad", "::1"], ["reload"]):
        with as_user(1), pytest.raises(NotPermittedError):
            ctl.run(["set", *words, "--bus.address", bus.address])
    assert served.control.asked == []
