"""The wire format, against dbus-fast and against whatever bytes come."""

from typing import Any

import pytest
from dbus_fast import Message, Variant
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conntrackd.bus import wire
from conntrackd.bus.connection import TEXT_ENCODING

# dbus-fast 1.84 writes nothing but ASCII as it should be (see TEXT_ENCODING).
LAST = None if TEXT_ENCODING == "utf-8" else 127
TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0", max_codepoint=LAST), max_size=20
)
VALUES = {
    "as": st.lists(TEXTS, max_size=5),
    "u": st.integers(0, 2**32 - 1),
    "t": st.integers(0, 2**64 - 1),
    "s": TEXTS,
    "b": st.booleans(),
    "a{st}": st.dictionaries(TEXTS, st.integers(0, 2**64 - 1), max_size=4),
    "a(ssss)": st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS), max_size=3),
    "a{sa{st}}": st.dictionaries(TEXTS, st.dictionaries(TEXTS, st.integers(0, 9), max_size=3), max_size=3),
}
BODIES = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(lambda kind: st.tuples(st.just(kind), VALUES[kind])), max_size=4
)


def to_lists(value: Any) -> Any:
    """As dbus-fast has it: structs are lists."""
    if isinstance(value, dict):
        return {key: to_lists(item) for key, item in value.items()}
    return [to_lists(item) for item in value] if isinstance(value, list | tuple) else value


def make_header(signature: str) -> wire.Header:
    return wire.Header(wire.METHOD_CALL, 0, 7, "/a", "a.b", "Member", destination="a.b", signature=signature)


@settings(max_examples=60)
@given(BODIES)
def test_what_dbus_fast_writes_is_read_as_it_was_meant(body: list[tuple[str, Any]]) -> None:
    signature = "".join(kind for kind, _ in body)
    values = [value for _, value in body]
    data = bytes(
        Message("a.b", "/a", "a.b", "Member", signature=signature, body=to_lists(values), serial=7)._marshall(
            False
        )
    )

    header = wire.parse_header(data)

    assert (header.path, header.interface, header.member) == ("/a", "a.b", "Member")
    assert sum(wire.measure(data)) == len(data)
    assert wire.parse_body(data, header) == values


@pytest.mark.parametrize("order", ["<", ">"])
@settings(max_examples=60)
@given(body=BODIES)
def test_what_is_written_is_read_again_in_both_byte_orders(order: str, body: list[tuple[str, Any]]) -> None:
    signature = "".join(kind for kind, _ in body)
    values = [value for _, value in body]

    data = wire.encode_call(make_header(signature), values, order=order)

    assert wire.parse_body(data, wire.parse_header(data)) == values


def test_a_variant_is_read_as_its_value() -> None:
    body = [{"a": Variant("s", "x"), "b": Variant("as", ["y"]), "c": Variant("v", Variant("u", 3))}]
    data = bytes(Message("a.b", "/a", "a.b", "M", signature="a{sv}", body=body, serial=1)._marshall(False))

    assert wire.parse_body(data, wire.parse_header(data)) == [{"a": "x", "b": ["y"], "c": 3}]


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 300))
@example(b"\0", 86)
def test_bytes_of_any_kind_are_read_or_refused_and_nothing_else(noise: bytes, place: int) -> None:
    values = [["log any", "drop protocol UDP"], 3]
    good = wire.encode_call(make_header("asu"), values)
    data = good[:place] + noise + good[place + len(noise) :]
    try:
        head, body = wire.measure(data)
        header = wire.parse_header(data)
        if head + body <= len(data):
            wire.parse_body(data, header)
    except wire.WireError:
        return


@pytest.mark.parametrize("end", range(wire.FIXED, 100, 3))
def test_a_message_that_is_cut_short_is_refused(end: int) -> None:
    data = wire.encode_call(make_header("asu"), [["log any"], 3])[:end]

    with pytest.raises(wire.WireError):
        wire.parse_body(data, wire.parse_header(data))


def test_depth_is_bounded() -> None:
    value: tuple[str, Any] = ("s", "x")
    for _ in range(wire.MAX_DEPTH + 1):
        value = ("v", value)

    data = wire.encode_call(make_header("v"), [value])

    with pytest.raises(wire.WireError):
        wire.parse_body(data, wire.parse_header(data))


@pytest.mark.parametrize(
    ("signature", "parts"),
    [("", []), ("asu", ["as", "u"]), ("a{sa{st}}(sb)t", ["a{sa{st}}", "(sb)", "t"]), ("aas", ["aas"])],
)
def test_a_signature_is_split_into_its_types(signature: str, parts: list[str]) -> None:
    assert wire.split_signature(signature) == parts


@pytest.mark.parametrize("signature", ["a", "(s", "a{s", "s)"])
def test_an_incomplete_signature_is_refused(signature: str) -> None:
    with pytest.raises(wire.WireError):
        wire.split_signature(signature)


@pytest.mark.parametrize(("code", "kind", "value"), [(5, "s", "7"), (9, "s", "1"), (3, "u", 7)])
def test_a_field_of_another_type_than_its_own_is_refused(
    code: int, kind: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The message that make fuzz found: a number of file descriptors that is text would be compared with 0.
    name = wire.FIELDS[code][0]
    monkeypatch.setitem(wire.CODES, name, (code, kind))
    header = make_header("")
    setattr(header, name, value)

    with pytest.raises(wire.WireError):
        wire.parse_header(wire.encode_call(header, []))
