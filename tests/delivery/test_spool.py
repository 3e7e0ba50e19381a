"""The spool: what goes in comes out, in order, after everything that can happen to a file."""

import random
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conntrackd.delivery.batch import Batch, pack_batch
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.store import PackedBatch, SpoolError
from conntrackd.errors import ConfigError
from conntrackd.flow import ABSENT
from conntrackd.stats import SinkStats
from tests.delivery.fakes import (
    Clock,
    FakeSink,
    compute_imbalance,
    feed,
    make_events,
    put,
    render_fat,
    run_until_idle,
    sum_dropped,
)
from tests.disk import mount_disk
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


def make_packed(number: int, size: int = 100) -> PackedBatch:
    return PackedBatch(random.Random(number).randbytes(size), 3, number + 1)


def drain(spool: Spool) -> list[PackedBatch]:
    """Everything in it, by the way that the outbox goes."""
    found = []
    while (row := spool.first()) is not None:
        if row.intact:
            found.append(row.packed)
        spool.remove(row)
    return found


def test_what_goes_in_comes_out_in_order_also_after_a_restart(open_spool: OpenSpool) -> None:
    spool = open_spool()
    batches = [make_packed(number) for number in range(20)]
    spool.append(batches[:1])
    spool.append(batches[1:5])
    for packed in batches[5:10]:
        spool.append([packed])
    row = spool.first()
    assert row is not None
    spool.remove(row)
    spool.close()
    again = open_spool()
    found = (again.rows, again.events, again.oldest)
    again.append(batches[10:])

    assert row.packed == batches[0]
    assert found == (9, 27, 2)
    assert drain(again) == batches[1:]
    assert (again.rows, again.events, again.oldest, again.first()) == (0, 0, 0, None)


def test_only_its_owner_can_read_it(open_spool: OpenSpool, tmp_path: Path) -> None:
    open_spool().append([make_packed(1)])

    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "spool").iterdir()}

    assert modes == {
        "fake-00000000000000000001.spool": 0o600,
        "fake.state": 0o600,
        "fake.lock": 0o600,
    }
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
        f"the spool {tmp_path}/spool/fake is in use by another process\n"
        "hint: each conntrackd needs a spool directory of its own\n"
    )


def test_two_sinks_can_share_a_directory(tmp_path: Path) -> None:
    one, other = Spool(tmp_path, "loki", MEBIBYTE), Spool(tmp_path, "syslog", MEBIBYTE)
    one.append([make_packed(1)])
    other.append([make_packed(2)])

    assert (drain(one), drain(other)) == ([make_packed(1)], [make_packed(2)])
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
        gone += [row.packed.oldest - 1 for row in spool.append([make_packed(number, 50_000)])]

    size = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())

    assert size <= MEBIBYTE + 100_000
    assert gone == list(range(len(gone)))
    assert 75 <= len(gone) <= 85
    assert [(lost.count, lost.where, lost.reason) for lost in spool.losses] == [
        (3 * len(gone), "fake", "spool")
    ]
    assert drain(spool) == [make_packed(number, 50_000) for number in range(len(gone), 100)]


def test_a_row_that_is_being_written_never_goes_for_newer_ones(open_spool: OpenSpool) -> None:
    spool = open_spool(limit=MEBIBYTE)
    spool.append([make_packed(0, 50_000)])
    held = spool.first()
    assert held is not None
    gone = []
    for number in range(1, 50):
        gone += spool.append([make_packed(number, 50_000)], keep=held.number)

    assert gone
    assert held.number not in {row.number for row in gone}
    assert spool.first() == held


def test_there_is_always_room_for_one_batch(open_spool: OpenSpool) -> None:
    spool = open_spool(limit=MEBIBYTE)
    spool.append([make_packed(0)])
    gone = spool.append([make_packed(1, 3 * MEBIBYTE)])

    assert [row.packed.oldest for row in gone] == [1]
    assert drain(spool) == [make_packed(1, 3 * MEBIBYTE)]


def test_an_empty_spool_gives_the_disk_back(open_spool: OpenSpool, tmp_path: Path) -> None:
    spool = open_spool()
    for number in range(100):
        spool.append([make_packed(number, 50_000)])
    full = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    drain(spool)
    empty = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir())
    spool.append([make_packed(1)])

    assert full > 5_000_000
    assert empty < 100_000
    assert drain(spool) == [make_packed(1)]


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB."""
    with mount_disk(tmp_path / "disk", "8m") as disk:
        yield disk


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
    feed(outbox, clock, make_flows(1, 240), seconds=100.0)
    back = outbox.snapshot()
    sink.away = SinkUnavailable("away")
    feed(outbox, clock, make_flows(1, 241), seconds=100.0)
    later = outbox.snapshot()
    outbox.stop(clock.now)

    assert away.sink_spool_errors_total > 0
    assert away.sink_events_queued == 20
    assert 20 < away.sink_events_spooled < 200
    assert sink.numbers == [*range(len(sink.numbers) - 1), 240]
    assert len(sink.numbers) == 241 - back.sink_events_dropped_queue_total
    assert (later.sink_events_spooled, compute_imbalance(later)) == (1, 0)


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
    feed(outbox, clock, make_flows(5, 5), seconds=100.0)
    away = outbox.snapshot()
    sink.away = None
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    run_until_idle(outbox, clock, seconds=100.0)
    back = outbox.snapshot()
    outbox.stop(clock.now)

    assert away.sink_events_queued == 5
    assert away.sink_spool_errors_total > 0
    assert sink.numbers == list(range(10))
    assert (sum_dropped(back), compute_imbalance(back)) == (0, 0)


@pytest.mark.privileged
def test_what_is_on_a_disk_that_is_read_only_at_the_start_is_counted_and_delivered_later(
    small_disk: Path,
) -> None:
    before = Spool(small_disk, "fake", MEBIBYTE)
    before.append([PackedBatch(pack_batch(Batch.of([make_events(2)])), 2, 1)])
    before.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    sink, clock = FakeSink(), Clock()
    outbox = Outbox(sink, queue=20, stats=SinkStats(), spool=Spool(small_disk, "fake", MEBIBYTE), clock=clock)
    feed(outbox, clock, make_flows(1, 2), seconds=1.0)
    away = outbox.snapshot()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    clock.now += 60.0
    feed(outbox, clock, make_flows(1, 3), seconds=60.0)
    stats = outbox.snapshot()
    outbox.stop(clock.now)

    assert away.sink_spool_errors_total == 1
    assert sorted(sink.numbers) == [0, 1, 2, 3]
    assert (stats.sink_events_restored_total, stats.sink_events_spooled, compute_imbalance(stats)) == (
        2,
        0,
        0,
    )


@pytest.mark.privileged
def test_a_read_only_disk_at_the_start_is_survived(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    spool = Spool(small_disk / "new", "fake", MEBIBYTE)
    with pytest.raises(SpoolError, match="Read-only file system"):
        spool.append([make_packed(1)])
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    spool.append([make_packed(1)])

    assert drain(spool) == [make_packed(1)]
    spool.close()


# ---- what was there before


def write_database(path: Path, rows: list[PackedBatch]) -> None:
    """As 2.0 did."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE parcels (number INTEGER PRIMARY KEY, events INTEGER NOT NULL, oldest INTEGER NOT NULL,"
        " checksum INTEGER NOT NULL, payload BLOB NOT NULL)"
    )
    for number, packed in enumerate(rows, 1):
        checksum = zlib.crc32(
            packed.payload, zlib.crc32(b"%d %d %d" % (number, packed.events, packed.oldest))
        )
        row = (number, packed.events, packed.oldest, checksum, packed.payload)
        database.execute("INSERT INTO parcels VALUES (?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()


def test_a_spool_of_an_older_daemon_is_read_once(open_spool: OpenSpool, tmp_path: Path) -> None:
    batches = [make_packed(number) for number in range(5)]
    (tmp_path / "spool").mkdir()
    write_database(tmp_path / "spool" / "fake.sqlite", batches)
    spool = open_spool()
    found = (spool.restored, spool.rows, spool.damage)
    spool.append([make_packed(5)])

    assert found == (15, 5, "")
    assert drain(spool) == [*batches, make_packed(5)]
    assert not list((tmp_path / "spool").glob("*.sqlite*"))


@pytest.mark.parametrize("damage", ["row", "file"])
def test_of_a_damaged_one_what_can_be_read_is_delivered_and_the_rest_is_reported(
    open_spool: OpenSpool, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "spool" / "fake.sqlite"
    path.parent.mkdir()
    write_database(path, [make_packed(number) for number in range(5)])
    content = bytearray(path.read_bytes())
    if damage == "row":
        content[content.index(make_packed(2).payload) + 50] ^= 1
    else:
        content[:100] = b"this was my shopping list".ljust(100)
    path.write_bytes(content)
    spool = open_spool()
    losses = [(lost.count, lost.where, lost.reason) for lost in spool.losses]
    wanted = [make_packed(number) for number in (0, 1, 3, 4)] if damage == "row" else []

    assert drain(spool) == wanted
    assert losses == [(3 if damage == "row" else ABSENT, "fake", "damaged")]
    assert (tmp_path / "spool" / "fake.damaged-1").read_bytes() == content
