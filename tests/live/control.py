"""What the tests of control do again and again: run it, talk, ask, count."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conntrackd.cli import ctl
from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.daemon import Running, daemon
from tests.live.network import Network, call_inside


@contextmanager
def run_on_bus(net: Network, bus: PrivateBus, configuration: Path, **variables: str) -> Iterator[Running]:
    """A daemon that has started with this configuration, and is on the bus."""
    arguments = [
        "--config",
        str(configuration),
        "--conntrack.netns",
        net.router,
        "--bus.address",
        bus.address,
    ]
    with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true", **variables) as made:
        made.wait_for_start()
        made.wait_for_words("org.conntrackd1 is on")
        yield made


def talk(net: Network, times: int) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", times)


def start_flood(net: Network, first: int, times: int) -> threading.Thread:
    thread = threading.Thread(target=call_inside, args=(net.client, traffic.flood, first, times))
    thread.start()
    return thread


def count_sources(running: Running) -> list[int]:
    """Source ports of all NEW events of a flood, sorted."""
    return sorted(
        event["sport"] for event in running.events if event["type"] == "NEW" and event["dport"] == 9
    )


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What `--json` prints."""
    ctl.run([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def count_new(running: Running) -> int:
    return sum(event["type"] == "NEW" for event in running.events)


def count_descriptors(running: Running) -> int:
    """Those that stay: the fewest of some looks, for a setting that is read at the time opens a file."""
    folder, pause = f"/proc/{running.process.pid}/fd", threading.Event()
    counts = [len(os.listdir(folder))]
    for _ in range(10):
        pause.wait(0.01)
        counts.append(len(os.listdir(folder)))
    return min(counts)
