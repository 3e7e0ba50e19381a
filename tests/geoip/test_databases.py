"""Address -> Location: databases of each layout, damaged ones, and files that change meanwhile."""

import errno
import logging
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from socket import inet_aton
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.engine import SLOTS, Engine
from conntrackd.engine.native import NativeLocations
from conntrackd.engine.plain import PlainLocations
from conntrackd.errors import ConfigError
from conntrackd.flow import Flow, Location
from conntrackd.geoip import geofile
from conntrackd.geoip.databases import GeoIP
from conntrackd.render import json
from conntrackd.stats import Stats
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.messages import build_message
from tests.rendering import render
from tests.sinks.flows import make_flow, make_flows

BERLIN = {
    "city": {"names": {"en": "Nuremberg", "de": "Nürnberg"}},
    "country": {"iso_code": "DE", "names": {"en": "Germany"}},
    "location": {"latitude": 49.45, "longitude": 11.08},
}
NETWORK = {"autonomous_system_number": 24940, "autonomous_system_organization": "Example Online"}
PUBLIC = bytes([192, 0, 2, 1])
PUBLIC6 = bytes.fromhex("20010db8000000000000000000000001")


def write_database(path: Path, record: dict[str, Any], kind: str = "GeoLite2-City", version: int = 6) -> Path:
    """A database that knows the documentation's networks, put in its place by a rename."""
    writer = MMDBWriter(version, kind, languages=["en", "de"], ipv4_compatible=version == 6, float_type="f64")
    writer.insert_network(IPSet(["192.0.2.0/24"]), record)
    if version == 6:
        writer.insert_network(IPSet(["2001:db8::/32"]), record)
    fresh = path.with_suffix(".new")
    writer.to_db_file(str(fresh))
    fresh.rename(path)
    return path


def find(geoip: GeoIP, address: bytes = PUBLIC) -> Location | None:
    return geoip.look_up(address)


def settle(geoip: GeoIP) -> bool:
    """Two looks: a file is read when it is found the same twice."""
    return [geoip.refresh(), geoip.refresh()][-1]


@pytest.mark.parametrize(
    ("kind", "version", "record", "location"),
    [
        ("GeoLite2-City", 6, BERLIN, Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE")),
        ("GeoLite2-City", 4, BERLIN, Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE")),
        ("GeoIP2-Country", 6, {"country": BERLIN["country"]}, Location(country="Germany", country_code="DE")),
        ("GeoLite2-ASN", 6, NETWORK, Location(asn=24940, as_org="Example Online")),
        (
            "GeoIP2-Enterprise",
            6,
            {**BERLIN, "traits": NETWORK},
            Location("Nuremberg", "Germany", 49.45, 11.08, 24940, "Example Online", "DE"),
        ),
        (
            "DBIP-City-Lite",
            6,
            {"city": "Nuremberg", **NETWORK},
            Location("Nuremberg", "", None, None, 24940, "Example Online"),
        ),
    ],
)
def test_what_is_in_a_database_is_used(
    tmp_path: Path, kind: str, version: int, record: dict[str, Any], location: Location
) -> None:
    geoip = GeoIP([write_database(tmp_path / "a.mmdb", record, kind, version)], "en", 100, Stats())

    assert find(geoip) == location
    assert find(geoip, PUBLIC6) == (location if version == 6 else None)


def test_several_databases_complete_each_other(tmp_path: Path) -> None:
    paths = [
        write_database(tmp_path / "city.mmdb", BERLIN),
        write_database(tmp_path / "asn.mmdb", NETWORK, "GeoLite2-ASN"),
    ]

    assert find(GeoIP(paths, "en", 100, Stats())) == Location(
        "Nuremberg", "Germany", 49.45, 11.08, 24940, "Example Online", "DE"
    )


def test_the_names_of_countries_are_known_in_the_language_of_events(tmp_path: Path) -> None:
    german = {"country": {"names": {"en": "Germany", "de": "Deutschland"}}}
    path, asn = tmp_path / "a.mmdb", write_database(tmp_path / "asn.mmdb", NETWORK, "GeoLite2-ASN")
    write_database(path, german)

    found = [GeoIP([path, asn], locale, 100, Stats()).countries for locale in ("en", "de")]
    assert found == [{"Germany"}, {"Deutschland"}]
    assert GeoIP([asn], "en", 100, Stats()).countries == set()


def test_of_more_countries_than_there_can_be_none_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_database(tmp_path / "a.mmdb", BERLIN).read_bytes()
    monkeypatch.setattr(geofile, "MAX_COUNTRIES", 0)

    assert b"Germany" in geofile.rewrite(content, "en")[1]
    assert b"Germany" not in geofile.rewrite(content, "en")[2]


@pytest.mark.parametrize(("locale", "city"), [("en", "Nuremberg"), ("de", "Nürnberg"), ("ja", "Nuremberg")])
def test_names_are_in_the_language_asked_for_or_in_english(tmp_path: Path, locale: str, city: str) -> None:
    location = find(GeoIP([write_database(tmp_path / "a.mmdb", BERLIN)], locale, 100, Stats()))

    assert location is not None
    assert location.city == city


def test_an_address_that_no_database_knows_has_no_location(tmp_path: Path) -> None:
    geoip = GeoIP([write_database(tmp_path / "a.mmdb", BERLIN)], "en", 100, Stats())
    flow = make_flow(1)

    assert (find(geoip, flow.src), find(geoip, flow.dst)) == (
        None,
        Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE"),
    )


def locate(engine: Engine, locations: NativeLocations | PlainLocations, flows: list[Flow]) -> None:
    batch = engine.open_batch()
    batch.load(b"".join(map(build_message, flows)), 0, RECEIVED_NS)
    locations.locate(batch, None)  # type: ignore[arg-type]  # each is of this engine


def test_addresses_of_one_place_share_its_location(tmp_path: Path) -> None:
    """What the core keeps of a Location, in each table and template, is kept once."""
    geoip = GeoIP([write_database(tmp_path / "a.mmdb", BERLIN)], "en", 100, Stats())
    locations: NativeLocations = ENGINES[0].open_locations(geoip, 100)  # type: ignore[assignment]
    flows = make_flows(5)
    for number, flow in enumerate(flows):
        flow.dst = flow.reply_src = bytes([192, 0, 2, number])
    locate(ENGINES[0], locations, flows)

    assert locations._list == [Location(), Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE")]


def test_an_address_is_looked_up_once_and_the_cache_has_a_bound(tmp_path: Path, engine: Engine) -> None:
    stats = Stats()
    geoip = GeoIP([write_database(tmp_path / "a.mmdb", BERLIN)], "en", 100, stats)
    locations: Any = engine.open_locations(geoip, geoip.cache)
    for _ in range(10):
        locate(engine, locations, make_flows(50))
    looked_up = stats.geoip_lookups_total
    held = []
    for first in range(0, 10 * SLOTS, SLOTS):
        locate(engine, locations, make_flows(SLOTS, first))
        held.append(len(locations._known if engine.name == "plain" else locations.core))

    assert looked_up == 51
    # What a batch brings is kept to its end: the bound is asked for when the next one begins.
    assert max(held) <= geoip.cache + SLOTS + 1


@pytest.mark.parametrize(
    "record",
    [
        {"city": 1, "country": "DE", "location": [], "autonomous_system_number": "1", "traits": 7},
        {"city": {"names": []}, "country": {"iso_code": 1}, "location": {"latitude": "1"}},
        {"location": {"latitude": float("nan"), "longitude": 1.0}},
        {"location": {"latitude": 1.0}},
        {"location": {"latitude": 91.0, "longitude": float("inf")}},
        {"autonomous_system_number": -1},
        {"autonomous_system_number": 1 << 32},
    ],
)
def test_a_value_of_another_type_is_left_out(record: dict[str, Any]) -> None:
    assert geofile.read_location(record, "en") == {}


def test_names_are_bounded_and_are_data_whatever_is_in_them(tmp_path: Path) -> None:
    name = 'a"\\\n\x1b[31m\u202e' + "x" * 100_000
    geoip = GeoIP([write_database(tmp_path / "a.mmdb", {"city": {"names": {"en": name}}})], "en", 1, Stats())
    flow = make_flow(1)
    flow.dst_location = geoip.look_up(flow.dst)
    line = render(json.TEMPLATE, [flow]).text

    assert flow.dst_location == Location(city=name[:256])
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, random.Random(1).randbytes(10_000), None])
def test_a_file_that_is_no_database_is_refused_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.mmdb"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"a\.mmdb"):
        GeoIP([path], "en", 100, Stats())


def test_a_truncated_database_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.mmdb", BERLIN)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError):
            GeoIP([path], "en", 100, Stats())


def test_a_database_of_other_things_is_refused(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.mmdb", {"is_anonymous": True}, "GeoIP2-Anonymous-IP")

    with pytest.raises(ConfigError, match="'GeoIP2-Anonymous-IP' has neither locations"):
        GeoIP([path], "en", 100, Stats())


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError):
            GeoIP([path], "en", 100, Stats())


def rewrite(path: Path, record: dict[str, Any]) -> None:
    content = write_database(path.with_name("other.mmdb"), record).read_bytes()
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


@pytest.mark.parametrize("replace", [write_database, rewrite])
def test_a_replaced_file_is_taken_over(
    tmp_path: Path, replace: Callable[[Path, dict[str, Any]], object]
) -> None:
    path = write_database(tmp_path / "a.mmdb", BERLIN)
    geoip = GeoIP([path], "en", 100, Stats())
    before = find(geoip)
    unchanged = settle(geoip)
    replace(path, {"country": {"iso_code": "FR"}})

    assert [geoip.refresh(), geoip.refresh(), geoip.refresh()] == [False, True, False]
    assert unchanged is False
    assert (before, find(geoip)) == (
        Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE"),
        Location(country="FR", country_code="FR"),
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, random.Random(2).randbytes(10_000), None])
def test_a_damaged_replacement_is_reported_once_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """Truncated in place, too: a mapped file would kill the process with SIGBUS here."""
    path = write_database(tmp_path / "a.mmdb", BERLIN)
    stats = Stats()
    geoip = GeoIP([path], "en", 100, stats)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        taken = [settle(geoip), settle(geoip)]

    assert taken == [False, False]
    assert stats.geoip_errors_total == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert find(geoip) == Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE")
    rewritten = write_database(path, {"country": {"iso_code": "FR"}})
    assert settle(geoip)
    assert find(geoip) == Location(country="FR", country_code="FR"), rewritten


@pytest.mark.parametrize("name", ["os.memfd_create", "subprocess.run"])
def test_what_the_system_does_not_give_now_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    path, other = paths = [write_database(tmp_path / f"{name}.mmdb", BERLIN) for name in "ab"]
    geoip = GeoIP(paths, "en", 100, Stats())
    for changed in paths:
        write_database(changed, {"country": {"iso_code": "FR"}})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(name, fail)
        taken = [settle(geoip), settle(geoip)]
        with pytest.raises(ConfigError, match=r"a\.mmdb cannot be read: Resource temporarily unavailable"):
            GeoIP([path], "en", 100, Stats())

    assert taken == [False, False]
    reason = f"cannot be read: {os.strerror(errno.EAGAIN)}, retrying"
    assert [record.getMessage() for record in caplog.records] == [
        f"geoip: {path} {reason}",
        f"geoip: {other} {reason}",
    ]
    assert settle(geoip)
    assert find(geoip) == Location(country="FR", country_code="FR")


# In a process of its own, because a crash would end the tests.
FLIP = """
import os, sys
from pathlib import Path
import maxminddb
from conntrackd.geoip import geofile

whole = Path(sys.argv[1]).read_bytes()
outcomes = {"refused": 0, "read": 0}
for position in range(len(whole) * 8):
    content = bytearray(whole)
    content[position // 8] ^= 1 << position % 8
    Path(sys.argv[1]).write_bytes(content)
    memory = os.memfd_create("test")
    given = os.dup(memory)
    if geofile.main(sys.argv[1], "en", str(given)):
        os.close(given)  # the end of the process does this, where it is one
        outcomes["refused"] += 1
    else:
        with maxminddb.open_database(f"/proc/self/fd/{memory}") as reader:
            for address in ("192.0.2.1", "2001:db8::1", "10.0.0.1"):
                try:
                    reader.get(address)
                except ValueError:  # an IPv6 address in what is a database of IPv4 now
                    pass
        outcomes["read"] += 1
    os.close(memory)
sys.exit(0 if min(outcomes.values()) > 1000 else 3)
"""


def test_any_flipped_bit_is_refused_or_read_and_never_a_crash(tmp_path: Path) -> None:
    """All of them. maxminddb's C extension alone (3.2.0) crashes at 25 of these."""
    path = write_database(tmp_path / "a.mmdb", {**BERLIN, **NETWORK})
    done = subprocess.run([sys.executable, "-c", FLIP, os.fspath(path)], check=False)

    assert done.returncode == 0


def test_a_file_that_cannot_be_used_is_a_fault_until_it_can(tmp_path: Path) -> None:
    path, other = (write_database(tmp_path / name, BERLIN) for name in ("a.mmdb", "b.mmdb"))
    geoip = GeoIP([path, other], "en", 100, Stats(), None, ["x.yaml:1: geoip.database"])
    before = find(geoip)
    path.write_bytes(b"")
    other.unlink()
    settle(geoip)
    found = [(fault.origin, fault.message) for fault in geoip.faults.values()]
    write_database(other, BERLIN)
    settle(geoip)
    left = [fault.message for fault in geoip.faults.values()]
    write_database(path, BERLIN)
    settle(geoip)

    old = "; the old one is in use until a restart, which would fail"
    assert found[0] == (
        "x.yaml:1: geoip.database",
        f"{path} is not a usable database: its metadata is missing{old}",
    )
    assert found[1] == ("geoip.database", f"{other} cannot be read: No such file or directory{old}")
    assert (left, geoip.faults) == ([found[0][1]], {})
    assert find(geoip) == before


def assemble(sections: "tuple[array[int], bytes, bytes]", bits: int) -> bytes:
    """What geofile writes, as a City database with a tree of another record size."""
    tree, data, about = sections
    nodes = b"".join(pack_node(tree[at], tree[at + 1], bits) for at in range(0, len(tree), 2))
    about = about.replace(b"Krecord_size\xa1 ", b"Krecord_size\xa1" + bytes([bits]))
    return nodes + bytes(16) + data + geofile.MARK + about.replace(b"conntrackd", b"City-tests")


def pack_node(left: int, right: int, bits: int) -> bytes:
    if bits != 28:
        return (left << bits | right).to_bytes(bits // 4, "big")
    low = (1 << 24) - 1
    return ((left & low) << 32 | (left >> 24) << 28 | right).to_bytes(7, "big")


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_trees_of_every_record_size_are_read(tmp_path: Path, bits: int) -> None:
    names = {
        f"{first}.{second}.0.0/{16 + second % 9}": f"{first} {second} " * (1 + second % 90)
        for first in (5, 80, 200)
        for second in range(100)
    }
    writer = MMDBWriter(6, "GeoLite2-City", ipv4_compatible=True)
    for network, name in names.items():
        writer.insert_network(IPSet([network]), {"city": name})
    writer.to_db_file(str(tmp_path / "a.mmdb"))
    (tmp_path / "b.mmdb").write_bytes(
        assemble(geofile.rewrite((tmp_path / "a.mmdb").read_bytes(), "en"), bits)
    )
    geoip = GeoIP([tmp_path / "b.mmdb"], "en", 1000, Stats())
    found = {network: find(geoip, inet_aton(network.partition("/")[0])) for network in names}

    assert found == {network: Location(city=name[:256]) for network, name in names.items()}
    assert [find(geoip, inet_aton(address)) for address in ("5.200.0.1", "5.8.1.1", "200.98.255.255")] == [
        None
    ] * 3


def test_a_number_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    tree, data, about = geofile.rewrite(write_database(tmp_path / "a.mmdb", BERLIN).read_bytes(), "en")
    nodes = len(tree) // 2
    refused = []
    for value in (nodes + 1, nodes + 15, nodes + 16 + len(data), 0xFFFFFFFF):
        tree[-1] = value
        with pytest.raises(geofile.DamagedError) as error:
            geofile.rewrite(assemble((tree, data, about), 32), "en")
        refused.append(str(error.value))

    assert refused[:2] == ["its tree leads out of its data"] * 2
    assert all("damaged at byte" in message for message in refused[2:])


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_database(tmp_path / "a.mmdb", BERLIN)
    monkeypatch.setattr("conntrackd.geoip.databases.REWRITE_SECONDS", 0.0)

    with pytest.raises(ConfigError, match="not read within 0 s"):
        GeoIP([path], "en", 100, Stats())


def test_what_was_made_of_a_file_is_kept_and_used_only_for_that_file_and_locale(tmp_path: Path) -> None:
    path, state = write_database(tmp_path / "a.mmdb", BERLIN), tmp_path / "state"
    state.mkdir()
    original = path.read_bytes()

    def read(locale: str = "en") -> tuple[Location | None, bytes]:
        found = find(GeoIP([path], locale, 100, Stats(), state))
        (kept,) = state.iterdir()
        return found, kept.read_bytes()

    german = Location("Nürnberg", "Germany", 49.45, 11.08, country_code="DE")
    english = Location("Nuremberg", "Germany", 49.45, 11.08, country_code="DE")
    first = read()
    (kept,) = state.iterdir()
    inode = kept.stat().st_ino
    assert (first[0], read(), kept.stat().st_ino) == (english, first, inode)  # not written again
    assert read("de")[0] == german
    write_database(path, {"country": {"iso_code": "FR"}})
    assert read()[0] == Location(country="FR", country_code="FR")
    path.write_bytes(original)
    assert read() == first


def test_a_kept_file_that_is_damaged_or_cannot_be_written_is_made_anew(tmp_path: Path) -> None:
    path, state = write_database(tmp_path / "a.mmdb", BERLIN), tmp_path / "state"
    state.mkdir()
    GeoIP([path], "en", 100, Stats(), state)
    (kept,) = state.iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], whole[:-20] + b"x" + whole[-19:]):
        kept.write_bytes(damaged)
        assert find(GeoIP([path], "en", 100, Stats(), state)) == Location(
            "Nuremberg", "Germany", 49.45, 11.08, country_code="DE"
        )
        assert kept.read_bytes() == whole

    assert find(GeoIP([path], "en", 100, Stats(), tmp_path / "nowhere")) is not None
