"""sinks/journal.py against a real systemd-journald in a mount namespace, read back by journalctl."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.loan import Way
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState, SinkUnavailable
from conntrackd.flow import Flow, Location, Lost
from conntrackd.render.journal import EVENT_ID, LOST_ID, TEMPLATE
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.journal import DIRECT_EVENTS, JournalSink
from conntrackd.stats import SinkStats
from tests.delivery.fakes import put, sum_dropped
from tests.rendering import list_texts, render, render_all
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.syslog_servers import wait_until

JOURNALD = "/lib/systemd/systemd-journald"
SOCKET = "/run/systemd/journal/socket"
# A /run of its own with no limit on records, which is what the shipped unit has; then journald itself.
START = """
mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal
printf '[Journal]\\nRateLimitIntervalSec=0\\nStorage=volatile\\n' > /run/systemd/journald.conf
mkdir -p /run/systemd/journald.conf.d && cp /run/systemd/journald.conf /run/systemd/journald.conf.d/test.conf
if [ ! -s /etc/machine-id ]; then
    echo 0123456789abcdef0123456789abcdef > /run/id
    touch /etc/machine-id
    mount --bind /run/id /etc/machine-id
fi
"""


class Journald:
    """As under systemd, the socket is held by another process, and outlives journald."""

    def __init__(self, namespace: int) -> None:
        self._namespace = namespace
        self.socket = Path(f"/proc/{namespace}/root{SOCKET}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # journald takes it by the path that it is bound to, as seen from inside.
        bind = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).bind(sys.argv[2])"
        with self._run(sys.executable, "-c", bind, str(self._listener.fileno()), SOCKET) as process:
            assert process.wait(15) == 0
        self.process = self.start()

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["nsenter", "-m", "-t", str(self._namespace), *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._listener.fileno()],
        )

    def start(self) -> subprocess.Popen[bytes]:
        """Returns when it runs, but perhaps before it reads anything."""
        command = f"exec 3<&{self._listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec {JOURNALD}"
        self.process = self._run("bash", "-c", command)
        return self.process

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(15)

    def boot(self, boot: str) -> None:
        """Goes on in the same journal as after a boot of this id."""
        self.end(signal.SIGTERM)
        path = "/proc/sys/kernel/random/boot_id"
        with self._run("sh", "-c", f"echo {boot} > /run/boot && mount --bind /run/boot {path}") as process:
            assert process.wait(15) == 0
        self.start()

    def close(self) -> None:
        """Nobody holds the socket any more."""
        self._listener.close()
        self.end(signal.SIGKILL)

    def read(self, *matches: str) -> list[dict[str, Any]]:
        """What journalctl finds, oldest first."""
        arguments = ["journalctl", "-D", "/run/log/journal", "-o", "json", "--no-pager", *matches]
        done = subprocess.run(
            ["nsenter", "-m", "-t", str(self._namespace), *arguments],
            capture_output=True,
            timeout=20,
            check=False,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 15
        while len(found := self.read("SYSLOG_IDENTIFIER=conntrackd")) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} records"
        return found


@contextmanager
def journald() -> Iterator[Journald]:
    command = ["unshare", "-m", "sh", "-c", f"{START}echo ready; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as namespace:
        assert namespace.stdin is not None
        assert namespace.stdout is not None
        assert namespace.stdout.readline() == b"ready\n"
        running = Journald(namespace.pid)
        try:
            yield running
        finally:
            running.close()
            namespace.stdin.close()


def render_journal(flows: Sequence[Flow]) -> Rendered:
    return render(TEMPLATE, flows)


def send(sink: JournalSink, batch: list[Any]) -> int:
    try:
        sink.open()
        return sum(sink.write([part]) for part in render_all(sink.template, batch))
    finally:
        sink.close()


@pytest.mark.privileged
def test_journalctl_reads_one_field_for_each_field_of_the_event() -> None:
    event = make_flow(1)
    event.mark = 16
    event.dst_location = Location("Nuremberg\nPRIORITY=0\x1b[31m", "DE", 49.5, 11.0)
    with journald() as running:
        send(JournalSink(running.socket), [event, Lost(7, BASE, BASE + 10**9, "kernel")])
        first, second = running.wait_for(2)

    assert {name: value for name, value in first.items() if name.startswith("EVENT_")} == {
        "EVENT_TIME": first["EVENT_TIME"],
        "EVENT_TYPE": "NEW",
        "EVENT_FLOW": "1",
        "EVENT_PROT": "TCP",
        "EVENT_SRC": "10.0.0.1",
        "EVENT_DST": "192.0.2.1",
        "EVENT_SPORT": "40000",
        "EVENT_DPORT": "443",
        "EVENT_STATE": "SYN_SENT",
        "EVENT_MARK": "16",
        "EVENT_CITY": "Nuremberg\\nPRIORITY=0\\x1b[31m",
        "EVENT_COUNTRY": "DE",
        "EVENT_LAT": "49.5",
        "EVENT_LON": "11.0",
    }
    named = ("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID")
    assert [first[name] for name in named] == [
        "NEW TCP connection from 10.0.0.1:40000 to 192.0.2.1:443",
        "6",
        "conntrackd",
        EVENT_ID,
    ]
    assert (second["PRIORITY"], second["MESSAGE_ID"], second["EVENT_LOST"]) == ("4", LOST_ID, "7")


@pytest.mark.privileged
def test_a_journald_that_is_stopped_loses_nothing_and_holds_up_nobody() -> None:
    stats = SinkStats()
    with journald() as running:
        outbox: Outbox = Outbox(JournalSink(running.socket), queue=10_000, stats=stats)
        outbox.start()
        running.process.send_signal(signal.SIGSTOP)
        put(outbox, make_flows(2000), render_journal)
        for _ in range(100):  # while the sink waits, this thread goes on
            put(outbox, make_flows(1, 5000), render_journal)
        running.process.send_signal(signal.SIGCONT)
        assert outbox.flush(20)
        outbox.stop(time.monotonic() + 5)
        found = running.wait_for(2100)

    assert [int(entry["EVENT_FLOW"]) for entry in found] == [*range(2000), *[5000] * 100]
    assert stats.sink_events_delivered_total == 2100


@pytest.mark.privileged
@pytest.mark.parametrize(("number", "may_lose"), [(signal.SIGTERM, 0), (signal.SIGKILL, 1)])
def test_a_journald_that_is_ended_and_started_in_mid_stream_has_everything(
    number: signal.Signals, may_lose: int
) -> None:
    """Killed, it takes with it the one record that it held."""
    stats = SinkStats()
    with journald() as running:
        outbox: Outbox = Outbox(JournalSink(running.socket), queue=50_000, stats=stats)
        outbox.start()
        ended_in: list[int] = []
        for turn in range(5):
            for part in range(30):
                put(outbox, make_flows(100, turn * 3000 + part * 100), render_journal)
            deadline = time.monotonic() + 15
            while stats.sink_events_delivered_total < turn * 3000 + 500:
                assert time.monotonic() < deadline
            running.end(number)
            ended_in.append(stats.sink_events_delivered_total - turn * 3000)
            running.start()
        assert outbox.flush(20)
        outbox.stop(time.monotonic() + 5)
        running.wait_for(15_000 - 5 * may_lose)
        running.end(signal.SIGTERM)  # having written all that it was sent
        found = [int(record["EVENT_FLOW"]) for record in running.read("SYSLOG_IDENTIFIER=conntrackd")]

    assert any(count < 3000 for count in ended_in)
    assert stats.sink_events_delivered_total == 15_000
    assert len(found) == len(set(found))
    assert 15_000 - 5 * may_lose <= len(found) <= 15_000


@pytest.mark.privileged
def test_a_socket_that_nobody_holds_is_reported() -> None:
    with journald() as first:
        path = first.socket
        sink = JournalSink(path)
        assert send(sink, make_flows(1)) > 0
        first.close()
        with pytest.raises(SinkUnavailable):
            send(sink, make_flows(1))


def test_what_was_taken_is_known_to_the_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conntrackd.sinks.journal.PATIENCE_SECONDS", 0.02)
    path = tmp_path / "socket"
    parts = [render_journal(make_flows(5)), render_journal(make_flows(5000, 5))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        receiver.setblocking(False)
        sink = JournalSink(path)
        sink.open()
        with pytest.raises(SinkUnavailable) as caught:
            sink.write(parts)
        sink.close()
        received = [receiver.recv(1 << 16) for _ in range(caught.value.written)]
        with pytest.raises(BlockingIOError):
            receiver.recv(1 << 16)

    assert 5 < caught.value.written < 5005
    assert received == [*list_texts(parts[0]), *list_texts(parts[1])][: caught.value.written]


def test_a_journald_that_has_gone_ends_a_write_that_waits(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        sink = JournalSink(path)
        sink.open()
        events = render_journal(make_flows(5000))
        closer = threading.Thread(target=lambda: receiver.close() if receiver.recv(1 << 16) else None)
        closer.start()
        with pytest.raises(SinkUnavailable) as caught:
            sink.write([events])
        closer.join()
        sink.close()

    assert 0 < caught.value.written < 5000


def test_a_journald_that_stands_still_for_too_long_is_reported_and_gets_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the sink waits for it, several times."""
    monkeypatch.setattr("conntrackd.sinks.journal.PATIENCE_SECONDS", 0.02)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        receiver.settimeout(15)
        outbox: Outbox = Outbox(
            JournalSink(path), queue=10_000, stats=SinkStats(), backoff=Backoff(0.001, 0.01)
        )
        outbox.start()
        put(outbox, make_flows(5000), render_journal)
        wait_until(lambda: outbox.snapshot().sink_retries_total > 3, "retries")
        away = (outbox.state, outbox.error, outbox.snapshot().sink_events_delivered_total)
        received = [receiver.recv(1 << 16) for _ in range(5000)]
        assert outbox.flush(15)
        outbox.stop(time.monotonic() + 5)

    assert away[:2] == (SinkState.RETRYING, f"{path}: the receiver does not accept what it is sent")
    assert away[2] < 5000
    assert [re.findall(rb"EVENT_FLOW=(\d+)", message) for message in received] == [
        [b"%d" % number] for number in range(5000)
    ]
    stats = outbox.snapshot()
    assert (stats.sink_events_delivered_total, sum_dropped(stats)) == (5000, 0)


def test_what_goes_at_once_is_sent_without_waiting_and_the_rest_is_the_threads(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        sink = JournalSink(path)
        before = (sink.try_write(render_journal(make_flows(1))), sink.lend())
        sink.open()
        events = render_journal(make_flows(3))
        sent = 0
        while (count := sink.try_write(events)[0]) == 3:
            sent += count
        sent += count
        received = [receiver.recv(4096) for _ in range(sent)]
        many = sink.try_write(render_journal(make_flows(DIRECT_EVENTS + 1)))
        loan = sink.lend()
        sink.close()

    assert before == ((0, 0), None)
    assert received == (list_texts(events) * sent)[:sent]
    assert many == (0, 0)
    assert loan is not None
    assert (loan.way, sink.try_write(events), sink.lend()) == (Way.SEND, (0, 0), None)


def test_closing_from_another_thread_ends_a_write_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conntrackd.sinks.journal.PATIENCE_SECONDS", 600.0)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(path))
        sink = JournalSink(path)
        sink.open()
        events = render_journal(make_flows(5000))
        caught: list[SinkUnavailable] = []

        def write() -> None:
            try:
                sink.write([events])
            except SinkUnavailable as absence:
                caught.append(absence)

        thread = threading.Thread(target=write)
        thread.start()
        receiver.recv(1 << 16)  # it is on its way: no more than some hundred fit
        sink.close()
        thread.join(15)

    assert not thread.is_alive()
    assert 0 < caught[0].written < 4000


def test_no_value_can_begin_a_field_of_its_own() -> None:
    event = make_flow(1)
    event.dst_location = Location(city="a\nMESSAGE=forged\r\x00\u202e")

    datagram = render_journal([event]).text
    assert b"EVENT_CITY=a\\nMESSAGE=forged\\r\\x00\\u202e\n" in datagram
    assert [line.partition(b"=")[0] for line in datagram.splitlines()].count(b"MESSAGE") == 1
