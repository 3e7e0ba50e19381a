"""What the service manager gets, over real sockets."""

import array
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntrackd.notify import MAX_DESCRIPTORS, Notifier, find_address, read_watchdog, take_descriptors


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's socket, and the environment that leads to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        if request.param == "path":
            sock.bind(str(tmp_path / "notify"))
            address = str(tmp_path / "notify")
        else:
            sock.bind("")  # the kernel picks a name: by process id, containers on one network would meet
            address = f"@{sock.getsockname()[1:].decode()}"
        yield sock, {"NOTIFY_SOCKET": address}


def receive(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_each_message_is_one_datagram(manager: tuple[socket.socket, dict[str, str]]) -> None:
    sock, environ = manager
    notifier = Notifier(environ)

    notifier.ready()
    notifier.status("5 events\nin two lines")
    notifier.watchdog()
    notifier.stopping()
    notifier.extend_timeout(1.5)

    assert [receive(sock) for _ in range(5)] == [
        ["READY=1"],
        ["STATUS=5 events in two lines"],
        ["WATCHDOG=1"],
        ["STOPPING=1"],
        ["EXTEND_TIMEOUT_USEC=1500000"],
    ]


def test_a_reload_says_when_it_began(manager: tuple[socket.socket, dict[str, str]]) -> None:
    sock, environ = manager

    Notifier(environ).reloading()

    first, second = receive(sock)
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    assert second.partition("=")[2].isdigit()


def test_a_stored_descriptor_arrives_and_is_not_watched(
    manager: tuple[socket.socket, dict[str, str]],
) -> None:
    sock, environ = manager
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stored:
        assert Notifier(environ).store("events", stored.fileno())
        text, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(16))
        descriptors = array.array("i", ancillary[0][2])
        received = socket.socket(fileno=descriptors[0])
        with received:
            assert received.type == socket.SOCK_DGRAM

    assert text == b"FDSTORE=1\nFDNAME=events\nFDPOLL=0"
    Notifier(environ).remove("events")
    assert receive(sock) == ["FDSTOREREMOVE=1", "FDNAME=events"]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "é", "x" * 256])
def test_a_name_that_systemd_would_misread_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Notifier({}).store(name, 0)


@pytest.mark.parametrize("text", ["", "relative", "vsock:x:y", "http://example"])
def test_without_a_manager_nothing_happens(text: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": text})

    assert not notifier.ready()


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_manager_that_does_not_read_costs_neither_time_nor_cpu(
    manager: tuple[socket.socket, dict[str, str]],
) -> None:
    notifier = Notifier(manager[1])
    while notifier.watchdog():
        pass
    began, worked = time.monotonic(), time.process_time()
    reported = [notifier.watchdog() or notifier.status("a word") for _ in range(100)]
    quick, late = time.monotonic() - began, notifier.ready()

    assert not any(reported)
    assert not late  # which is waited for, a second, and asleep
    assert quick < 0.5
    assert time.process_time() - worked < 0.5


def test_a_number_of_descriptors_that_cannot_be_is_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(os, "set_inheritable", lambda descriptor, inheritable: tried.append(descriptor))

    take_descriptors({"LISTEN_PID": "7", "LISTEN_FDS": str(1 << 62)}, pid=7)

    assert len(tried) == MAX_DESCRIPTORS


def test_a_virtual_machine_has_its_manager_outside() -> None:
    assert find_address({"NOTIFY_SOCKET": "vsock:2:1234"}) == (2, 1234)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "-5"}, 0.0),
    ],
)
def test_the_watchdog_is_ours_only_where_it_says_so(environ: dict[str, str], seconds: float) -> None:
    assert read_watchdog(environ, pid=7) == seconds


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {}),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, {}),
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, {}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, {}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "events:events"}, {"events": [3, 4]}),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "events"}, {"events": [3], "unknown": [4]}),
    ],
)
def test_descriptors_come_with_their_names_and_the_variables_go(
    environ: dict[str, str], found: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda descriptor, inheritable: None)

    assert take_descriptors(environ, pid=7) == found
    assert environ == {}
