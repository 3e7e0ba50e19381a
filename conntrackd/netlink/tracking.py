"""Whether the kernel tracks connections in this network namespace, and how to make it.

Nothing is tracked until something asks for it: a rule with `ct`, or NAT. Then there are no events, and a new
user sees silence.
"""

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from conntrackd.errors import NotPermittedError, UnavailableError
from conntrackd.netlink.constants import (
    NETLINK_NETFILTER,
    NFNETLINK_V0,
    NFNL_MSG_HOOK_GET,
    NFNL_SUBSYS_HOOK,
    NFNL_SUBSYS_NFTABLES,
    NFNLA_HOOK_HOOKNUM,
    NFT_MSG_GETRULE,
    NFTA_EXPR_NAME,
    NLA_HDRLEN,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from conntrackd.netlink.message import HEADER, split
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.table import Table

IPTABLES: Final = (
    Path("/proc/thread-self/net/ip_tables_names"),
    Path("/proc/thread-self/net/ip6_tables_names"),
)
SYSCTL: Final = Path("/proc/sys/net/netfilter")
HOOKS: Final = range(5)  # enum nf_inet_hooks: PRE_ROUTING to POST_ROUTING
# The functions that nf_conntrack registers begin so: ipv4_conntrack_in, ipv6_conntrack_local, ...
HOOK_FUNCTIONS: Final = (b"ipv4_conntrack_", b"ipv6_conntrack_")
# Expressions of nftables for which conntrack is switched on, and those that carry a match of iptables.
TRACKING_EXPRESSIONS: Final = (b"ct", b"nat", b"masq", b"redir", b"connlimit", b"synproxy", b"flow_offload")
FOREIGN_EXPRESSIONS: Final = (b"match", b"target")
ANSWER_SECONDS: Final = 2.0
NFT_SECONDS: Final = 10.0
SYSTEM_PATH: Final = "/usr/sbin:/sbin"

NOT_TRACKED: Final = (
    "connections are not tracked in this network namespace, so there will be no events\n"
    "hint: 'conntrackd run --conntrack.activate', or a firewall rule with 'ct state'"
)

TABLE: Final = "conntrackd"
# A chain without a hook: no packet ever passes it, so that it decides about none and costs none. A rule
# with `ct` in it is all that the kernel needs.
RULESET: Final = f"""\
table inet {TABLE}
flush table inet {TABLE}
table inet {TABLE} {{
    chain track {{
        ct state new continue
    }}
}}
"""


def read_setting(name: str) -> int | None:
    """A sysctl of net.netfilter in this network namespace, such as `nf_conntrack_acct`; None for none."""
    try:
        return int((SYSCTL / name).read_text())
    except (OSError, ValueError):
        return None


def is_tracking() -> bool | None:
    """Whether connections are tracked in this thread's network namespace; None where nobody can tell.

    The kernel lists the functions that see a packet (CONFIG_NETFILTER_NETLINK_HOOK); where it does not, there
    are entries in the table, or rules that ask for tracking, or none.
    """
    listed = _look_at_hooks()
    if listed is not None:
        return listed
    return True if _count_entries() else _look_at_rules()


def _look_at_hooks() -> bool | None:
    """Whether one of the functions that the kernel calls for each packet is conntrack's. None: not told."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(ANSWER_SECONDS)
            netlink.bind((0, 0))
            answers = [
                _dump(
                    netlink,
                    NFNL_SUBSYS_HOOK << 8 | NFNL_MSG_HOOK_GET,
                    family,
                    struct.pack("=HH", 8, NFNLA_HOOK_HOOKNUM) + struct.pack("!I", hook),
                )
                for family in (socket.AF_INET, socket.AF_INET6)
                for hook in HOOKS
            ]
    except OSError:
        return None
    known = [answer for answer in answers if answer is not None]
    return any(name in answer for answer in known for name in HOOK_FUNCTIONS) if known else None


def _count_entries() -> int | None:
    """Entries of the table, None where the kernel does not say."""
    try:
        with closing(Table()) as table:
            return table.measure().entries
    except UnavailableError:
        return None


def _look_at_rules() -> bool | None:
    """Whether a rule asks for tracking; None where rules are of a kind that does not tell."""
    try:
        if any(_read_names(path) for path in IPTABLES):
            return None
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(ANSWER_SECONDS)
            netlink.bind((0, 0))
            rules = _dump(netlink, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, socket.AF_UNSPEC)
    except OSError:
        return None
    if rules is None:
        return None
    if any(_name(each) in rules for each in TRACKING_EXPRESSIONS):
        return True
    return None if any(_name(each) in rules for each in FOREIGN_EXPRESSIONS) else False


def _read_names(path: Path) -> str:
    """Tables of old iptables. Only root may read them: of those that are hidden none is assumed."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _name(expression: bytes) -> bytes:
    """The attribute with the name of an expression in a rule."""
    return struct.pack("=HH", NLA_HDRLEN + len(expression) + 1, NFTA_EXPR_NAME) + expression + b"\0"


def _dump(netlink: socket.socket, kind: int, family: int, attributes: bytes = b"") -> bytes | None:
    """The messages of the kernel's answer, or None where it knows nothing of the kind."""
    body = struct.pack("=BBH", family, NFNETLINK_V0, 0) + attributes
    netlink.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
    answer = b""
    while True:
        part = netlink.recv(1 << 16)
        for message in split(part):
            answered = HEADER.unpack_from(message)[1]
            if answered == NLMSG_ERROR:
                return None
            if answered == NLMSG_DONE:
                return answer
            answer += message


@contextmanager
def activate(namespace: str | None) -> Iterator[None]:
    """Have connections tracked in the network namespace by an nftables table of our own, until the end.

    Raises UnavailableError where there is no nft, or it is refused. A table that a killed daemon left behind
    is taken over.
    """
    with enter(namespace):
        _run_nft("-f", "-", text=RULESET)
    try:
        yield
    finally:
        # Whoever removed it already has done what we want.
        with enter(namespace):
            _call_nft("delete", "table", "inet", TABLE)


def _run_nft(*arguments: str, text: str = "") -> None:
    hint = "apt install nftables, or leave out conntrack.activate and have a rule with 'ct state' of your own"
    try:
        done = _call_nft(*arguments, text=text)
    except FileNotFoundError as error:
        raise UnavailableError("conntrack.activate: there is no nft here", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("conntrack.activate: nft does not answer") from error
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        if "ermission denied" in said or "not permitted" in said:
            raise NotPermittedError(
                f"conntrack.activate: nft: {said}", hint="run it as root, or as the service"
            )
        raise UnavailableError(f"conntrack.activate: nft: {said}", hint="it takes root, and nf_tables")


def _call_nft(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    # Where it is installed; an ordinary user's PATH leaves that out.
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), SYSTEM_PATH)))
    return subprocess.run(
        ["nft", *arguments],
        input=text,
        text=True,
        capture_output=True,
        timeout=NFT_SECONDS,
        check=False,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
    )
