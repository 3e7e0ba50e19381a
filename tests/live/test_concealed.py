"""Nothing that an anonymized sink sends or leaves on disk has an address of a flow, whatever the record is.

One of everything: events, ends and lives of flows of both families through a gateway that translates all four
addresses, what a limit held back, what was lost, and a receiver that is away for a while.
"""

import gzip
import json
import os
import re
import signal
import socket
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from conntrackd.delivery.batch import GZIP
from conntrackd.render.anonymize import Anonymizer
from tests.bus.private import PrivateBus
from tests.faults.receivers import Receivers, receive
from tests.faults.rig import MOUNT
from tests.live import traffic
from tests.live.control import ask
from tests.live.daemon import Running, daemon, settle
from tests.live.network import DNAT, SNAT, TRACKING, Network, call_inside, inside, network
from tests.live.test_anonymize import write_key

pytestmark = pytest.mark.privileged

KEY = bytes(range(100, 132))
# Of client, gateway (both sides) and server.
ADDRESSES = [*("10.1.0.2", "10.1.0.1", "10.2.0.1", "10.2.0.2"), *("fd01::2", "fd01::1", "fd02::1", "fd02::2")]
TYPES = {"NEW", "UPDATE", "DESTROY", "FLOW", "ALIVE", "SNAPSHOT", "LOST", "SUPPRESSED"}
MODES = {
    "truncate": ("truncate", Anonymizer()),
    "pseudonym": ("pseudonym, anonymize_key_file: {folder}/key", Anonymizer(KEY)),
}
CONFIGURATION = """\
host: gateway
conntrack: {{netns: {netns}, records: both, heartbeat: 1s, snapshot: true, buffer: 256k}}
state_directory: {folder}/state
community_id.enable: true
filter:
  - log source address 10.1.0.2 and destination port 9 limit 1/second burst 5 per source
  - log source address fd01::2 and destination port 9 limit 1/second burst 5 per destination
sink.stream: {{enable: true}}
sink.journal: {{enable: true, filter: [{own}], anonymize: {mode}}}
sink.syslog:
  {{enable: true, address: '{syslog}', filter: [{own}], anonymize: {mode}}}
sink.loki:
  {{enable: true, address: '{loki}', batch_wait: 50ms, filter: [{own}], anonymize: {mode}}}
sinks:
  cee: {{kind: syslog, format: cee, address: '{syslog}', filter: [{own}], anonymize: {mode}}}
  ecs: {{kind: stream, schema: ecs, writer: 'file://{folder}/out/ecs', filter: [{own}], anonymize: {mode}}}
  otel: {{kind: loki, schema: otel, address: '{loki}', batch_wait: 50ms, filter: [{own}], anonymize: {mode}}}
"""
OWN = "log address 10.1.0.2 and destination port 7 limit 1/second burst 3 per source"


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        built.load(TRACKING + SNAT + DNAT)
        built.set("net.netfilter.nf_conntrack_acct", 1)
        with traffic.serve(built.server):
            yield built


def talk(net: Network) -> None:
    """Every kind of flow, both ways of the translation."""
    for family, address in ((socket.AF_INET, "10.1.0.1"), (socket.AF_INET6, "fd01::1")):
        call_inside(net.client, traffic.talk_stream, family, address, 0, 3)
        call_inside(net.client, traffic.talk_udp, family, address, 3)
    call_inside(net.client, knock)


def knock() -> None:
    """Many times at what has a limit."""
    for family, address in ((socket.AF_INET, "10.1.0.1"), (socket.AF_INET6, "fd01::1")):
        for port in (7, 9):
            for _ in range(30):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"", (address, port))


def list_addresses(data: bytes, addresses: Iterable[str] = ADDRESSES) -> set[str]:
    """Those that stand in it: as text, the IPv6 ones also as bytes."""
    found = set()
    for text in addresses:
        address = ip_address(text)
        forms = [re.escape(form.encode()) for form in {text, address.exploded}]
        rest = rb"[0-9a-fA-F:]" if address.version == 6 else rb"[0-9]|\.[0-9]"
        pattern = rb"(?<![0-9a-fA-F:.])(?:%s)(?!%s)" % (b"|".join(forms), rest)
        if re.search(pattern, data) or (address.version == 6 and address.packed in data):
            found.add(text)
    return found


def read_files(folder: Path) -> bytes:
    """All of their bytes, and what is compressed in them."""
    data = b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    return data + b"".join(
        zlib.decompressobj(GZIP).decompress(data[found.end() - 3 :])
        for found in re.finditer(b"E\x1f\x8b\x08", data)
    )


def take(receivers: Receivers, folder: Path) -> dict[str, bytes]:
    """All that has come, by where."""
    requests = receivers.loki.pushes
    return {
        "syslog": b"\n".join(receivers.syslog.take_raw()),
        "journal": b"\n".join(receivers.journal.take_raw()),
        "loki": b"\n".join(
            str(request.headers).encode() + gzip.decompress(request.body) for request in requests
        ),
        "ecs": read_files(folder / "out"),
    }


def wait_for(running: Running, kind: str) -> None:
    mark = f'"{kind}"'.encode()
    running.wait(lambda: any(mark in line for line in running.lines), kind)


def lose(net: Network, running: Running) -> None:
    """More than fits into the buffer of the socket."""
    running.process.send_signal(signal.SIGSTOP)
    try:
        call_inside(net.client, traffic.flood, 30_000, 2000)
    finally:
        running.process.send_signal(signal.SIGCONT)


@contextmanager
def run(net: Network, bus: PrivateBus, folder: Path, receivers: Receivers, mode: str) -> Iterator[Running]:
    """A daemon on the bus, with all of these sinks."""
    write_key(folder / "key", KEY)
    for name in ("out", "state"):
        (folder / name).mkdir()
    values = {"netns": net.router, "folder": folder, "mode": mode.format(folder=folder), "own": OWN}
    values |= {"syslog": receivers.syslog.address, "loki": f"http://127.0.0.1:{receivers.loki_port}"}
    (folder / "conntrackd.yaml").write_text(CONFIGURATION.format(**values))
    arguments = ("--config", f"{folder}/conntrackd.yaml", "--bus.address", bus.address)
    prefix = ("unshare", "-m", "sh", "-c", MOUNT, os.fspath(folder / "run"))
    with daemon(*arguments, prefix=prefix, CONNTRACKD_BUS_ENABLE="true") as running:
        running.wait_for_words("org.conntrackd1 is on")
        yield running


@pytest.mark.parametrize("name", MODES)
def test_no_address_of_a_flow_reaches_a_receiver_or_the_disk(
    name: str, net: Network, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    mode, anonymizer = MODES[name]
    with receive(tmp_path) as receivers:
        receivers.syslog.leave()
        talk(net)  # for the table that is read at the start
        with run(net, bus, tmp_path, receivers, mode) as running:
            with bus.connect() as client:
                tail = client.open_tail(["log type NEW and destination port 8080", "drop any"], 12)
            talk(net)  # what is heard
            with os.fdopen(tail, "rb") as file:
                seen = [json.loads(line).get("src") for line in file]
            wait_for(running, "ALIVE")
            lose(net, running)
            for kind in ("LOST", "SUPPRESSED"):
                wait_for(running, kind)
            inside(net.router, "conntrack", "-F")
            wait_for(running, "FLOW")
            settle(running)
            disk = read_files(tmp_path / "state")
            receivers.syslog.come_back()
            for sink in ("syslog", "cee", "loki", "otel", "ecs", "journal"):
                ask(capsys, "sink", "flush", sink)
            assert running.stop() == 0
        received = take(receivers, tmp_path)

    assert {event["type"] for event in running.events} == TYPES
    everything = {**received, "disk": disk}
    log = "".join(running.said).encode()  # the journal has it beside the records
    for data in (*everything.values(), read_files(tmp_path / "state"), log):
        assert list_addresses(data) == set()
    # What it was written instead, in every kind of record.
    packed = [ip_address(address).packed for address in ADDRESSES]
    written = {str(ip_address(address)) for address in anonymizer.write(packed)}
    for where, data in everything.items():
        assert list_addresses(data, written) == written, where
    for where, data in received.items():
        assert set(re.findall(r"\b[A-Z]{3,}\b", data.decode())) >= TYPES, where
    assert b'"filter", "", 1]' in disk
    # Who looks at the daemon itself sees all.
    assert {"10.1.0.2", "fd01::2"} <= set(seen)
