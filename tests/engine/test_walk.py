"""Both engines read the same of every datagram: fields, and how much is no event."""

import dataclasses
import random
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.engine import EventBatch
from conntrackd.flow import Flow
from conntrackd.netlink import constants as c
from tests.engine.feed import CORPUS, ENGINES, MESSAGES, QUEUE, pair, read_messages, receive
from tests.filter.strategies import flows
from tests.messages import attribute, build_message, nest

NATIVE, PLAIN = ENGINES
MUTATIONS = 100_000
# What is 0 where it is not known is None in the core's description.
ZERO_FOR_NONE = ("start", "stop", "first_seen")


NAMES = [field.name for field in dataclasses.fields(Flow) if not field.name.endswith("_location")]


def describe(batch: EventBatch) -> list[dict[str, object]]:
    """All fields of all events, in the words of Flow."""
    found = []
    for index in range(len(batch)):
        fields = batch.describe(index)
        for name in ZERO_FOR_NONE:
            fields[name] = fields[name] or 0
        found.append({name: fields[name] for name in NAMES})
    return found


def compare(datagrams: Iterable[bytes]) -> int:
    """Both read the same of these; the number of malformed messages."""
    some = [datagram for datagram in datagrams if datagram]
    native, plain = NATIVE.open_batch(), PLAIN.open_batch()
    one, other = receive(native, *some), receive(plain, *some)

    assert one[:3] == other[:3]
    assert native.received_ns > 0
    times = {id(native): native.received_ns, id(plain): plain.received_ns}
    left, right = describe(native), describe(plain)
    for batch, found in ((native, left), (plain, right)):
        for fields in found:  # each has its own time of receipt
            fields["time"] = None if fields["time"] == times[id(batch)] else fields["time"]
    assert left == right
    return one.malformed


def group(datagrams: list[bytes]) -> Iterable[list[bytes]]:
    for begin in range(0, len(datagrams), QUEUE):
        yield datagrams[begin : begin + QUEUE]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_read_what_the_kernel_sent(path: object) -> None:
    for some in group(read_messages(path)):  # type: ignore[arg-type]
        assert compare(some) == 0


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_every_truncation_is_malformed_to_both(path: object) -> None:
    for message in read_messages(path):  # type: ignore[arg-type]
        for some in group([message[:length] for length in range(1, len(message))]):
            assert compare(some) == len(some)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_read_the_same_of_a_message_that_ends_early_and_says_so(path: object) -> None:
    """Its header has the length that is left: it ends within an attribute, between two, or in its headers."""
    for message in read_messages(path):  # type: ignore[arg-type]
        cut = [struct.pack("=I", length) + message[4:length] for length in range(4, len(message))]
        assert sum(compare(some) for some in group(cut)) > len(cut) // 2


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_read_the_same_where_any_one_byte_is_another(path: object) -> None:
    """Also of a tuple whose headers are not those of the kernel: the core has a shorter way for these."""
    for message in read_messages(path)[:2]:  # type: ignore[arg-type]
        changed = (
            message[:at] + bytes([message[at] ^ bit]) + message[at + 1 :]
            for at in range(len(message))
            for bit in (1, 2, 4, 0x80)
        )
        for some in group(list(changed)):
            compare(some)


def test_both_read_the_same_of_mutated_messages() -> None:
    numbers = random.Random(20251122)
    native, plain = NATIVE.open_batch(), PLAIN.open_batch()
    malformed = 0
    with pair() as (one, other):
        for _ in range(MUTATIONS // QUEUE):
            some = [mutate(numbers, numbers.choice(MESSAGES)) for _ in range(QUEUE)]
            for datagram in some:
                other.send(datagram)
            first = native.receive(one.fileno(), 5000, 0)
            for datagram in some:
                other.send(datagram)
            assert plain.receive(one.fileno(), 5000, 0)[:3] == first[:3]
            for found, expected in zip(describe(native), describe(plain), strict=True):
                if found["time"] == native.received_ns:
                    found["time"] = plain.received_ns
                assert found == expected
            malformed += first[2]

    assert 0 < malformed < MUTATIONS * 4


def mutate(numbers: random.Random, message: bytes) -> bytes:
    changed = bytearray(message)
    for _ in range(numbers.randint(1, 4)):
        changed[numbers.randrange(len(changed))] = numbers.randrange(256)
    return bytes(changed)


@given(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=QUEUE))
@settings(max_examples=300)
def test_both_read_the_same_of_random_bytes(some: list[bytes]) -> None:
    compare(some)


@given(st.lists(flows(located=False), min_size=1, max_size=QUEUE))
@settings(max_examples=300)
def test_both_read_the_same_of_generated_events(some: list[Flow]) -> None:
    assert compare(build_message(flow) for flow in some) == 0


@pytest.mark.parametrize("kind", [*range(1, 5), 0, 0xFFFF, 2 << 8])
def test_messages_that_are_no_events_are_counted(kind: int) -> None:
    other = MESSAGES[0][:4] + struct.pack("=H", kind) + MESSAGES[0][6:]

    assert compare([MESSAGES[0], other, MESSAGES[1]]) == 1


def test_several_messages_in_one_datagram_are_all_read() -> None:
    assert compare([b"".join(MESSAGES[:3]), MESSAGES[3]]) == 0


def test_a_multipart_answer_is_its_messages_and_its_end_is_none() -> None:
    parts = [message[:6] + struct.pack("=H", c.NLM_F_MULTI) + message[8:] for message in MESSAGES[:3]]
    end = struct.pack("=IHHIII", 20, c.NLMSG_DONE, c.NLM_F_MULTI, 0, 0, 0)

    assert compare([b"".join([*parts, end])]) == 1


def with_parts(*parts: bytes) -> bytes:
    """An event with more attributes behind those that it has."""
    message = MESSAGES[0] + b"".join(parts)
    return struct.pack("=I", len(message)) + message[4:]


@pytest.mark.parametrize(
    "message",
    [
        with_parts(nest(c.CTA_HELP, attribute(c.CTA_HELP_NAME, b"ftp\0"))),
        with_parts(nest(c.CTA_HELP, attribute(c.CTA_HELP_NAME, b"x" * 400))),
        with_parts(nest(c.CTA_HELP, attribute(c.CTA_HELP_NAME, b"\0ftp"))),
        with_parts(nest(c.CTA_SECCTX, attribute(c.CTA_SECCTX_NAME, b"system_u:object_r:x_t:s0\0"))),
        with_parts(attribute(c.CTA_LABELS, bytes([5, 0, 0, 0, 0, 0, 0, 0x80] * 2))),
        with_parts(attribute(c.CTA_LABELS, bytes(16))),
        with_parts(attribute(c.CTA_LABELS, b"\1\0\0\0")),
        with_parts(attribute(c.CTA_LABELS, bytes(20))),
        with_parts(attribute(c.CTA_LABELS, bytes([5] * 16)), attribute(c.CTA_LABELS, b"\1\0\0\0")),
        with_parts(nest(c.CTA_TUPLE_REPLY, attribute(c.CTA_TUPLE_ZONE, b"\0\7"))),
        with_parts(
            nest(
                c.CTA_TUPLE_MASTER,
                nest(
                    c.CTA_TUPLE_IP,
                    attribute(c.CTA_IP_V4_SRC, bytes([10, 0, 0, 1])),
                    attribute(c.CTA_IP_V4_DST, bytes([10, 0, 0, 2])),
                ),
                nest(
                    c.CTA_TUPLE_PROTO,
                    attribute(c.CTA_PROTO_NUM, b"\6"),
                    attribute(c.CTA_PROTO_SRC_PORT, b"\4\0"),
                    attribute(c.CTA_PROTO_DST_PORT, b"\0\x15"),
                ),
            )
        ),
        with_parts(attribute(200, bytes(8)), attribute(0, b"")),
        with_parts(attribute(200, bytes(8))[:-1] + b"\xff"),
        with_parts(struct.pack("=HH", 16, 200) + bytes(4)),
        with_parts(attribute(200, b"abc")[:-1]),
        with_parts(nest(c.CTA_HELP, attribute(c.CTA_HELP_NAME, b"ftp")[:-1])),
        with_parts(struct.pack("=HH", 3, 200) + bytes(4)),
        with_parts(nest(c.CTA_TUPLE_ORIG, nest(c.CTA_TUPLE_IP, attribute(c.CTA_IP_V6_SRC, bytes(16))))),
        with_parts(nest(c.CTA_TUPLE_ORIG, nest(c.CTA_TUPLE_IP, attribute(c.CTA_IP_V4_SRC, bytes(3))))),
        with_parts(
            nest(
                c.CTA_TUPLE_ORIG,
                nest(
                    c.CTA_TUPLE_IP,
                    attribute(c.CTA_IP_V6_SRC, bytes(16)),
                    attribute(c.CTA_IP_V6_DST, bytes(16)),
                ),
                nest(
                    c.CTA_TUPLE_PROTO,
                    attribute(c.CTA_PROTO_NUM, b"\6"),
                    attribute(c.CTA_PROTO_SRC_PORT, b"\4\0"),
                    attribute(c.CTA_PROTO_DST_PORT, b"\0\x15"),
                ),
            )
        ),
        with_parts(attribute(c.CTA_MARK, bytes(8))),
        with_parts(attribute(c.CTA_MARK, b"")),
        with_parts(nest(c.CTA_TIMESTAMP, attribute(1, b"\xff" * 8), attribute(2, b"\0" * 7 + b"\1"))),
    ],
)
def test_both_know_the_rarer_attributes(message: bytes) -> None:
    compare([message])


def test_a_datagram_that_does_not_fit_is_malformed_and_its_neighbours_are_read() -> None:
    padding = attribute(1000, bytes(3000))

    assert compare([MESSAGES[0], with_parts(padding), MESSAGES[1]]) == 1
