"""Row 39: the dearest that a caller may ask for delays neither root nor a signal, and costs no event."""

import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from conntrackd.bus.client import Client
from conntrackd.control import TAILS_OF_ROOT
from conntrackd.errors import ConntrackdError
from conntrackd.tails import MAX_TAILS
from tests.bus.private import PrivateBus
from tests.bus.raw import Raw, call, connect_as
from tests.bus.test_polkit import FakePolkit
from tests.faults.producer import produce
from tests.filter.dearest import collect
from tests.live.daemon import Running, daemon
from tests.live.network import Network

pytestmark = pytest.mark.privileged

OBSERVER: Final = 1
OBSERVE: Final = "org.conntrackd1.observe"
ASKED: Final = 16  # calls of one user that may be under way
KIBIBYTES: Final = 64 << 10
SECONDS: Final = 1.0


@pytest.fixture
def running(net: Network, bus: PrivateBus, tmp_path: Path) -> Iterator[Running]:
    configuration = tmp_path / "conntrackd.yaml"
    configuration.write_text("sink: {stream: {enable: true}}\nconntrack: {events: new, protocols: udp}\n")
    settings = ["--config", os.fspath(configuration), "--bus.address", bus.address]
    polkit = FakePolkit(bus.address)
    polkit.answers[OBSERVE] = (True, False)
    try:
        with daemon(*settings, "--conntrack.netns", net.router, CONNTRACKD_BUS_ENABLE="true") as made:
            made.wait_for_words("org.conntrackd1 is on")
            yield made
            assert not made.has_said("Traceback"), made.said
    finally:
        polkit.close()


@pytest.fixture
def observer(running: Running, bus: PrivateBus) -> Iterator[Raw]:
    raw = connect_as(bus, OBSERVER)
    yield raw
    raw.close()


def ask_for_all(observer: Raw, kind: str) -> None:
    """As many of the dearest calls as one user may have under way, none of which is waited for."""
    rules = [rule.text for rule in collect(kind)]
    for number in range(ASKED):
        if number % 2:
            observer.post(call("CheckFilter", "as"), [rules])
        else:
            observer.post(call("ExplainFilter", "as"), [rules])


def measure(client: Client, *asked: object) -> float:
    began = time.monotonic()
    client.call(*asked)  # type: ignore[arg-type]  # a member, its signature and its values
    return time.monotonic() - began


def read_peak(running: Running) -> int:
    text = Path(f"/proc/{running.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))


@pytest.mark.parametrize("kind", ["not public", "IPv6 networks"])
def test_row_39_root_waits_for_nobody_who_only_looks_and_no_event_is_lost(
    kind: str, running: Running, observer: Raw, bus: PrivateBus, net: Network
) -> None:
    with bus.connect() as root, produce(net) as producer:
        before = read_peak(running)
        ask_for_all(observer, kind)
        took = {
            what: statistics.median(measure(root, *asked) for _ in range(5))
            for what, asked in (
                ("change", ("SetFilter", "asu", ["drop port 1"], 0)),
                ("reload", ("Reload",)),
                ("look", ("CheckFilter", "as", ["log any"])),
                ("state", ("GetStatistics",)),
            )
        }
        producer.forget()
        producer.send(2000)
        running.wait_for_events(2000)

        assert max(took.values()) < SECONDS, took
        assert read_peak(running) - before < 2 * KIBIBYTES
        assert root.call("GetStatistics")[0]["events_lost_total"] == 0


def test_row_39_the_last_tails_are_roots(running: Running, observer: Raw, bus: PrivateBus) -> None:
    pipes: list[int] = []
    with bus.connect() as root:
        try:
            pipes += [observer.open_tail([], 0) for _ in range(MAX_TAILS - TAILS_OF_ROOT)]
            with pytest.raises(ConntrackdError, match="6 tails are open, the last 2 are reserved for root"):
                observer.open_tail([], 0)
            pipes += [root.open_tail([], 0) for _ in range(TAILS_OF_ROOT)]
        finally:
            for pipe in pipes:
                os.close(pipe)

    assert len(pipes) == MAX_TAILS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_row_39_a_stop_waits_for_nothing_that_is_compiled(
    number: signal.Signals, running: Running, observer: Raw, bus: PrivateBus
) -> None:
    ask_for_all(observer, "IPv6 networks")
    with bus.connect() as root:
        root.call("GetStatistics")  # the calls have been taken
    began = time.monotonic()

    assert running.stop(number) == 0
    assert time.monotonic() - began < 5


def test_row_39_a_signal_to_reload_is_heeded_while_an_observers_rules_are_compiled(
    running: Running, observer: Raw
) -> None:
    ask_for_all(observer, "not public")

    running.process.send_signal(signal.SIGHUP)

    running.wait_for_words("nothing has changed", 5)


def test_row_39_who_asks_and_goes_away_again_and_again_has_one_thread_at_a_time(
    running: Running, bus: PrivateBus
) -> None:
    rules = [rule.text for rule in collect("not public")]
    for _ in range(20):
        raw = connect_as(bus, OBSERVER)
        raw.post(call("CheckFilter", "as"), [rules])
        raw.close()

    with bus.connect() as root:
        assert measure(root, "CheckFilter", "as", ["log any"]) < SECONDS
        threads = os.listdir(f"/proc/{running.process.pid}/task")

    assert len(threads) < 12, threads
