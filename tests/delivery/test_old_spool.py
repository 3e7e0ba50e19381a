"""An upgrade from 2.0 with events on disk: they are delivered first, as they were."""

import json
import socket
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conntrackd.config.read import read_config
from conntrackd.delivery.batch import compress
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import Sink, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.render import loki
from conntrackd.sinks import syslog
from conntrackd.sinks.loki import Loki
from conntrackd.stats import SinkStats
from tests.delivery.fakes import Clock, compute_imbalance, run_until_idle
from tests.sinks.flows import BASE
from tests.sinks.loki_client import make_settings
from tests.sinks.loki_server import Server, Store, say

# As 2.0 made it.
SCHEMA = """
CREATE TABLE parcels (
    number INTEGER PRIMARY KEY,
    events INTEGER NOT NULL,
    oldest INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    payload BLOB NOT NULL
)"""


def write_spool(directory: Path, name: str, rows: Sequence[tuple[int, bytes]]) -> None:
    """Events and payload of each row."""
    with closing(sqlite3.connect(directory / f"{name}.sqlite", isolation_level=None)) as database:
        database.execute(SCHEMA)
        database.execute("PRAGMA user_version=1")
        for number, (events, payload) in enumerate(rows, 1):
            checksum = zlib.crc32(payload, zlib.crc32(b"%d %d %d" % (number, events, BASE)))
            database.execute(
                "INSERT INTO parcels VALUES (?, ?, ?, ?, ?)", (number, events, BASE, checksum, payload)
            )


def pack(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(message)) + message for message in messages)


def deliver(sink: Sink, spool: Spool) -> SinkStats:
    clock = Clock()
    outbox = Outbox(sink, queue=100, stats=SinkStats(), spool=spool, clock=clock)
    run_until_idle(outbox, clock, seconds=60.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()
    assert compute_imbalance(stats) == 0
    return stats


def test_messages_for_syslog_arrive_and_a_loss_is_no_event(tmp_path: Path) -> None:
    first, lost, second = (
        b'<30>1 - sequenceId="1" type="NEW"',
        b'<28>1 - event type="LOST"',
        b"<30>1 - \xc3\xa4",
    )
    write_spool(tmp_path, "syslog", [(2, pack(first, lost, second)), (0, pack(lost)), (1, pack(second))])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "log"))
        server.settimeout(10)
        address = {"sink.syslog.address": [f"unixgram://{tmp_path}/log"]}
        sink = syslog.create(read_config(address, {}, etc=tmp_path / "none"))
        stats = deliver(sink, Spool(tmp_path, "syslog", 1 << 20))
        found = [server.recv(4096) for _ in range(5)]

    assert found == [first, lost, second, lost, second]
    assert (stats.sink_events_restored_total, stats.sink_events_delivered_total) == (3, 3)


def make_body(*streams: tuple[dict[str, str], list[list[Any]]]) -> bytes:
    values = [{"stream": labels, "values": entries} for labels, entries in streams]
    return compress([json.dumps({"streams": values}, ensure_ascii=False).encode()])


@pytest.mark.parametrize("faults", [0, 3])
def test_bodies_for_loki_arrive_with_their_streams_and_losses(
    server: Server, store: Store, tmp_path: Path, faults: int
) -> None:
    body = make_body(
        ({"type": "LOST"}, [[str(BASE + 9), "LOST 5 events", {"lost": "5"}]]),
        ({"type": "NEW", "prot": "TCP"}, [[str(BASE + n), f"line {n}", {"flow": str(n)}] for n in range(3)]),
        ({"type": "SNAPSHOT", "prot": "132"}, [[str(BASE + 5), "line Ä", {"flow": "5"}]]),
        ({"type": "NEW", "prot": "99", "replay": "1"}, [[str(BASE + 6), "line 6", {"flow": "6"}]]),
    )
    write_spool(tmp_path, "loki", [(5, body)])
    store.faults.extend(say(503) for _ in range(faults))

    stats = deliver(Loki(make_settings(server.port)), Spool(tmp_path, "loki", 1 << 20))

    assert [entry.line for entry in store.query()] == [
        *("line 0", "line 1", "line 2", "line Ä", "line 6", "LOST 5 events")
    ]
    assert [entry.line for entry in store.query(type="NEW", prot="99", replay="1")] == ["line 6"]
    assert [entry.line for entry in store.query(type="SNAPSHOT", prot="SCTP")] == ["line Ä"]
    assert [dict(entry.metadata)["lost"] for entry in store.query(type="LOST")] == ["5"]
    assert (stats.sink_events_restored_total, stats.sink_events_delivered_total) == (5, 5)


def test_what_is_neither_old_nor_new_is_dropped_and_counted(tmp_path: Path) -> None:
    bad = [b"", b"\x1f\x8bno gzip", compress([b"{}"]), compress([b'{"streams":[{"stream":{},"values":[]}]}'])]
    bad += [b"\0", pack(b"one")[:-1], b"Enothing", b"L[]", b"L[1,2]", pack(b"fewer than it says")]
    write_spool(tmp_path, "loki", [(7, payload) for payload in bad])
    sink = Loki(make_settings(1))

    stats = deliver(sink, Spool(tmp_path, "loki", 1 << 20))

    assert stats.sink_events_dropped_damaged_total == 7 * len(bad)


def test_an_older_version_takes_no_spool_of_this_one_for_its_own(tmp_path: Path) -> None:
    write_spool(tmp_path, "loki", [])
    Spool(tmp_path, "loki", 1 << 20).close()

    assert not list(tmp_path.glob("*.sqlite*"))


def test_what_is_cut_into_parts_stays_on_disk_until_all_of_it_has_arrived(tmp_path: Path) -> None:
    class Away:
        name, batch_events, batch_wait = "loki", 10, 0.0
        template = loki.TEMPLATE

        def __init__(self) -> None:
            self.written: list[int] = []

        def open(self) -> None: ...

        def write(self, parts: Sequence[Any]) -> int:
            self.written.append(sum(part.events for part in parts))
            if len(self.written) == 2:
                raise SinkUnavailable("away")
            return 1

        def close(self) -> None: ...

    body = make_body(
        ({"type": "NEW", "prot": "TCP"}, [[str(BASE), "line", {}]]),
        ({"type": "LOST"}, [[str(BASE + 9), "LOST 5 events", {"lost": "5"}]]),
        ({"type": "NEW", "prot": "UDP"}, [[str(BASE), "line", {}]]),
    )
    write_spool(tmp_path, "loki", [(2, body)])
    sink = Away()
    stats = deliver(sink, Spool(tmp_path, "loki", 1 << 20))

    assert sink.written == [1, 0, 0, 1]
    assert stats.sink_events_delivered_total == 2
