"""The vocabulary of rules: each field with its Flow attribute and its place in the message, and each word.

Everything that both compilers know about a field stands here once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from socket import AF_INET, AF_INET6
from types import MappingProxyType
from typing import Final, NamedTuple

from conntrackd import units
from conntrackd.flow import EventType, Nat, Protocol, Status, TcpState
from conntrackd.netlink import constants as c

Path = tuple[int, ...]

SRC_ENDS: Final = (c.CTA_IP_V4_SRC, c.CTA_IP_V6_SRC)
DST_ENDS: Final = (c.CTA_IP_V4_DST, c.CTA_IP_V6_DST)


@dataclass(frozen=True, slots=True)
class Field:
    """One thing an event can carry.

    `paths` are the attributes it may stand in, each from the message's top level (CTA_*), big endian and
    `size` bytes long; an address has one for IPv4 (4 bytes) and one for IPv6 (16 bytes). No paths: it is not
    an attribute of the message (it stands in the header, or is computed). An `optional` field that an event
    does not carry makes a condition unknown; any other one that is left out of the message is 0.
    """

    phrase: str
    attribute: str
    size: int
    paths: tuple[Path, ...]
    optional: bool

    def __repr__(self) -> str:
        return f"Field({self.attribute})"  # what fails in a test is a tree of many of them


def _address(phrase: str, attribute: str, tuple_type: int, ends: tuple[int, int]) -> Field:
    paths = tuple((tuple_type, c.CTA_TUPLE_IP, end) for end in ends)
    return Field(phrase, attribute, 16, paths, False)


def _port(phrase: str, attribute: str, tuple_type: int, port: int) -> Field:
    return Field(phrase, attribute, 2, ((tuple_type, c.CTA_TUPLE_PROTO, port),), True)


def _icmp_id(phrase: str, attribute: str, tuple_type: int) -> Field:
    paths = tuple(
        (tuple_type, c.CTA_TUPLE_PROTO, number) for number in (c.CTA_PROTO_ICMP_ID, c.CTA_PROTO_ICMPV6_ID)
    )
    return Field(phrase, attribute, 2, paths, True)


def _counter(phrase: str, attribute: str, nest: int, counter: int) -> Field:
    return Field(phrase, attribute, 8, ((nest, counter),), True)


SRC: Final = _address("source", "src", c.CTA_TUPLE_ORIG, SRC_ENDS)
DST: Final = _address("destination", "dst", c.CTA_TUPLE_ORIG, DST_ENDS)
# Who answers, after DNAT, and whom it answers, after SNAT; likewise the ports.
REPLY_SRC: Final = _address("reply source", "reply_src", c.CTA_TUPLE_REPLY, SRC_ENDS)
REPLY_DST: Final = _address("reply destination", "reply_dst", c.CTA_TUPLE_REPLY, DST_ENDS)
SPORT: Final = _port("source", "sport", c.CTA_TUPLE_ORIG, c.CTA_PROTO_SRC_PORT)
DPORT: Final = _port("destination", "dport", c.CTA_TUPLE_ORIG, c.CTA_PROTO_DST_PORT)
REPLY_SPORT: Final = _port("reply source", "reply_sport", c.CTA_TUPLE_REPLY, c.CTA_PROTO_SRC_PORT)
REPLY_DPORT: Final = _port("reply destination", "reply_dport", c.CTA_TUPLE_REPLY, c.CTA_PROTO_DST_PORT)

# It stands where the source's port does, so that each tuple has one. That of the reply is there without a
# translation too, and then the same.
ICMP_ID: Final = _icmp_id("icmp id", "icmp_id", c.CTA_TUPLE_ORIG)
REPLY_ICMP_ID: Final = _icmp_id("reply icmp id", "reply_icmp_id", c.CTA_TUPLE_REPLY)

# In the header: nfgen_family.
FAMILY: Final = Field("family", "family", 1, (), False)

PROTOCOL: Final = Field(
    "protocol", "protocol", 1, ((c.CTA_TUPLE_ORIG, c.CTA_TUPLE_PROTO, c.CTA_PROTO_NUM),), False
)
STATE: Final = Field(
    "state", "state", 1, ((c.CTA_PROTOINFO, c.CTA_PROTOINFO_TCP, c.CTA_PROTOINFO_TCP_STATE),), True
)
STATUS: Final = Field("status", "status", 4, ((c.CTA_STATUS,),), False)
# The kernel leaves a mark of 0 and the default zone out.
MARK: Final = Field("mark", "mark", 4, ((c.CTA_MARK,),), False)
ZONE: Final = Field("zone", "zone", 2, ((c.CTA_ZONE,), (c.CTA_TUPLE_ORIG, c.CTA_TUPLE_ZONE)), False)

BYTES: Final = _counter("bytes", "orig_bytes", c.CTA_COUNTERS_ORIG, c.CTA_COUNTERS_BYTES)
PACKETS: Final = _counter("packets", "orig_packets", c.CTA_COUNTERS_ORIG, c.CTA_COUNTERS_PACKETS)
REPLY_BYTES: Final = _counter("reply bytes", "reply_bytes", c.CTA_COUNTERS_REPLY, c.CTA_COUNTERS_BYTES)
REPLY_PACKETS: Final = _counter(
    "reply packets", "reply_packets", c.CTA_COUNTERS_REPLY, c.CTA_COUNTERS_PACKETS
)
# Computed: stop - start, in nanoseconds, where both are known (not 0).
DURATION: Final = Field("duration", "duration", 8, (), True)

# From the GeoIP databases, after the message; the attribute is the Flow's Location and its field.
SRC_COUNTRY: Final = Field("source", "src_location.country", 0, (), True)
DST_COUNTRY: Final = Field("destination", "dst_location.country", 0, (), True)
SRC_CITY: Final = Field("source", "src_location.city", 0, (), True)
DST_CITY: Final = Field("destination", "dst_location.city", 0, (), True)

SIDES: Final = MappingProxyType(
    {
        ("address", False): (SRC, DST),
        ("address", True): (REPLY_SRC, REPLY_DST),
        ("network", False): (SRC, DST),
        ("network", True): (REPLY_SRC, REPLY_DST),
        ("port", False): (SPORT, DPORT),
        ("port", True): (REPLY_SPORT, REPLY_DPORT),
        ("country", False): (SRC_COUNTRY, DST_COUNTRY),
        ("city", False): (SRC_CITY, DST_CITY),
    }
)
"""What is asked about, and whether in the reply tuple -> the source's field and the destination's."""

ICMP_IDS: Final = MappingProxyType({False: ICMP_ID, True: REPLY_ICMP_ID})
"""Whether in the reply tuple -> the field."""

COUNTERS: Final = MappingProxyType(
    {
        ("bytes", False): BYTES,
        ("bytes", True): REPLY_BYTES,
        ("packets", False): PACKETS,
        ("packets", True): REPLY_PACKETS,
        ("duration", False): DURATION,
    }
)

TYPES: Final = MappingProxyType(
    {str(event_type.name): event_type.value for event_type in EventType if event_type != EventType.SNAPSHOT}
)
PROTOCOLS: Final = MappingProxyType(
    {
        name: Protocol[name].value
        for name in ("TCP", "UDP", "UDPLITE", "SCTP", "DCCP", "ICMP", "ICMPV6", "GRE")
    }
)
STATES: Final = MappingProxyType({state.name: state.value for state in TcpState})
FAMILIES: Final = MappingProxyType({"IPV4": int(AF_INET), "IPV6": int(AF_INET6)})
NATS: Final = MappingProxyType({"SNAT": int(Nat.SNAT), "DNAT": int(Nat.DNAT), "ANY": int(Nat.BOTH)})
# Both ends at once, where ANY is one of them at least: two conditions, so not among NATS.
BOTH: Final = "BOTH"
STATUSES: Final = MappingProxyType(
    {
        **{
            name: Status[name].value
            for name in (
                "ASSURED",
                "SEEN_REPLY",
                "EXPECTED",
                "CONFIRMED",
                "SRC_NAT",
                "DST_NAT",
                "DYING",
                "HELPER",
            )
        },
        "OFFLOADED": int(Status.OFFLOAD | Status.HW_OFFLOAD),
    }
)
# The word for the absence of a bit, which is why it is not among STATUSES.
UNREPLIED: Final = "UNREPLIED"

OPERATORS: Final = ("<", "<=", "=", "!=", ">=", ">")
# Of durations in nanoseconds.
DURATION_UNITS: Final = MappingProxyType({unit: ms * 10**6 for unit, ms in units.DURATION_UNITS.items()})
# What a number without a unit counts.
NO_UNIT: Final = MappingProxyType({"size": 1, "duration": 10**9})


class Prefix(NamedTuple):
    """A network: its first address as 4 or 16 bytes, and how many leading bits count."""

    network: bytes
    length: int


def _prefixes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(to_prefix(ip_network(text)) for text in texts)


def to_prefix(network: IPv4Network | IPv6Network) -> Prefix:
    """The prefix of a network of the standard library."""
    return Prefix(network.network_address.packed, network.prefixlen)


PUBLIC: Final = "PUBLIC"
NETWORKS: Final = MappingProxyType(
    {
        "LOCAL": _prefixes("127.0.0.0/8", "169.254.0.0/16", "::1", "fe80::/10"),
        "PRIVATE": _prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
        "MULTICAST": _prefixes("224.0.0.0/4", "ff00::/8"),
        PUBLIC: (),
    }
)
"""Names of networks. They do not overlap; PUBLIC is whatever is in none of the others."""


def name_network(address: bytes) -> str:
    """The one of NETWORKS that the address belongs to."""
    return next((name for name, prefixes in NETWORKS.items() if is_in_prefixes(address, prefixes)), PUBLIC)


def is_in_prefixes(address: bytes, prefixes: Sequence[Prefix]) -> bool:
    """Whether one of them has it."""
    return any(
        len(network) == len(address) and _cut(network, length) == _cut(address, length)
        for network, length in prefixes
    )


def _cut(address: bytes, length: int) -> int:
    """The leading bits."""
    return int.from_bytes(address, "big") >> len(address) * 8 - length
