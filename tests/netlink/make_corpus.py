"""`python -m tests.netlink.make_corpus`: record the corpus anew, from real traffic. Needs root.

Each file holds the life of a few flows, DESTROY included, as this machine's kernel sends it.
"""

import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.live import traffic
from tests.live.daemon import command, environment
from tests.live.network import DNAT, SNAT, TRACKING, Network, call_inside, inside, network

CORPUS = Path(__file__).parent / "corpus"
MARKED = """
table inet marks {
    chain pre { type filter hook prerouting priority -300; ct zone set 7; }
    chain forward { type filter hook forward priority 0; ct mark set 0x10; }
}
"""


def tcp(net: Network) -> None:
    call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", socket.IPPROTO_TCP)
    call_inside(net.client, traffic.talk_stream, socket.AF_INET6, "fd02::2", socket.IPPROTO_TCP)


def udp(net: Network) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2")
    call_inside(net.client, traffic.talk_udp, socket.AF_INET6, "fd02::2")


def icmp(net: Network) -> None:
    call_inside(net.client, traffic.ping, socket.AF_INET, "10.2.0.2")
    call_inside(net.client, traffic.ping, socket.AF_INET6, "fd02::2")


def dnat(net: Network) -> None:
    call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.1.0.1", socket.IPPROTO_TCP)
    call_inside(net.client, traffic.talk_stream, socket.AF_INET6, "fd01::1", socket.IPPROTO_TCP)


def sctp(net: Network) -> None:
    if traffic.has_sctp():
        call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", socket.IPPROTO_SCTP)


def record(name: str, talk: Callable[[Network], None], rules: str = "", accounting: int = 0) -> None:
    with network() as net:
        net.load(TRACKING + rules)
        net.set("net.netfilter.nf_conntrack_acct", accounting)
        net.set("net.netfilter.nf_conntrack_timestamp", accounting)
        path = CORPUS / f"{name}.nl"
        arguments = command("record", str(path), "--netns", net.router)
        with (
            traffic.serve(net.server),
            subprocess.Popen(arguments, stderr=subprocess.PIPE, env=environment()) as recorder,
        ):
            assert recorder.stderr is not None
            assert b"recording" in recorder.stderr.readline()
            talk(net)
            inside(net.router, "conntrack", "-F")
            recorder.send_signal(signal.SIGTERM)
            print(recorder.stderr.read().decode(), end="")
        if path.stat().st_size == 0:
            path.unlink()  # the kernel has no such protocol


def main() -> None:
    CORPUS.mkdir(exist_ok=True)
    for accounting, suffix in ((0, ""), (1, "-accounting")):
        record(f"tcp{suffix}", tcp, accounting=accounting)
        record(f"udp{suffix}", udp, accounting=accounting)
        record(f"icmp{suffix}", icmp, accounting=accounting)
        record(f"snat{suffix}", tcp, SNAT, accounting)
        record(f"both{suffix}", dnat, SNAT + DNAT, accounting)
        record(f"marked{suffix}", udp, MARKED, accounting)
    record("sctp", sctp)


if __name__ == "__main__":
    main()
