"""No daemon: nothing is started, and the reason stands in the answer within a second."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from dbus_fast import Message, MessageFlag

from conntrackd.bus.client import NotRunningError, explain
from conntrackd.bus.transport import Transport
from conntrackd.cli import ctl, unit
from conntrackd.errors import UnavailableError
from tests.bus.private import PrivateBus

REASON: Final = "conntrackd: /etc/conntrackd/conntrackd.yaml:3: unknown key 'snk'\nhint: did you mean sink?\n"
FAILED: Final = "ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainStatus=78\nInvocationID=0f\n"
HANGS: Final = "exec tail -f /dev/null"
Machine = Callable[[str, str], None]


@pytest.fixture
def machine(tmp_path: Path, bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A systemctl and a journalctl that do what a test says, and note with which arguments."""
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS")
    monkeypatch.setattr("conntrackd.bus.client.SYSTEM_BUS", bus.address)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def prepare(systemctl: str, journalctl: str) -> None:
        for name, action in (("systemctl", systemctl), ("journalctl", journalctl)):
            path = tmp_path / name
            path.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/{name}.asked\n{action}\n')
            path.chmod(0o755)

    return prepare


def say(text: str) -> str:
    return f"cat <<'END'\n{text}END"


@pytest.mark.privileged
@pytest.mark.parametrize("words", [["status"], ["reload"], ["tail"], ["filter", "show"], ["sink", "list"]])
def test_after_a_start_that_failed_the_reason_stands_in_the_answer(
    words: list[str], machine: Machine, tmp_path: Path
) -> None:
    machine(say(FAILED), say(REASON))

    with pytest.raises(NotRunningError) as caught:
        ctl.run(words)

    assert str(caught.value).splitlines() == [
        "conntrackd is not running: it has failed (exit status 78)",
        "  conntrackd: /etc/conntrackd/conntrackd.yaml:3: unknown key 'snk'",
        "  hint: did you mean sink?",
        "hint: conntrackd check && systemctl restart conntrackd",
    ]
    assert caught.value.exit_status == 3
    # What its sinks have written to the journal is none of its last words.
    asked = (tmp_path / "journalctl.asked").read_text()
    assert "_SYSTEMD_INVOCATION_ID=0f _TRANSPORT=stdout" in asked
    assert (tmp_path / "systemctl.asked").read_text().split()[0] == "show"


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("journalctl", "hint"),
    [
        (say(REASON), "sudo conntrackd check && sudo systemctl restart conntrackd"),
        ("exit 1", "sudo journalctl -u conntrackd -n 20"),
    ],
)
def test_what_to_do_is_for_who_reads_it(
    journalctl: str, hint: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(say(FAILED), journalctl)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert unit.explain(NotRunningError("not there"), os.environ).hint == hint


@pytest.mark.privileged
def test_a_log_that_only_root_may_read_is_shown_with_sudo(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(say("ActiveState=active\nResult=success\n"), "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    hints = [unit.explain(NotRunningError("not there"), os.environ).hint]
    hints.append(explain("org.freedesktop.DBus.Error.NoReply", "").hint)

    assert hints == [
        "check bus.enable and bus.address in conntrackd.yaml; sudo journalctl -u conntrackd -n 20",
        "sudo journalctl -u conntrackd",
    ]


@pytest.mark.privileged
def test_the_doctor_says_the_reason_first(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine(say(FAILED), say(REASON))

    assert ctl.run(["doctor"]) == 4
    assert capsys.readouterr().out.splitlines()[:4] == [
        "ERROR    daemon: conntrackd is not running: it has failed (exit status 78)",
        "         conntrackd: /etc/conntrackd/conntrackd.yaml:3: unknown key 'snk'",
        "         hint: did you mean sink?",
        "         fix: conntrackd check && systemctl restart conntrackd",
    ]
    assert ctl.run(["doctor", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)[0]["message"].endswith("hint: did you mean sink?")


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("systemctl", "journalctl", "said"),
    [
        (say(FAILED), "exit 1", "failed (exit status 78)\nhint: journalctl -u conntrackd -n 20"),
        (say(FAILED), HANGS, "failed (exit status 78)\nhint: journalctl -u conntrackd -n 20"),
        (
            HANGS,
            say(REASON),
            "conntrackd is not running, or not on this bus\nhint: systemctl start conntrackd",
        ),
        ("exit 1", "", "conntrackd is not running, or not on this bus\nhint: systemctl start conntrackd"),
        (
            say("ActiveState=inactive\nResult=success\nInvocationID=0f\n"),
            say("conntrackd: received 3 events\n"),
            "conntrackd is not running, or not on this bus\nhint: systemctl start conntrackd",
        ),
        (
            say("ActiveState=activating\nSubState=auto-restart\nResult=watchdog\nInvocationID=0f\n"),
            say("conntrackd: an event reader has stalled\n"),
            "it has failed (watchdog), and systemd keeps restarting it\n  conntrackd: an event reader",
        ),
        (
            say("ActiveState=activating\nSubState=start\nResult=success\nInvocationID=0f\n"),
            "",
            "conntrackd is not running yet: it is starting\nhint: systemctl status conntrackd",
        ),
        (say(FAILED), say("\033[2Jgone\n"), "\033[2Jgone"),  # made visible where it is printed
    ],
    ids=[
        "unreadable",
        "journal hangs",
        "systemd hangs",
        "no systemd",
        "stopped",
        "restarts",
        "starts",
        "ESC",
    ],
)
def test_whatever_systemd_and_the_journal_say_the_answer_takes_less_than_a_second(
    systemctl: str, journalctl: str, said: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what each is given: on a machine that has other work even the start of a command takes long."""
    clock, run, given = count(), subprocess.run, list[float]()

    def note(*words: Any, timeout: float, **named: Any) -> Any:
        given.append(timeout)
        return run(*words, timeout=timeout, **named)

    machine(systemctl, journalctl)
    monkeypatch.setattr(unit, "time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    monkeypatch.setattr(subprocess, "run", note)

    with pytest.raises(NotRunningError) as caught:
        ctl.run(["status"])

    assert said in str(caught.value)
    assert given == pytest.approx([0.69, 0.68][: len(given) or 1])


@pytest.mark.privileged
@pytest.mark.parametrize(
    "states", ["ActiveState=active\nSubState=running", "ActiveState=reloading\nSubState=reload"]
)
def test_a_daemon_that_runs_without_this_bus_is_not_said_to_be_down(
    states: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(say(f"{states}\nResult=success\nInvocationID=0f\n"), "")

    with pytest.raises(UnavailableError) as caught:
        ctl.run(["status", "--json"])

    assert str(caught.value).startswith("conntrackd is running, but not on this bus\nhint: check bus.enable")
    assert caught.value.exit_status == 69
    assert json.loads(capsys.readouterr().out)["running"] is None


def test_another_bus_than_the_systems_says_nothing_of_this_machines_service() -> None:
    error = NotRunningError("conntrackd is not running")

    assert unit.explain(error, {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/elsewhere"}) is error


@pytest.mark.privileged
def test_no_call_of_the_client_starts_a_service(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[MessageFlag] = []
    send = Transport.send

    def note(self: Transport, message: Message) -> asyncio.Future[Any]:
        flags.append(message.flags)
        return send(self, message)

    monkeypatch.setattr(Transport, "send", note)
    for words in (["status"], ["reload"], ["sink", "enable", "journal"], ["tail"], ["doctor"], ["stats"]):
        with bus.connect():
            try:
                ctl.run(words)
            except NotRunningError:
                continue

    assert len(flags) >= 6
    assert all(flag & MessageFlag.NO_AUTOSTART for flag in flags)
