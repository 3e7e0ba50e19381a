"""A daemon that is controlled over a bus of the test's own, in the network of its module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.daemon import Running, daemon
from tests.live.network import TRACKING, Network, network


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """A router that tracks connections, with a server behind it; some modules have one of their own."""
    with network() as built:
        built.load(TRACKING)
        with traffic.serve(built.server):
            yield built


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateBus]:
    with PrivateBus() as made:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", made.address)
        yield made


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("sink: {stream: {enable: true}}\nfilter: [drop protocol TCP]\n")
    return path


@pytest.fixture
def running(net: Network, bus: PrivateBus, configuration: Path) -> Iterator[Running]:
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
