"""Whether the kernel tracks connections in this network namespace, and how to make it.

Nothing is tracked until something asks for it: a rule with `ct`, or NAT. Then there are no events, and a new
user sees silence.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Final

from conntrackd.bpf import ALL_BYTES, INSTRUCTION, JEQ, LD_HALF, RET
from conntrackd.errors import UnavailableError
from conntrackd.netlink import constants as c
from conntrackd.netlink.message import HEADER, pack_number, pack_request, split
from conntrackd.netlink.socket import attach_program, open_netlink
from conntrackd.netlink.table import ConntrackTable

IPTABLES: Final = (
    Path("/proc/thread-self/net/ip_tables_names"),
    Path("/proc/thread-self/net/ip6_tables_names"),
)
SYSCTL: Final = Path("/proc/sys/net/netfilter")
FAMILIES: Final = {"IPv4": int(socket.AF_INET), "IPv6": int(socket.AF_INET6)}
HOOKS: Final = range(5)  # enum nf_inet_hooks: PRE_ROUTING to POST_ROUTING
# The functions that nf_conntrack registers begin so: ipv4_conntrack_in, ipv6_conntrack_local, ...
HOOK_FUNCTIONS: Final = (b"ipv4_conntrack_", b"ipv6_conntrack_")
# Expressions of nftables for which conntrack is switched on, and those that carry a match of iptables.
TRACKING_EXPRESSIONS: Final = (b"ct", b"nat", b"masq", b"redir", b"connlimit", b"synproxy", b"flow_offload")
NOTRACK: Final = b"notrack"
FOREIGN_EXPRESSIONS: Final = (b"match", b"target")
ANSWER_SECONDS: Final = 2.0
NEWS_BYTES: Final = 4096
# A transaction of nftables ends with a message of this type, alone in its datagram; those before it, one for
# each rule and element, wake nobody. The load is big-endian, while the header has the host's order.
NEW_GENERATION: Final = int.from_bytes(struct.pack("=H", c.NFNL_SUBSYS_NFTABLES << 8 | c.NFT_MSG_NEWGEN))
GENERATIONS_ONLY: Final = b"".join(
    INSTRUCTION.pack(*instruction)
    for instruction in (
        (LD_HALF, 0, 0, 4),  # nlmsg_type
        (JEQ, 0, 1, NEW_GENERATION),
        (RET, 0, 0, ALL_BYTES),
        (RET, 0, 0, 0),
    )
)

NOT_TRACKED: Final = "connections are not tracked in this network namespace, so there will be no events"


def read_setting(name: str) -> int | None:
    """A sysctl of net.netfilter in this network namespace, such as `nf_conntrack_acct`; None for none."""
    try:
        return int((SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None


def is_tracking() -> bool | None:
    """Whether connections are tracked in this thread's network namespace; None where it is unknown."""
    asked = is_asked_for()
    # What is tracked without a rule, by Open vSwitch or tc, is in the table.
    return None if asked is False and count_entries() else asked


def is_asked_for() -> bool | None:
    """Whether rules have connections tracked in this thread's network namespace; None where it is unknown.

    The kernel lists the functions that see a packet (CONFIG_NETFILTER_NETLINK_HOOK); where it does not, there
    are rules that ask for tracking, or none. What was tracked before may be in the table for days.
    """
    listed = _look_at_hooks()
    return listed if listed is not None else _look_at_rules()


def find_families() -> frozenset[str] | None:
    """Of IPv4 and IPv6, those that are tracked in this thread's network namespace. None: unknown.

    A rule in a table of the family `ip` has connections of IPv4 tracked alone.
    """
    found = {name: _look_at_hooks((family,)) for name, family in FAMILIES.items()}
    if None not in found.values():
        return frozenset(name for name, is_seen in found.items() if is_seen)
    return _look_at_families()


def _look_at_families() -> frozenset[str] | None:
    """As find_families(), by the tables of the rules that ask for tracking."""
    if _look_at_rules() is not True:
        return None
    try:
        rules = _dump_rules() or b""
    except OSError:
        return None
    if any(_name(expression) in rules for expression in FOREIGN_EXPRESSIONS):
        return None
    asking = [
        rule for rule in split(rules) if any(_name(expression) in rule for expression in TRACKING_EXPRESSIONS)
    ]
    named = {rule[HEADER.size] for rule in asking}  # nfgen_family
    # Of every other family, such as inet and bridge, both are tracked.
    is_both = bool(named - set(FAMILIES.values()))
    return frozenset(name for name, family in FAMILIES.items() if is_both or family in named)


def has_exceptions() -> bool:
    """Whether a rule of nftables leaves connections out (`notrack`); False where that is unknown."""
    try:
        rules = _dump_rules()
    except OSError:
        return False
    return rules is not None and _name(NOTRACK) in rules


def _look_at_hooks(families: Iterable[int] = FAMILIES.values()) -> bool | None:
    """Whether one of the functions that the kernel calls for each packet is conntrack's. None: unknown."""
    is_told = False
    try:
        with _open() as netlink:
            # Where connections are tracked the first answer says so.
            for family, hook in product(families, HOOKS):
                attributes = pack_number(c.NFNLA_HOOK_HOOKNUM, hook)
                answer = _dump(netlink, c.NFNL_SUBSYS_HOOK << 8 | c.NFNL_MSG_HOOK_GET, family, attributes)
                if answer is not None and any(name in answer for name in HOOK_FUNCTIONS):
                    return True
                is_told |= answer is not None
    except OSError:
        return None
    return False if is_told else None


def count_entries() -> int | None:
    """Entries of the table, None where the kernel does not say."""
    try:
        with closing(ConntrackTable()) as table:
            return table.measure().entries
    except UnavailableError:
        return None


def _look_at_rules() -> bool | None:
    """Whether a rule asks for tracking; None where rules of other kinds could."""
    try:
        if any(_read_names(path) for path in IPTABLES):
            return None
        rules = _dump_rules()
    except OSError:
        return None
    if rules is None:
        return None
    if any(_name(expression) in rules for expression in TRACKING_EXPRESSIONS):
        return True
    return None if any(_name(expression) in rules for expression in FOREIGN_EXPRESSIONS) else False


def _dump_rules() -> bytes | None:
    """All rules of nftables. Raises OSError."""
    with _open() as netlink:
        return _dump(netlink, c.NFNL_SUBSYS_NFTABLES << 8 | c.NFT_MSG_GETRULE, socket.AF_UNSPEC)


@contextmanager
def _open() -> Iterator[socket.socket]:
    """A socket to ask over."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, c.NETLINK_NETFILTER) as netlink:
        netlink.settimeout(ANSWER_SECONDS)
        netlink.connect((0, 0))
        yield netlink


def _read_names(path: Path) -> str:
    """Tables of old iptables. Only root may read them: of those that are hidden none is assumed."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _name(expression: bytes) -> bytes:
    """The attribute with the name of an expression in a rule."""
    return struct.pack("=HH", c.NLA_HDRLEN + len(expression) + 1, c.NFTA_EXPR_NAME) + expression + b"\0"


def _dump(netlink: socket.socket, kind: int, family: int, attributes: bytes = b"") -> bytes | None:
    """The messages of the kernel's answer, or None where it knows nothing of the kind."""
    netlink.send(pack_request(kind, c.NLM_F_DUMP, family, attributes))
    answer = b""
    while True:
        part = netlink.recv(1 << 16)
        for message in split(part):
            answered = HEADER.unpack_from(message)[1]
            if answered == c.NLMSG_ERROR:
                return None
            if answered == c.NLMSG_DONE:
                return answer
            answer += message


class News:
    """Hears of each change of nftables' rules, in the network namespace that it is made in."""

    def __init__(self) -> None:
        self._socket = open_netlink()
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(c.SOL_NETLINK, c.NETLINK_NO_ENOBUFS, 1)
            attach_program(self._socket, GENERATIONS_ONLY)
            self._socket.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, c.NFNLGRP_NFTABLES)
        except OSError:
            pass  # without CAP_NET_ADMIN, or nf_tables: who looks now and then sees it later
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._socket.fileno()

    def drain(self) -> None:
        """The rules are to be looked at: what has been announced up to now is in them."""
        try:
            while self._socket.recv(NEWS_BYTES):
                pass
        except OSError:
            return

    def close(self) -> None:
        self._socket.close()
