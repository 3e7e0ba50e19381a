"""Named sets: what a file says, every mistake of it, and who is in it by core and reference alike."""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

from conntrackd.core import _core as core
from conntrackd.engine.native import open_table
from conntrackd.errors import ConfigError, ManyErrors
from conntrackd.filter import sets
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.explain import list_sections
from conntrackd.filter.grammar import parse_rule, parse_rules
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.never import list_warnings
from conntrackd.filter.sets import (
    CHUNK,
    AddressSet,
    pack_entry,
    read_lines,
    read_set,
    sort_plainly,
    unpack_entry,
)
from conntrackd.filter.shadowing import list_shadowed
from conntrackd.filter.table import assemble, compile_table
from conntrackd.flow import ALL_EVENTS, Flow
from tests.core.deciding import Core
from tests.filter.rows import FLOW, IPV6, canonical
from tests.filter.strategies import ADDRESSES, PREFIXES, SETS, make_set
from tests.filter.test_kernel import passes
from tests.messages import build_message

EVERY: Final = frozenset(range(256))
FILE: Final = b"""\xef\xbb\xbf# What we do not like \xff
10.0.0.0/8 ; SBL1
 192.0.2.7\t# one

2001:db8::/32\r
10.1.2.3
2001:DB8:0:0::1;x
"""


def read(content: bytes, room: int = 1000) -> AddressSet:
    return read_lines("bad", Path("/bad.txt"), BytesIO(content), room)


def list_networks(found: AddressSet) -> list[str]:
    texts = []
    for size, networks in found.networks.items():
        for at in range(0, len(networks), size + 1):
            texts.append(str(ip_network((bytes(networks[at : at + size]), networks[at + size]))))
    return texts


def parse(*texts: str) -> list:  # type: ignore[type-arg]
    return parse_rules([RuleText(text) for text in texts], SETS)


# -- files


def test_a_line_is_an_address_or_a_network_and_the_rest_is_comment() -> None:
    found = read(FILE)

    assert list_networks(found) == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    assert found.entries == 5


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# nothing\n", b"; nothing"])
def test_a_file_may_hold_nothing(content: bytes) -> None:
    assert (read(content).entries, list_networks(read(content))) == (0, [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("10.0.0.256", "'10.0.0.256' is not a valid address"),
        ("010.0.0.1", "'010.0.0.1' is not a valid address"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a valid address"),
        ("10.0.0.0/", "'10.0.0.0/' is not a valid address"),
        ("10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' is not a valid address"),
        ("10.0.0.1/032", "'10.0.0.1/032' is not a valid address"),
        ("10.0.0.1/255.255.255.255", "'10.0.0.1/255.255.255.255' is not a valid address"),
        ("10.0.0.1 10.0.0.2", "'10.0.0.1 10.0.0.2' is not a valid address"),
        ("2001:db8::/129", "'2001:db8::/129' is not a valid address"),
        ("fe80::1%eth0", "'fe80::1%eth0' is not a valid address"),
        ("\x00", r"'\x00' is not a valid address"),
        ("\xe4", "'\xc3\xa4' is not a valid address"),
        ("10.0.0.1/8", "'10.0.0.1/8' has host bits set under its prefix length"),
        ("2001:db8::1/64", "'2001:db8::1/64' has host bits set under its prefix length"),
        ("::ffff:10.0.0.1", "'::ffff:10.0.0.1' is IPv4-mapped, and never matches"),
        ("x" * 300, f"'{'x' * 60}...' is not a valid address"),
    ],
)
def test_a_mistake_is_named_by_its_line(line: str, message: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        read(b"10.0.0.1\n\n" + line.encode() + b"\n10.0.0.2")
    (mistake,) = caught.value.errors

    assert (mistake.origin, mistake.message) == ("/bad.txt:3", message)


def test_of_many_mistakes_the_first_ten_are_shown_and_the_others_counted() -> None:
    with pytest.raises(ManyErrors) as caught:
        read(b"".join(b"%d\n" % number for number in range(10_000)), 10_000)
    places = [error.origin for error in caught.value.errors]

    assert places == [*(f"/bad.txt:{number}" for number in range(1, 11)), "/bad.txt"]
    assert caught.value.errors[-1].message == "9,990 more lines are not valid"


def test_lines_are_numbered_beyond_the_first_chunk() -> None:
    content = b"10.0.0.1\n" * (CHUNK // 4) + b"nothing\n"

    with pytest.raises(ManyErrors, match="nothing") as caught:
        read(content, 1 << 20)
    assert caught.value.errors[0].origin == f"/bad.txt:{CHUNK // 4 + 1}"
    assert read(content.removesuffix(b"nothing\n"), 1 << 20).entries == CHUNK // 4


def test_there_is_room_for_so_many_in_all_and_no_more() -> None:
    assert read(b"10.0.0.1\n" * 3, 3).entries == 3
    with pytest.raises(ConfigError, match="more than 1,000,000 addresses and networks in all sets") as caught:
        read(b"10.0.0.1\n" * 4, 3)
    assert caught.value.origin == "/bad.txt:4"


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, mocker: MockerFixture) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"10.0.0.1\n")
    (tmp_path / "open").write_bytes(b"10.0.0.1\n")
    (tmp_path / "open").chmod(0o646)
    mocker.patch.object(sets, "MAX_BYTES", 8)

    for name, message in (
        ("fifo", f"{tmp_path}/fifo is a named pipe, not a file"),
        ("", f"{tmp_path} is a directory, not a file"),
        ("none", f"{tmp_path}/none: No such file or directory"),
        ("large", f"{tmp_path}/large is larger than 0 KiB"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_set("bad", tmp_path / name)
        assert str(caught.value) == message
    mocker.stopall()
    with pytest.raises(ConfigError, match="every user may change this file"):
        read_set("bad", tmp_path / "open")
    assert read_set("bad", tmp_path / "large").entries == 1


# -- sorting and searching

networks = st.sampled_from(PREFIXES) | st.builds(
    lambda number, length: (number >> 32 - length << 32 - length, length),
    st.integers(0, (1 << 32) - 1),
    st.integers(1, 32),
).map(lambda pair: sets_prefix(*pair))


def sets_prefix(number: int, length: int) -> tuple[bytes, int]:
    return number.to_bytes(4, "big"), length


@given(st.lists(networks, max_size=40), st.lists(st.integers(0, (1 << 32) - 1), max_size=10))
def test_core_and_reference_sort_and_search_alike(
    found: Sequence[tuple[bytes, int]], more: list[int]
) -> None:
    for size in (4, 16):
        chosen = [ip_network(pair) for pair in found if len(pair[0]) == size]
        raw = b"".join(network.network_address.packed + bytes([network.prefixlen]) for network in chosen)
        by_core, plainly = bytearray(raw), bytearray(raw)
        del by_core[core.sort_prefixes(by_core, size) :]
        del plainly[sort_plainly(plainly, size) :]
        addresses = list(ADDRESSES[4 if size == 4 else 6])
        addresses += [network.network_address.packed for network in chosen]
        addresses += [network.broadcast_address.packed for network in chosen]
        addresses += [number.to_bytes(4, "big") for number in more] if size == 4 else []
        both = {4: bytearray(), 16: bytearray()} | {size: by_core}
        made = AddressSet("x", Path("x"), len(chosen), both)

        assert by_core == plainly
        expected = [any(ip_in(address, network) for network in chosen) for address in addresses]
        assert [address in made for address in addresses] == expected
        assert list_in_core(made, addresses) == expected


@given(st.lists(networks, max_size=30), st.lists(networks, max_size=10), st.data())
def test_a_changed_set_is_as_one_that_is_read_anew(
    found: Sequence[tuple[bytes, int]], more: Sequence[tuple[bytes, int]], data: st.DataObject
) -> None:
    entries = [pack_entry(str(ip_network(pair))) for pair in found]
    made = read("".join(f"{unpack_entry(entry)}\n" for entry in entries).encode())
    removed = set(data.draw(st.lists(st.sampled_from(entries)))) if entries else set()
    added = sorted({pack_entry(str(ip_network(pair))) for pair in more} - set(entries))
    left = [*(entry for entry in entries if entry not in removed), *added]
    changed, fresh = made.change(added, removed), read("".join(f"{unpack_entry(e)}\n" for e in left).encode())

    assert (changed.entries, dict(changed.networks)) == (len(left), dict(fresh.networks))
    assert dict(changed.covered) == dict(fresh.covered)
    assert list(changed.list_entries()) == sorted(left, key=lambda entry: (len(entry), entry))
    for entry in left:
        later = sorted((e for e in left if (len(e), e) > (len(entry), entry)), key=lambda e: (len(e), e))
        assert list(changed.list_entries(entry)) == later
        whole = changed.find_network(entry)
        assert whole is not None
        assert ip_network(unpack_entry(entry)).subnet_of(ip_network(unpack_entry(whole)))  # type: ignore[arg-type]
    assert [changed.has_entry(entry) for entry in entries] == [entry not in removed for entry in entries]
    core.AddressSet(changed.networks[4], changed.networks[16])  # which looks whether they are sorted


def test_a_network_that_only_begins_alike_is_not_around_an_address() -> None:
    found = read(b"10.1.0.0/16\n10.1.0.0/24\n192.0.2.7\n")

    around = [found.find_network(pack_entry(text)) for text in ("10.0.0.0/15", "10.2.0.0", "9.0.0.0", "::1")]
    assert around == [None] * 4
    assert found.find_network(pack_entry("10.1.255.255")) == pack_entry("10.1.0.0/16")
    assert (found.has_entry(pack_entry("10.1.0.0/24")), found.has_entry(pack_entry("10.1.0.0/20"))) == (
        True,
        False,
    )


def ip_in(address: bytes, network: object) -> bool:
    return ip_network((address, len(address) * 8)).subnet_of(network)  # type: ignore[arg-type]


def list_in_core(made: AddressSet, addresses: Sequence[bytes]) -> list[bool]:
    flows = [make_flow(address) for address in addresses]
    rule = parse_rule(RuleText("log source address @x"), 1, {"x": made})
    kept = Core(compile_table([rule, *parse("drop any")])).keep(flows)
    return [number in kept for number in range(len(flows))]


def make_flow(source: bytes) -> Flow:
    return replace(FLOW if len(source) == 4 else IPV6, src=source)


def test_a_large_set_is_searched_as_a_small_one() -> None:
    numbers = sorted(random.Random(2).sample(range(1 << 32), 20_000))
    content = b"".join(b"%d.%d.%d.%d\n" % tuple(number.to_bytes(4, "big")) for number in numbers)
    found, known = read(content, 1 << 20), set(numbers)
    asked = [number + near & 0xFFFFFFFF for number in numbers[::40] for near in (-1, 0, 1)]

    assert list_in_core(found, [number.to_bytes(4, "big") for number in asked]) == [
        number in known for number in asked
    ]


@pytest.mark.parametrize(
    ("ipv4", "ipv6"),
    [
        (bytes(4), b""),
        (b"", bytes(16)),
        (b"\0\0\0\0\x21", b""),
        (b"", bytes(16) + b"\x81"),
        (b"\2\0\0\0\x20\1\0\0\0\x20", b""),
        (b"\1\0\0\0\x20\1\0\0\0\x20", b""),
    ],
)
def test_what_is_no_sorted_set_the_core_refuses(ipv4: bytes, ipv6: bytes) -> None:
    with pytest.raises(ValueError, match="not the networks of a set, sorted"):
        core.AddressSet(ipv4, ipv6)
    for entries, size in ((ipv4, 4), (ipv6, 16)):
        if len(entries) % (size + 1) or (entries and entries[size] > size * 8):
            with pytest.raises(ValueError, match=r"not the networks|more bits"):
                core.sort_prefixes(bytearray(entries), size)
    with pytest.raises(ValueError, match="not the networks"):
        core.sort_prefixes(bytearray(5), 5)


def test_a_buffer_stays_as_long_as_it_is_while_the_core_has_it() -> None:
    networks = bytearray(pack_entry("10.0.0.1"))
    held = core.AddressSet(networks, b"")

    with pytest.raises(BufferError):
        networks.clear()
    assert len(held) == 1
    del held
    networks.clear()


def test_a_table_is_opened_with_the_sets_that_it_names_and_no_others() -> None:
    compiled = compile_table(parse("log source address @four", "drop address @six"))
    program, one = assemble(compiled), core.AddressSet(b"", b"")

    for given_sets in ((), (one,), (one, one, one)):
        with pytest.raises(ValueError, match="not a program of rules"):
            core.Table(program, given_sets)
    with pytest.raises(TypeError, match="sets are of AddressSet"):
        core.Table(program, (one, b""))  # type: ignore[arg-type]
    assert core.Table(program, (one, one)).counts == [0, 0, 0]
    assert open_table(compiled).counts == [0, 0, 0]


def test_a_table_takes_other_sets_in_the_place_of_its_own_and_as_many() -> None:
    compiled = compile_table(parse("drop address @four", "drop address @six"))
    table = Core(compiled)
    flow = replace(FLOW, src=bytes([172, 16, 0, 1]), dst=bytes([172, 16, 0, 2]))
    one, none = core.AddressSet(pack_entry("172.16.0.2"), b""), core.AddressSet(b"", b"")
    before = table.keep([flow])
    given_sets = tuple({"four": none, "six": one}[found.name] for found in compiled.sets)
    table.table.use_sets(given_sets)
    after = table.keep([flow])

    assert (before, after, table.table.counts) == ([0], [], [1, 0, 1])
    assert table.table.sets == given_sets
    for wrong in ((), (one,), (one, one, one), [one, one]):
        with pytest.raises(ValueError, match="not as many sets as the table has"):
            table.table.use_sets(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sets are of AddressSet"):
        table.table.use_sets((one, b""))  # type: ignore[arg-type]
    assert table.keep([flow]) == []  # by those that it has


def test_sets_that_look_at_their_table_at_their_end_find_those_that_came() -> None:
    found: list[tuple[core.AddressSet, ...]] = []

    class Lasting(tuple[core.AddressSet, ...]):
        __slots__ = ()

        def __del__(self) -> None:
            found.append(table.sets)

    one = core.AddressSet(b"", b"")
    table = core.Table(assemble(compile_table(parse("drop address @four"))), Lasting((one,)))
    later = (one,)
    table.use_sets(later)

    assert [sets is later for sets in found] == [True]


# -- rules


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("log source address @FOUR", "log source address @four"),
        ('drop address "@four"', "drop address @four"),
        (
            "log reply dst address @six,@four",
            "log reply destination address @four or reply destination address @six",
        ),
        ("log src address @four,10.0.0.1", "log source address 10.0.0.1 or source address @four"),
        ("log src address @four on port 80", "log source address @four and source port 80"),
        (
            "log address @four on port 80",
            "log source address @four and source port 80"
            " or destination address @four and destination port 80",
        ),
        ("log not address @four sample 1/2", "log not address @four sample 1/2"),
        ('log city "@home"', 'log city "@home"'),
        ("log city @home", 'log city "@home"'),
    ],
)
def test_a_set_stands_where_an_address_does(text: str, rendered: str) -> None:
    assert canonical(text, SETS) == rendered
    assert canonical(rendered, SETS) == rendered


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("log address @for", "there is no set '@for', did you mean four?", "known here: @all, @empty, @four"),
        ("log address @", "there is no set '@'", "known here: @all"),
        ("log network @four", "unknown network '@four'", "one of: LOCAL"),
    ],
)
def test_a_set_that_is_not_there_is_a_mistake(text: str, message: str, hint: str) -> None:
    with pytest.raises(ManyErrors) as caught:
        parse_rule(RuleText(text), 1, SETS)
    (mistake,) = caught.value.errors

    assert mistake.message == message
    assert mistake.hint.startswith(hint)


def test_without_sets_the_hint_says_how_there_would_be_one() -> None:
    with pytest.raises(ManyErrors, match="there is no set '@bad'") as caught:
        parse_rule(RuleText("log address @bad"))
    assert caught.value.errors[0].hint == "sets: {bad: FILE} in the configuration"


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (("drop address @four", "log source address @four and port 80"), [2]),
        (("drop source address @four", "log address @four"), []),
        (("drop address @four", "log address @some"), []),
        (("drop address 10.0.0.0/8", "log address @four"), []),
        (("drop address @all", "log address 10.0.0.1"), []),
        (("drop not address @four", "log not source address @four"), []),
        (("drop not source address @four", "log not address @four"), [2]),
    ],
)
def test_a_rule_shadows_only_what_is_in_the_same_set(texts: Sequence[str], numbers: list[int]) -> None:
    assert [rule.number for rule in list_shadowed(parse(*texts))] == numbers


def test_an_empty_set_is_a_warning() -> None:
    (warning,) = list_warnings(parse("log address @empty", "log address @four"))

    assert warning.message == "the set @empty is empty and never matches"
    assert warning.hint == "see /sets/empty"


@pytest.mark.parametrize("text", ["drop source address @{}", "drop not source address @{}"])
def test_the_kernel_passes_up_what_a_set_decides(text: str) -> None:
    kernel = compile_kernel(parse(text.format("four"), "drop port 1"), protocols=None, events=ALL_EVENTS)
    inside = make_flow(ip_network("10.0.0.1").network_address.packed)

    assert passes(kernel.program, [build_message(inside), build_message(replace(inside, sport=1))]) == [
        True,
        False,
    ]
    assert kernel.notes == ["rule 1: sets are searched there"]


def test_what_is_explained_is_the_set_and_its_size() -> None:
    many = make_set("many", *(f"10.0.{number >> 8}.{number & 255}" for number in range(1234)))
    rules = parse_rules([RuleText("drop source address @many"), RuleText("log address @one")], {
        "many": many, "one": make_set("one", "::1")
    })  # fmt: skip
    sections = list_sections(rules, EVERY, ALL_EVENTS, core=True)

    assert sections["Sets"] == ["@many (1,234 entries) from /sets/many", "@one (1 entry) from /sets/one"]
    assert sections["Table in the core"][2:] == [
        # A test for each family: run-time changes may add addresses of any.
        "   1  source address in @many (1,234 entries): rule 1 (drop), else 2",
        "   2  source address in @many (1,234 entries): rule 1 (drop), else 3",
        "   3  source address in @one (1 entry): rule 2 (log), else 4",
        "   4  source address in @one (1 entry): rule 2 (log), else 5",
        "   5  destination address in @one (1 entry): rule 2 (log), else 6",
        "   6  destination address in @one (1 entry): rule 2 (log), else no rule (log)",
    ]
    assert "Sets" not in list_sections(parse("drop any"), EVERY, ALL_EVENTS)
