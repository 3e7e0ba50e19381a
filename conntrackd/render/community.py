"""The Community ID of a flow, version 1: the reference that core/community.c is compared with.

https://github.com/corelight/community-id-spec; the answers to types of ICMP are those that Zeek pairs.
"""

from base64 import b64encode
from typing import Final, NamedTuple

from conntrackd.flow import ABSENT, Flow, Protocol
from conntrackd.lean import without

with without("_hashlib"):  # 3 MiB of OpenSSL, which has no more to say about SHA-1
    from hashlib import sha1

VERSION: Final = "1"
WITH_PORTS: Final = frozenset((Protocol.TCP, Protocol.UDP, Protocol.SCTP))
_PAIRS: Final = {
    Protocol.ICMP: ((8, 0), (10, 9), (13, 14), (15, 16), (17, 18)),
    Protocol.ICMPV6: ((128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145)),
}
ANSWERS: Final[dict[int, dict[int, int]]] = {
    protocol: {kind: answer for pair in pairs for kind, answer in (pair, pair[::-1])}
    for protocol, pairs in _PAIRS.items()
}
"""Type of a message -> type of its answer, and the other way round."""


class _Ports(NamedTuple):
    source: int
    destination: int
    are_ordered: bool
    """Whether the lower end comes first; else the ends stay as they are."""


def compute_community_id(flow: Flow, seed: int) -> str:
    """Of the original tuple. What a message should have and has not is as if its protocol had none."""
    ports = _find_ports(flow)
    numbers = (0, 0) if ports is None else (ports.source, ports.destination)
    source, destination = (flow.src, numbers[0]), (flow.dst, numbers[1])
    if (ports is None or ports.are_ordered) and source > destination:
        source, destination = destination, source
    text = seed.to_bytes(2) + source[0] + destination[0] + bytes([flow.protocol, 0])
    if ports is not None:
        text += source[1].to_bytes(2) + destination[1].to_bytes(2)
    return f"{VERSION}:{b64encode(sha1(text, usedforsecurity=False).digest()).decode()}"


def _find_ports(flow: Flow) -> _Ports | None:
    """Ports, or what stands for them."""
    if flow.protocol in WITH_PORTS and ABSENT not in (flow.sport, flow.dport):
        return _Ports(flow.sport, flow.dport, True)
    if flow.protocol in ANSWERS and ABSENT not in (flow.icmp_type, flow.icmp_code):
        answer = ANSWERS[flow.protocol].get(flow.icmp_type)
        return _Ports(flow.icmp_type, flow.icmp_code if answer is None else answer, answer is not None)
    return None
