"""Metrics of the real daemon: what it counts, what the kernel counts, and the ways to both."""

import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from conntrackd.resources import is_kernel
from tests.live.control import ask, talk
from tests.live.daemon import ROOT, Running, daemon, environment, settle
from tests.live.network import Network, inside
from tests.metrics.client import get
from tests.sinks.syslog_servers import get_free_port, wait_until

pytestmark = pytest.mark.privileged

TALKS = 20
# Modules that a daemon without metrics has no use for.
LEAN = """
import sys
import conntrackd.daemon
print(*(name for name in sys.modules if name.startswith(("prometheus_client", "conntrackd.metrics.server"))))
"""
WITHOUT_LIBRARY = """
import sys
sys.modules["prometheus_client"] = sys.modules["prometheus_client.core"] = None
from conntrackd.cli.daemon import main
main()
"""


@pytest.fixture
def port(configuration: Path) -> int:
    """Where the daemon's metrics are, by its configuration."""
    found = get_free_port()
    configuration.write_text(f"{configuration.read_text()}metrics.listen: 127.0.0.1:{found}\n")
    return found


def scrape(address: tuple[str, int] | str) -> dict[str, float]:
    """`name` or `name{label values}` -> number."""
    found = {}
    for family in parse_text(get(address).body.decode()):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_a_scrape_says_what_stats_and_conntrack_say(
    net: Network, port: int, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, TALKS)
    settle(running)

    stats, lines = ask(capsys, "stats"), inside(net.router, "conntrack", "-S").splitlines()
    entries = int(inside(net.router, "conntrack", "-C"))
    found = scrape(("127.0.0.1", port))

    counters, sink = stats["counters"], stats["sinks"]["stream"]
    for name in ("received", "filtered", "accepted", "malformed", "forged"):
        assert found[f"conntrackd_events_{name}_total"] == counters[f"events_{name}_total"]
    for name in ("new", "update", "destroy"):
        assert found[f"conntrackd_events_by_type_total{{{name}}}"] == counters[f"events_{name}_total"]
    assert found["conntrackd_events_by_protocol_total{udp}"] == counters["events_udp_total"]
    assert counters["events_new_total"] == TALKS
    assert found["conntrackd_events_lost_total{kernel}"] == 0
    assert found["conntrackd_sink_events_delivered_total{stream}"] == sink["sink_events_delivered_total"] > 0
    assert found["conntrackd_sink_state{stream,ok}"] == found["conntrackd_healthy"] == 1
    assert found["conntrackd_rule_matches_total{0}"] == stats["rule_matches"][0]

    assert found["conntrackd_table_entries"] == entries >= TALKS
    assert found["conntrackd_table_limit"] == int(
        inside(net.router, "sysctl", "-n", "net.netfilter.nf_conntrack_max")
    )
    told = {
        f"conntrackd_kernel_{name}_total{{{cpu}}}": float(number)
        for cpu, line in enumerate(lines)
        for name, number in re.findall(r"(\w+)=(\d+)", line)
        if name != "cpu"
    }
    assert len(told) >= 10
    assert {name: value for name, value in found.items() if name.startswith("conntrackd_kernel_")} == told


def test_delays_are_counted_where_the_kernel_gives_the_time(
    net: Network, port: int, running: Running
) -> None:
    def count() -> tuple[float, float]:
        found = scrape(("127.0.0.1", port))
        name = "conntrackd_sink_delay_seconds_count{stream}"
        return found.get(name, 0), found["conntrackd_sink_events_delivered_total{stream}"]

    talk(net, TALKS)
    settle(running)
    delayed, delivered = count()
    assert (delayed, delivered > 0) == (0, True)
    net.set("net.netfilter.nf_conntrack_timestamp", 1)
    try:
        talk(net, TALKS)
        settle(running)
        wait_until(lambda: count()[1] >= delivered + TALKS, "a page, which is up to a second old")
        timed, total = count()
    finally:
        net.set("net.netfilter.nf_conntrack_timestamp", 0)
    assert timed == (total - delivered if is_kernel(6, 14) else 0)


def test_health_is_that_of_status(
    net: Network, port: int, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get(("127.0.0.1", port), "/healthz").body == b"healthy\n"

    ask(capsys, "sink", "disable", "stream")
    answer = get(("127.0.0.1", port), "/healthz")

    assert answer.status == 503
    assert answer.body == b"no sink is in use: events go nowhere; conntrackctl sink enable NAME\n"


def test_a_reload_moves_it_or_changes_nothing(
    port: int, configuration: Path, running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = configuration.read_text()
    socket, file = tmp_path / "metrics.sock", tmp_path / "conntrackd.prom"

    running.process.send_signal(signal.SIGHUP)
    running.wait_for_words("nothing has changed")
    assert get(("127.0.0.1", port)).status == 200

    configuration.write_text(text.replace(f"127.0.0.1:{port}", "192.0.2.1:9477"))
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_words("192.0.2.1:9477 cannot be bound")
    assert get(("127.0.0.1", port)).status == 200

    configuration.write_text(text.replace(f"127.0.0.1:{port}", f"unix://{socket}\nmetrics.textfile: {file}"))
    told = ask(capsys, "reload")
    assert f"metrics.listen is unix://{socket}" in told["changes"]
    assert scrape(str(socket))["conntrackd_reloads_total"] >= 1
    wait_until(file.exists, "the file")
    assert "conntrackd_healthy 1.0\n" in file.read_text()
    with pytest.raises(ConnectionRefusedError):
        get(("127.0.0.1", port))

    configuration.write_text(text.partition("metrics")[0])
    ask(capsys, "reload")
    wait_until(lambda: not socket.exists(), "the end of the socket")
    assert not file.exists()


def test_at_the_end_nothing_is_left(net: Network, tmp_path: Path) -> None:
    socket, file = tmp_path / "metrics.sock", tmp_path / "conntrackd.prom"
    arguments = ["--sink.stream.enable", "--conntrack.netns", net.router, f"--metrics.listen=unix://{socket}"]
    with daemon(*arguments, f"--metrics.textfile={file}") as running:
        running.wait_for_start()
        wait_until(file.exists, "the file")
        assert get(str(socket)).status == 200

        assert running.stop() == 0

    assert list(tmp_path.iterdir()) == []
    assert not running.has_said("Traceback")


def test_a_socket_that_systemd_passes_is_used_and_none_is_bound(net: Network) -> None:
    passed, ours = get_free_port(), get_free_port()
    prefix = ["systemd-socket-activate", f"--listen=127.0.0.1:{passed}", "--fdname=metrics"]
    prefix += [f"--setenv={name}" for name in ("PYTHONPATH", "CONNTRACKD_BUS_ENABLE")]
    arguments = [
        "--sink.stream.enable",
        "--conntrack.netns",
        net.router,
        f"--metrics.listen=127.0.0.1:{ours}",
    ]
    with daemon(*arguments, prefix=prefix) as running:
        running.wait_for_words("Listening on")
        assert scrape(("127.0.0.1", passed))["conntrackd_healthy"] == 1

        warning = "metrics.listen has no effect"
        running.wait(lambda: any(warning in line for line in running.said), "the warning")
        with pytest.raises(ConnectionRefusedError):
            get(("127.0.0.1", ours))


def test_an_address_in_use_is_reported_and_nothing_is_started(net: Network) -> None:
    with ExitStack() as stack:
        taken = get_free_port()
        arguments = ["--sink.stream.enable", "--conntrack.netns", net.router]
        first = stack.enter_context(daemon(*arguments, f"--metrics.listen=127.0.0.1:{taken}"))
        first.wait_for_start()
        second = stack.enter_context(daemon(*arguments, f"--metrics.listen=127.0.0.1:{taken}"))

        assert second.process.wait(20) == 78
        second.stop()
        assert second.said == [
            f"conntrackd: --metrics.listen: 127.0.0.1:{taken} cannot be bound: Address already in use\n"
        ]


def test_without_the_library_the_message_says_what_to_install(net: Network) -> None:
    command = [
        sys.executable,
        "-c",
        WITHOUT_LIBRARY,
        "run",
        "--sink.stream.enable",
        "--metrics.listen=[::1]:9477",
    ]
    command += ["--conntrack.netns", net.router]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment())

    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines()[0].endswith(
        "--metrics.listen: metrics need the Python library prometheus_client, which is not installed"
    )
    assert "hint: apt install python3-prometheus-client" in done.stderr


def test_who_wants_no_metrics_loads_nothing_for_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAN], capture_output=True, text=True, check=True, cwd=ROOT, env=environment()
    )

    assert done.stdout == "\n"
