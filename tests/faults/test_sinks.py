"""Rows 16 to 23: sinks that are away, slow, full, or answer nonsense, under a daemon that goes on."""

import json
import os
import random
import select
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.bus.names import MANAGER_PATH as PATH
from tests.bus.private import PrivateBus
from tests.bus.raw import Raw
from tests.disk import mount_disk
from tests.faults.producer import compute_number
from tests.faults.receivers import File, Record, read_line, read_message
from tests.faults.rig import Rig, wait_until
from tests.live.daemon import Running
from tests.sinks.loki_server import (
    BLOCKED,
    Fault,
    drip,
    hang,
    refuse_one,
    reset,
    say,
    send_endless,
    send_garbage,
    store_and_reset,
)
from tests.sinks.syslog_servers import rsyslog

pytestmark = pytest.mark.privileged

OTHERS = ("stream", "syslog", "journal")


# ---- row 16: Loki -----------------------------------------------------------------------------------------

# What happens to pushes one after the other, and whether it is dropped by that.
LOKI: dict[str, tuple[list[Fault], bool]] = {
    "429 with Retry-After": ([say(429, "slow down", {"Retry-After": "1"})] * 2, False),
    "500, 502, 503": ([say(500), say(502), say(503)], False),
    "204 lost after storing": ([store_and_reset] * 3, False),
    "reset before the reply": ([reset] * 3, False),
    "a reply without end": ([send_endless(503)], False),
    "a reply of some bytes a second": ([drip], False),
    "1 GB of garbage": ([send_garbage] * 3, False),
    "302 to another host": ([say(302, "", {"Location": "http://192.0.2.1/"})] * 3, False),
    "413": ([say(413, "request body too large")] * 3, False),
    "400": ([say(400, "no")], True),
    "400 with one bad entry": ([refuse_one], True),
    "260, ingestion is blocked": ([say(260, BLOCKED)] * 2, True),
    "401, 403, 404": ([say(401), say(403), say(404)], False),
    "422": ([say(422, "no")], True),
}


@pytest.mark.parametrize("what", LOKI)
def test_row_16_whatever_loki_says_every_event_is_accounted_for_and_no_other_sink_sees_it(
    rig: Rig, what: str
) -> None:
    faults, is_refused = LOKI[what]
    rig.receivers.loki.faults.extend(faults)
    with rig.daemon() as running:
        running.wait_for_start()
        rig.producer.send(1000, 4000)
        rig.wait_for_numbers({rig.producer.sent - 1}, *OTHERS, seconds=5)
        wait_until(lambda: not rig.receivers.loki.faults, 30, rig.describe)
        rig.send_fresh(10)
        rig.wait_for_law()
        rig.measure(running)
        assert running.stop() == 0

    twice = len(faults) * 1000 if store_and_reset in faults else 0
    verdict = rig.evaluate(16, f"Loki: {what}", duplicates=twice)
    assert (rig.tallies["loki"].dropped.total() > 0) == is_refused
    if refuse_one in faults:
        assert rig.tallies["loki"].dropped.total() == 1
    assert set(rig.tallies["loki"].dropped) <= {"refused"}
    assert verdict.lost == 0
    # By query: what was sent twice is there once.
    assert len(rig.receivers.loki.query(type="NEW")) == rig.tallies["loki"].delivered


def test_row_16_a_connection_that_is_closed_in_mid_request_costs_no_event(rig: Rig) -> None:
    """Three times, before the body is read."""
    rig.choose("loki", "stream")
    rig.receivers.loki.early.extend([reset] * 3)
    with rig.daemon("--sink.loki.batch_wait", "1s") as running:
        running.wait_for_start()
        rig.producer.send(20_000, 10_000)
        rig.finish(running, fresh=10)

    verdict = rig.evaluate(16, "Loki: closed in mid-request")
    assert not rig.receivers.loki.early
    assert (verdict.dropped, verdict.lost) == (0, 0)


def test_row_16_events_of_an_outage_are_all_there_exactly_once_by_query(rig: Rig) -> None:
    """From the first event Loki is away; a spool takes what the queue does not."""
    rig.choose("loki", "stream")
    settings = ["--sink.loki.spool", os.fspath(rig.directory / "spool"), "--sink.loki.queue", "2000"]
    rig.receivers.loki.faults.extend([say(503)] * 6)
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.producer.send(30_000, 6000)
        rig.finish(running, law=60, fresh=10)

    verdict = rig.evaluate(16, "Loki away for 5 s of 6,000 events/s, with a spool", duplicates=30_000)
    assert verdict.dropped == 0
    assert len(rig.receivers.loki.query(type="NEW")) == 30_001


# ---- rows 18 and 19: receivers that stand still ----------------------------------------------------------


def test_row_18_a_syslog_server_that_stands_still_costs_no_event_but_by_name(rig: Rig) -> None:
    rig.choose("syslog", "stream")
    with rig.daemon("--sink.syslog.queue", "5000") as running:
        running.wait_for_start()
        rig.receivers.syslog.pause()
        rig.producer.send(60_000, 10_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        rig.receivers.syslog.go_on()
        rig.finish(running, law=60, fresh=10)

    # Written in part when its time was over: what the server's kernel did not acknowledge comes again.
    verdict = rig.evaluate(18, "syslog stands still for 60,000 events", duplicates=5000)
    assert set(rig.tallies["syslog"].dropped) == {"queue"}
    assert verdict.lost == 0


def test_row_18_a_syslog_server_that_is_away_has_everything_from_the_spool_later(rig: Rig) -> None:
    """A real rsyslogd, killed and started again."""
    rig.choose("stream")
    with rsyslog(rig.directory, "tcp") as server:
        settings = ["--sink.syslog.enable", "--sink.syslog.address", server.address]
        settings += ["--sink.syslog.spool", os.fspath(rig.directory / "spool"), "--sink.syslog.queue", "2000"]
        with rig.daemon(*settings) as running:
            running.wait_for_start()
            rig.producer.send(1000)
            server.wait_for(1000)
            server.kill()
            rig.producer.send(20_000, 4000)
            rig.wait_for_law()
            server.start()
            found = server.wait_for(21_000, 40)
            assert running.stop() == 0

    numbers = [compute_number(int(record["sport"]), int(record["dport"])) for record in map(read_data, found)]
    assert set(numbers) == set(range(21_000))
    rig.evaluate(18, "rsyslogd killed and back, 20,000 events in the spool")


def read_data(message: dict[str, str]) -> Record:
    return read_message(message["data"])


def test_row_19_and_22_sinks_that_stand_still_change_nothing_for_the_others(rig: Rig) -> None:
    """journald and Loki, both, for a minute; what does not fit their queues is told to them."""
    settings = [f"--sink.{name}.queue=5000" for name in ("journal", "loki")]
    rig.receivers.loki.faults.extend([hang] * 100)
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.receivers.journal.pause()
        rig.producer.send(300_000, 5000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", "syslog", seconds=30)
        behind = [rig.tallies[name].delivered for name in ("journal", "loki")]
        rig.receivers.journal.go_on()
        rig.receivers.loki.let_go.set()
        rig.receivers.loki.faults.clear()
        rig.finish(running, fresh=10)

    verdict = rig.evaluate(22, "journald and Loki stand still for 60 s at 5,000 events/s")
    assert max(behind) < 30_000  # what there was room for
    assert [dict(rig.tallies[name].dropped) for name in ("stream", "syslog")] == [{}, {}]
    assert [set(rig.tallies[name].dropped) for name in ("journal", "loki")] == [{"queue"}] * 2
    assert verdict.lost == 0


# ---- row 20: stdout ---------------------------------------------------------------------------------------


class Pipe(File):
    """The reading end of a named pipe, which is read from when the test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        os.mkfifo(path)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.is_read = False
        self._text = b""

    def take(self) -> list[Record]:
        while self.is_read and select.select([self.descriptor], [], [], 0)[0]:
            text = os.read(self.descriptor, 1 << 16)
            if not text:
                break
            self._text += text
        *lines, self._text = self._text.split(b"\n")
        return [read_line(line) for line in lines]


def test_row_20_a_pipe_that_nobody_reads_holds_up_nobody_and_learns_what_it_missed(rig: Rig) -> None:
    pipe = rig.receivers.stream = Pipe(rig.receivers.stream.path)
    with rig.daemon("--sink.stream.queue", "2000") as running:
        running.wait_for_start()
        rig.producer.send(20_000, 10_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "syslog", "loki", "journal", seconds=5)
        pipe.is_read = True
        rig.finish(running)
    verdict = rig.evaluate(20, "a pipe that nobody reads for 20,000 events")
    os.close(pipe.descriptor)

    assert set(rig.tallies["stream"].dropped) == {"queue"}
    assert verdict.lost == 0


# ---- row 21: disks ----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB, all but full."""
    with mount_disk(tmp_path / "disk", "8m") as path:
        (path / "ballast").write_bytes(bytes(7 << 20))
        yield path


def test_row_21_a_disk_that_is_full_and_then_is_not_costs_no_event_but_by_name(rig: Rig, disk: Path) -> None:
    rig.choose("loki", "stream")
    loki = rig.receivers.loki
    settings = ["--sink.loki.spool", os.fspath(disk / "spool"), "--sink.loki.queue", "5000"]
    loki.faults.extend([say(503)] * 100)
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.producer.send(80_000, 10_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        full = running.has_said("No space left on device")
        (disk / "ballast").unlink()
        loki.faults.clear()
        rig.finish(running, law=60, fresh=10)

    verdict = rig.evaluate(21, "the spool's disk is full while Loki is away")
    assert full, running.said
    assert set(rig.tallies["loki"].dropped) == {"queue"}
    assert verdict.lost == 0


# ---- row 23: GeoIP ----------------------------------------------------------------------------------------


def make_database(path: Path, city: str) -> bytes:
    writer = MMDBWriter(4, "GeoLite2-City")
    writer.insert_network(IPSet(["10.0.0.0/8"]), {"city": {"names": {"en": city}}})
    writer.to_db_file(str(path))
    return path.read_bytes()


def is_told(running: Running, times: int) -> bool:
    return sum("keeping the old one" in line for line in running.said) == times


def test_row_23_a_database_is_replaced_and_damaged_under_a_running_daemon(rig: Rig) -> None:
    rig.choose("stream")
    path, fresh = rig.directory / "a.mmdb", rig.directory / "b.mmdb"
    make_database(path, "Nuremberg")
    whole = make_database(fresh, "Lyon")
    flipped = bytearray(whole)
    flipped[whole.index(b"Lyon") - 1] ^= 0x20  # a name that is no text any more
    damages = [whole[: len(whole) // 2], b"", bytes(4096), random.Random(5).randbytes(10_000), bytes(flipped)]

    def send_and_read_city() -> str:
        rig.send_fresh()
        line = rig.receivers.stream.path.read_bytes().splitlines()[-1]
        return str(json.loads(line)["city"])

    with rig.daemon("--geoip.database", os.fspath(path)) as running:
        running.wait_for_start()
        cities = [send_and_read_city()]
        fresh.rename(path)
        wait_until(lambda: send_and_read_city() == "Lyon", 10, rig.describe)
        for number, damage in enumerate(damages, 1):
            with path.open("r+b") as file:  # in place
                file.truncate(0)
                file.write(damage)
            running.wait(partial(is_told, running, number), "the warning")
            cities.append(send_and_read_city())
        rig.wait_for_law()
        rig.measure(running)
        assert running.stop() == 0

    assert cities == ["Nuremberg", *["Lyon"] * len(damages)]
    rig.evaluate(23, "GeoIP database replaced, then damaged in five ways")


# ---- memory -----------------------------------------------------------------------------------------------

MIB = 1 << 20


def read_memory(process: int) -> int:
    """Bytes in use now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_bounded_by_the_queues_when_every_sink_is_away(rig: Rig) -> None:
    """Below 64 MiB with all sinks on and idle; then what waits, once for all of them, and no more."""
    pipe = rig.receivers.stream = Pipe(rig.receivers.stream.path)
    loki, syslog, journal = rig.receivers.loki, rig.receivers.syslog, rig.receivers.journal
    settings = [f"--sink.{name}.queue=10000" for name in rig.sinks]
    loki.faults.extend([say(503)] * 1000)
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        idle = read_memory(running.process.pid)
        syslog.pause()
        journal.pause()
        used = []
        for _ in range(4):
            rig.producer.send(50_000, 10_000)
            used.append(read_memory(running.process.pid))
        pipe.is_read = True
        syslog.go_on()
        journal.go_on()
        loki.faults.clear()
        rig.finish(running, law=60, fresh=10)

    rig.evaluate(22, "every sink away for 200,000 events, queues of 10,000", duplicates=10_000)
    os.close(pipe.descriptor)
    assert idle < 64 * MIB
    assert used[-1] - idle < 32 * MIB
    assert used[-1] - used[1] < 4 * MIB


# ---- row 42 -----------------------------------------------------------------------------------------------


def test_row_42_a_sink_that_refuses_all_is_a_problem_until_it_takes_something_and_costs_no_other(
    rig: Rig, tmp_path: Path
) -> None:
    rig.receivers.loki.faults.extend([say(400, "nothing of that")] * 1000)
    with (
        PrivateBus() as bus,
        rig.daemon("--bus.address", bus.address, extra={"CONNTRACKD_BUS_ENABLE": "true"}) as running,
    ):
        running.wait_for_words("org.conntrackd1 is on")
        with bus.connect() as client, Raw(bus.address, {}) as raw:
            raw.ask_bus("AddMatch", "s", "type='signal',member='PropertiesChanged'")

            def read_problems() -> list[str]:
                return list(client.read_properties()["Problems"])

            before = read_problems()
            rig.producer.send(100)
            rig.wait_for_numbers({rig.producer.sent - 1}, *OTHERS, seconds=5)
            wait_until(lambda: read_problems() != [], 10, rig.describe)
            during = read_problems()
            raw.read_until(lambda header: header.path == PATH and header.member == "PropertiesChanged")
            rig.receivers.loki.faults.clear()
            rig.send_fresh()
            wait_until(lambda: read_problems() == [], 15, lambda: str(read_problems()))
        assert running.stop() == 0

    verdict = rig.evaluate(42, "Loki refuses everything")
    assert before == []
    assert during[0].startswith("sink loki is refused: ")
    assert verdict.lost == 0
    assert rig.tallies["loki"].dropped == {"refused": 100}
