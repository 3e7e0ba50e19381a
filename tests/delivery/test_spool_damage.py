"""Damage of any kind anywhere in a spool: it starts, gives what can be read, and counts what cannot."""

import dataclasses
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from conntrackd.delivery.batch import Batch, pack_batch
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.segment import HEAD, list_heads
from conntrackd.delivery.sink import SinkState, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.spool_state import SLOT
from conntrackd.delivery.store import PackedBatch
from conntrackd.flow import ABSENT, Lost
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, FakeSink, compute_imbalance, feed, run_until_idle
from tests.rendering import make_rendered
from tests.sinks.flows import make_flows

LIMIT = 1 << 20
EVENTS = [1, 20, 300, 4000, 50_000]
"""In each row: a sum of some of them shows of which."""
DONE = 1  # rows that were delivered before
ROWS = {
    number: PackedBatch(b"row %d" % number, events, 10 + number)
    for number, events in enumerate(EVENTS, DONE + 1)
}
SEGMENT = "fake-00000000000000000001.spool"


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here, and every byte is a start."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A spool of which the first row has been delivered."""
    directory = tmp_path / "origin"
    spool = Spool(directory, "fake", LIMIT)
    spool.append([PackedBatch(b"delivered", 9, 1)])
    spool.append(list(ROWS.values())[:2])
    row = spool.first()
    assert row is not None
    spool.remove(row)
    for packed in list(ROWS.values())[2:]:
        spool.append([packed])
    spool.close()
    return directory


def read(directory: Path) -> tuple[list[bytes], int, bool]:
    """What a new process reads from it: payloads, events reported as lost, and whether any has no number."""
    spool = Spool(directory, "fake", LIMIT)
    spool.append([PackedBatch(b"fresh", 1, 1)])
    found = []
    while (row := spool.first()) is not None:
        if row.intact:
            found.append(row.packed.payload)
        spool.remove(row)
    losses = spool.losses
    assert (spool.rows, spool.events) == (0, 0)
    spool.close()
    again = Spool(directory, "fake", LIMIT)
    assert (again.rows, again.losses, again.damage) == (0, losses, "")
    again.close()
    assert {(lost.where, lost.reason) for lost in losses} <= {("fake", "damaged")}
    return (
        found,
        sum(lost.count for lost in losses if lost.count != ABSENT),
        ABSENT in [lost.count for lost in losses],
    )


def check(directory: Path, *, is_kept: bool = True) -> int:
    """One damage: what is not delivered is told, exactly. Returns how much that is."""
    found, lost, is_unknown = read(directory)
    assert found[-1] == b"fresh"
    got = [payload for payload in found[:-1] if payload != b"delivered"]
    assert got == [packed.payload for packed in ROWS.values() if packed.payload in got]
    assert len(found) - 1 - len(got) == 0 or is_unknown
    delivered = sum(packed.events for packed in ROWS.values() if packed.payload in got)
    if not is_unknown:
        assert delivered + lost == sum(EVENTS)
    if is_kept and (lost or is_unknown):
        assert list(directory.glob("fake.damaged-*"))
    return lost


def try_each(origin: Path, changes: Iterator[Callable[[Path], object]], **options: bool) -> list[int]:
    lost = []
    copy = origin.with_name("copy")
    for change in changes:
        shutil.copytree(origin, copy)
        change(copy)
        lost.append(check(copy, **options))
        shutil.rmtree(copy)
    return lost


def flip(name: str, at: int, mask: int) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[at] ^= mask
        (directory / name).write_bytes(content)

    return change


def cut(name: str, end: int, directory: Path) -> None:
    os.truncate(directory / name, end)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_byte_of_the_rows_may_flip_and_costs_one_row(origin: Path, mask: int) -> None:
    size = (origin / SEGMENT).stat().st_size
    lost = try_each(origin, (flip(SEGMENT, at, mask) for at in range(size)))

    assert set(lost) <= {0, *EVENTS}
    assert {*EVENTS} <= set(lost)
    assert lost.count(0) < 100  # the row that was delivered


def test_any_byte_of_the_state_may_flip_and_costs_nothing(origin: Path) -> None:
    name = "fake.state"
    places = [*range(200), *range(200, SLOT, 61), *range(SLOT, SLOT + 200), 2 * SLOT - 1]
    lost = try_each(origin, (flip(name, at, 0xFF) for at in places))

    assert set(lost) == {0}


def test_the_rows_may_end_anywhere(origin: Path) -> None:
    size = (origin / SEGMENT).stat().st_size
    cuts = (partial(cut, SEGMENT, end) for end in range(size))
    lost = try_each(origin, cuts, is_kept=False)

    assert set(lost) == {sum(EVENTS[count:]) for count in range(len(EVENTS))}


def test_a_row_that_is_cut_short_is_missing_from_the_start(origin: Path) -> None:
    cut(SEGMENT, (origin / SEGMENT).stat().st_size - 1, origin)
    spool = Spool(origin, "fake", LIMIT)
    found = (spool.restored, spool.missing, spool.rows)
    spool.close()

    assert found == (sum(EVENTS[:-1]), EVENTS[-1], len(EVENTS) - 1)


def test_the_state_may_end_anywhere_and_what_nobody_knows_is_said_to_be_so(origin: Path) -> None:
    """Both copies: then only the rows tell what there is, and a delivered one may come again."""
    copy = origin.with_name("copy")
    for end in [*range(120), *range(120, 2 * SLOT, 501)]:
        shutil.copytree(origin, copy)
        os.truncate(copy / "fake.state", end)
        check(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("bytes_between", [1, 1000, 300_000])
def test_bytes_that_were_never_written_cost_nothing(origin: Path, bytes_between: int) -> None:
    def insert(copy: Path) -> None:
        content = (copy / SEGMENT).read_bytes()
        at = content.index(b"row 3") + 5
        (copy / SEGMENT).write_bytes(content[:at] + b"\xff" * bytes_between + content[at:])

    assert try_each(origin, iter([insert])) == [0]


def make_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").touch()


def make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/etc/passwd")


def make_dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/nowhere/at/all")


def make_text(path: Path) -> None:
    path.write_bytes(b"this was my shopping list" * 100)


@pytest.mark.parametrize("name", [SEGMENT, "fake.state", "fake.lock", "fake-00000000000000000009.spool"])
@pytest.mark.parametrize(
    "change", [make_directory, make_fifo, make_link, make_dangling, make_text, lambda path: path.unlink(True)]
)
def test_what_stands_in_the_place_of_a_file_is_put_aside(
    origin: Path, name: str, change: Callable[[Path], object]
) -> None:
    password = Path("/etc/passwd").read_bytes()
    change(origin / name)
    lost = check(origin, is_kept=False)

    assert lost == (sum(EVENTS) if name == SEGMENT else 0)
    assert Path("/etc/passwd").read_bytes() == password


def test_what_is_lost_without_a_trace_is_known_by_its_number(origin: Path) -> None:
    """All rows are gone, and nobody was there."""
    (origin / SEGMENT).unlink()
    spool = Spool(origin, "fake", LIMIT)

    assert spool.damage == f"the spool {origin}/fake: {sum(EVENTS)} events of it cannot be read"
    assert spool.missing == sum(EVENTS)
    assert [(lost.count, lost.reason) for lost in spool.losses] == [(sum(EVENTS), "damaged")]
    spool.close()


def test_a_damaged_file_is_kept_as_it_was(origin: Path) -> None:
    flip(SEGMENT, (origin / SEGMENT).read_bytes().index(b"row 4") - 10, 0xFF)(origin)
    damaged = (origin / SEGMENT).read_bytes()
    found, lost, _ = read(origin)

    assert (found, lost) == ([b"row 2", b"row 3", b"row 5", b"row 6", b"fresh"], 300)
    assert [path.read_bytes() for path in origin.glob("fake.damaged-*")] == [damaged]


def test_damaged_files_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(15):
        (tmp_path / f"fake-{number:020}.spool").write_bytes(b"rotten" * 1000)
        (tmp_path / "fake.state").write_bytes(b"rotten")
        Spool(tmp_path, "fake", LIMIT).close()

    assert len(list(tmp_path.glob("fake.damaged-*"))) == 10


def test_whatever_flips_through_the_outbox_the_sums_hold_and_the_loss_is_a_record(tmp_path: Path) -> None:
    """Bits here and there in both files, and the sink's thread, its sums and its LOST records."""
    origin = tmp_path / "origin"
    spool = Spool(origin, "fake", LIMIT)
    for number in range(40):
        spool.append([PackedBatch(pack_batch(Batch.of([make_rendered([b"%d" % number] * 200, 1)])), 200, 1)])
    spool.close()
    chooser = random.Random(4)
    outcomes = set()
    for round_number in range(150):
        directory = tmp_path / str(round_number)
        shutil.copytree(origin, directory)
        for path in directory.glob("*.s*"):
            content = bytearray(path.read_bytes())
            for _ in range(chooser.choice([0, 1, 1, 20, 500])):
                content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
            path.write_bytes(content)
        sink, clock = FakeSink(), Clock()
        outbox = Outbox(
            sink, queue=1000, stats=SinkStats(), spool=Spool(directory, "fake", LIMIT), clock=clock
        )
        for first in (1000, 2000):
            feed(outbox, clock, make_flows(5, first), seconds=60.0)
        stats = outbox.snapshot()
        outbox.stop(clock.now)
        announced = [loss[0] for loss in sink.losses]  # type: ignore[index]
        restored = [number for number in sink.numbers if number < 1000]
        assert (outbox.state, compute_imbalance(stats)) == (SinkState.OK, 0)
        assert restored == sorted(restored)
        assert sink.numbers[-5:] == list(range(2000, 2005))
        assert min(dataclasses.astuple(stats)) >= 0
        if ABSENT not in announced:
            assert len(restored) + sum(announced) == 40 * 200
            assert sum(announced) == stats.sink_events_dropped_damaged_total
        outcomes.add((ABSENT in announced, sum(announced) > 0))
        shutil.rmtree(directory)

    assert {(False, False), (False, True)} <= outcomes


# ---- damage while it runs


def make_away(directory: Path, clock: Clock, count: int = 5) -> tuple[FakeSink, Outbox]:
    sink = FakeSink(batch_events=1, away=SinkUnavailable("away"))
    outbox = Outbox(sink, queue=1000, stats=SinkStats(), spool=Spool(directory, "fake", LIMIT), clock=clock)
    for number in range(count):
        feed(outbox, clock, make_flows(1, number), seconds=100.0)
    return sink, outbox


def locate_row(directory: Path, index: int) -> int:
    with (directory / SEGMENT).open("rb") as file:
        return list(list_heads(file.fileno(), (directory / SEGMENT).stat().st_size))[index].at


def flip_in_row(index: int, at: int, directory: Path) -> None:
    flip(SEGMENT, locate_row(directory, index) + at, 0xFF)(directory)


def cut_in_row(index: int, at: int, directory: Path) -> None:
    os.truncate(directory / SEGMENT, locate_row(directory, index) + at)


def forget_what_is_open(outbox: Outbox) -> None:
    """Or it would read what it has open, or has read before."""
    assert outbox._disk is not None
    store = outbox._disk._store
    assert isinstance(store, Spool)
    store._close_reader()
    store._first = None


@pytest.mark.parametrize(
    ("change", "delivered"),
    [
        (partial(flip_in_row, 1, HEAD.size + 1), [0, 2, 3, 4]),  # a body; the first row is in flight
        (partial(flip_in_row, 2, 10), [0, 1, 3, 4]),  # a head
        (partial(cut_in_row, 2, 24), [0, 1]),
        (lambda directory: (directory / SEGMENT).unlink(), [0]),
        (lambda directory: (directory / "fake.state").unlink(), [0, 1, 2, 3, 4]),
        (lambda directory: (directory / "fake.state").write_bytes(b"rotten"), [0, 1, 2, 3, 4]),
        (shutil.rmtree, [0]),
    ],
)
def test_damage_under_a_running_process_is_counted_and_reported_too(
    tmp_path: Path, change: Callable[[Path], object], delivered: list[int]
) -> None:
    directory, clock = tmp_path / "spool", Clock()
    sink, outbox = make_away(directory, clock)
    forget_what_is_open(outbox)
    change(directory)
    sink.away = None
    run_until_idle(outbox, clock, seconds=100.0)
    feed(outbox, clock, make_flows(1, 9), seconds=100.0)
    stats = outbox.snapshot()
    sink.away = SinkUnavailable("away")
    feed(outbox, clock, make_flows(1, 10), seconds=100.0)
    later = outbox.snapshot()
    outbox.stop(clock.now)
    again = Spool(directory, "fake", LIMIT)
    left = (again.events, again.losses)
    again.close()

    assert sink.numbers == [*delivered, 9]
    lost = 5 - len(delivered)
    assert sink.losses == ([[lost, "fake", "damaged"]] if lost else [])
    assert (stats.sink_events_dropped_damaged_total, stats.sink_events_spooled) == (lost, 0)
    assert (later.sink_events_spooled, compute_imbalance(later)) == (1, 0)
    assert left == (1, ())


def test_a_disk_that_never_gives_back_what_it_has_is_left_after_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    sink, outbox = make_away(tmp_path, clock)
    forget_what_is_open(outbox)

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    sink.away = None
    run_until_idle(outbox, clock, seconds=400.0)
    monkeypatch.undo()
    feed(outbox, clock, make_flows(1, 9), seconds=100.0)
    stats = outbox.snapshot()
    outbox.stop(clock.now)

    assert sink.numbers == [0, 9]  # the first was in flight
    assert sink.losses == [[4, "fake", "damaged"]]
    assert (stats.sink_events_dropped_damaged_total, compute_imbalance(stats)) == (4, 0)
    assert list(tmp_path.glob("fake.damaged-*"))


# ---- what falls over the bound


def test_what_falls_over_the_bound_is_a_number_on_disk_before_it_is_gone(tmp_path: Path) -> None:
    """Any moment is that of a SIGKILL: the files as they are, read by a new process."""
    spool = Spool(tmp_path / "spool", "fake", LIMIT)
    lost = Lost(7, 1, 2, "kernel")
    spool.append([PackedBatch(b"", 0, 1, (lost,))])
    sent = 0
    for number in range(1, 60):
        spool.append([PackedBatch(random.Random(number).randbytes(50_000), number, number)])
        sent += number
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "spool", copy)
        again = Spool(copy, "fake", LIMIT)
        announced = {reported.where: reported.count for reported in again.losses}
        assert again.events + announced.get("fake", 0) == sent
        # A report that falls over the bound is a number again.
        assert announced.get("kernel", 0) == (7 if announced else 0)
        again.close()
        shutil.rmtree(copy)
    assert announced
    spool.close()


def test_a_number_is_on_disk_until_its_report_is_delivered(tmp_path: Path) -> None:
    """Killed after any step: reported once, or twice where the report was in flight; never not at all."""
    clock = Clock()
    sink, outbox = make_away(tmp_path / "spool", clock, 1)
    assert outbox._disk is not None
    outbox._disk.note([Lost(5, 1, 2, "fake", "spool")])
    sink.away = None
    announced = []
    for step in range(30):
        copy = tmp_path / f"copy-{step}"
        shutil.copytree(tmp_path / "spool", copy)
        second = FakeSink()
        after = Outbox(second, queue=10, stats=SinkStats(), spool=Spool(copy, "fake", LIMIT), clock=clock)
        run_until_idle(after, clock, seconds=60.0)
        after.stop(clock.now)
        announced.append(len(second.losses) + len(sink.losses))
        clock.now += outbox.step() or 0.0
    outbox.stop(clock.now)

    assert sink.losses == [[5, "fake", "spool"]]
    assert set(announced) == {1}


@pytest.mark.parametrize("written", [0, 1, 2])
def test_of_several_reports_each_that_is_on_disk_stands_for_its_own_loss(
    tmp_path: Path, written: int
) -> None:
    """Killed while they are written: the state is that of before, which had a smaller number of the first."""
    losses = (Lost(5, 1, 2, "fake", "spool"), Lost(7, 1, 2, "kernel"))
    spool = Spool(tmp_path, "fake", LIMIT)
    spool.append([PackedBatch(b"row", 1, 1)])
    spool.note(losses)
    state = (tmp_path / "fake.state").read_bytes()
    reports = [
        PackedBatch(b"report", 0, 1, (Lost(6, 1, 2, "fake", "spool"),)),
        PackedBatch(b"report", 0, 1, losses[1:]),
    ]
    spool.append(reports, is_report=True)
    whole = spool.losses
    spool.close()
    (tmp_path / "fake.state").write_bytes(state)
    if written < 2:
        cut_in_row(1 + written, 30, tmp_path)
    again = Spool(tmp_path, "fake", LIMIT)
    left = (again.losses, again.rows)
    again.close()

    assert whole == ()
    assert left == (losses[written:], 1 + written)
