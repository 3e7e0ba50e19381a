"""sinks/syslog.py against a real syslog-ng, over every transport and in every format."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from conntrackd.config.read import read_config
from conntrackd.flow import Location, Lost
from conntrackd.sinks.syslog import SyslogSink, create
from tests.sinks.authority import Authority
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.syslog_servers import SYSLOG_NG, Server, syslog_ng
from tests.sinks.test_syslog import deliver_over_an_outage, send

pytestmark = pytest.mark.skipif(
    not SYSLOG_NG.exists(), reason="syslog-ng is not unpacked: make .venv/syslog-ng"
)


def make(server: Server, transport: str, form: str, authority: Authority, **more: str) -> SyslogSink:
    """The sink as a configuration makes it."""
    settings = {"format": form, "framing": "lf" if transport.endswith("line") else "octet-counting", **more}
    if transport.startswith("tls"):
        settings["tls.ca"] = str(authority.ca)
    overrides = {f"sink.syslog.{key}": [value] for key, value in settings.items()}
    overrides["sink.syslog.address"] = [server.address]
    return create(read_config(overrides, {}, etc=Path("/nowhere")))


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
@pytest.mark.parametrize(
    "transport", ["udp", "tcp-octet", "tcp-line", "tls-octet", "tls-line", "unix", "unixgram"]
)
def test_the_server_reads_every_field(
    tmp_path: Path, authority: Authority, transport: str, form: str
) -> None:
    event = make_flow(20)
    event.dst_location = Location(city='A "city" [with] \\ and\nmore', country="DE")
    certificate = authority.issue("server", "IP:127.0.0.1")
    with syslog_ng(tmp_path, transport, form, certificate) as server:
        batch = [*make_flows(20), event, Lost(3, BASE, BASE, "kernel")]
        send(make(server, transport, form, authority), batch)
        found = server.wait_for(22)

    assert [entry["severity"] for entry in found] == [*["6"] * 21, "4"]
    assert {(entry["facility"], entry["host"], entry["app"]) for entry in found} == {
        ("daemon", socket.gethostname(), "conntrackd")
    }
    assert [read_flow_number(entry, form) for entry in found[:-1]] == list(range(21))
    if form == "rfc5424":
        assert [entry["msgid"] for entry in found[::21]] == ["NEW", "LOST"]
        assert found[0]["data"].startswith('[meta sequenceId="1"][event@32473 type="NEW" flow="0" prot="TCP"')
        assert r'city="A \"city\" [with\] \\ and' in found[20]["data"]
        assert found[0]["msg"] == "NEW TCP connection from 10.0.0.0:40000 to 192.0.2.1:443"
    if form == "cee":
        assert json.loads(found[20]["msg"].removeprefix("@cee:"))["city"] == 'A "city" [with] \\ and\nmore'


def read_flow_number(record: dict[str, Any], form: str) -> int:
    """Its number, from where the format has it."""
    if form == "cee":
        return int(json.loads(record["msg"].removeprefix("@cee:"))["flow"])
    found = re.search(r'flow="(\d+)"', record["data"] if form == "rfc5424" else record["msg"])
    assert found is not None, record
    return int(found[1])


@pytest.mark.parametrize("form", ["rfc5424", "rfc3164", "cee"])
def test_the_server_reads_padded_messages_and_keeps_the_spaces(
    tmp_path: Path, authority: Authority, form: str
) -> None:
    with syslog_ng(tmp_path, "udp", form) as server:
        send(make(server, "udp", form, authority, segments="true"), make_flows(100))
        found = server.wait_for(100)

    assert sorted(read_flow_number(record, form) for record in found) == list(range(100))
    assert {(record["facility"], record["app"]) for record in found} == {("daemon", "conntrackd")}
    assert any(record["msg"].endswith("  ") for record in found)


@pytest.mark.parametrize("transport", ["tcp-octet", "tls-octet", "unix"])
def test_a_server_that_is_killed_and_comes_back_gets_every_message(
    tmp_path: Path, authority: Authority, transport: str
) -> None:
    """Over TLS nobody knows how much of a broken write was taken: there, more than once is right too."""
    certificate = authority.issue("server", "IP:127.0.0.1")
    with syslog_ng(tmp_path, transport, "rfc5424", certificate) as server:
        sink = make(server, transport, "rfc5424", authority)
        found = deliver_over_an_outage(server, sink)

    numbers = [read_flow_number(entry, "rfc5424") for entry in found]
    assert sorted(set(numbers)) == list(range(2000))
    assert len(numbers) == 2000 or transport == "tls-octet"
