"""`python -m tests.pictures.make`: take the pictures of docs/pictures anew, in a minute. Needs root.

A real daemon watches real traffic of a network of its own; each picture is what the command showed on a
terminal. The process has /etc, /run/netns, /var/log and /var/lib of its own: commands and paths are those of
an installed daemon.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.cli.stats import BARS
from conntrackd.history.loki import PATH
from tests.bus.private import PrivateBus
from tests.cli.terminal import Terminal
from tests.live.daemon import ROOT, daemon, environment
from tests.live.network import TRACKING, Network, ip
from tests.pictures.draw import draw, read_cells
from tests.pictures.traffic import CLIENTS, COUNTRIES, SERVERS
from tests.sinks.loki_query import query_range
from tests.sinks.loki_server import Store, run_server

PICTURES: Final = ROOT / "docs/pictures"
CONFIGURATION: Final = """
conntrack: {{netns: {router}}}
geoip: {{database: [/etc/conntrackd/country.mmdb]}}
sink:
  stream: {{enable: true, writer: "file:///var/log/conntrackd/events.json"}}
  loki: {{enable: true, address: "http://127.0.0.1:{port}"}}
filter:
  - drop destination port 53 and type UPDATE
"""
SECONDS: Final = 90  # until a sparkline is long enough
PROGRAM: Final = "from conntrackd.cli.ctl import main; main()"
# The kernel forgets flows soon, so that there are DESTROYs.
TIMEOUTS: Final = (
    *("tcp_timeout_time_wait", "tcp_timeout_close", "tcp_timeout_last_ack", "tcp_timeout_close_wait"),
    *("tcp_timeout_fin_wait", "udp_timeout"),
)
# What lists the table removes what is over at once; by itself the kernel does so once a minute.
EXPIRE: Final = "echo ready; while sleep 1; do conntrack -L >/dev/null 2>&1; done"


class Picture(NamedTuple):
    """A command line of conntrackctl, the terminal's columns and lines, and when enough is shown."""

    words: str
    size: tuple[int, int] = (120, 40)
    is_enough: Callable[[list[str]], bool] | None = None
    """None: what it has printed when it has ended."""


def has_count(lines: list[str]) -> bool:
    """Whether top has seen some hundred events, and is complete."""
    return lines[0].partition(" ")[0].isdigit() and int(lines[0].partition(" ")[0]) > 400


def has_course(lines: list[str]) -> bool:
    """Whether there is half a minute of sparklines."""
    return any(sum(character in BARS for character in line) > 30 for line in lines)


def has_ends(lines: list[str]) -> bool:
    """Whether the screen is full, and connections have ended."""
    return bool(lines[-2]) and any("DESTROY" in line for line in lines)


PICTURED: Final = {
    "stats": Picture("stats --watch", (104, 22), is_enough=has_course),
    "top": Picture("top --by src,dst,dport", (100, 16), is_enough=has_count),
    "tail": Picture("tail 'drop type UPDATE'", (116, 16), is_enough=has_ends),
    "status": Picture("status"),
    "doctor": Picture("doctor"),
    "filter-explain": Picture("filter explain --filter 'log destination port 443 and country Germany'"),
    "events": Picture("events --last 14"),
    "events-table": Picture("events --last 14 -o table 'log type DESTROY' 'drop any'", (130, 40)),
    "events-loki": Picture("events --from loki --since -1m --last 10 'log destination port 22' 'drop any'"),
    "summary": Picture("summary --since -1h --by src,dport,country -n 5"),
}


def be_alone() -> None:
    """Start again where what these folders get is seen by this process alone, and ends with it."""
    if os.environ.get("PICTURES_ALONE"):
        return
    script = """
        set -e
        mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work
        mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
        mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
        mount -t tmpfs tmpfs /var/log && mount -t tmpfs tmpfs /var/lib
        mkdir -p /etc/conntrackd /var/log/conntrackd /var/lib/conntrackd
        exec "$@"
    """
    environ = {**os.environ, "PICTURES_ALONE": "yes", "TZ": "UTC"}
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "tests.pictures.make",
        *sys.argv[1:],
    ]
    os.execvpe(words[0], words, environ)


def connect_hosts(net: Network) -> None:
    """The addresses of the clients and servers, and the way to them."""
    net.load(TRACKING)
    for namespace, device, addresses in (
        (net.client, "v1", CLIENTS),
        (net.server, "v2", sorted({server[0] for server in SERVERS})),
    ):
        for address in addresses:
            length, rest = (128, ["nodad"]) if ":" in address else (32, [])
            ip("-n", namespace, "address", "add", f"{address}/{length}", "dev", "eth0", *rest)
            ip("-n", net.router, "route", "add", f"{address}/{length}", "dev", device)
    net.set("net.netfilter.nf_conntrack_acct", 1)
    net.set("net.netfilter.nf_conntrack_timestamp", 1)
    for name in TIMEOUTS:
        net.set(f"net.netfilter.nf_conntrack_{name}", 2)


def write_countries(path: Path) -> None:
    writer = MMDBWriter(6, "GeoLite2-Country", languages=["en"], ipv4_compatible=True)
    for net, country in COUNTRIES.items():
        writer.insert_network(IPSet([net]), {"country": {"names": {"en": country}}})
    writer.to_db_file(str(path))


@contextmanager
def keep_running(*command: str) -> Iterator[None]:
    """A program that says when it is ready."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def take(name: str, picture: Picture, bus: str) -> None:
    """Give the command, and draw what stands there."""
    words = ["sh", "-c", f'exec "$@" {picture.words}', "sh", sys.executable, "-c", PROGRAM]
    environ = {"PYTHONPATH": str(ROOT), "DBUS_SYSTEM_BUS_ADDRESS": bus, "TZ": "UTC", "PAGER": "cat"}
    with Terminal(words, picture.size, **environ) as terminal:
        if picture.is_enough is None:
            terminal.finish()
        else:
            terminal.wait(picture.is_enough, SECONDS)
            terminal.settle()
        text = draw(f"conntrackctl {picture.words}", read_cells(terminal.screen), picture.size[0])
    (PICTURES / f"{name}.svg").write_text(text)
    print(f"docs/pictures/{name}.svg: {len(text.encode())} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.pictures.make", description="Take the pictures of docs/pictures anew, as root."
    )
    parser.add_argument("names", nargs="*", choices=PICTURED, metavar="NAME", help=", ".join(PICTURED))
    names = parser.parse_args().names
    be_alone()
    with ExitStack() as stack:
        bus = stack.enter_context(PrivateBus())
        net = Network("net")
        stack.callback(net.remove)
        net.build()
        connect_hosts(net)
        server = stack.enter_context(run_server(Store(answers={PATH: query_range})))
        write_countries(Path("/etc/conntrackd/country.mmdb"))
        Path("/etc/conntrackd/conntrackd.yaml").write_text(
            CONFIGURATION.format(router=net.router, port=server.port)
        )
        environ = {"CONNTRACKD_BUS_ENABLE": "true", "CONNTRACKD_BUS_ADDRESS": bus.address}
        running = stack.enter_context(daemon(**environ))
        running.wait_for_start()
        running.wait_for_words("org.conntrackd1 is on")
        traffic = (sys.executable, "-m", "tests.pictures.traffic")
        for namespace, words in (
            (net.server, (*traffic, "serve")),
            (net.client, (*traffic, "talk")),
            (net.router, ("sh", "-c", EXPIRE)),
        ):
            stack.enter_context(keep_running("ip", "netns", "exec", namespace, *words))
        for name in names or PICTURED:
            take(name, PICTURED[name], bus.address)


if __name__ == "__main__":
    main()
