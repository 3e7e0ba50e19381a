"""Sets that are changed while a daemon hears the kernel: in force at once, for a time, until a reload."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.live.control import ask, count_new, talk
from tests.live.daemon import Running, daemon, settle
from tests.live.network import Network, inside

pytestmark = pytest.mark.privileged

CLIENT = "10.1.0.2"
CONFIGURATION = """\
sets: {{bad: {folder}/bad.txt, other: {folder}/other.txt}}
filter: ['log source address @bad', drop any]
sink: {{stream: {{enable: true, filter: ['drop destination address @other']}}}}
conntrack: {{protocols: udp, events: new}}
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    (tmp_path / "bad.txt").write_text("192.0.2.0/24\n2001:db8::1\n")
    (tmp_path / "other.txt").write_text("")
    path = tmp_path / "conntrackd.yaml"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    return path


@pytest.fixture
def running(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
    with run(net, bus, configuration) as made:
        yield made


@contextmanager
def run(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
    inside(net.router, "conntrack", "-F")
    arguments = [
        "--config",
        str(configuration),
        "--conntrack.netns",
        net.router,
        "--bus.address",
        bus.address,
    ]
    with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as made:
        made.wait_for_start()
        made.wait(lambda: any("org.conntrackd1 is on" in line for line in made.said), "the bus")
        yield made


def change(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    return list(ask(capsys, "set", *words)["changes"])


def show(capsys: pytest.CaptureFixture[str], name: str = "bad") -> list[tuple[str, str]]:
    return [(entry["entry"], entry["change"]) for entry in ask(capsys, "set", "show", name)]


def count_matches(capsys: pytest.CaptureFixture[str]) -> list[int]:
    return list(ask(capsys, "filter", "show")["matches"])


def test_what_is_added_is_logged_from_then_on_and_what_is_removed_is_not(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, 2)
    settle(running)
    before = count_new(running)
    added = change(capsys, "add", "bad", CLIENT, "2001:db8::/32")
    talk(net, 3)
    settle(running)
    logged, matches = count_new(running), count_matches(capsys)
    in_other = change(capsys, "add", "other", "10.2.0.0/16")  # the filter of a sink names it
    talk(net, 3)
    settle(running)
    filtered = count_new(running)
    change(capsys, "remove", "other", "10.2.0.0/16")
    removed = change(capsys, "remove", "bad", CLIENT)
    talk(net, 3)
    settle(running)

    assert (before, logged, filtered, count_new(running)) == (0, 3, 3, 3)
    assert added == [f"added to @bad until a reload or restart: {CLIENT}, 2001:db8::/32"]
    assert in_other == ["added to @other until a reload or restart: 10.2.0.0/16"]
    assert removed == [f"{CLIENT} is no longer in @bad, as its file has it"]
    assert matches == [0, 3, 2]  # counters of rules go on
    assert count_matches(capsys) == [0, 6, 5]
