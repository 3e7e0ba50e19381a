"""What a real daemon has written into a file that was rotated, read back and compared with what was sent."""

import gzip
import io
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from tests.live.daemon import Running, daemon
from tests.live.network import TRACKING, Network, call_inside, network
from tests.sinks.syslog_servers import wait_until

RULES = ("log type NEW and destination port 9", "drop any")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        built.load(TRACKING)
        yield built


def send(ports: range) -> None:
    """A datagram from each port to nobody."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.1.0.2", port))
            sock.sendto(b"", ("10.2.0.2", 9))


def ask(path: Path, *words: str) -> list[dict[str, Any]]:
    """What `conntrackctl events` prints, without a word on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert ctl.run(["events", "--from", f"file:{path}", "-o", "jsonl", *words]) == 0
    assert err.getvalue() == ""
    return [json.loads(line) for line in out.getvalue().splitlines()]


def list_ports(records: list[dict[str, Any]]) -> list[int]:
    return [record["sport"] for record in records if record["type"] == "NEW"]


def write_part(net: Network, path: Path, ports: range) -> None:
    """Send, and wait until it is in the file."""
    call_inside(net.client, send, ports)
    wait_until(lambda: path.read_bytes().count(b'"type":"NEW"') >= len(ports), "events in the file")


def rotate(running: Running, path: Path, target: Path) -> None:
    """As logrotate does it, with `nocreate` and a signal."""
    path.rename(target)
    running.process.send_signal(signal.SIGHUP)
    wait_until(path.exists, "a new file")


@pytest.mark.privileged
def test_what_was_sent_is_found_in_rotated_and_compressed_files(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    first, second, third = range(20_000, 20_040), range(20_040, 20_070), range(20_070, 20_100)
    arguments = (
        "--conntrack.netns",
        net.router,
        "--sink.stream.enable",
        "--sink.stream.writer",
        f"file://{path}",
    )
    with daemon(*arguments) as running:
        running.wait_for_start()
        write_part(net, path, first)
        rotate(running, path, tmp_path / "events.json.1")
        between = datetime.now(UTC)
        write_part(net, path, second)
        (tmp_path / "events.json.2.gz").write_bytes(gzip.compress((tmp_path / "events.json.1").read_bytes()))
        rotate(running, path, tmp_path / "events.json.1")
        write_part(net, path, third)
        assert running.stop() == 0

    assert list_ports(ask(path, *RULES)) == [*first, *second, *third]
    assert list_ports(ask(path, *RULES, "--since", between.isoformat())) == [*second, *third]
    assert list_ports(ask(path, *RULES, "--until", f"{between:%F %T.%f} UTC")) == [*first]
    assert list_ports(ask(path, *RULES, "--last", "45")) == [*second, *third][-45:]
    assert list_ports(ask(path, "log source port 20000-20009", "drop any")) == [*first][:10]
    assert ask(path, "log destination port 10", "drop any") == []
