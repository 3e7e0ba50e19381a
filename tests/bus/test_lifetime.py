"""Callers, buses and owners of the name that come and go."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from conntrackd.bus.client import Client, NotRunningError
from conntrackd.bus.service import BusService
from conntrackd.bus.transport import RemoteError
from tests.bus.private import SECONDS, PrivateBus, Served, wait_until
from tests.bus.raw import Raw, call
from tests.bus.recorder import Recorder
from tests.live.daemon import ctl_command

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged


def test_a_caller_who_goes_away_takes_his_question_along_but_no_change_stops_half_way(
    bus: PrivateBus, served: Served
) -> None:
    finished: list[str] = []
    control = served.control
    ask, change = control.check_filter, control.reload

    async def check_filter(rules: list[str]) -> list[str]:
        answer = await ask(rules)
        finished.append("question")
        return answer

    async def reload() -> list[str]:
        answer = await change()
        finished.append("change")
        return answer

    control.check_filter, control.reload = check_filter, reload  # type: ignore[method-assign]
    release = served.hold()
    with Raw(bus.address, {}) as raw:
        raw.post(call("CheckFilter", "as"), [["x"]])
        raw.post(call("Reload"), [])
        wait_until(lambda: len(control.asked) == 2)
    with bus.connect() as other:
        other.read_properties()  # what the bus told of the first one is behind us
    release()

    wait_until(lambda: finished != [])
    assert finished == ["change"]


def test_the_service_comes_back_when_the_bus_does(bus: PrivateBus, served: Served) -> None:
    bus.stop()
    served.wait_lost()
    bus.start()

    served.wait_ready()

    with bus.connect() as client:
        assert client.read_properties()["Version"] == "2.0.0"


def test_a_bus_that_hangs_up_while_it_authenticates_is_reported(tmp_path: Path) -> None:
    """In a process of its own: dbus-fast would read the end again and again, which nothing interrupts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "bus"))
        listener.listen()
        command = ctl_command("status", "--bus.address", f"unix:path={tmp_path}/bus")
        caller = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with listener.accept()[0] as connection:
                while b"AUTH" not in connection.recv(100):
                    pass
                connection.shutdown(socket.SHUT_WR)  # and not close(), which could be an error to write to
                said = caller.communicate(timeout=SECONDS)[1]
        finally:
            caller.kill()
            caller.wait()

    assert caller.returncode == 3
    assert "cannot connect to D-Bus: what answers there does not authenticate" in said


def test_a_reason_whose_text_changes_is_reported_once_and_again_when_it_was_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = BusService(Recorder(), "unix:path=/nowhere")
    name = "org.freedesktop.DBus.Error.AccessDenied"
    for number in range(7):
        service._complain(RemoteError(name, f'Connection ":1.{number}" is not allowed to own the service'))
        service._complain(ConnectionRefusedError(111, "Connection refused"))

    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


@pytest.mark.parametrize(
    ("address", "environ", "level"),
    [
        (None, {}, "INFO"),
        ("unix:path=/elsewhere", {}, "WARNING"),
        (None, {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/elsewhere"}, "WARNING"),
    ],
)
def test_no_bus_is_worth_a_warning_where_one_was_asked_for(
    address: str | None,
    environ: dict[str, str],
    level: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    service = BusService(Recorder(), address)

    for _ in range(3):
        service._complain(FileNotFoundError(2, "No such file or directory"))

    assert [record.levelname for record in caplog.records] == [level]


def test_a_bus_that_comes_after_the_service_is_found(caplog: pytest.LogCaptureFixture) -> None:
    bus = PrivateBus()
    served = Served(bus.address)
    try:
        wait_until(lambda: "retrying" in caplog.text)
        bus.start()
        served.wait_ready()
        with bus.connect() as client:
            assert client.read_properties()["Version"] == "2.0.0"
    finally:
        served.close()
        bus.close()


def test_a_name_that_another_has_is_waited_for_and_reported(
    bus: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    with Raw(bus.address, {}) as owner:
        assert owner.ask_bus("RequestName", "su", "org.conntrackd1", 0) == [1]
        served = Served(bus.address)
        wait_until(lambda: "org.conntrackd1 is owned by another process, retrying" in caplog.text)
    try:
        served.wait_ready()
    finally:
        served.close()


@pytest.mark.parametrize(("flags", "answer"), [(2 | 4, 3), (2, 2), (1 | 2, 2)])
def test_nobody_takes_the_name_away(flags: int, answer: int, raw: Raw, client: Client) -> None:
    # 1 ALLOW_REPLACEMENT, 2 REPLACE_EXISTING, 4 DO_NOT_QUEUE; 2 IN_QUEUE, 3 EXISTS
    assert raw.ask_bus("RequestName", "su", "org.conntrackd1", flags) == [answer]
    assert client.read_properties()["Version"] == "2.0.0"


def test_without_service_or_bus_a_sentence_says_so(bus: PrivateBus) -> None:
    with bus.connect() as client, pytest.raises(NotRunningError, match="conntrackd is not running"):
        client.read_properties()
    bus.stop()
    with bus.connect() as client, pytest.raises(NotRunningError, match="cannot connect to D-Bus"):
        client.read_properties()
