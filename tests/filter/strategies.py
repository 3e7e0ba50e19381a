"""Random rules and random events that have something to do with each other: both draw from small pools."""

from collections.abc import Sequence
from io import BytesIO
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, TypeVar

from hypothesis import strategies as st

from conntrackd.filter import ast, fields
from conntrackd.filter.ast import Expression, Rule, conjoin, disjoin, negate, sort_prefixes
from conntrackd.filter.sets import AddressSet, read_lines
from conntrackd.flow import ABSENT, EventType, Flow, Location, Protocol, TcpState


def make_set(name: str, *networks: str) -> AddressSet:
    """A set of a file with these lines."""
    return read_lines(name, Path("/sets") / name, BytesIO("\n".join(networks).encode()))


V = TypeVar("V", int, str, tuple[int, int])

V4_ADDRESSES: Final = """
    0.0.0.0 10.0.0.1 10.0.0.2 10.1.0.1 127.0.0.1 169.254.3.4 172.31.255.255 172.32.0.0 192.0.2.7 192.168.1.1
    223.255.255.255 224.0.0.1 255.255.255.255
"""
V6_ADDRESSES: Final = """
    :: ::1 ::a00:1 fe80::1 fc00::1 fdff::1 ff02::1 2001:db8::1 2001:db8::2 2001:db8:0:1::1
    2a01:4f8:160:5372::2 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""
NETWORKS: Final = """
    0.0.0.0/0 0.0.0.0/1 128.0.0.0/1 10.0.0.0/8 10.0.0.0/31 10.0.0.1 10.1.0.1 192.0.2.0/25 192.0.2.7 224.0.0.1
    255.255.255.255
    ::/0 ::/1 8000::/1 ::1 ::a00:1 fe80::/10 2001:db8::/32 2001:db8::/63 2001:db8::/64 2001:db8::/65
    2001:db8::1 2001:db8::2/127 2a01:4f8:160:5372::2
"""
ADDRESSES: Final = {
    4: [ip_address(text).packed for text in V4_ADDRESSES.split()],
    6: [ip_address(text).packed for text in V6_ADDRESSES.split()],
}
PREFIXES: Final = [fields.to_prefix(ip_network(text)) for text in NETWORKS.split()]
PORTS: Final = (0, 1, 22, 53, 79, 80, 81, 90, 443, 8080, 32768, 65535)
PROTOCOLS: Final = (1, 6, 17, 33, 47, 58, 132, 136, 0, 2, 255)
PORTLESS: Final = (Protocol.ICMP, Protocol.ICMPV6, 0, 2, 255)
WITH_ICMP_IDS: Final = (Protocol.ICMP, Protocol.ICMPV6)
SETS: Final = {
    "all": make_set("all", *NETWORKS.split()),
    "empty": make_set("empty"),
    "four": make_set("four", "10.0.0.0/31", "192.0.2.7"),
    "six": make_set("six", "2001:db8::1", "2001:db8::/64", "fe80::/10"),
    "some": make_set("some", "10.0.0.0/8", "10.1.0.1", "128.0.0.0/1", "8000::/1", "::1"),
}
MARKS: Final = (0, 1, 0x10, 0x1F, 0xF0, 0x80000000, 0xFFFFFFFF)
MASKS: Final = (0xFFFFFFFF, 0xF0, 0x0F, 0x80000000, 0)
ZONES: Final = (0, 1, 3, 65535)
STATUSES: Final = tuple(fields.STATUSES.values())
COUNTS: Final = (0, 1, 100, 1023, 1024, 10 << 20, (1 << 32) - 1, 1 << 32, (1 << 64) - 1)
OPTIONAL: Final = (
    *(fields.SPORT, fields.DPORT, fields.REPLY_SPORT, fields.REPLY_DPORT, fields.STATE),
    *fields.ICMP_IDS.values(),
    *fields.COUNTERS.values(),
)
RATES: Final = (2, 3, 10, 1_000_000)
SECOND: Final = 10**9
START: Final = 1_700_000_000 * SECOND
DURATIONS: Final = (0, 10**6, 999 * 10**6, SECOND, 60 * SECOND, 3600 * SECOND)
COUNTRIES: Final = {"": "", "DE": "Germany", "FR": "France", "US": "United States", "CI": "Côte d'Ivoire"}
COUNTRY_WORDS: Final = sorted([*COUNTRIES, *(name.casefold() for name in COUNTRIES.values())])[2:]
CITIES: Final = ("", "Nuremberg", "Zürich", 'The "Hague"', "Straße\\")


# -- events

locations = st.builds(
    Location,
    city=st.sampled_from(CITIES),
    country=st.sampled_from(sorted(COUNTRIES.values())),
    country_code=st.sampled_from(sorted(COUNTRIES)),
)


@st.composite
def flows(draw: st.DrawFn, *, located: bool = True) -> Flow:
    """An event as netlink/message.py reads it; with a Location at its ends, or none, where `located`."""
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from(PROTOCOLS) | st.integers(0, 255))
    address = st.sampled_from(ADDRESSES[version])
    port = st.sampled_from(PORTS) if protocol not in PORTLESS else st.just(ABSENT)
    identifier = st.sampled_from(PORTS) if protocol in WITH_ICMP_IDS else st.just(ABSENT)
    src, dst, sport, dport = draw(address), draw(address), draw(port), draw(port)
    icmp_id = draw(identifier)
    turned_round = draw(st.booleans())  # most flows are not translated
    start = draw(st.sampled_from((0, START)))
    place = locations if located else st.nothing()
    src_location = draw(st.none() | place)
    return Flow(
        type=draw(st.sampled_from((EventType.NEW, EventType.UPDATE, EventType.DESTROY))).value,
        time=START,
        family=fields.FAMILIES[f"IPV{version}"],
        protocol=protocol,
        id=draw(st.integers(0, (1 << 32) - 1)),
        src=src,
        dst=dst,
        sport=sport,
        dport=dport,
        reply_src=dst if turned_round else draw(address),
        reply_dst=src if turned_round else draw(address),
        reply_sport=dport if turned_round else draw(port),
        reply_dport=sport if turned_round else draw(port),
        state=draw(st.sampled_from(TcpState)).value if protocol == Protocol.TCP else ABSENT,
        status=draw(st.lists(st.sampled_from((0, *STATUSES, 1 << 14, 1 << 15))).map(sum_bits)),
        mark=draw(st.sampled_from(MARKS)),
        zone=draw(st.sampled_from(ZONES)),
        orig_packets=draw(counts),
        orig_bytes=draw(counts),
        reply_packets=draw(counts),
        reply_bytes=draw(counts),
        start=start,
        stop=draw(st.just(0) | st.sampled_from((-SECOND, -1, *DURATIONS)).map(lambda ns: START + ns)),
        src_location=src_location,
        dst_location=src_location if src == dst else draw(st.none() | place),  # an address is in one place
        icmp_id=icmp_id,
        reply_icmp_id=icmp_id if turned_round else draw(identifier),
    )


counts = st.just(ABSENT) | st.sampled_from(COUNTS)


def sum_bits(masks: list[int]) -> int:
    bits = 0
    for mask in masks:
        bits |= mask
    return bits


# -- rules


def one_or_both(
    pairs: list[tuple[fields.Field, fields.Field]],
) -> st.SearchStrategy[tuple[fields.Field, ...]]:
    """The field of the source, that of the destination, or both."""
    return st.sampled_from([sides for pair in pairs for sides in ((pair[0],), (pair[1],), pair)])


def list_pairs(*kinds: str) -> list[tuple[fields.Field, fields.Field]]:
    return [pair for (kind, _), pair in fields.SIDES.items() if kind in kinds]


def lists_of(values: Sequence[V]) -> st.SearchStrategy[tuple[V, ...]]:
    return st.sets(st.sampled_from(values), min_size=1, max_size=4).map(lambda chosen: tuple(sorted(chosen)))


def one_of_these(field: fields.Field, values: Sequence[int]) -> st.SearchStrategy[Expression]:
    ranges = lists_of(values).map(lambda chosen: tuple((value, value) for value in chosen))
    return st.builds(ast.NumberIn, st.just((field,)), ranges)


def single(address: bytes) -> tuple[fields.Prefix, ...]:
    return (fields.Prefix(address, len(address) * 8),)


def any_bits(masks: Sequence[int]) -> st.SearchStrategy[int]:
    return lists_of(masks).map(lambda chosen: sum_bits(list(chosen)))


port_ranges = lists_of([(low, high) for low in PORTS for high in PORTS if low <= high])
marks = st.tuples(st.sampled_from(MARKS), st.sampled_from(MASKS)).map(
    lambda pair: (pair[0] & pair[1], pair[1])
)
prefixes = st.sets(st.sampled_from(PREFIXES), min_size=1, max_size=5).map(sort_prefixes)

icmp_ids: st.SearchStrategy[Expression] = st.builds(
    ast.NumberIn, st.sampled_from([(field,) for field in fields.ICMP_IDS.values()]), port_ranges
)

# What the kernel can decide from one message, wherever the field is carried.
kernel_leaves: st.SearchStrategy[Expression] = st.one_of(
    st.just(ast.Anything()),
    st.builds(ast.TypeIs, any_bits(list(fields.TYPES.values()))),
    one_of_these(fields.PROTOCOL, PROTOCOLS),
    one_of_these(fields.STATE, list(fields.STATES.values())),
    one_of_these(fields.ZONE, ZONES),
    one_of_these(fields.FAMILY, list(fields.FAMILIES.values())),
    st.builds(ast.NumberIn, one_or_both(list_pairs("port")), port_ranges),
    icmp_ids,
    st.builds(ast.StatusHas, any_bits(STATUSES)),
    st.builds(ast.NatHas, st.sampled_from((1, 2, 3))),
    st.builds(ast.MarkIn, st.sets(marks, min_size=1, max_size=3).map(lambda chosen: tuple(sorted(chosen)))),
    st.builds(ast.AddressIn, one_or_both(list_pairs("address")), prefixes),
    st.builds(ast.NetworkIn, one_or_both(list_pairs("network")), lists_of(sorted(fields.NETWORKS))),
)

# Lists of one kind each, which may be merged with their neighbours.
set_leaves: list[st.SearchStrategy[Expression]] = [
    *(
        st.builds(ast.AddressIn, st.just(sides), prefixes)
        for pair in list_pairs("address")
        for sides in ((pair[0],), pair)
    ),
    *(
        st.builds(ast.AddressIn, st.just((pair[1],)), st.sampled_from(ADDRESSES[4]).map(single))
        for pair in list_pairs("address")
    ),
    *(
        st.builds(ast.NumberIn, st.just(sides), port_ranges)
        for pair in list_pairs("port")
        for sides in ((pair[0],), pair)
    ),
    one_of_these(fields.PROTOCOL, PROTOCOLS),
    one_of_these(fields.STATE, list(fields.STATES.values())),
    *(st.builds(ast.NumberIn, st.just((field,)), port_ranges) for field in fields.ICMP_IDS.values()),
]

durations: st.SearchStrategy[Expression] = st.builds(
    ast.Compare, st.just(fields.DURATION), st.sampled_from(fields.OPERATORS), st.sampled_from(DURATIONS)
)

other_leaves: st.SearchStrategy[Expression] = st.one_of(
    st.builds(
        lambda asked, found: ast.SetIn(asked, found.name, found),
        one_or_both(list_pairs("address")),
        st.sampled_from(list(SETS.values())),
    ),
    st.builds(ast.LocationIn, one_or_both(list_pairs("country")), lists_of(COUNTRY_WORDS)),
    st.builds(
        ast.LocationIn,
        one_or_both(list_pairs("city")),
        lists_of(sorted(city.casefold() for city in CITIES[1:])),
    ),
    st.builds(
        ast.Compare,
        st.sampled_from([field for field in fields.COUNTERS.values() if field is not fields.DURATION]),
        st.sampled_from(fields.OPERATORS),
        st.sampled_from(COUNTS),
    ),
    durations,
)


def expressions(leaves: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            inner.map(negate),
            st.lists(inner, min_size=2, max_size=3).map(conjoin),
            st.lists(inner, min_size=2, max_size=3).map(disjoin),
        ),
        max_leaves=6,
    )


def rules_of(leaves: st.SearchStrategy[Expression]) -> st.SearchStrategy[list[Rule]]:
    """Some of those that log do so with a sample of the flows."""
    samples = st.sampled_from((0, 0, *RATES))
    logging = st.builds(Rule, st.just(True), expressions(leaves), sample=samples)
    return st.lists(logging | st.builds(Rule, st.just(False), expressions(leaves)), max_size=6)


kernel_rules = rules_of(kernel_leaves)
"""Rule lists made only of things that stand in the message."""
rules = rules_of(kernel_leaves | other_leaves)
"""Any rule list."""
