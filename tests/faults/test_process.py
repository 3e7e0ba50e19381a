"""Rows 7 to 15: what happens to the process itself."""

import gzip
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest

from conntrackd.engine import SLOTS
from conntrackd.flow import NANO
from conntrackd.source.state_directory import NOTE_SECONDS
from tests.faults.hooked import POINTS
from tests.faults.producer import compute_number
from tests.faults.receivers import read_entry
from tests.faults.rig import ALL, Rig, wait_until
from tests.live.daemon import Running
from tests.live.service import Store
from tests.live.test_flows import read_ns
from tests.sinks.loki_server import Entry, Fault, Request, hang, say

pytestmark = pytest.mark.privileged

SEEDS = 20


def hooked(point: str, countdown: int, directory: Path) -> list[str]:
    return [sys.executable, "-m", "tests.faults.hooked", point, str(countdown), os.fspath(directory)]


# ---- row 7 ------------------------------------------------------------------------------------------------


def read_bodies(bodies: list[bytes]) -> list[int]:
    """The numbers of the flows in bodies of pushes."""
    records = [
        read_entry(tuple(stream["stream"].items()), Entry(int(when), line, tuple(metadata.items())))
        for body in bodies
        for stream in json.loads(gzip.decompress(body))["streams"]
        for when, line, metadata in stream["values"]
    ]
    return [compute_number(int(record["sport"]), int(record["dport"])) for record in records]


def is_whole(push: Request) -> bool:
    """Not cut short by the end of the process that sent it."""
    return len(push.body) == int(push.headers["Content-Length"])


def live_and_die(rig: Rig, store: Store, point: str, countdown: int) -> None:
    """One daemon until it is killed, and the next one. What was acknowledged or not yet read is there."""
    notify = {"NOTIFY_SOCKET": os.fspath(store.path)}
    spool = ["--sink.loki.spool", os.fspath(rig.directory / "spool"), "--sink.loki.batch_wait", "10ms"]
    begin = rig.producer.sent
    spool += ["--state_directory", os.fspath(rig.directory / f"state-{begin}")]
    store.forget("events")
    (rig.directory / "read").unlink(missing_ok=True)
    rig.receivers.loki.faults.extend([say(503)] * 2)
    with rig.daemon(*spool, program=hooked(point, countdown, rig.directory), extra=notify) as first:
        store.wait("READY=1")
        rig.producer.send(1500, 3000)
        try:
            first.process.wait(3)
        except subprocess.TimeoutExpired:  # a slow machine passes the point less often
            first.process.kill()
    assert first.process.returncode == -signal.SIGKILL
    rig.receivers.loki.faults.clear()
    in_flight = read_bodies([push.body for push in rig.receivers.loki.pushes if is_whole(push)][-1:])
    read = begin + sum(map(int, (rig.directory / "read").read_text().split()))
    acknowledged = {
        number for line in read_lines(rig.directory / "spooled") for number in read_bodies([line])
    }
    with rig.daemon(*spool, extra=notify, descriptor=store.kept) as second:
        store.wait("READY=1")
        rig.send_fresh()
        # A batch may have been taken from the kernel by a process that died before it could note that.
        owed = acknowledged | set(range(read + SLOTS, rig.producer.sent))
        rig.wait_for_numbers(owed)
        assert second.stop() == 0
    assert not second.has_said("not running")

    rig.read()
    twice = {number for number, times in rig.tallies["loki"].seen.items() if times > 1 and number >= begin}
    assert twice <= set(in_flight)


def read_lines(path: Path) -> list[bytes]:
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_row_07_what_was_acknowledged_or_not_yet_read_survives_sigkill(
    rig: Rig, store: Store, point: str
) -> None:
    rig.choose("loki")
    chooser = random.Random(point)
    for seed in range(SEEDS):
        live_and_die(rig, store, point, chooser.randint(1, 30 if point in ("received", "selected") else 6))
        print(f"seed {seed}: {rig.describe()}")

    tally = rig.tallies["loki"]
    rig.evaluate(
        7,
        f"SIGKILL when {point}, {SEEDS} seeds",
        duplicates=tally.duplicated,
        died=rig.producer.sent - tally.delivered,
        kills=SEEDS,
    )


KILLS = 6
# When its flows were sent is known to 0.1 s.
CHUNK = 200


class Load(threading.Thread):
    """Flows at 2,000 a second, and when each chunk of them was sent, until it is enough."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig = rig
        self.times: list[tuple[int, int]] = []
        self.enough = threading.Event()

    def run(self) -> None:
        while not self.enough.is_set():
            begin = time.time_ns()
            self.rig.producer.send(CHUNK, 2000)
            self.times.append((begin, time.time_ns()))


def read_periods(records: Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
    return [(read_ns(record["since"]), read_ns(record["until"])) for record in records]


def is_in(begin: int, end: int, periods: Sequence[tuple[int, int]]) -> bool:
    """Whether what happened between the two is within one of the periods, as far as one can know."""
    return any(since <= end and begin <= until for since, until in periods)


def wait_for_note(rig: Rig, begin: int) -> None:
    """Until the process has noted how far it came, after this time."""
    note = rig.directory / "state/listened"
    wait_until(lambda: note.exists() and int(note.read_text()) > begin, 15, lambda: "no note")


@pytest.mark.slow
@pytest.mark.parametrize("sink", ALL)
def test_row_07_a_kill_under_load_is_reported_with_a_period_in_which_all_is_that_is_missing(
    rig: Rig, store: Store, sink: str
) -> None:
    """What is not read waits in the store."""
    rig.choose(sink)
    chooser, load, began = random.Random(sink), Load(rig), list[int]()
    state = ["--state_directory", os.fspath(rig.directory / "state")]
    state += ["--sink.loki.spool", "off", "--sink.syslog.spool", "off"]
    notify = {"NOTIFY_SOCKET": os.fspath(store.path)}
    tally = rig.tallies[sink]

    def run(kept: int | None) -> AbstractContextManager[Running]:
        began.append(time.time_ns())
        return rig.daemon(*state, extra=notify, descriptor=kept)

    for count in range(KILLS):
        with run(store.kept if count else None) as running:
            store.wait("READY=1")
            if not count:
                load.start()
            wait_for_note(rig, began[-1])
            load.enough.wait(chooser.random())
            running.stop(signal.SIGKILL)
        store.catch_up()
    with run(store.kept) as running:
        store.wait("READY=1")
        load.enough.set()
        load.join()
        rig.send_fresh()
        assert running.stop() == 0

    rig.read()
    periods = read_periods(tally.killed)
    died = [number for number in range(rig.producer.sent) if number not in tally.seen]
    assert all(is_in(*load.times[number // CHUNK], periods) for number in died)
    # At most ten seconds too early.
    assert len(periods) == KILLS
    assert all(
        one - NOTE_SECONDS * NANO < since < other < until
        for (since, until), one, other in zip(periods, began, began[1:], strict=False)
    )
    rig.evaluate(7, f"SIGKILL under load {KILLS} times, {sink}", died=len(died), kills=KILLS)


@pytest.mark.slow
def test_row_07_a_sink_that_was_away_gets_a_period_from_the_first_event_that_it_missed(
    rig: Rig, store: Store
) -> None:
    """Killed twice, the second time with the report of the first in memory. Another sink gets its own."""
    rig.choose("loki", "stream")
    arguments = ["--state_directory", os.fspath(rig.directory / "state"), "--sink.loki.spool", "off"]
    notify = {"NOTIFY_SOCKET": os.fspath(store.path)}
    rig.receivers.loki.faults.extend([say(503)] * 1000)
    with rig.daemon(*arguments, extra=notify) as first:
        store.wait("READY=1")
        began = time.time_ns()
        rig.producer.send(100)
        rig.wait_for_numbers(set(range(100)), "stream")
        wait_until((rig.directory / "state/listened").exists, 15, lambda: "no note")
        held = rig.directory / "state/held"
        wait_until(lambda: "loki" in held.read_text(), 15, held.read_text)
        first.stop(signal.SIGKILL)
    with rig.daemon(*arguments, extra=notify, descriptor=store.kept) as second:
        store.wait("READY=1")
        rig.producer.send(100)
        rig.wait_for_numbers(set(range(200)), "stream")
        wait_until(lambda: len(rig.tallies["stream"].killed) == 1, 15, rig.describe)
        middle = time.time_ns()
        wait_for_note(rig, middle)
        second.stop(signal.SIGKILL)
    rig.receivers.loki.faults.clear()
    with rig.daemon(*arguments, extra=notify, descriptor=store.kept) as third:
        store.wait("READY=1")
        rig.send_fresh()
        assert third.stop() == 0

    rig.read()
    ((missed, until),) = read_periods(rig.tallies["loki"].killed)
    (_, (since, _)) = read_periods(rig.tallies["stream"].killed)
    assert rig.tallies["loki"].seen.keys() == {200}
    assert missed < began + 10**9
    assert middle < since < until


@pytest.mark.parametrize(("kind", "options"), [("read-only", "ro"), ("full", "size=4k")])
def test_row_07_a_state_directory_that_takes_nothing_is_reported_and_events_arrive(
    rig: Rig, kind: str, options: str
) -> None:
    state = rig.directory / "state"
    state.mkdir()
    mount = ["sh", "-c", f'mount -t tmpfs -o {options} state "$0" && exec "$@"', os.fspath(state)]
    more = ["--state_directory", os.fspath(state), "--sink.loki.spool", "off", "--sink.syslog.spool", "off"]
    with rig.daemon(*more, prefix=mount) as running:
        running.wait_for_start()
        rig.send_fresh()
        assert running.stop() == 0

    assert running.has_said("the next start may report losses wrongly, or not at all")
    assert rig.evaluate(7, f"a state directory that is {kind}").delivered == 1


# ---- row 8 ------------------------------------------------------------------------------------------------


def test_row_08_a_reader_that_stands_still_gives_no_sign_of_life_and_the_next_process_has_all(
    rig: Rig, store: Store
) -> None:
    rig.choose("stream")
    notify = {"NOTIFY_SOCKET": os.fspath(store.path), "WATCHDOG_USEC": "1500000"}
    with rig.daemon(program=hooked("standstill", 0, rig.directory), extra=notify) as first:
        for _ in range(5):  # longer than systemd waits for one
            store.wait("WATCHDOG=1")
        (rig.directory / "stand").touch()
        first.wait_for_words("stalled")
        before = "".join(row[0] for row in store.drain()).rpartition("W")[2]
        store.wait("STATUS=")  # the rest of the process is alive
        assert not any("WATCHDOG=1" in row for row in store.drain())
        first.stop(signal.SIGABRT)  # what systemd does then
    rig.producer.send(3000)
    with rig.daemon(extra=notify, descriptor=store.kept) as second:
        store.wait("READY=1")
        rig.wait_for_law()
        rig.send_fresh()
        rig.measure(second)
        assert second.stop() == 0

    assert before.count("S") >= 3  # it is told when systemd's time is over, and not at the first turn missed
    verdict = rig.evaluate(8, "reader hangs, killed by the watchdog, 3,000 flows in the gap")
    assert verdict.delivered == 3001
    assert list(rig.tallies["stream"].seen) == list(range(3001))  # in their order


# ---- row 11 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [say(503), hang])
def test_row_11_a_stop_with_full_queues_is_in_time_and_everything_is_delivered_later(
    rig: Rig, fault: Fault
) -> None:
    rig.choose("loki", "stream")
    settings = ["--sink.loki.spool", os.fspath(rig.directory / "spool"), "--shutdown_timeout", "3s"]
    settings += ["--sink.loki.queue", "20000"]
    rig.receivers.loki.faults.extend([fault] * 1000)
    with rig.daemon(*settings) as first:
        first.wait_for_start()
        rig.producer.send(20_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream")
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(10) == 0
    rig.receivers.loki.faults.clear()
    rig.receivers.loki.let_go.set()
    with rig.daemon(*settings) as second:
        second.wait_for_start()
        rig.send_fresh()
        rig.wait_for_law()
        rig.measure(second)
        assert second.stop() == 0

    verdict = rig.evaluate(11, f"SIGTERM, 20,000 queued, Loki {'hangs' if fault is hang else 'away'}")
    assert verdict.delivered == 20_001


def test_row_43_a_second_sigterm_makes_haste_and_loses_nothing_of_what_is_in_memory(rig: Rig) -> None:
    rig.choose("loki", "stream")
    settings = ["--sink.loki.spool", os.fspath(rig.directory / "spool"), "--shutdown_timeout", "60s"]
    settings += ["--sink.loki.queue", "20000", "--sink.loki.timeout", "60s", "--conntrack.activate"]
    rig.receivers.loki.faults.extend([hang] * 1000)
    with rig.daemon(*settings) as first:
        first.wait_for_start()
        rig.producer.send(20_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream")
        first.process.send_signal(signal.SIGTERM)
        first.wait_for_words("stopping")
        begin = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(15) == 0
        took = time.monotonic() - begin
    rig.receivers.loki.faults.clear()
    rig.receivers.loki.let_go.set()
    with rig.daemon(*settings[:-1]) as second:
        second.wait_for_start()
        rig.send_fresh()
        rig.wait_for_law()
        assert second.stop() == 0

    verdict = rig.evaluate(43, "SIGTERM twice, 20,000 queued, Loki hangs")
    assert verdict.delivered == 20_001
    assert took < 10


# ---- row 12 -----------------------------------------------------------------------------------------------

HOUR, TEN_YEARS = 3600, 3653 * 86_400


class Clock:
    """The time of day of a process, moved while it runs."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "clock"
        self._library = directory / "clock.so"
        self.set(0)
        source = Path(__file__).with_name("clock.c")
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", self._library, source],
            check=True,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": os.fspath(self._library), "CLOCK_FILE": os.fspath(self._path)}

    def set(self, seconds: int) -> None:
        """In place: the process has mapped it."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))


def read_last_time(path: Path) -> float:
    """Of the last event in the stream's file: what the daemon took for the time of day."""
    line = path.read_bytes().splitlines()[-1]
    return datetime.fromisoformat(json.loads(line)["time"]).timestamp()


def test_row_12_jumps_of_the_clock_change_nothing_for_backoff_and_watchdog(rig: Rig, store: Store) -> None:
    rig.choose("loki", "stream")
    clock = Clock(rig.directory)
    notify = {"NOTIFY_SOCKET": os.fspath(store.path), "WATCHDOG_USEC": "1500000"}
    with rig.daemon(extra={**notify, **clock.environment}) as running:
        store.wait("READY=1")
        for jump in (HOUR, -HOUR, TEN_YEARS, -TEN_YEARS, 0):
            rig.receivers.loki.faults.extend([say(503)] * 2)
            rig.producer.send(500)
            wait_until(lambda: not rig.receivers.loki.faults, 15, lambda: "no second attempt")
            clock.set(jump)
            store.drain()
            rig.send_fresh()
            for _ in range(3):
                store.wait("WATCHDOG=1")
            assert abs(read_last_time(rig.receivers.stream.path) - time.time() - jump) < 60
        rig.wait_for_law()
        rig.measure(running)
        assert running.stop() == 0

    assert not running.has_said("stalled")
    rig.evaluate(12, "clock jumps of an hour and ten years, both ways")
