"""What is not used is not loaded: memory on each gateway."""

import re
import subprocess
import sys
import tracemalloc
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from conntrackd.delivery.datagrams import DatagramSocket
from conntrackd.render.rendered import Rendered, Stream
from conntrackd.render.syslog import make_template
from conntrackd.sinks.http_reply import Reply
from conntrackd.sinks.loki import Loki, Settings
from conntrackd.sinks.syslog import SyslogSink, Target

PROGRAM = """
import sys
from pathlib import Path
from conntrackd.config.read import read_config
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks import SINKS

directory, addresses = Path(sys.argv[1]), sys.argv[2:]
given = {f"sink.{kind.name}.enable": ["true"] for kind in SINKS} | {"state_directory": [str(directory)]}
given |= {f"sink.{name}.address": [url] for name, url in zip(("syslog", "loki"), addresses)}
config = read_config(given, {}, etc=directory)
for kind in SINKS:
    sink, spool = kind.create(config), kind.open_spool(config)
    try:
        sink.open()
    except SinkUnavailable:
        pass
    sink.close()
    if spool is not None:
        spool.close()
print(*sys.modules)
"""
DAEMON = """
import atexit
from pathlib import Path
from conntrackd.cli.daemon import main

atexit.register(lambda: print(Path("/proc/self/maps").read_text(), end=""))
main()
"""
AREA = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+)")
ARENA_BYTES = 64 << 20  # glibc's HEAP_MAX_SIZE: an arena of a thread begins at a multiple of it
OPENSSL = {"_hashlib", "_ssl"}
RARE = {
    "bz2",
    "conntrackd.metrics.table",
    "datetime",
    "difflib",
    "email",
    "isal",
    "lzma",
    "platform",
    "shutil",
    "tomllib",
    "yaml",
}


def replay_nothing(directory: Path, *python: str) -> subprocess.CompletedProcess[str]:
    (directory / "events.nl").write_bytes(b"")
    command = [sys.executable, *python, "run", "--sink.stream.enable"]
    command += ["--conntrack.replay", str(directory / "events.nl")]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_daemon_does_without_what_few_need(tmp_path: Path) -> None:
    done = replay_nothing(tmp_path, "-X", "importtime", "-m", "conntrackd")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "conntrackd.engine.native" in loaded
    assert loaded.isdisjoint(OPENSSL | RARE)


def test_its_threads_have_no_heaps_of_their_own(tmp_path: Path) -> None:
    done = replay_nothing(tmp_path, "-c", DAEMON)
    areas = [AREA.match(line) for line in done.stdout.splitlines()]
    found = [(int(area[1], 16), int(area[2], 16), area[3]) for area in areas if area is not None]
    arenas = [
        (begin, end)
        for (begin, *_), (_, end, rights) in pairwise(found)
        if begin % ARENA_BYTES == 0 and end - begin == ARENA_BYTES and rights == "---p"
    ]

    assert found
    assert arenas == []


@pytest.mark.parametrize(
    ("addresses", "wanted"),
    [
        (("tcp://127.0.0.1:1", "http://127.0.0.1:1"), False),
        (("tls://127.0.0.1:1", "http://127.0.0.1:1"), True),
        (("tcp://127.0.0.1:1", "https://127.0.0.1:1"), True),
    ],
)
def test_only_who_uses_tls_pays_for_it_and_nobody_for_a_database(
    tmp_path: Path, addresses: tuple[str, str], wanted: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *addresses]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()

    assert ("ssl" in loaded) is wanted
    assert "sqlite3" not in loaded
    assert not {"datetime", "email"} & set(loaded)
    assert {"conntrackd.sinks.loki", "conntrackd.delivery.spool"} <= set(loaded)


TEXT_BYTES, EVENTS = 256 << 10, 256
NEW, UPDATE = Stream(1, 6, EVENTS // 2), Stream(2, 6, EVENTS // 2)


def make_part() -> Rendered:
    size = TEXT_BYTES // EVENTS
    ends = array("I", range(size, TEXT_BYTES + 1, size)).tobytes()
    return Rendered(bytes(b"x" * TEXT_BYTES), ends, EVENTS, 1, (NEW, UPDATE), bytes(8 * EVENTS))


@pytest.fixture
def traced() -> Iterator[list[int]]:
    """What is held beside the parts, when somebody notes it."""
    tracemalloc.start()
    yield []
    tracemalloc.stop()


def test_a_batch_that_is_sent_is_held_framed_and_not_joined(
    monkeypatch: pytest.MonkeyPatch, traced: list[int]
) -> None:
    def send(_: DatagramSocket, __: bytes, ends: bytes) -> tuple[int, None]:
        traced.append(tracemalloc.get_traced_memory()[0] - before)
        return len(ends) // 4, None

    monkeypatch.setattr(DatagramSocket, "send", send)
    sink = SyslogSink(Target("udp", "127.0.0.1", 9), make_template("rfc5424", "daemon"))
    sink.open()
    parts = [make_part() for _ in range(4)]
    before = tracemalloc.get_traced_memory()[0]
    sink.write(parts)
    sink.close()

    assert 4 * TEXT_BYTES < traced[0] < 5 * TEXT_BYTES


def test_a_push_that_waits_for_its_reply_is_not_held_joined(
    monkeypatch: pytest.MonkeyPatch, traced: list[int]
) -> None:
    def push(_: Loki, __: bytes) -> Reply:
        traced.append(tracemalloc.get_traced_memory()[0])
        return Reply(204)

    monkeypatch.setattr(Loki, "_push", push)
    sink = Loki(Settings("http://127.0.0.1:9", batch_size=8 * TEXT_BYTES))
    parts = [make_part() for _ in range(4)]
    sink.write(parts)  # what the first one loads is not meant
    before = tracemalloc.get_traced_memory()[0]
    sink.write(parts)

    assert 0 < traced[-1] - before < TEXT_BYTES
