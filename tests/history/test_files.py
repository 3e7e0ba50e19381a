"""Files of events, rotated and compressed, read as one."""

import bz2
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from conntrackd.errors import DataError, NotPermittedError, UnavailableError
from conntrackd.flow import Lost
from conntrackd.history import lines as line_reading
from conntrackd.history.files import FileSource
from conntrackd.history.lines import MAX_LINE_BYTES, Gate
from conntrackd.history.times import Span
from tests.bus.private import as_user
from tests.history.written import list_flows, load, read, select, write_file, write_lines
from tests.sinks.flows import BASE, make_flow, make_flows

MILLI = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.json"


def test_what_was_written_is_read_with_every_field(path: Path) -> None:
    lines = write_lines([*make_flows(3), Lost(5, BASE, BASE, "kernel"), *make_flows(2, 3)])
    write_file(path, lines)

    assert read(path) == [load(line) for line in lines]
    assert list_flows(read(path)) == [0, 1, 2, -1, 3, 4]


@pytest.mark.parametrize(
    "names",
    [
        ("events.json.10.gz", "events.json.9.gz", "events.json.1", "events.json"),
        ("events.json-20261125.gz", "events.json-20261126.gz", "events.json-20261127", "events.json"),
        ("events.json-20261125-1764000000.gz", "events.json-20261126-1764090000", "events.json"),
        ("events.json-1764000000", "events.json"),
        ("events.json.1",),  # not made anew yet
    ],
)
def test_rotated_files_come_first_the_oldest_of_them_at_the_beginning(
    path: Path, names: tuple[str, ...]
) -> None:
    for number, name in enumerate(names):
        write_file(path.parent / name, write_lines(make_flows(3, 3 * number)))
    for other in ("other.json.1", "events.json.bak", "events.json.1.tmp", "events.jsonl", "events.json-old"):
        (path.parent / other).write_text("not ours\n")
    numbers = list(range(3 * len(names)))

    assert list_flows(read(path)) == numbers
    for last in (1, 2, 4, len(numbers), 99):
        assert list_flows(read(path, last=last)) == numbers[-last:]


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".bz2", bz2.compress)])
def test_other_compressions_are_read_too(path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    (path.parent / f"events.json.1{suffix}").write_bytes(compress(b"".join(write_lines(make_flows(3)))))

    assert list_flows(read(path)) == [0, 1, 2]


def test_a_compression_that_python_lacks_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(line_reading.COMPRESSED, ".zst", "no.such.module")
    (path.parent / "events.json.1.zst").write_bytes(b"whatever")

    with pytest.raises(UnavailableError, match=r"events.json.1.zst: this Python cannot read .zst"):
        read(path)


def test_what_is_there_twice_while_it_is_compressed_is_read_once(path: Path) -> None:
    write_file(path.parent / "events.json.1", write_lines(make_flows(3)))
    (path.parent / "events.json.1.gz").write_bytes(b"\x1f\x8bonly begun")
    selection = select()

    assert (list_flows(read(path, selection)), selection.damage.count) == ([0, 1, 2], 0)


def test_only_the_time_that_is_asked_for_is_read(path: Path) -> None:
    old, new = BASE // 10**9 - 86_400, BASE // 10**9 + 1
    (path.parent / "events.json.2.gz").write_bytes(b"damaged, and not opened")
    os.utime(path.parent / "events.json.2.gz", (old, old))
    write_file(path.parent / "events.json.1", write_lines(make_flows(5)), mtime=new)
    write_file(path, write_lines(make_flows(5, 5)), mtime=new)
    selection = select(span=Span(BASE + 3 * MILLI, BASE + 6 * MILLI))

    assert (list_flows(read(path, selection)), selection.damage.count) == ([3, 4, 5, 6], 0)
    assert list_flows(read(path, selection, last=2)) == [5, 6]


@pytest.mark.parametrize("zone", ["+01:00", "-03:30", "+00:00", "Z"])
def test_a_line_is_turned_away_by_its_time_whatever_its_offset(path: Path, zone: str) -> None:
    times = {"+01:00": "2025-11-22T11:34:43", "-03:30": "2025-11-22T07:04:43"}
    text = write_lines([make_flow(0)])[0].replace(
        b"2025-11-22T10:34:43.000000000+00:00",
        f"{times.get(zone, '2025-11-22T10:34:43')}.000000000{zone}".encode(),
    )
    write_file(path, [text])
    assert load(text)["time"].endswith(zone)

    for begin, end, found in ((0, 0, 1), (-MILLI, MILLI, 1), (1, MILLI, 0), (-MILLI, -1, 0)):
        selection = select(span=Span(BASE + begin, BASE + end))
        assert len(read(path, selection)) == found
        assert Gate(selection.span).lets_through(text) == (zone == "Z" or bool(found))


def test_rules_are_those_of_the_daemon_and_losses_pass_them(path: Path) -> None:
    flows = make_flows(4)
    flows[1].dport = flows[1].reply_sport = 53
    write_file(path, write_lines([*flows[:2], Lost(5, BASE, BASE, "kernel"), *flows[2:]]))

    assert list_flows(read(path, select("log destination port 53", "drop any"))) == [1, -1]
    assert list_flows(read(path, select("drop destination port 53"))) == [0, -1, 2, 3]
    # What a record does not carry makes a predicate answer no, with and without a `not`.
    assert list_flows(read(path, select("log bytes > 1", "log not bytes > 1", "drop any"))) == [-1]


def test_damage_is_counted_and_costs_nothing_else(path: Path) -> None:
    good = write_lines(make_flows(4))
    long = b'{"time":"' + b"x" * (3 * MAX_LINE_BYTES) + b"\n"
    lost = write_lines([Lost(5, BASE, BASE, "kernel")])[0].replace(b'"lost":5', b'"lost":"5"')
    bad = [b"\xff\xfe\n", b"{}\n", b"[1]\n", long, good[0][:40] + b"\n", b"[" * 50_000 + b"\n", lost]
    write_file(path, [good[0], *bad, good[1], b"\n", b"  \n", good[2]])
    selection = select()

    assert list_flows(read(path, selection)) == [0, 1, 2]
    (warning,) = selection.damage.list_warnings()
    assert str(warning).splitlines()[0] == (
        f"{path}:2: {len(bad)} records are damaged and left out, the first one here: not JSON"
    )
    again = select()
    assert (list_flows(read(path, again, last=9)), again.damage.count) == ([0, 1, 2], len(bad))


def test_of_what_the_rules_cannot_keep_only_that_is_read(path: Path) -> None:
    other, wanted = (line.replace(b'"src":"', b'"src":"x') for line in write_lines(make_flows(2)))
    wanted = wanted.replace(b'"dport":443', b'"dport":53')
    lost = write_lines([Lost(5, BASE, BASE, "kernel")])[0].replace(b'"lost":5', b'"lost":"5"')
    odd = b'{"type":["NEW"],"dport":{}}\n'
    write_file(path, [other, wanted, odd, b"{}\n", lost, *write_lines([Lost(5, BASE, BASE, "kernel")])])
    selection = select("log destination port 53", "drop any")

    assert (list_flows(read(path, selection)), selection.damage.count) == ([-1], 3)
    assert '"x10.0.0.1" is not a valid src' in str(selection.damage.first)


def test_a_compressed_file_that_was_cut_is_read_as_far_as_it_goes(path: Path) -> None:
    part = write_file(path.parent / "events.json.1.gz", write_lines(make_flows(2000)))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    write_file(path, write_lines(make_flows(1, 9000)))
    selection = select()
    found = list_flows(read(path, selection))

    assert found[:-1] == list(range(len(found) - 1))
    assert (100 < len(found) < 2000, found[-1], selection.damage.count) == (True, 9000, 1)
    assert "cannot be read any further" in str(selection.damage.list_warnings()[0])


def test_one_of_the_rotated_files_can_be_named_itself(path: Path) -> None:
    part = write_file(path.parent / "events.json.2.gz", write_lines(make_flows(3)))
    write_file(path.parent / "events.json.1", write_lines(make_flows(3, 3)))

    assert list_flows(read(part)) == list_flows(read(part, last=5)) == [0, 1, 2]
    assert list_flows(read(path.parent / "events.json.1")) == [3, 4, 5]


@pytest.mark.parametrize("size", [1, 2, 7, 150, 1 << 20])
def test_a_file_is_read_backwards_in_pieces_of_any_size(
    path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reading, "CHUNK", size)
    write_file(path, write_lines(make_flows(7)))

    assert list_flows(read(path, last=5)) == [2, 3, 4, 5, 6]


def test_a_line_that_is_still_being_written_is_no_damage(path: Path) -> None:
    lines = write_lines(make_flows(3))
    selection = select()
    write_file(path, [*lines[:2], lines[2][:50]])
    assert (list_flows(read(path, selection)), selection.damage.count) == ([0, 1], 0)
    assert (list_flows(read(path, selection, last=5)), selection.damage.count) == ([0, 1], 0)
    write_file(path, [*lines[:2], lines[2].rstrip()])
    assert list_flows(read(path, selection)) == [0, 1, 2]


@pytest.mark.parametrize("last", [None, 2])
def test_what_comes_is_followed_through_a_rotation_without_a_gap(
    path: Path, last: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = write_lines(make_flows(9))
    write_file(path, [*lines[:3], lines[3][:30]])
    source = FileSource(path, select())
    first = list(source.read()) if last is None else source.read_last(last)
    coming = source.follow()
    with path.open("ab", buffering=0) as file:
        file.write(lines[3][30:] + lines[4])
    found = [next(coming), next(coming)]
    with path.open("ab", buffering=0) as file:
        path.rename(path.parent / "events.json.1")
        file.write(lines[5])
        found.append(next(coming))
        file.write(lines[6])  # the daemon writes into what it has open, until SIGHUP
        write_file(path, lines[7:8])
    found += [next(coming), next(coming)]
    os.truncate(path, 0)
    looks: list[float] = []

    def write_after_looks(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:  # the first one went on where it was, the second has found it empty
            write_file(path, lines[8:9])

    monkeypatch.setattr("conntrackd.history.files.time", SimpleNamespace(sleep=write_after_looks))
    found.append(next(coming))
    source.close()

    assert list_flows(first) == [0, 1, 2][-(last or 3) :]
    assert list_flows(found) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("last", [None, 9])
def test_a_file_that_is_rotated_while_it_is_read_is_read_once(path: Path, last: int | None) -> None:
    write_file(path.parent / "events.json.1", write_lines(make_flows(2)))
    write_file(path, write_lines(make_flows(2, 2)))
    source = FileSource(path, select())
    (path.parent / "events.json.1").rename(path.parent / "events.json.2")
    path.rename(path.parent / "events.json.1")
    write_file(path, write_lines(make_flows(2, 4)))

    found = list(source.read()) if last is None else source.read_last(last)
    coming = source.follow()
    found += [next(coming), next(coming)]
    source.close()
    assert list_flows(found) == [0, 1, 2, 3, 4, 5]


def test_a_file_that_becomes_another_one_before_its_turn_is_not_taken_for_it(path: Path) -> None:
    write_file(path.parent / "events.json.2", write_lines(make_flows(2)))
    write_file(path.parent / "events.json.1", write_lines(make_flows(2, 2)))
    source = FileSource(path, select())
    reading = source.read()
    assert next(reading)["flow"] == 0
    (path.parent / "events.json.1").rename(path.parent / "events.json.3")
    write_file(path.parent / "events.json.1", write_lines(make_flows(2, 4)))

    assert next(reading)["flow"] == 1
    with pytest.raises(UnavailableError, match=r"events.json.1 was rotated while it was to be read"):
        next(reading)


def test_what_is_not_there_or_no_file_is_an_error(path: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no such file"):
        read(path)
    with pytest.raises(UnavailableError, match="no such file or directory"):
        read(path / "deeper" / "x")
    path.mkdir()
    with pytest.raises(DataError, match="is a directory, not a file"):
        read(path)


@pytest.mark.privileged
def test_without_permission_there_is_a_hint_who_may_read_it(path: Path) -> None:
    write_file(path, write_lines(make_flows(1)))
    path.chmod(0o640)
    os.chown(path, 0, 4)  # adm
    for folder in path.parents:
        if folder.name.startswith(("pytest", "popen")) or folder == path.parent:
            folder.chmod(0o755)

    with as_user(65534), pytest.raises(NotPermittedError, match="you may not read") as caught:
        read(path)
    assert caught.value.hint == "run it as root, such as with sudo; it belongs to the group adm"
    path.parent.chmod(0o700)
    with as_user(65534), pytest.raises(NotPermittedError, match="you may not read") as caught:
        read(path)
    assert caught.value.hint == "run it as root, such as with sudo"


@pytest.mark.parametrize(
    ("name", "rules", "span"),
    [("flow", ("log any sample 1/2", "drop any"), Span()), ("time", (), Span(BASE)), ("prot", (), Span())],
)
def test_what_is_asked_for_and_was_never_written_is_reported(
    tmp_path: Path, name: str, rules: tuple[str, ...], span: Span
) -> None:
    """As sink.stream.fields can leave it out."""
    record = load(write_lines([make_flow(1)])[0])
    del record[name]
    path = write_file(tmp_path / "events.json", [json.dumps(record).encode() + b"\n"])
    selection = select(*rules, span=span)

    assert read(path, selection) == []
    (warning,) = selection.damage.list_warnings()
    assert f"the required field '{name}' is missing" in str(warning)
    assert "sink.NAME.fields" in warning.hint
