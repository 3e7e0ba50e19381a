"""metrics.flows of the real daemon: what it counts is the traffic, however much of it there is."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.proc import read_memory_kib
from conntrackd.cli import ctl
from conntrackd.errors import ConntrackdError
from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.control import ask, talk
from tests.live.daemon import Running, daemon, settle
from tests.live.network import TRACKING, Network, call_inside, inside, network
from tests.live.test_metrics import scrape
from tests.live.traffic import serve
from tests.metrics.client import get
from tests.sinks.syslog_servers import get_free_port, wait_until

pytestmark = pytest.mark.privileged

TALKS = 30
STREAMS = 7
OCTETS = 20 + 8 + len("hello")  # of a datagram
TARGETS = ("10.2.0.2", "10.2.0.3")
PORTS = range(1024, 51_024)
MAX_SERIES = 200
GROWTH_KIB = 6 << 10  # 2 MiB of it are the page, and 2 what is remembered of 100,000 connections


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        made.load(TRACKING)
        for name in ("acct", "timestamp"):
            made.set(f"net.netfilter.nf_conntrack_{name}", 1)
        with serve(made.server):
            yield made


def read_metric(address: tuple[str, int], name: str, *values: str) -> float:
    labels = f"{{{','.join(values)}}}" if values else ""
    return scrape(address).get(f"conntrackd_flows_{name}{labels}", 0)


@pytest.mark.parametrize("readers", [1, 3])
def test_counts_are_those_of_the_traffic(net: Network, readers: int) -> None:
    inside(net.router, "conntrack", "-F")
    address = ("127.0.0.1", get_free_port())
    arguments = [
        *("--sink.stream.enable", "--conntrack.netns", net.router, f"--conntrack.readers={readers}"),
        f"--metrics.listen=127.0.0.1:{address[1]}",
        "--metrics.flows={name: by_port, by: [protocol, destination.port], bytes: true}",
        "--metrics.flows={name: tcp, by: [source.address], where: log protocol TCP}",
        "--metrics.flows={name: others, where: drop protocol TCP}",
        "--metrics.flows={name: in_all}",
    ]
    with daemon(*arguments) as running:
        running.wait_for_start()
        talk(net, TALKS)
        call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", 0, STREAMS)
        wait_until(lambda: read_metric(address, "in_all_opened_total") == TALKS + STREAMS, "what opens")
        assert read_metric(address, "by_port_living", "8080", "UDP") == TALKS
        inside(net.router, "conntrack", "-F")
        wait_until(lambda: read_metric(address, "in_all_closed_total") == TALKS + STREAMS, "what closes")
        found = {name.removeprefix("conntrackd_flows_"): value for name, value in scrape(address).items()}
        settle(running)
        ended = [event for event in running.events if event["type"] == "DESTROY"]

    for name, labels, number in (
        ("by_port", "{8080,UDP}", TALKS),
        ("by_port", "{8080,TCP}", STREAMS),
        ("tcp", "{10.1.0.2}", STREAMS),
        ("others", "", TALKS),
    ):
        counts = [found[f"{name}_{end}{labels}"] for end in ("opened_total", "closed_total", "living")]
        assert counts == [number, number, 0]
    for protocol in ("UDP", "TCP"):
        mine = [event for event in ended if event["prot"] == protocol]
        for way, prefix in (("original", ""), ("reply", "reply_")):
            for what in ("packets", "bytes"):
                counted = found[f"by_port_{what}_total{{8080,{way},{protocol}}}"]
                assert counted == sum(event[f"{prefix}{what}"] for event in mine)
        lasted = found[f"by_port_duration_seconds_sum{{8080,{protocol}}}"]
        assert lasted == pytest.approx(sum(event["duration"] for event in mine))
        assert found[f"by_port_duration_seconds_count{{8080,{protocol}}}"] == len(mine)
    assert found["by_port_bytes_total{8080,original,UDP}"] == TALKS * OCTETS
    assert len(ended) == TALKS + STREAMS
    assert {name: value for name, value in found.items() if name.startswith("conntrackd_flow_series")} == {
        **dict.fromkeys(("conntrackd_flow_series{by_port}",), 2),
        **{f"conntrackd_flow_series{{{name}}}": 1 for name in ("tcp", "others", "in_all")},
        **{
            f"conntrackd_flow_series_overflows_total{{{name}}}": 0
            for name in ("by_port", "tcp", "others", "in_all")
        },
    }


def scan() -> None:
    """A datagram to each of 100,000 ports, of two hosts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for address in TARGETS:
            for port in PORTS:
                try:
                    sock.sendto(b"", (address, port))
                except ConnectionRefusedError:  # of the one before
                    sock.sendto(b"", (address, port))


def test_a_scan_leaves_as_many_series_as_were_asked_for_and_no_memory(tmp_path: Path) -> None:
    with network() as net:
        net.load(TRACKING)
        inside(net.server, "ip", "address", "add", f"{TARGETS[1]}/24", "dev", "eth0")
        address = str(tmp_path / "metrics.sock")
        arguments = [
            *("--sink.stream.enable", "--sink.stream.writer=discard", f"--metrics.listen=unix://{address}"),
            "--metrics.flows={name: scanned, by: [destination.address, destination.port], bytes: true}",
        ]
        # As the unit has it: conntrack.netns would load what enters a namespace, 7 MiB.
        with daemon(*arguments, prefix=["ip", "netns", "exec", net.router]) as running:
            running.wait_for_start()
            assert sum_of(address, "opened_total") == 0
            before = read_memory_kib(running.process.pid, "VmHWM")
            call_inside(net.client, scan)
            total = len(TARGETS) * len(PORTS)
            wait_until(lambda: sum_of(address, "opened_total") == total, "all of the scan")
            inside(net.router, "conntrack", "-F")
            wait_until(lambda: sum_of(address, "closed_total") == total, "the end of all", 30)
            page = get(address).body.decode()
            assert read_memory_kib(running.process.pid, "VmHWM") - before < GROWTH_KIB

        assert len(re.findall("(?m)^conntrackd_flows_scanned_opened_total", page)) == MAX_SERIES + 1
        beyond = total - MAX_SERIES
        for end in ("opened", "closed"):
            name = f"conntrackd_flows_scanned_{end}_total"
            assert f'{name}{{destination_address="other",destination_port="other"}} {float(beyond)}\n' in page
        overflows = "conntrackd_flow_series_overflows_total{metric="
        assert f'{overflows}"scanned"}} {float(2 * beyond)}\n' in page


def sum_of(address: str, end: str) -> float:
    name = f"conntrackd_flows_scanned_{end}{{"
    return sum(value for key, value in scrape(address).items() if key.startswith(name))


@pytest.fixture
def address(configuration: Path) -> tuple[str, int]:
    port = get_free_port()
    configuration.write_text(f"sink.stream.enable: true\nmetrics:\n  listen: 127.0.0.1:{port}\n")
    return ("127.0.0.1", port)


def test_a_reload_goes_on_counting_what_has_not_changed_and_refuses_mistakes(
    net: Network,
    address: tuple[str, int],
    configuration: Path,
    bus: PrivateBus,
    running: Running,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = configuration.read_text()

    def configure(*items: str) -> None:
        configuration.write_text(f"{text}  flows:\n" + "".join(f"  - {item}\n" for item in items))

    def count(name: str) -> float:
        return read_metric(address, f"{name}_opened_total")

    configure("{name: one}", "{name: two, where: log destination port 8080}")
    ask(capsys, "reload")
    talk(net, TALKS)
    wait_until(lambda: count("one") == count("two") == TALKS, "the first counts")

    configure("{name: one}", "{name: two, where: log destination port 1}", "{name: three}")
    ask(capsys, "reload")
    talk(net, TALKS)
    wait_until(lambda: count("three") == TALKS, "a new count")
    assert (count("one"), count("two")) == (2 * TALKS, 0)

    configure("{name: one}", "{name: two, where: log destination prt 1}")
    with pytest.raises(ConntrackdError, match=r"metrics\.flows: two: "):
        ctl.run(["reload"])
    configure("{name: one}", "{name: two, where: log any limit 1/second}")
    with pytest.raises(ConntrackdError, match="a limit would count what opens"):
        ctl.run(["reload"])
    talk(net, TALKS)
    wait_until(lambda: count("three") == 2 * TALKS, "what went on")

    configuration.write_text(text)
    ask(capsys, "reload")
    wait_until(lambda: "conntrackd_flows_one" not in get(address).body.decode(), "the end of it")
