"""JSON lines to pipes, files and terminals: each line once and whole, whatever happens to the other end."""

import fcntl
import json
import os
import resource
import select
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conntrackd.config import read_config
from conntrackd.errors import ConfigError
from conntrackd.flow import Batch, Location
from conntrackd.sinks.encode_json import JsonEncoder
from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import SinkFailed, SinkRevised, SinkState, SinkUnavailable
from conntrackd.sinks.stream import StreamSink, create
from conntrackd.stats import SinkStats
from tests.sinks.fakes import find_imbalance, make_lost
from tests.sinks.flows import make_flow, make_flows

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


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond it: the write stops there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(sink: StreamSink, batch: Batch) -> int:
    sink.open()
    written = sink.write(sink.encode(batch))
    sink.close()
    return written


def write_persistently(sink: StreamSink, payload: bytes) -> int:
    """As the outbox does with a slow reader; the number of parts it took."""
    parts = 1
    while True:
        try:
            sink.write(payload)
        except SinkRevised as revision:
            parts += 1
            payload = revision.parcels[0].payload
        else:
            return parts


def make_batch(count: int, first: int = 0) -> Batch:
    return [*make_flows(count, first)]


def encode(batch: Batch) -> bytes:
    return JsonEncoder().encode(batch)


def test_a_file_gets_one_object_a_line_and_is_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    batch: Batch = [*make_flows(3), make_lost(7)]

    written = write(StreamSink(path), batch)

    lines = path.read_bytes().splitlines()
    assert written == path.stat().st_size
    assert [json.loads(line).get("flow") for line in lines] == [0, 1, 2, None]
    assert stat.S_IMODE(path.stat().st_mode) & 0o037 == 0


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """As logrotate does it: rename, then SIGHUP."""
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    sink = StreamSink(path)
    sink.open()
    sink.write(sink.encode(make_batch(1)))
    path.rename(old)
    sink.write(sink.encode(make_batch(1, 1)))
    sink.close()
    sink.open()
    sink.write(sink.encode(make_batch(1, 2)))
    sink.close()

    assert old.read_bytes() == encode(make_batch(2))
    assert path.read_bytes() == encode(make_batch(1, 2))


@pytest.mark.parametrize("owner", ["path", "stdout", "appended stdout"])
def test_a_disk_that_is_full_at_any_byte_tears_and_doubles_nothing(tmp_path: Path, owner: str) -> None:
    batch: Batch = [make_flow(0), make_lost(3), make_flow(1)]
    whole = encode(batch)
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
            sink.write(sink.encode(batch))
        rest = caught.value.rest
        sink.close()
        assert rest is not None
        kept = path.read_bytes().removeprefix(before)
        results.add((kept.count(b"\n"), rest.events, kept + rest.payload == whole))
        sink.open()
        sink.write(rest.payload)
        sink.close()
        if standard is not None:
            os.close(standard)
        assert path.read_bytes() == before + whole

    assert results == {(0, 2, True), (1, 1, True), (2, 1, True)}


def test_what_is_left_goes_whole_into_a_new_file(tmp_path: Path) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    batch: Batch = make_batch(2)
    sink = StreamSink(path)
    sink.open()
    with file_limit(400), pytest.raises(SinkUnavailable) as caught:
        sink.write(sink.encode(batch))
    sink.close()
    path.rename(old)
    sink.open()
    assert caught.value.rest is not None
    sink.write(caught.value.rest.payload)
    sink.close()

    assert old.read_bytes() == encode(make_batch(1))
    assert path.read_bytes() == encode(make_batch(1, 1))


def test_a_line_that_a_power_failure_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_bytes(b'{"time":"2026-')

    write(StreamSink(path), make_batch(1))

    assert path.read_bytes() == b'{"time":"2026-\n' + encode(make_batch(1))


def test_a_full_device_is_tried_again() -> None:
    sink = StreamSink(Path("/dev/full"))
    sink.open()

    with pytest.raises(SinkUnavailable, match="/dev/full: ") as caught:
        sink.write(sink.encode(make_batch(2)))
    sink.close()

    assert caught.value.rest is not None
    assert (caught.value.rest.events, caught.value.rest.oldest) == (2, make_flow(0).time)


def test_a_directory_that_has_gone_is_told_and_tried_again(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailable, match="gone/events"):
        StreamSink(tmp_path / "gone/events").open()


def test_a_reader_of_stdout_that_has_gone_does_not_come_back(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    sink = StreamSink(None, writing)
    sink.open()
    os.close(reading)

    with pytest.raises(SinkFailed):
        sink.write(sink.encode(make_batch(1)))
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
    sink.write(sink.encode(make_batch(1)))
    shown = os.read(leader, 4096)
    os.close(leader)

    with pytest.raises(SinkFailed):
        sink.write(sink.encode(make_batch(1)))
    sink.close()
    os.close(terminal)
    assert shown == encode(make_batch(1)).replace(b"\n", b"\r\n")


def test_a_named_pipe_waits_for_its_reader_and_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    sink = StreamSink(path)
    with pytest.raises(SinkUnavailable, match="nobody reads it"):
        sink.open()
    sink.close()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink.open()
    sink.write(sink.encode(make_batch(1)))
    first = os.read(reader, 4096)
    os.close(reader)
    with pytest.raises(SinkUnavailable, match="nobody reads it") as caught:
        sink.write(sink.encode(make_batch(1, 1)))
    sink.close()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sink.open()
    assert caught.value.rest is not None
    sink.write(caught.value.rest.payload)
    second = os.read(reader, 4096)
    sink.close()
    os.close(reader)

    assert (first, second) == (encode(make_batch(1)), encode(make_batch(1, 1)))


def test_a_pipe_that_nobody_reads_is_told_as_trouble(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], slow=0.02, stall=0.02)
    sink.open()

    with pytest.raises(SinkRevised) as slow:
        sink.write(sink.encode(make_batch(1000)))
    rest = slow.value.parcels[0]
    with pytest.raises(SinkUnavailable, match="nobody reads") as stalled:
        sink.write(rest.payload)
    sink.close()

    os.set_blocking(pipe[0], False)
    taken = os.read(pipe[0], 1 << 20)
    assert taken + rest.payload == encode(make_batch(1000))
    assert slow.value.delivered == taken.count(b"\n") == 1000 - rest.events
    assert stalled.value.rest == rest


def test_a_reader_that_is_slow_gets_each_line_once(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], slow=0.001, stall=LONG)
    sink.open()
    parts: list[int] = []
    payload = sink.encode(make_batch(2000))
    thread = threading.Thread(target=lambda: parts.append(write_persistently(sink, payload)))
    thread.start()
    got = b""
    while len(got) < len(payload):
        got += os.read(pipe[0], 1000)
    thread.join(LONG)
    sink.close()

    assert got == encode(make_batch(2000))
    assert parts[0] > 1


def test_a_line_longer_than_what_a_pipe_takes_at_once_passes(pipe: tuple[int, int]) -> None:
    flow = make_flow(1)
    flow.dst_location = Location(city="x" * 200_000)
    sink = StreamSink(None, pipe[1], slow=0.01, stall=LONG)
    sink.open()
    batch: Batch = [make_flow(0), flow, make_flow(2)]
    thread = threading.Thread(target=lambda: write_persistently(sink, sink.encode(batch)))
    thread.start()
    got = b""
    while got.count(b"\n") < 3:
        got += os.read(pipe[0], 1 << 16)
    thread.join(LONG)
    sink.close()

    assert got == encode(batch)


def test_what_is_written_to_a_pipe_at_once_is_whole_lines(pipe: tuple[int, int]) -> None:
    """So that nobody else's comes in between: pipe(7) keeps a piece of this size together."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    sink = StreamSink(None, pipe[1], stall=LONG)
    sink.open()
    payload = sink.encode(make_batch(200))
    thread = threading.Thread(target=lambda: write_persistently(sink, payload))
    thread.start()
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < len(payload):
        pieces.append(os.read(pipe[0], 1 << 16))
    thread.join(LONG)
    sink.close()

    assert b"".join(pieces) == payload
    assert len(pieces) > 10
    assert [piece[-1:] for piece in pieces] == [b"\n"] * len(pieces)


def test_lines_of_two_who_write_to_one_pipe_stay_whole(pipe: tuple[int, int]) -> None:
    sinks = [StreamSink(None, pipe[1], slow=0.01, stall=LONG) for _ in range(2)]
    for number, sink in enumerate(sinks):
        sink.open()
        payload = sink.encode(make_batch(500, 500 * number))
        threading.Thread(target=write_persistently, args=(sink, payload)).start()
    got = b""
    while got.count(b"\n") < 1000:
        got += os.read(pipe[0], 1 << 16)
    for sink in sinks:
        sink.close()

    assert sorted(json.loads(line)["flow"] for line in got.splitlines()) == list(range(1000))


def test_closing_ends_a_write_that_waits(pipe: tuple[int, int]) -> None:
    sink = StreamSink(None, pipe[1], stall=LONG, slow=LONG)
    sink.open()
    caught: list[SinkUnavailable] = []

    def run() -> None:
        try:
            sink.write(sink.encode(make_batch(1000)))
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
    assert caught[0].rest is not None
    assert taken + caught[0].rest.payload == encode(make_batch(1000))


def test_a_stop_is_in_time_though_nobody_reads_the_pipe(pipe: tuple[int, int]) -> None:
    outbox = Outbox(StreamSink(None, pipe[1], slow=0.05), queue=5000, stats=SinkStats())
    outbox.start()
    outbox.put(make_flows(3000))
    begin = time.monotonic()
    outbox.stop(begin + 0.5)
    stats = outbox.snapshot()

    os.set_blocking(pipe[0], False)
    taken = os.read(pipe[0], 1 << 20)
    assert taken == encode(make_batch(3000))[: len(taken)]
    assert stats.sink_events_delivered_total == taken.count(b"\n")
    assert stats.sink_events_dropped_shutdown_total == 3000 - taken.count(b"\n")
    assert find_imbalance(stats) == 0


def test_an_outbox_before_a_closed_stdout_is_out_for_good(pipe: tuple[int, int]) -> None:
    reasons: list[str] = []
    told = threading.Event()

    def note(reason: str) -> None:
        reasons.append(reason)
        told.set()

    os.close(pipe[0])
    outbox = Outbox(StreamSink(None, pipe[1]), queue=5000, stats=SinkStats(), on_failed=note)
    outbox.start()
    outbox.put(make_flows(10))
    assert told.wait(LONG)
    outbox.stop(time.monotonic() + LONG)

    assert reasons == ["closed by its reader"]
    assert outbox.state is SinkState.FAILED
    assert find_imbalance(outbox.snapshot()) == 0


def test_discarded_events_are_encoded_and_counted() -> None:
    assert write(StreamSink(None), make_batch(2)) == len(encode(make_batch(2)))


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
