"""Events for the tests of the sinks: each has its number as its id."""

from conntrackd.flow import EventType, Flow, Protocol

BASE = 1_763_807_683_000_000_000


def make_flow(number: int, kind: EventType = EventType.NEW, *, time: int = 0) -> Flow:
    """An event that no other number gives."""
    src = bytes([10, *(number % (1 << 24)).to_bytes(3, "big")])
    dst = bytes([192, 0, 2, 1])
    return Flow(
        type=kind,
        time=time or BASE + number * 1_000_000,
        family=2,
        protocol=Protocol.TCP,
        id=number,
        src=src,
        dst=dst,
        sport=40_000,
        dport=443,
        reply_src=dst,
        reply_dst=src,
        reply_sport=443,
        reply_dport=40_000,
        state=1,
    )


def make_flows(count: int, first: int = 0) -> list[Flow]:
    """Events with numbers one after the other."""
    return [make_flow(number) for number in range(first, first + count)]
