"""Namespaces with real hosts in them: a client, a router that tracks and translates, a server."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from typing import Any

_numbers = count()


class Network:
    """client (10.1.0.2, fd01::2) - router - server (10.2.0.2, fd02::2)."""

    def __init__(self, name: str) -> None:
        self.client, self.router, self.server = (f"{item}-{name}" for item in ("c", "r", "s"))

    def build(self) -> None:
        for namespace in (self.client, self.router, self.server):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        for number, namespace in ((1, self.client), (2, self.server)):
            ip(
                *("-n", self.router, "link", "add", f"v{number}", "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace),
            )
            for where, device, end in ((self.router, f"v{number}", 1), (namespace, "eth0", 2)):
                ip("-n", where, "address", "add", f"10.{number}.0.{end}/24", "dev", device)
                ip("-n", where, "address", "add", f"fd0{number}::{end}/64", "dev", device, "nodad")
                ip("-n", where, "link", "set", device, "up")
            ip("-n", namespace, "route", "add", "default", "via", f"10.{number}.0.1")
            ip("-n", namespace, "route", "add", "default", "via", f"fd0{number}::1")
        self.set("net.ipv4.ip_forward", 1)
        self.set("net.ipv6.conf.all.forwarding", 1)

    def set(self, name: str, value: int) -> None:
        """A sysctl of the router."""
        inside(self.router, "sysctl", "-qw", f"{name}={value}")

    def load(self, ruleset: str) -> None:
        """Rules of nftables into the router."""
        inside(self.router, "nft", "-f", "-", text=ruleset)

    def remove(self) -> None:
        for namespace in (self.client, self.router, self.server):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


TRACKING = """
table inet track {
    chain forward { type filter hook forward priority 0; ct state new accept; }
}
"""
SNAT = """
table inet translate_source {
    chain post { type nat hook postrouting priority 100; oifname "v2" masquerade; }
}
"""
DNAT = """
table inet translate_target {
    chain pre {
        type nat hook prerouting priority -100;
        ip daddr 10.1.0.1 dnat ip to 10.2.0.2
        ip6 daddr fd01::1 dnat ip6 to fd02::2
    }
}
"""


@contextmanager
def network() -> Iterator[Network]:
    """A network of one's own, with names that carry the number of this process."""
    built = Network(f"{next(_numbers)}-{os.getpid()}-t")
    try:
        built.build()
        yield built
    finally:
        built.remove()


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def inside(namespace: str, *command: str, text: str = "") -> str:
    return run("ip", "netns", "exec", namespace, *command, text=text)


def list_connections(net: Network, family: str = "ipv4") -> Iterator[dict[str, Any]]:
    """What `conntrack -L` says of each, by the names that records have."""
    for line in inside(net.router, "conntrack", "-L", "-f", family, "-o", "id").splitlines():
        values: dict[str, list[Any]] = {}
        for name, value in re.findall(r"\b(src|dst|sport|dport|packets|bytes|id)=(\S+)", line):
            values.setdefault(name, []).append(int(value) if value.isdigit() else value)
        told: dict[str, Any] = {"prot": line.split()[0].upper(), "flow": values["id"][-1]}
        for name, turned in (("src", "dst"), ("dst", "src"), ("sport", "dport"), ("dport", "sport")):
            if name in values:
                told |= {name: values[name][0], f"nat_{name}": values[turned][1]}
        for name in ("packets", "bytes"):
            if name in values:
                told |= {name: values[name][0], f"reply_{name}": values[name][1]}
        yield told


def run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def call_inside(namespace: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function in a process of its own that lives in the namespace."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, namespace, function, arguments))
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "no answer from the namespace"
        kind, value = ours.recv()
    finally:
        process.join(10)
        process.close()
        ours.close()
    assert kind == "value", value
    return value


def _call(pipe: Any, namespace: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    from pyroute2 import netns  # noqa: PLC0415  # only the child changes its namespace

    try:
        # All packets on one CPU: of what two CPUs send at the same time, two listeners may see another order.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        netns.setns(namespace, flags=0)
        pipe.send(("value", function(*arguments)))
    except Exception as error:  # told to the parent, which fails the test
        pipe.send(("error", f"{type(error).__name__}: {error}"))
    pipe.close()
