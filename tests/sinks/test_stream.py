"""JSON lines to pipes, files and terminals: each line once and whole, whatever happens to the other end."""

import fcntl
import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from conntrackd.config.read import read_config
from conntrackd.delivery.loan import Passed
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkFailed, SinkRevised, SinkState, SinkUnavailable
from conntrackd.errors import ConfigError
from conntrackd.flow import Flow, Location
from conntrackd.render.json import TEMPLATE
from conntrackd.render.rendered import Rendered
from conntrackd.sinks.stream import FILE_WAIT, IOV_MAX, StreamSink, create
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, compute_imbalance, make_lost, put, run_until_idle
from tests.disk import file_limit
from tests.rendering import render
from tests.sinks.flows import make_flow, make_flows
from tests.sinks.syslog_servers import wait_until

LONG = 20.0  # seconds that no test comes near


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends; a test may have closed one."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def write(sink: StreamSink, events: Rendered) -> int:
    sink.open()
    written = sink.write([events])
    sink.close()
    return written


def write_persistently(sink: StreamSink, events: Rendered) -> int:
    """As the outbox does with a slow reader; the number of parts it took."""
    parts = 1
    while True:
        try:
            sink.write([events])
        except SinkRevised as revision:
            parts += 1
            events = events.split(revision.written)[1]
        else:
            return parts


def make_events(count: int, first: int = 0) -> Rendered:
    return render(TEMPLATE, make_flows(count, first))


def render_json(flows: Sequence[Flow]) -> Rendered:
    return render(TEMPLATE, flows)


def test_a_file_gets_one_object_a_line_and_is_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    sink = StreamSink(path)
    written = write(sink, make_events(3)) + write(sink, sink.template.render_loss(make_lost(7)))

    lines = path.read_bytes().splitlines()
    assert written == path.stat().st_size
    assert [json.loads(line).get("flow") for line in lines] == [0, 1, 2, None]
    assert stat.S_IMODE(path.stat().st_mode) & 0o037 == 0


def test_a_file_is_written_ten_times_a_second_and_a_pipe_at_once(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    clock = Clock()
    path = tmp_path / "events.json"
    outboxes = [
        Outbox(sink, queue=5000, stats=SinkStats(), clock=clock)
        for sink in (StreamSink(path), StreamSink(None, pipe[1]))
    ]
    waits = []
    for outbox in outboxes:
        outbox._direct = None  # what the thread does is what is looked at
        run_until_idle(outbox, clock)
        for first in range(0, 30, 10):
            put(outbox, make_flows(10, first), render_json)
            waits.append(outbox.step())
    before = path.read_bytes()
    clock.now += FILE_WAIT
    run_until_idle(outboxes[0], clock)
    batches = [outbox.snapshot().sink_batches_delivered_total for outbox in outboxes]
    for outbox in outboxes:
        outbox.stop(clock.now)

    assert waits == [pytest.approx(FILE_WAIT)] * 3 + [0] * 3
    assert before == b""
    assert (path.read_bytes(), os.read(pipe[0], 1 << 16)) == (make_events(30).text, make_events(30).text)
    assert batches == [1, 3]


def test_what_the_core_has_kept_is_written_at_once(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "events.json"
    outbox = Outbox(StreamSink(path), queue=5000, stats=SinkStats(), clock=clock)
    run_until_idle(outbox, clock)
    outbox.end_loan(Passed(rest=make_events(10)), FILE_WAIT)
    outbox.step()
    outbox.stop(clock.now)

    assert path.read_bytes() == make_events(10).text


def test_what_is_reported_during_a_loan_does_not_come_between_the_halves_of_a_line() -> None:
    clock, lost, events = Clock(), make_lost(7), make_events(3)
    one, other = socket.socketpair()
    with one, other:
        outbox = Outbox(StreamSink(None, other.fileno()), queue=5000, stats=SinkStats(), clock=clock)
        run_until_idle(outbox, clock)
        outbox.lend()
        other.send(events.text[:10])
        outbox.report(lost)
        outbox.end_loan(Passed(rest=events, torn=10))
        run_until_idle(outbox, clock)
        outbox.stop(clock.now)
        text = one.recv(1 << 16)

    assert text == events.text + TEMPLATE.render_loss(lost).text


def test_a_file_that_stdout_is_sent_to_is_one_too(tmp_path: Path) -> None:
    standard = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    sink = StreamSink(None, standard)
    sink.open()
    waits = [sink.batch_wait]
    sink.close()
    os.close(standard)
    device = StreamSink(Path("/dev/null"))
    device.open()
    waits.append(device.batch_wait)
    device.close()

    assert waits == [FILE_WAIT, 0.0]


@pytest.mark.parametrize("count", [IOV_MAX - 1, IOV_MAX, IOV_MAX + 1, 2 * IOV_MAX + 5])
def test_any_number_of_parts_is_written_in_their_order(tmp_path: Path, count: int) -> None:
    path = tmp_path / "events.json"
    sink = StreamSink(path)
    sink.open()
    parts = [make_events(1, number) for number in range(count)]
    written = sink.write(parts)
    sink.close()

    assert path.read_bytes() == b"".join(part.text for part in parts)
    assert written == path.stat().st_size


def test_a_write_that_takes_less_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any byte, also at the border of two parts."""
    parts = [make_events(1, number) for number in range(3)]
    whole = b"".join(part.text for part in parts)
    for size in range(1, len(whole) + 1, 3):
        path = tmp_path / str(size)
        monkeypatch.setattr(
            os, "writev", lambda file, texts, size=size: os.write(file, b"".join(texts)[:size])
        )
        sink = StreamSink(path)
        sink.open()
        sink.write(parts)
        sink.close()
        assert path.read_bytes() == whole


def test_a_file_that_was_deleted_takes_nothing_and_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    sink, events = StreamSink(path), make_events(2)
    sink.open()
    sink.write([events])
    path.unlink()
    with pytest.raises(SinkUnavailable, match=r"events\.json was deleted") as caught:
        sink.write([events])
    sink.close()
    write(sink, events)

    assert caught.value.written == 0
    assert path.read_bytes() == events.text


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As logrotate does it: rename, then SIGHUP."""
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    sink = StreamSink(path)
    sink.open()
    sink.write([make_events(1)])
    path.rename(old)
    sink.write([make_events(1, 1)])
    sink.close()
    sink.open()
    sink.write([make_events(1, 2)])
    sink.close()

    assert old.read_bytes() == make_events(2).text
    assert path.read_bytes() == make_events(1, 2).text


@pytest.mark.parametrize("owner", ["path", "stdout", "appended stdout"])
def test_a_disk_that_is_full_at_any_byte_tears_and_doubles_nothing(tmp_path: Path, owner: str) -> None:
    events = make_events(3)
    whole = events.text
    before = b'{"older":1}\n'
    results = set()
    for size in range(len(before), len(before) + len(whole), 7):
        path = tmp_path / "events.json"
        path.write_bytes(before)
        flags = os.O_WRONLY | (os.O_APPEND if owner == "appended stdout" else 0)
        standard = None if owner == "path" else os.open(path, flags)
        if standard is not None:
            os.lseek(standard, 0, os.SEEK_END)
        sink = StreamSink(path) if standard is None else StreamSink(None, standard)
        sink.open()
        with file_limit(size), pytest.raises(SinkUnavailable) as caught:
            sink.write(events.split(1))
        rest = events.split(caught.value.written)[1]
        sink.close()
        kept = path.read_bytes().removeprefix(before)
        results.add((kept.count(b"\n"), rest.events, kept + rest.text == whole))
        sink.open()
        sink.write([rest])
        sink.close()
        if standard is not None:
            os.close(standard)
        assert path.read_bytes() == before + whole

    assert results == {(0, 3, True), (1, 2, True), (2, 1, True)}


def test_what_is_left_goes_whole_into_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    events = make_events(2)
    sink = StreamSink(path)
    sink.open()
    with file_limit(400), pytest.raises(SinkUnavailable) as caught:
        sink.write([events])
    sink.close()
    path.rename(old)
    sink.open()
    sink.write([events.split(caught.value.written)[1]])
    sink.close()

    assert old.read_bytes() == make_events(1).text
    assert path.read_bytes() == make_events(1, 1).text


def test_a_line_that_a_power_failure_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_bytes(b'{"time":"2026-')

    write(StreamSink(path), make_events(1))

    assert path.read_bytes() == b'{"time":"2026-\n' + make_events(1).text


def test_a_full_device_is_tried_again() -> None:
    sink = StreamSink(Path("/dev/full"))
    sink.open()

    with pytest.raises(
        SinkUnavailable, match=r"^/dev/full: No space.*; free space for the events, or"
    ) as caught:
        sink.write([make_events(2)])
    sink.close()

    assert caught.value.written == 0


def test_a_standard_output_that_is_full_is_named_with_where_it_leads_and_what_to_do() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = StreamSink(None, full)
    sink.open()

    with pytest.raises(SinkUnavailable) as caught:
        sink.write([make_events(2)])
    sink.close()
    os.close(full)

    assert str(caught.value) == (
        "standard output (/dev/full): No space left on device; "
        "free space for the events, or change the sink's writer"
    )


def test_a_directory_that_has_gone_is_reported_and_tried_again(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailable, match="gone/events"):
        StreamSink(tmp_path / "gone/events").open()


def test_a_reader_of_stdout_that_has_gone_does_not_come_back(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    sink = StreamSink(None, writing)
    sink.open()
    os.close(reading)

    with pytest.raises(SinkFailed):
        sink.write([make_events(1)])
    sink.close()
    os.fstat(writing)  # the process's own stays open


def test_a_stdout_that_is_closed_is_no_reason_to_write_to_something_else(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])

    with pytest.raises(SinkFailed):
        StreamSink(None, pipe[1]).open()


def test_a_terminal_that_has_gone_does_not_come_back() -> None:
    leader, terminal = os.openpty()
    sink = StreamSink(None, terminal)
    sink.open()
    sink.write([make_events(1)])
    shown = os.read(leader, 4096)
    os.close(leader)

    with pytest.raises(SinkFailed):
        sink.write([make_events(1)])
    sink.close()
    os.close(terminal)
    assert shown == make_events(1).text.replace(b"\n", b"\r\n")


def test_a_named_pipe_waits_for_its_reader_and_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = StreamSink(path)
    with pytest.raises(SinkUnavailable, match="nobody reads it"):
        sink.open()
    sink.close()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink.open()
    sink.write([make_events(1)])
    first = os.read(reader, 4096)
    os.close(reader)
    with pytest.raises(SinkUnavailable, match="nobody reads it") as caught:
        sink.write([make_events(1, 1)])
    sink.close()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink.open()
    assert caught.value.written == 0
    sink.write([make_events(1, 1)])
    second = os.read(reader, 4096)
    sink.close()
    os.close(reader)

    assert (first, second) == (make_events(1).text, make_events(1, 1).text)


def test_a_pipe_that_nobody_reads_is_reported_as_trouble(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], slow=0.02, stall=0.02)
    sink.open()

    with pytest.raises(SinkRevised) as slow:
        sink.write([make_events(1000)])
    rest = make_events(1000).split(slow.value.written)[1]
    with pytest.raises(SinkUnavailable, match="nobody reads") as stalled:
        sink.write([rest])
    sink.close()

    os.set_blocking(pipe[0], False)
    taken = os.read(pipe[0], 1 << 20)
    assert taken + rest.text == make_events(1000).text
    assert slow.value.written == taken.count(b"\n") == 1000 - rest.events
    assert stalled.value.written == 0


def test_a_reader_that_is_slow_gets_each_line_once(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], slow=0.001, stall=LONG)
    sink.open()
    parts: list[int] = []
    events = make_events(2000)
    thread = threading.Thread(target=lambda: parts.append(write_persistently(sink, events)))
    thread.start()
    got = b""
    while len(got) < len(events.text):
        got += os.read(pipe[0], 1000)
    thread.join(LONG)
    sink.close()

    assert got == make_events(2000).text
    assert parts[0] > 1


def test_a_line_longer_than_what_a_pipe_takes_at_once_passes(pipe: tuple[int, int]) -> None:
    flow = make_flow(1)
    flow.dst_location = Location(city="x" * 200_000)
    sink = StreamSink(None, pipe[1], slow=0.0, stall=LONG)  # each piece is one write
    sink.open()
    events = render_json([make_flow(0), flow, make_flow(2)])
    thread = threading.Thread(target=lambda: write_persistently(sink, events))
    thread.start()
    got = b""
    while got.count(b"\n") < 3:
        got += os.read(pipe[0], 1 << 16)
    thread.join(LONG)
    sink.close()

    assert got == events.text


def test_what_is_written_to_a_pipe_at_once_is_whole_lines(pipe: tuple[int, int]) -> None:
    """So that nobody else's comes in between: pipe(7) keeps a piece of this size together."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    sink = StreamSink(None, pipe[1], stall=LONG)
    sink.open()
    events = make_events(200)
    thread = threading.Thread(target=lambda: write_persistently(sink, events))
    thread.start()
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < len(events.text):
        pieces.append(os.read(pipe[0], 1 << 16))
    thread.join(LONG)
    sink.close()

    assert b"".join(pieces) == events.text
    assert len(pieces) > 10
    assert [piece[-1:] for piece in pieces] == [b"\n"] * len(pieces)


def test_lines_of_two_who_write_to_one_pipe_stay_whole(pipe: tuple[int, int]) -> None:
    sinks = [StreamSink(None, pipe[1], slow=0.01, stall=LONG) for _ in range(2)]
    threads = [
        threading.Thread(target=write_persistently, args=(sink, make_events(500, 500 * number)))
        for number, sink in enumerate(sinks)
    ]
    for sink, thread in zip(sinks, threads, strict=True):
        sink.open()
        thread.start()
    got = b""
    while got.count(b"\n") < 1000:
        got += os.read(pipe[0], 1 << 16)
    for sink, thread in zip(sinks, threads, strict=True):
        thread.join(LONG)  # who has written all may still be in there, and would keep it open
        sink.close()

    assert sorted(json.loads(line)["flow"] for line in got.splitlines()) == list(range(1000))


def test_closing_ends_a_write_that_waits(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], stall=LONG, slow=LONG)
    sink.open()
    caught: list[SinkUnavailable] = []

    def run() -> None:
        try:
            sink.write([make_events(1000)])
        except SinkUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    begun = os.read(pipe[0], 1)  # it writes
    sink.close()
    thread.join(LONG)
    sink.close()

    os.set_blocking(pipe[0], False)
    taken = begun + os.read(pipe[0], 1 << 20)
    assert taken == make_events(1000).split(caught[0].written)[0].text


@pytest.mark.parametrize("slow", [0.05, LONG], ids=["between two writes", "in a write"])
def test_a_stop_is_in_time_though_nobody_reads_the_pipe(
    slow: float, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(StreamSink(None, pipe[1], slow=slow), queue=5000, stats=SinkStats())
    outbox.start()
    put(outbox, make_flows(3000), render_json)
    assert select.select([pipe[0]], [], [], LONG)[0]
    begin = time.monotonic()
    outbox.stop(begin + 0.5)
    stats = outbox.snapshot()

    os.set_blocking(pipe[0], False)
    taken = os.read(pipe[0], 1 << 20)
    assert taken == make_events(3000).text[: len(taken)]
    assert stats.sink_events_delivered_total == taken.count(b"\n")
    assert stats.sink_events_dropped_shutdown_total == 3000 - taken.count(b"\n")
    assert compute_imbalance(stats) == 0
    assert "sink stream: closed" not in caplog.text


def test_an_outbox_before_a_closed_stdout_is_out_for_good(pipe: tuple[int, int]) -> None:
    reasons: list[str] = []
    reported = threading.Event()

    def note(reason: str) -> None:
        reasons.append(reason)
        reported.set()

    os.close(pipe[0])
    outbox = Outbox(StreamSink(None, pipe[1]), queue=5000, stats=SinkStats(), on_failed=note)
    outbox.start()
    put(outbox, make_flows(10), render_json)
    assert reported.wait(LONG)
    outbox.stop(time.monotonic() + LONG)

    assert reasons == ["standard output: closed by its reader"]
    assert outbox.state is SinkState.FAILED
    assert compute_imbalance(outbox.snapshot()) == 0


def test_discarded_events_are_rendered_and_counted() -> None:
    assert write(StreamSink(None), make_events(2)) == len(make_events(2).text)


def read_all(pipe: int) -> bytes:
    """What is in a pipe now."""
    os.set_blocking(pipe, False)
    return os.read(pipe, 1 << 20)


def test_a_write_at_once_takes_whole_lines_as_far_as_there_is_room(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    sink = StreamSink(None, pipe[1])
    sink.open()
    events = make_events(50)

    written = [sink.try_write(events)[0], sink.try_write(events)[0]]
    taken = read_all(pipe[0])
    rest = events.split(written[0])[1]
    written.append(sink.try_write(rest)[0])
    sink.close()

    assert written[1:] == [0, min(rest.events, written[0])]
    assert taken == events.split(written[0])[0].text
    assert read_all(pipe[0]) == rest.split(written[2])[0].text


def test_a_write_at_once_to_a_socket_that_is_full_is_gone_on_with_in_mid_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
    with ours, theirs:
        sink = StreamSink(None, ours.fileno())
        sink.open()
        events, left = make_events(200), [0]
        sent = b""
        while (count := sink.try_write(events)[0]) == events.events:
            sent += events.text
        begun = sink._begun
        rest = events.split(count)[1]
        writer = threading.Thread(target=lambda: left.append(write_persistently(sink, rest)))
        writer.start()
        sent += events.text
        received = b""
        while len(received) < len(sent):
            received += theirs.recv(1 << 16)
        writer.join(LONG)
        sink.close()

    assert received == sent
    assert rest.text.startswith(begun)
    assert begun


def test_what_was_begun_and_then_dropped_ends_before_the_next_line() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = StreamSink(None, ours.fileno())
        sink.open()
        sink._begun = b'{"time":"half'
        ours.sendall(sink._begun)
        sink.write([make_events(2)])
        received = theirs.recv(1 << 16)
        sink.close()

    assert received == b'{"time":"half\n' + make_events(2).text


@pytest.mark.parametrize("is_disabled", [False, True])
def test_a_sink_that_a_reload_has_made_anew_goes_on_where_the_one_before_it_stopped(
    is_disabled: bool,
) -> None:
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs = server.accept()[0]
    with ours, theirs:
        first, second = StreamSink(None, ours.fileno()), StreamSink(None, ours.fileno())
        outbox = Outbox(first, queue=100_000, stats=SinkStats(), clock=clock)
        run_until_idle(outbox, clock)
        while not first._begun:
            put(outbox, make_flows(200), render_json)
        begun = first._begun
        if is_disabled:
            outbox.disable()  # what waits goes, and with it the rest of the line
            outbox.step()
        outbox.enable()
        outbox.replace(second, 100_000)
        outbox.step()
        put(outbox, make_flows(1, 500), render_json)
        received, reader = [b""], threading.Thread(target=lambda: received.extend(theirs.makefile("rb")))
        reader.start()
        run_until_idle(outbox, clock, seconds=LONG)
        ours.shutdown(socket.SHUT_WR)
        reader.join(LONG)
        outbox.stop(0.0)

    records, torn = [], 0
    for line in received[1:]:
        try:
            records.append(json.loads(line))
        except ValueError:
            torn += 1
    assert [record["flow"] for record in records if "flow" in record][-1] == 500
    # All records begin alike: of a line that was torn so early nobody sees which one it was to be.
    goes_on = any(b'"lost"' in line and line.startswith(begun) for line in received)
    assert (sum("lost" in record for record in records), torn) == (is_disabled, is_disabled and not goes_on)


@pytest.mark.parametrize("kind", ["file", "terminal", "long line", "much", "in use", "closed"])
def test_what_might_wait_is_never_written_at_once(tmp_path: Path, pipe: tuple[int, int], kind: str) -> None:
    long = make_flow(0)
    long.dst_location = Location(city="x" * select.PIPE_BUF)
    leader, terminal = os.openpty()
    sink = StreamSink(tmp_path / "file") if kind == "file" else StreamSink(None, pipe[1])
    sink = StreamSink(None, terminal) if kind == "terminal" else sink
    if kind != "closed":
        sink.open()
    events = {"long line": render_json([long]), "much": make_events(1000)}.get(kind, make_events(1))
    with sink._lock if kind == "in use" else nullcontext():
        written = sink.try_write(events)
    sink.close()
    os.close(leader)
    os.close(terminal)

    assert written == (0, 0)
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_bytes() == b""


def test_discarding_and_a_device_that_takes_all_need_no_second_thread() -> None:
    device = StreamSink(Path("/dev/null"))
    device.open()

    events = make_events(5)

    assert StreamSink(None).try_write(events) == device.try_write(events) == (5, len(events.text))
    device.close()


def test_lines_that_are_written_at_once_and_by_the_thread_arrive_once_and_in_order(
    pipe: tuple[int, int],
) -> None:
    """The reader of the pipe stops now and then, so that some have to wait."""
    outbox = Outbox(StreamSink(None, pipe[1], slow=0.01, stall=LONG), queue=100_000, stats=SinkStats())
    outbox.start()
    got: list[bytes] = []

    def read() -> None:
        pause = threading.Event()
        while sum(text.count(b"\n") for text in got) < 20_000:
            got.append(os.read(pipe[0], 1 << 16))
            if len(got) % 10 == 0:
                pause.wait(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    for first in range(0, 20_000, 20):
        put(outbox, make_flows(20, first), render_json)
    reader.join(LONG)
    assert outbox.flush(LONG)
    outbox.stop(time.monotonic() + LONG)
    stats = outbox.snapshot()

    assert [json.loads(line)["flow"] for line in b"".join(got).splitlines()] == [*range(20_000)]
    assert (stats.sink_events_delivered_total, compute_imbalance(stats)) == (20_000, 0)


def test_a_closed_pipe_is_found_out_by_the_thread(pipe: tuple[int, int]) -> None:
    reported = threading.Event()
    outbox = Outbox(
        StreamSink(None, pipe[1]), queue=100, stats=SinkStats(), on_failed=lambda _: reported.set()
    )
    outbox.start()
    wait_until(lambda: outbox.state is SinkState.OK, "the opening")
    os.close(pipe[0])
    put(outbox, make_flows(1), render_json)
    assert reported.wait(LONG)
    outbox.stop(time.monotonic() + LONG)

    assert (outbox.state, compute_imbalance(outbox.snapshot())) == (SinkState.FAILED, 0)


@pytest.mark.parametrize(
    ("writer", "same"),
    [
        ("stdout", StreamSink(None, 1)),
        ("stderr", StreamSink(None, 2)),
        ("discard", StreamSink(None)),
        ("file:///tmp/with%20space", StreamSink(Path("/tmp/with space"))),
    ],
)
def test_the_writer_is_what_the_setting_says(tmp_path: Path, writer: str, same: StreamSink) -> None:
    config = read_config({"sink.stream.enable": ["true"], "sink.stream.writer": [writer]}, {}, None, tmp_path)
    sink = create(config)

    assert (sink._path, sink._standard) == (same._path, same._standard)


@pytest.mark.parametrize("writer", ["/none/here", ""])
def test_a_file_that_can_never_be_is_refused_at_the_start(tmp_path: Path, writer: str) -> None:
    config = read_config(
        {"sink.stream.enable": ["true"], "sink.stream.writer": [f"file://{tmp_path}{writer}"]},
        {},
        None,
        tmp_path,
    )

    with pytest.raises(ConfigError, match="directory"):
        create(config)
