"""The spool: what goes in comes out, in order, after everything that can happen to a file."""

import dataclasses
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conntrackd.delivery.batch import Batch, pack_batch
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkState, SinkUnavailable
from conntrackd.delivery.spool import Parcel, Spool, SpoolError
from conntrackd.errors import ConfigError
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    Clock,
    FakeSink,
    find_imbalance,
    put,
    render_fat,
    run_until_idle,
    sum_dropped,
)
from tests.rendering import make_rendered
from tests.sinks.flows import make_flows

MEBIBYTE = 1 << 20
OpenSpool = Callable[..., Spool]


@pytest.fixture
def open_spool(tmp_path: Path) -> Iterator[OpenSpool]:
    """Opens spools and closes them all in the end."""
    opened: list[Spool] = []

    def open_one(directory: Path = tmp_path / "spool", limit: int = 64 * MEBIBYTE) -> Spool:
        opened.append(Spool(directory, "fake", limit))
        return opened[-1]

    yield open_one
    for spool in opened:
        spool.close()


def make_parcel(number: int, size: int = 100, events: int = 3) -> Parcel:
    return Parcel(random.Random(number).randbytes(size), events, number + 1)


def drain(spool: Spool) -> list[Parcel]:
    """Everything in it, by the way that the outbox goes."""
    found = []
    while (row := spool.first()) is not None:
        if row.intact:
            found.append(row.parcel)
        spool.remove(row)
    return found


def test_what_goes_in_comes_out_in_order_also_after_a_restart(open_spool: OpenSpool) -> None:
    spool = open_spool()
    parcels = [make_parcel(number) for number in range(20)]
    spool.append(parcels[:1])
    spool.append(parcels[1:5])
    for parcel in parcels[5:10]:
        spool.append([parcel])
    row = spool.first()
    assert row is not None
    spool.remove(row)
    spool.close()
    again = open_spool()
    found = (again.rows, again.events, again.oldest)
    again.append(parcels[10:])

    assert row.parcel == parcels[0]
    assert found == (9, 27, 2)
    assert drain(again) == parcels[1:]
    assert (again.rows, again.events, again.oldest, again.first()) == (0, 0, 0, None)


def test_only_its_owner_can_read_it(open_spool: OpenSpool, tmp_path: Path) -> None:
    open_spool().append([make_parcel(1)])

    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()}

    assert modes == {"fake.sqlite": 0o600, "fake.sqlite-wal": 0o600, "fake.lock": 0o600}
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_a_second_process_is_refused_with_a_reason(open_spool: OpenSpool, tmp_path: Path) -> None:
    first = open_spool()
    code = f"""
from pathlib import Path
from conntrackd.errors import ConfigError
from conntrackd.delivery.spool import Spool
try:
    Spool(Path({str(tmp_path / "spool")!r}), "fake", 1 << 20)
except ConfigError as error:
    print(error)
"""

    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ConfigError, match="in use by another process"):
        open_spool()
    first.close()
    open_spool()

    assert refused.stdout == (
        f"the spool {tmp_path}/spool/fake.sqlite is in use by another process\n"
        "hint: each conntrackd needs a spool directory of its own\n"
    )


def test_two_sinks_can_share_a_directory(tmp_path: Path) -> None:
    one, other = Spool(tmp_path, "loki", MEBIBYTE), Spool(tmp_path, "syslog", MEBIBYTE)
    one.append([make_parcel(1)])
    other.append([make_parcel(2)])

    assert (drain(one), drain(other)) == ([make_parcel(1)], [make_parcel(2)])
    one.close()
    other.close()


def test_a_directory_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="Not a directory"):
        Spool(tmp_path / "file" / "spool", "fake", MEBIBYTE)


def test_over_its_bound_the_oldest_go_and_are_named(open_spool: OpenSpool, tmp_path: Path) -> None:
    spool = open_spool(limit=MEBIBYTE)
    gone = []
    for number in range(100):
        gone += [row.parcel.oldest - 1 for row in spool.append([make_parcel(number, 50_000)])]

    size = (tmp_path / "spool" / "fake.sqlite").stat().st_size

    assert size <= MEBIBYTE + 100_000
    assert gone == list(range(len(gone)))
    assert 75 <= len(gone) <= 85
    assert drain(spool) == [make_parcel(number, 50_000) for number in range(len(gone), 100)]


def test_a_row_that_is_being_written_never_goes_for_newer_ones(open_spool: OpenSpool) -> None:
    spool = open_spool(limit=MEBIBYTE)
    spool.append([make_parcel(0, 50_000)])
    held = spool.first()
    assert held is not None
    gone = []
    for number in range(1, 50):
        gone += spool.append([make_parcel(number, 50_000)], keep=held.number)

    assert gone
    assert held.number not in {row.number for row in gone}
    assert spool.first() == held


def test_there_is_always_room_for_one_parcel(open_spool: OpenSpool) -> None:
    spool = open_spool(limit=MEBIBYTE)
    spool.append([make_parcel(0)])
    gone = spool.append([make_parcel(1, 3 * MEBIBYTE)])

    assert [row.parcel.oldest for row in gone] == [1]
    assert drain(spool) == [make_parcel(1, 3 * MEBIBYTE)]


def test_an_empty_spool_gives_the_disk_back(open_spool: OpenSpool, tmp_path: Path) -> None:
    spool = open_spool()
    for number in range(100):
        spool.append([make_parcel(number, 50_000)])
    full = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    drain(spool)
    empty = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    spool.append([make_parcel(1)])

    assert full > 5_000_000
    assert empty < 100_000
    assert drain(spool) == [make_parcel(1)]


# ---- damage


def test_a_log_torn_at_any_offset_of_its_last_record_gives_back_all_before_it(tmp_path: Path) -> None:
    """As after a power failure: frames of the write-ahead log are checked, what is cut off never was."""
    origin = tmp_path / "origin"
    spool = Spool(origin, "fake", MEBIBYTE)
    for number in range(5):
        spool.append([make_parcel(number)])
    log = origin / "fake.sqlite-wal"
    whole = log.stat().st_size
    spool.append([make_parcel(5)])
    torn = log.stat().st_size
    copy = tmp_path / "copy"
    counts = []
    for size in range(whole, torn + 1):
        shutil.copytree(origin, copy)
        os.truncate(copy / log.name, size)
        again = Spool(copy, "fake", MEBIBYTE)
        assert again.damage == ""
        found = drain(again)
        assert found == [make_parcel(number) for number in range(len(found))]
        counts.append(len(found))
        again.close()
        shutil.rmtree(copy)
    spool.close()

    assert set(counts) == {5, 6}
    assert counts[-1] == 6


def test_a_file_that_is_no_database_is_kept_aside(open_spool: OpenSpool, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "fake.sqlite").write_bytes(b"this was my shopping list" * 100)
    spool = open_spool()
    spool.append([make_parcel(1)])

    assert "file is not a database" in spool.damage
    assert (tmp_path / "spool" / "fake.damaged-1").read_bytes().startswith(b"this was my shopping list")
    assert drain(spool) == [make_parcel(1)]


def test_damaged_files_do_not_pile_up(tmp_path: Path) -> None:
    for _ in range(15):
        (tmp_path / "fake.sqlite").write_bytes(b"rotten" * 1000)
        Spool(tmp_path, "fake", MEBIBYTE).close()

    assert len(list(tmp_path.glob("fake.damaged-*"))) == 10


def test_a_flipped_bit_in_a_payload_is_noticed(open_spool: OpenSpool, tmp_path: Path) -> None:
    spool = open_spool()
    for number in range(3):
        spool.append([make_parcel(number, 3000)])
    spool.close()
    path = tmp_path / "spool" / "fake.sqlite"
    content = bytearray(path.read_bytes())
    content[content.index(make_parcel(1, 3000).payload) + 1500] ^= 1
    path.write_bytes(content)

    assert drain(open_spool()) == [make_parcel(0, 3000), make_parcel(2, 3000)]


def test_whatever_bits_flip_nothing_unknown_comes_out_and_everything_is_accounted_for(tmp_path: Path) -> None:
    """Through the outbox, whose thread must survive it and whose sums must hold."""
    origin = tmp_path / "origin"
    spool = Spool(origin, "fake", MEBIBYTE)
    for number in range(40):
        noise = [random.Random(number).randbytes(30).hex().encode() for number in range(20)]
        batch = Batch.of([make_rendered([b"%d %b" % (number, text) for text in noise], 1)])
        spool.append([Parcel(pack_batch(batch), 20, 1)])
    spool.close()
    content = (origin / "fake.sqlite").read_bytes()
    outcomes = set()
    chooser = random.Random(4)
    for round_number in range(150):
        directory = tmp_path / str(round_number)
        directory.mkdir()
        broken = bytearray(content)
        for _ in range(chooser.choice([1, 1, 20, 500])):
            broken[chooser.randrange(len(broken))] ^= 1 << chooser.randrange(8)
        (directory / "fake.sqlite").write_bytes(broken)
        sink, clock = FakeSink(), Clock()
        try:
            spool = Spool(directory, "fake", MEBIBYTE)
        except ConfigError as error:
            pytest.fail(f"damage is no mistake in the configuration: {error}")
        outbox = Outbox(sink, queue=1000, stats=SinkStats(), spool=spool, clock=clock)
        put(outbox, make_flows(5, 1000))
        run_until_idle(outbox, clock, seconds=60.0)
        put(outbox, make_flows(5, 2000))
        run_until_idle(outbox, clock, seconds=60.0)
        stats = outbox.snapshot()
        outbox.stop(clock.now)
        assert outbox.state is SinkState.OK
        assert sink.numbers == sorted(sink.numbers)
        assert set(sink.numbers) <= {*range(40), *range(1000, 1005), *range(2000, 2005)}
        assert sink.numbers[-5:] == list(range(2000, 2005))
        assert min(dataclasses.astuple(stats)) >= 0
        assert stats.sink_events_queued == 0
        outcomes.add((bool(stats.sink_spool_damaged_total), stats.sink_events_dropped_damaged_total > 0))
        shutil.rmtree(directory)

    assert {(False, True), (True, True)} <= outcomes


def test_damage_found_while_a_row_is_being_written_costs_what_is_on_disk_only(
    open_spool: OpenSpool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink, clock = FakeSink(batch_events=1), Clock()
    sink.away = SinkUnavailable("away")
    spool = open_spool()
    outbox = Outbox(sink, queue=1000, stats=SinkStats(), spool=spool, clock=clock)
    for number in range(5):
        put(outbox, make_flows(1, number))
        run_until_idle(outbox, clock, seconds=100.0)

    class Rotten:
        def execute(self, *_: object) -> object:
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

        def close(self) -> None:
            pass

    spool._disconnect()
    spool._database = Rotten()  # type: ignore[assignment]
    put(outbox, make_flows(1, 5))
    outbox.step()
    sink.away = None
    run_until_idle(outbox, clock, seconds=100.0)
    stats = outbox.snapshot()
    outbox.stop(clock.now)

    assert sink.numbers == [0, 5]
    assert (stats.sink_events_dropped_damaged_total, stats.sink_spool_damaged_total) == (4, 1)
    assert f"keeping it as {tmp_path}/spool/fake.damaged-1 with 4 events" in caplog.text


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.privileged
def test_a_full_disk_is_counted_and_the_queue_goes_on_in_memory(small_disk: Path) -> None:
    sink, clock = FakeSink(batch_events=1), Clock()
    sink.away = SinkUnavailable("away")
    spool = Spool(small_disk, "fake", 256 * MEBIBYTE)
    outbox = Outbox(sink, queue=20, stats=SinkStats(), spool=spool, clock=clock)
    for number in range(240):
        put(outbox, make_flows(1, number), render_fat)
        run_until_idle(outbox, clock, seconds=1.0)
    away = outbox.snapshot()
    sink.away = None
    run_until_idle(outbox, clock, seconds=100.0)
    put(outbox, make_flows(1, 240))
    run_until_idle(outbox, clock, seconds=100.0)
    back = outbox.snapshot()
    sink.away = SinkUnavailable("away")
    put(outbox, make_flows(1, 241))
    run_until_idle(outbox, clock, seconds=100.0)
    later = outbox.snapshot()
    outbox.stop(clock.now)

    assert away.sink_spool_errors_total > 0
    assert away.sink_events_queued == 20
    assert 20 < away.sink_events_spooled < 160
    assert sink.numbers == [*range(len(sink.numbers) - 1), 240]
    assert len(sink.numbers) == 241 - back.sink_events_dropped_queue_total
    assert (later.sink_events_spooled, find_imbalance(later)) == (1, 0)


@pytest.mark.privileged
def test_a_disk_that_becomes_read_only_repeats_at_most_and_loses_nothing(small_disk: Path) -> None:
    sink, clock = FakeSink(batch_events=1), Clock()
    sink.away = SinkUnavailable("away")
    spool = Spool(small_disk, "fake", MEBIBYTE)
    outbox = Outbox(sink, queue=1000, stats=SinkStats(), spool=spool, clock=clock)
    for number in range(5):
        put(outbox, make_flows(1, number))
    run_until_idle(outbox, clock)
    spool.close()  # nothing is remounted while a file is open for writing; it is opened again when needed
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    put(outbox, make_flows(5, 5))
    run_until_idle(outbox, clock, seconds=100.0)
    away = outbox.snapshot()
    sink.away = None
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    run_until_idle(outbox, clock, seconds=100.0)
    back = outbox.snapshot()
    outbox.stop(clock.now)

    assert away.sink_events_queued == 5
    assert away.sink_spool_errors_total > 0
    assert sink.numbers == list(range(10))
    assert (sum_dropped(back), find_imbalance(back)) == (0, 0)


@pytest.mark.privileged
def test_a_read_only_disk_at_the_start_is_survived(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    spool = Spool(small_disk / "new", "fake", MEBIBYTE)
    with pytest.raises(SpoolError, match="Read-only file system"):
        spool.append([make_parcel(1)])
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    spool.append([make_parcel(1)])

    assert drain(spool) == [make_parcel(1)]
    spool.close()
