"""Text that a relay leaves for the thread of a sink, which writes it to a file."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conntrackd.core import _core as core
from conntrackd.delivery.loan import Loan, Way
from conntrackd.engine import Outlet, Relayed
from conntrackd.flow import Flow
from conntrackd.render import json, loki
from conntrackd.render.rendered import Rendered
from conntrackd.render.schema import SCHEMAS
from tests.disk import file_limit
from tests.engine.feed import ENGINE, FORM, QUEUE, ROOM, Feed, pair
from tests.rendering import render
from tests.sinks.flows import make_flows
from tests.sinks.syslog_servers import wait_until

KEEP = Loan(Way.KEEP)
FEW_SLOTS = 4
MUCH_TEXT = 1 << 14  # a batch of few events is much then
MOST_WRITTEN = 64
IDLE = (0, 0, ())


@pytest.fixture
def feed() -> Iterator[Feed]:
    with pair() as (one, other):
        yield Feed(QUEUE + 1, one, other)


@pytest.fixture
def writer() -> core.Writer:
    writer = core.Writer()
    writer.start()
    return writer


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "events", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield descriptor
    os.close(descriptor)


def leave(feed: Feed, writer: core.Writer, flows: list[Flow]) -> Relayed:
    """In one relay, at most QUEUE of them."""
    feed.send(flows)
    return feed.relay_to([Outlet(FORM, KEEP, ROOM, writer)])


def read(file: int) -> bytes:
    return os.pread(file, 1 << 20, 0)


def write(flows: list[Flow]) -> bytes:
    return render(json.TEMPLATE, flows).text


def take_rest(writer: core.Writer) -> list[Rendered]:
    return [Rendered(*rest) for rest, _ in writer.take_rest()]


def is_running(writer: core.Writer) -> bool:
    try:
        writer.take_rest()
    except RuntimeError:
        return True
    return False


def test_what_a_relay_leaves_is_written_and_counted(feed: Feed, writer: core.Writer, file: int) -> None:
    flows = make_flows(3)
    passed = leave(feed, writer, flows).passed[0]
    left = writer.take_counts()
    writer.stop()
    written = writer.run(file, True)
    count, oldest, ((time, done, events, size),) = writer.take_counts()

    assert (passed.written, passed.rest.events, passed.left) == ((), 0, 3)
    assert left == (3, flows[0].time, ())
    assert read(file) == write(flows)
    assert written == (0, len(write(flows)), len(write(flows)))
    assert (count, oldest) == (0, 0)
    assert (time, events, size) == (flows[0].time, 3, len(write(flows)))
    assert done > time
    assert (writer.take_counts(), writer.take_rest()) == (IDLE, ())


@pytest.mark.parametrize(("host", "left"), [("", 2 * FEW_SLOTS), ("h" * MUCH_TEXT, FEW_SLOTS)])
def test_much_text_is_left_at_once_and_other_at_the_end(writer: core.Writer, host: str, left: int) -> None:
    """Nobody has taken it then: what came after it is given back."""
    flows = make_flows(2 * FEW_SLOTS)
    template = json.make_template(None, SCHEMAS["ecs"], host)
    with pair() as (one, other):
        feed = Feed(FEW_SLOTS, one, other)
        feed.send(flows)
        (passed,) = feed.relay_to([Outlet(ENGINE.compile_template(template), KEEP, ROOM, writer)]).passed

    assert writer.take_counts()[0] == left
    assert passed.rest.text == b"".join(render(template, [flow]).text for flow in flows[left:])


def test_a_thread_writes_while_events_are_relayed(feed: Feed, writer: core.Writer, file: int) -> None:
    flows = make_flows(100 * QUEUE)
    thread = threading.Thread(target=writer.run, args=(file, True))
    thread.start()
    given: list[tuple[int, Rendered]] = []
    for first in range(0, len(flows), QUEUE):
        rest = leave(feed, writer, flows[first : first + QUEUE]).passed[0].rest
        given.append((first, rest))
    writer.stop()
    thread.join()
    left = [flow for first, rest in given if not rest.events for flow in flows[first : first + QUEUE]]

    assert left
    assert read(file) == write(left)
    assert all(rest.text == write(flows[first : first + QUEUE]) for first, rest in given if rest.events)
    assert writer.take_counts()[0] == len(left)


def test_what_is_not_started_takes_nothing(feed: Feed) -> None:
    writer = core.Writer()
    passed = leave(feed, writer, make_flows(3)).passed[0]

    assert passed.rest == render(json.TEMPLATE, make_flows(3))
    assert writer.take_counts() == IDLE


def test_a_second_text_waits_for_the_first_to_be_taken(feed: Feed, writer: core.Writer) -> None:
    leave(feed, writer, make_flows(2))

    assert leave(feed, writer, make_flows(1)).passed[0].rest == render(json.TEMPLATE, make_flows(1))
    assert writer.take_counts()[0] == 2


def test_stop_ends_a_run_that_waits(writer: core.Writer, file: int) -> None:
    thread = threading.Thread(target=writer.run, args=(file, True))
    thread.start()
    writer.stop()
    thread.join()

    assert read(file) == b""


def test_a_full_file_gives_back_whole_lines_and_says_what_is_torn(
    feed: Feed, writer: core.Writer, file: int
) -> None:
    flows = make_flows(4)
    os.write(file, b"before\n")
    leave(feed, writer, flows)
    whole = len(write(flows[:2]))
    with file_limit(7 + whole + 10):
        found = writer.run(file, True)
    left, oldest, ((_, _, events, size),) = writer.take_counts()

    assert found == (7, whole + 10, whole)
    assert read(file) == b"before\n" + write(flows)[: whole + 10]
    assert (left, oldest, events, size) == (4, flows[0].time, 2, whole)
    assert take_rest(writer) == [render(json.TEMPLATE, flows[2:])._replace(time=flows[0].time)]
    assert leave(feed, writer, flows).passed[0].rest.events == 4


def test_what_was_left_behind_a_text_that_could_not_be_written_is_given_back_too(
    feed: Feed, writer: core.Writer, file: int
) -> None:
    flows = make_flows(6)
    leave(feed, writer, flows[:3])
    with file_limit(0):
        writer.run(file, True)
    writer.start()
    leave(feed, writer, flows[3:])

    assert writer.take_counts()[:2] == (6, flows[0].time)
    assert take_rest(writer) == [render(json.TEMPLATE, flows[:3]), render(json.TEMPLATE, flows[3:])]
    assert writer.take_counts()[:2] == (0, 0)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_that_was_deleted_is_not_written_to_if_it_has_to_have_a_name(
    feed: Feed, writer: core.Writer, file: int, tmp_path: Path, *, is_named: bool
) -> None:
    (tmp_path / "events").unlink()
    leave(feed, writer, make_flows(2))
    writer.stop()
    writer.run(file, is_named)

    assert read(file) == (b"" if is_named else write(make_flows(2)))
    assert len(take_rest(writer)) == is_named


def test_a_descriptor_that_is_closed_loses_nothing(feed: Feed, writer: core.Writer) -> None:
    leave(feed, writer, make_flows(2))

    assert writer.run(-1, True) == (-1, 0, 0)
    assert take_rest(writer) == [render(json.TEMPLATE, make_flows(2))]


def test_a_file_that_somebody_else_opened_is_written_where_that_has_come_to(
    feed: Feed, writer: core.Writer, tmp_path: Path
) -> None:
    descriptor = os.open(tmp_path / "hole", os.O_RDWR | os.O_CREAT)
    os.lseek(descriptor, 5, os.SEEK_SET)
    leave(feed, writer, make_flows(1))
    writer.stop()

    assert writer.run(descriptor, False)[0] == 5
    assert read(descriptor) == b"\0" * 5 + write(make_flows(1))
    os.close(descriptor)


def test_writes_that_nobody_looks_at_for_long_are_counted_as_one(
    feed: Feed, writer: core.Writer, file: int
) -> None:
    for _ in range(MOST_WRITTEN + 10):
        writer.start()
        leave(feed, writer, make_flows(2))
        writer.stop()
        writer.run(file, True)
    left, _, rows = writer.take_counts()

    assert len(rows) == MOST_WRITTEN
    assert left == sum(events for _, _, events, _ in rows) == 2 * (MOST_WRITTEN + 10)
    assert sum(size for *_, size in rows) == len(read(file))


def test_what_waits_behind_a_write_that_hangs_can_be_given_up(
    feed: Feed, writer: core.Writer, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    size = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    os.write(pipe, bytes(size))
    leave(feed, writer, make_flows(2))
    thread = threading.Thread(target=writer.run, args=(pipe, True))
    thread.start()
    wait_until(lambda: leave(feed, writer, make_flows(1)).passed[0].rest.events == 0, "the first to be taken")
    writer.give_up()
    rest = leave(feed, writer, make_flows(1)).passed[0].rest
    os.read(pipe, size)
    thread.join()

    assert os.read(pipe, size) == write(make_flows(2))
    assert (rest.events, writer.take_rest()) == (1, ())
    os.close(pipe)


def test_nobody_runs_it_twice_or_takes_the_rest_while_it_runs(writer: core.Writer, file: int) -> None:
    thread = threading.Thread(target=writer.run, args=(file, True))
    thread.start()
    wait_until(lambda: is_running(writer), "it to run")
    with pytest.raises(RuntimeError, match="in use by another thread"):
        writer.run(file, True)
    writer.stop()
    thread.join()


@pytest.mark.parametrize(
    ("form", "loan"), [(FORM, Loan(Way.DISCARD)), (ENGINE.compile_template(loki.TEMPLATE), KEEP)]
)
def test_text_that_goes_elsewhere_or_is_not_in_order_is_not_left(
    feed: Feed, writer: core.Writer, form: Any, loan: Loan
) -> None:
    with pytest.raises(ValueError, match="excludes the others"):
        feed.relay_to([Outlet(form, loan, ROOM, writer)])
    with pytest.raises(TypeError, match="left for a Writer"):
        feed.call_relay((FORM.core, *KEEP, ROOM, FORM.core))
