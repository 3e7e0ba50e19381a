"""A daemon that is controlled over a bus of the test's own, in the network of its module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.faults.producer import Producer, prepare, produce
from tests.live import traffic
from tests.live.control import run_on_bus
from tests.live.daemon import Running
from tests.live.network import TRACKING, Network, network
from tests.live.service import Store


@pytest.fixture(scope="module")
def net(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A router that tracks connections, with a server behind it; a module may have a RULESET of its own."""
    with network() as built:
        built.load(getattr(request.module, "RULESET", TRACKING))
        with traffic.serve(built.server):
            yield built


@pytest.fixture(scope="module")
def silent() -> Iterator[Network]:
    """One in which only a producer is heard."""
    with network() as built:
        prepare(built)
        yield built


@pytest.fixture
def producer(silent: Network) -> Iterator[Producer]:
    with produce(silent) as made:
        made.forget()
        yield made


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
    with run_on_bus(net, bus, configuration) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "notify")
    yield made
    made.close()
