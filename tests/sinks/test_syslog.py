"""sinks/syslog.py against a real rsyslogd, over every transport and in every format."""

import json
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conntrackd.config.read import read_config
from conntrackd.delivery.backoff import Backoff
from conntrackd.delivery.batch import Batch, pack_batch
from conntrackd.delivery.datagrams import PADDED_TO, Framing, frame
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkRevised, SinkState, SinkUnavailable
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.store import PackedBatch
from conntrackd.flow import Flow, Location, Lost
from conntrackd.render.syslog import make_template
from conntrackd.sinks.addresses import Addresses
from conntrackd.sinks.syslog import SyslogSink, Target, _count_unacknowledged, create
from conntrackd.stats import SinkStats
from tests.delivery.fakes import put
from tests.rendering import render, render_all
from tests.sinks.authority import Authority
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.syslog_servers import Server, get_free_port, rsyslog, wait_until


def make(address: str, **settings: str) -> SyslogSink:
    """The sink as a configuration makes it."""
    overrides = {f"sink.syslog.{key}": [value] for key, value in settings.items()}
    return create(read_config({"sink.syslog.address": [address], **overrides}, {}, etc=Path("/nowhere")))


def send(sink: SyslogSink, batch: list[Any]) -> int:
    with closing(sink):
        sink.open()
        return sum(sink.write([part]) for part in render_all(sink.template, batch))


def hand_on(outbox: Outbox, flows: Sequence[Flow]) -> None:
    put(outbox, flows, partial(render, outbox.template))


# ---- what is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["octet-counting", "lf"])
@pytest.mark.parametrize("scheme", ["udp", "tcp", "unix"])
def test_the_server_reads_every_field_of_rfc5424(tmp_path: Path, scheme: str, framing: str) -> None:
    with rsyslog(tmp_path, scheme) as server:
        send(
            make(server.address, framing=framing, format="rfc5424"),
            [*make_flows(20), Lost(3, BASE, BASE, "kernel")],
        )
        found = server.wait_for(21)

    first, last = found[0], found[-1]
    assert (first["severity"], first["facility"], first["app"], first["msgid"]) == (
        "6",
        "daemon",
        "conntrackd",
        "NEW",
    )
    assert first["host"] == socket.gethostname()
    assert re.fullmatch(r"2025-11-22T\d\d:34:43\.000000[+-]\d\d:\d\d", first["time"].replace("Z", "+00:00"))
    assert [re.findall(r'flow="(\d+)"', entry["data"]) for entry in found[:-1]] == [
        [str(n)] for n in range(20)
    ]
    assert first["data"].startswith('[meta sequenceId="1"][event@32473 type="NEW" flow="0" prot="TCP"')
    assert first["msg"].strip() == "NEW TCP connection from 10.0.0.0:40000 to 192.0.2.1:443"
    assert (last["severity"], last["msgid"]) == ("4", "LOST")


@pytest.mark.parametrize("form", ["rfc3164", "cee"])
def test_the_server_reads_the_other_formats(tmp_path: Path, form: str) -> None:
    with rsyslog(tmp_path, "tcp") as server:
        send(make(server.address, format=form, facility="local3"), make_flows(3))
        found = server.wait_for(3)

    assert {(entry["facility"], entry["host"], entry["app"]) for entry in found} == {
        ("local3", socket.gethostname(), "conntrackd")
    }
    if form == "cee":
        objects = [json.loads(entry["msg"].strip().removeprefix("@cee:")) for entry in found]
        assert [entry["flow"] for entry in objects] == [0, 1, 2]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_local_socket_gets_what_syslog_3_sends(tmp_path: Path, kind: socket.SocketKind) -> None:
    """Without a host, and over a stream each message with a NUL behind it."""
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(os.fspath(path))
        if kind == socket.SOCK_STREAM:
            server.listen()
        send(make(f"unix://{path}", format="rfc3164"), make_flows(2))
        if kind == socket.SOCK_STREAM:
            with server.accept()[0] as connection:
                messages = connection.recv(1 << 16).split(b"\0")
        else:
            messages = [server.recv(4096), server.recv(4096), b""]

    assert messages.pop() == b""
    assert [
        re.sub(rb"\d\d:(34:43 conntrackd)\[\d+\]:.* to ", rb"\1 ", message)[:57] for message in messages
    ] == [b'<30>Nov 22 34:43 conntrackd 192.0.2.1:443 type="NEW" flow'] * 2


def test_a_local_rsyslog_reads_the_program_where_it_looks_for_it(tmp_path: Path) -> None:
    with rsyslog(tmp_path, "unix-3164") as server:
        send(make(f"unix://{tmp_path}/log", format="rfc3164"), make_flows(2))
        found = server.wait_for(2)

    assert [(entry["host"], entry["app"]) for entry in found] == [(socket.gethostname(), "conntrackd")] * 2


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_the_server_reads_padded_messages_and_keeps_the_spaces(tmp_path: Path, form: str) -> None:
    with rsyslog(tmp_path, "udp") as server:
        send(make(server.address, format=form, segments="true"), make_flows(100))
        found = server.wait_for(100)  # a socket's default buffer has room for 160

    texts = [record["msg"] if form != "rfc5424" else record["data"] for record in found]
    numbers = [int(number) for text in texts for number in re.findall(r'"?flow"?[=:]"?(\d+)', text)]
    assert sorted(numbers) == list(range(100))
    assert {(record["facility"], record["app"]) for record in found} == {("daemon", "conntrackd")}
    assert any(record["msg"].endswith("  ") for record in found)


def test_only_over_udp_messages_are_padded(tmp_path: Path) -> None:
    with rsyslog(tmp_path, "tcp") as server:
        send(make(server.address, segments="true"), make_flows(20))
        found = server.wait_for(20)

    assert not any(record["msg"].endswith(" ") for record in found)


def test_padded_messages_are_of_few_lengths_and_each_is_a_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        sink = make(f"udp://127.0.0.1:{server.getsockname()[1]}", segments="true")
        with closing(sink):
            sink.open()
            events = render(sink.template, make_flows(100))
            sink.write([events])
            received = [server.recv(1 << 16) for _ in range(100)]

    assert {len(message) % PADDED_TO for message in received} == {0}
    assert len({len(message) for message in received}) < 4
    for field, numbers in ((b"flow", range(100)), (b"sequenceId", range(1, 101))):
        found = [re.findall(field + rb'="(\d+)"', message) for message in received]
        assert found == [[b"%d" % number] for number in numbers]


@pytest.mark.parametrize("count", [1, 2, 64, 65, 150])
def test_segments_that_nobody_takes_are_not_said_to_be_there(count: int) -> None:
    """One call is refused as one: none of its messages was taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sink = make(f"udp://127.0.0.1:{port}", segments="true")
    with closing(sink):
        sink.open()
        with pytest.raises(SinkUnavailable) as caught:
            sink.write([render(sink.template, make_flows(count))])

    assert caught.value.written == 0


# ---- faults -----------------------------------------------------------------------------------------------


def deliver_over_an_outage(server: Server, sink: SyslogSink) -> list[dict[str, Any]]:
    """What a server has of 2,000 events, between which it is killed and comes back."""
    stats = SinkStats()
    outbox: Outbox = Outbox(sink, queue=100_000, stats=stats)
    outbox.start()
    hand_on(outbox, make_flows(1000))
    assert outbox.flush(15)
    server.wait_for(1000)
    server.kill()
    hand_on(outbox, make_flows(1000, 1000))
    wait_until(lambda: outbox.error, "the trouble")
    server.start()
    assert outbox.flush(20)
    found = server.wait_for(2000)
    outbox.stop(time.monotonic() + 5)
    assert stats.sink_events_delivered_total == stats.sink_events_taken_total == 2000
    return found


def test_a_server_that_is_killed_and_comes_back_gets_every_message(tmp_path: Path) -> None:
    with rsyslog(tmp_path, "tcp") as server:
        found = deliver_over_an_outage(server, make(server.address))

    numbers = [int(re.findall(r'flow="(\d+)"', entry["data"])[0]) for entry in found]
    assert sorted(set(numbers)) == list(range(2000))
    assert len(numbers) == 2000


def test_a_reset_after_a_stall_leaves_what_was_not_acknowledged() -> None:
    """What the server's kernel had is there, the rest is to be sent again."""
    stall, size = 100_000, 4096
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        sink = SyslogSink(Target("tcp", *server.getsockname()[:2]), make_template("rfc5424", "daemon"))
        sink.open()
        ours = sink._socket
        assert ours is not None
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        connection, _ = server.accept()
        events = render(sink.template, make_flows(30_000))
        received = bytearray()

        def stall_and_reset() -> None:
            while len(received) < stall:
                received.extend(connection.recv(10_000))
            wait_until(lambda: _count_unacknowledged(ours) > 1 << 18, "the stall")
            # SO_LINGER with 0: what is in the buffer goes, and the peer gets a reset.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=stall_and_reset)
        thread.start()
        with closing(sink), pytest.raises(SinkUnavailable) as caught:
            sink.write([events])
        thread.join()

    done = caught.value.written
    text, ends, _ = frame(events.text, events.ends, 1, Framing.OCTETS)
    framed = events._replace(text=text, ends=ends)
    # All that the server has read is done, and no more than its kernel could hold beside that.
    assert framed.get_end(done + 1) > len(received)
    assert framed.get_end(done) <= len(received) + 16 * size
    assert text.startswith(bytes(received))


@pytest.mark.parametrize("framing", ["octet-counting", "lf"])
def test_what_waits_has_the_frame_of_the_connection_by_which_it_goes(tmp_path: Path, framing: str) -> None:
    """It was spooled for a server that had lines, or datagrams, or a local socket."""
    store = Spool(tmp_path, "syslog", 1 << 20)
    for number, sink in enumerate([make("tcp://127.0.0.1:1", framing="lf"), make("udp://127.0.0.1:1")]):
        batch = Batch.of([render(sink.template, [make_flow(number)])])
        store.append([PackedBatch(pack_batch(batch), 1, 1)])
    with rsyslog(tmp_path, "tcp") as server:
        outbox: Outbox = Outbox(
            make(server.address, framing=framing), queue=100, stats=SinkStats(), spool=store
        )
        outbox.start()
        hand_on(outbox, make_flows(1, 2))
        assert outbox.flush(20)
        found = server.wait_for(3)
        outbox.stop(time.monotonic() + 5)

    assert [re.findall(r'flow="(\d+)"', entry["data"]) for entry in found] == [["0"], ["1"], ["2"]]
    assert {entry["msg"].strip()[:18] for entry in found} == {"NEW TCP connection"}


def test_a_connection_that_the_server_has_closed_is_noticed_before_anything_is_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sink = SyslogSink(Target("tcp", *server.getsockname()[:2]), make_template("rfc5424", "daemon"))
        sink.open()
        server.accept()[0].close()
        events = render(sink.template, make_flows(5))
        with closing(sink), pytest.raises(SinkUnavailable, match="has closed the connection") as caught:
            sink.write([events])

    assert caught.value.written == 0


@pytest.mark.parametrize("count", [1, 2, 10, 256, 257, 1000])
def test_no_datagram_to_nobody_is_said_to_be_delivered(count: int) -> None:
    """The refusal of a datagram is told to the next, and sendmmsg(2) keeps the first one to itself."""
    sink = make(f"udp://127.0.0.1:{get_free_port()}")
    events = render(sink.template, make_flows(count))
    sink.open()
    with closing(sink), pytest.raises(SinkUnavailable, match="Connection refused") as caught:
        sink.write([events])

    assert caught.value.written == 0


def test_events_to_a_server_that_is_not_there_yet_arrive_when_it_is(tmp_path: Path) -> None:
    """One at a time: each of them would be the one whose refusal nobody asks for."""
    stats = SinkStats()
    with rsyslog(tmp_path, "udp") as server:
        server.kill()
        outbox: Outbox = Outbox(make(server.address), queue=100, stats=stats)
        outbox.start()
        for number in range(20):
            hand_on(outbox, make_flows(1, number))
            assert not outbox.flush(0.01)
        wait_until(lambda: outbox.error, "the trouble")
        away = outbox.snapshot()
        server.start()
        assert outbox.flush(20)
        found = server.wait_for(20)
        outbox.stop(time.monotonic() + 5)

    assert (away.sink_events_delivered_total, away.sink_events_queued) == (0, 20)
    assert [int(re.findall(r'flow="(\d+)"', entry["data"])[0]) for entry in found] == [*range(20)]


def test_a_server_at_the_second_address_of_its_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `localhost` is, where only the IPv4 address is listened to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        port = server.getsockname()[1]
        addresses = [(*(socket.AF_INET, socket.SOCK_DGRAM, 17, ""), (f"127.0.0.{n}", port)) for n in (2, 1)]
        monkeypatch.setattr("conntrackd.sinks.syslog.socket.getaddrinfo", lambda *_, **__: addresses)
        outbox: Outbox = Outbox(
            make(f"udp://some.name:{port}"), queue=100, stats=SinkStats(), backoff=Backoff(0.01, 0.01)
        )
        outbox.start()
        hand_on(outbox, make_flows(3))
        assert outbox.flush(10)
        received = [server.recv(4096) for _ in range(3)]
        outbox.stop(time.monotonic() + 5)

    assert [re.findall(rb'flow="(\d+)"', message) for message in received] == [[b"0"], [b"1"], [b"2"]]


@pytest.mark.parametrize("behind", [2, 0])
def test_a_message_that_no_datagram_holds_is_refused_alone(behind: int) -> None:
    stats = SinkStats()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        long = make_flow(3)
        long.dst_location = Location(city="x" * 70_000)
        outbox: Outbox = Outbox(make(f"udp://127.0.0.1:{server.getsockname()[1]}"), queue=100, stats=stats)
        hand_on(outbox, [*make_flows(3), long, *make_flows(behind, 4)])
        outbox.start()
        assert outbox.flush(10)
        received = [server.recv(4096) for _ in range(3 + behind)]
        outbox.stop(time.monotonic() + 5)

    numbers = [int(re.findall(rb'flow="(\d+)"', message)[0]) for message in received]
    assert numbers == [*range(3), *range(4, 4 + behind)]
    assert (stats.sink_events_delivered_total, stats.sink_events_dropped_refused_total) == (3 + behind, 1)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_socket_that_is_removed_and_made_again_is_found_again(
    tmp_path: Path, kind: socket.SocketKind
) -> None:
    """While the sink has it open: a syslog server that is restarted makes a new one."""
    path = tmp_path / "log"
    outbox: Outbox = Outbox(make(f"unix://{path}"), queue=100, stats=SinkStats(), backoff=Backoff(0.01, 0.01))
    outbox.start()
    received = []
    for number in range(3):
        with socket.socket(socket.AF_UNIX, kind) as server:
            server.bind(os.fspath(path))
            if kind == socket.SOCK_STREAM:
                server.listen()
            hand_on(outbox, make_flows(1, number))
            assert outbox.flush(15)
            with server.accept()[0] if kind == socket.SOCK_STREAM else nullcontext(server) as connection:
                received.append(connection.recv(4096))
        path.unlink()
    hand_on(outbox, make_flows(1, 3))
    wait_until(lambda: outbox.state is SinkState.RETRYING, "the trouble")
    away = outbox.snapshot()
    outbox.stop(time.monotonic())

    assert [re.findall(rb'flow="(\d+)"', message) for message in received] == [[b"0"], [b"1"], [b"2"]]
    assert (away.sink_events_delivered_total, away.sink_events_queued) == (3, 1)
    assert str(path) in outbox.error


# ---- TLS --------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(
    certificate: Path | None, *, ciphers: str = "", client_ca: Path | None = None, **context: Any
) -> Iterator[tuple[int, list[bytes]]]:
    """Gathers what one client sends over TLS; speaks no TLS without a certificate."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            try:
                connection, _ = server.accept()
                connection.settimeout(10)
                if certificate is not None:
                    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    made.load_cert_chain(certificate)
                    if ciphers:
                        made.set_ciphers(ciphers)
                    if client_ca is not None:
                        made.load_verify_locations(client_ca)
                        made.verify_mode = ssl.CERT_REQUIRED
                    for name, value in context.items():
                        setattr(made, name, value)
                    connection = made.wrap_socket(connection, server_side=True)
                else:
                    connection.sendall(b"hello\r\n")
                with connection:
                    while data := connection.recv(4096):
                        received.append(data)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], received
        finally:
            thread.join(15)


def test_over_tls_the_server_gets_what_was_sent(authority: Authority) -> None:
    with tls_server(authority.issue("good", "IP:127.0.0.1")) as (port, received):
        sink = make(f"tls://127.0.0.1:{port}", **{"tls.ca": str(authority.ca)})
        events = render(sink.template, make_flows(5))
        with closing(sink):
            sink.open()
            sink.write([events])

    assert b"".join(received) == frame(events.text, events.ends, 1, Framing.OCTETS)[0]


@pytest.mark.parametrize(
    ("name", "host", "expired", "cause"),
    [
        ("expired", "IP:127.0.0.1", True, "certificate has expired"),
        ("elsewhere", "DNS:other.example", False, "mismatch"),
    ],
)
def test_a_certificate_that_is_wrong_is_named_and_nothing_is_sent(
    authority: Authority, name: str, host: str, expired: bool, cause: str
) -> None:
    with tls_server(authority.issue(name, host, expired=expired)) as (port, received):
        sink = make(f"tls://127.0.0.1:{port}", **{"tls.ca": str(authority.ca)})
        with closing(sink), pytest.raises(SinkUnavailable, match=cause):
            sink.open()

    assert received == []


def test_a_certificate_of_nobody_known_is_refused_unless_asked_for(authority: Authority) -> None:
    certificate = authority.issue("unknown", "IP:127.0.0.1")
    with tls_server(certificate) as (port, received):
        with (
            closing(make(f"tls://127.0.0.1:{port}")) as sink,
            pytest.raises(
                SinkUnavailable, match=r"certificate not accepted: (self-signed|unable to get local issuer)"
            ),
        ):
            sink.open()
        assert received == []
    with tls_server(certificate) as (port, received):
        send(make(f"tls://127.0.0.1:{port}", **{"tls.verify": "no"}), make_flows(1))

    assert len(received) == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_an_old_version_is_refused(authority: Authority) -> None:
    certificate = authority.issue("old", "IP:127.0.0.1")
    old: dict[str, Any] = dict.fromkeys(("minimum_version", "maximum_version"), ssl.TLSVersion.TLSv1_1)
    with tls_server(certificate, ciphers="ALL:@SECLEVEL=0", **old) as (port, received):
        sink = make(f"tls://127.0.0.1:{port}", **{"tls.ca": str(authority.ca)})
        with closing(sink), pytest.raises(SinkUnavailable, match=r"TLS: .*protocol version"):
            sink.open()

    assert received == []


def test_no_tls_at_all_is_refused(authority: Authority) -> None:
    with tls_server(None) as (port, received):
        sink = make(f"tls://127.0.0.1:{port}", **{"tls.ca": str(authority.ca)})
        with closing(sink), pytest.raises(SinkUnavailable, match="TLS: wrong version number"):
            sink.open()

    assert not any(b"conntrackd" in message for message in received)


def test_a_server_that_asks_for_it_gets_the_certificate_of_this_client(authority: Authority) -> None:
    certificate, client = authority.issue("good", "IP:127.0.0.1"), authority.issue("us", "DNS:gw1")
    settings = {"tls.ca": str(authority.ca), "tls.cert": str(client), "tls.key": str(client)}
    for given in (settings, {"tls.ca": str(authority.ca)}):
        with tls_server(certificate, client_ca=authority.ca) as (port, received):
            sink = make(f"tls://127.0.0.1:{port}", **given)
            with closing(sink), suppress(SinkUnavailable):
                sink.open()
                sink.write([render(sink.template, [make_flow(1)])])
        assert bool(received) == (given is settings)


# ---- numbers ----------------------------------------------------------------------------------------------


def test_messages_are_numbered_in_the_order_in_which_they_are_taken(tmp_path: Path) -> None:
    """A loss has one too."""
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(os.fspath(path))
        sink = make(f"unixgram://{path}", format="rfc5424")
        with closing(sink):
            sink.open()
            sink.write([render(sink.template, make_flows(2)), render(sink.template, make_flows(1, 2))])
            sink.write([sink.template.render_loss(Lost(3, BASE, BASE, "kernel"))])
            sink.write([render(sink.template, make_flows(2, 3))])
            found = [server.recv(4096) for _ in range(6)]

    assert [int(re.findall(rb'sequenceId="(\d+)"', message)[0]) for message in found] == [*range(1, 7)]


def test_what_is_sent_again_has_the_numbers_that_it_had() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        sink = make(f"udp://127.0.0.1:{server.getsockname()[1]}")
        long = make_flow(2)
        long.dst_location = Location(city="x" * 70_000)
        events = render(sink.template, [*make_flows(2), long, make_flow(3)])
        with closing(sink):
            sink.open()
            with pytest.raises(SinkRevised) as caught:
                sink.write([events])
            sink.write([events.split(caught.value.written + caught.value.refused)[1]])
            found = [server.recv(4096) for _ in range(3)]

    assert (caught.value.written, caught.value.refused) == (2, 1)
    assert [int(re.findall(rb'sequenceId="(\d+)"', message)[0]) for message in found] == [1, 2, 3]


def test_messages_that_wait_while_the_format_changes_have_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(os.fspath(path))
        sink = make(f"unixgram://{path}", format="cee")
        waiting = render(make_template("rfc5424", "daemon"), make_flows(2))
        with closing(sink):
            sink.open()
            sink.write([waiting, render(sink.template, make_flows(1, 2))])
            found = [server.recv(4096) for _ in range(3)]

    assert [re.findall(rb'sequenceId="(.*?)"', message) for message in found] == [[b"1"], [b"2"], []]
    assert not any(b"\0" in message for message in found)


def test_a_loss_that_no_datagram_holds_is_refused_and_not_tried_for_ever() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        outbox = Outbox(make(f"udp://127.0.0.1:{server.getsockname()[1]}"), queue=100, stats=SinkStats())
        outbox.start()
        outbox.report(Lost(1, BASE, BASE, "kernel", "x" * 70_000))
        wait_until(lambda: outbox.error, "the trouble")
        hand_on(outbox, make_flows(1))
        assert outbox.flush(10)
        received = server.recv(4096)
        outbox.stop(time.monotonic() + 5)

    assert re.findall(rb'flow="(\d+)"', received) == [b"0"]


@pytest.mark.parametrize(
    ("settings", "has_version"),
    [
        ({"address": "unix:///dev/log"}, False),
        ({"address": "unixgram:///dev/log"}, False),
        ({"address": "unix:///dev/log", "format": "rfc5424"}, True),
        ({"address": "udp://127.0.0.1"}, True),
    ],
)
def test_a_local_socket_gets_the_form_that_it_reads_unless_another_is_named(
    settings: dict[str, str], has_version: bool
) -> None:
    message = render(make(**settings).template, [make_flow(1)]).text

    assert (b">1 " in message) is has_version


def test_the_hosts_name_is_the_one_that_was_set() -> None:
    sink = create(read_config({"host": ["edge1"]}, {}, etc=Path("/nowhere")))

    assert b" edge1 conntrackd " in render(sink.template, [make_flow(1)]).text


def test_a_zone_is_no_part_of_the_name_in_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def wrap(_: socket.socket, *, server_hostname: str, **__: bool) -> SimpleNamespace:
        names.append(server_hostname)
        return SimpleNamespace(do_handshake=lambda: None)

    monkeypatch.setattr("conntrackd.sinks.tls.make_context", lambda _: SimpleNamespace(wrap_socket=wrap))
    with socket.socket() as plain:
        monkeypatch.setattr(Addresses, "connect", lambda *_: plain)
        make("tls://[fe80::1%25eth0]")._connect()

    assert names == ["fe80::1"]


def test_a_certificate_that_is_renewed_is_used_without_a_restart(authority: Authority) -> None:
    """With a connection of its own, from the first write after both files are there."""
    certificate, mine = authority.issue("server", "IP:127.0.0.1"), authority.folder / "mine.pem"
    mine.write_bytes(authority.issue("first", "DNS:first").read_bytes())
    second = authority.issue("second", "DNS:second").read_bytes()
    names: list[str] = []
    received: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # the sink reads none, and who closes with something unread resets the connection
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            for _ in range(2):
                with context.wrap_socket(server.accept()[0], server_side=True) as connection:
                    names.append(connection.getpeercert()["subjectAltName"][0][1])  # type: ignore[index,arg-type]
                    while data := connection.recv(4096):
                        received.append(data)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        files = {"tls.ca": str(authority.ca), "tls.cert": str(mine), "tls.key": str(mine)}
        sink = make(f"tls://127.0.0.1:{port}", **files)
        with closing(sink):
            sink.open()
            for number, content in enumerate((b"", second[:100], second)):
                if content:
                    mine.write_bytes(content)
                sink.write([render(sink.template, [make_flow(number)])])
        thread.join(15)

    assert names == ["first", "second"]
    assert re.findall(rb'flow="(\d+)"', b"".join(received)) == [b"0", b"1", b"2"]
