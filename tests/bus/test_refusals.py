"""What the service refuses: what there is not, more than anyone may ask, and what no bus lets pass."""

import errno
import os
import struct
import time
from typing import Any

import pytest
from dbus_fast import MessageType, Variant

from conntrackd.bus import limits
from conntrackd.bus.client import Client, DaemonError
from conntrackd.bus.connection import Connection
from conntrackd.bus.names import MANAGER, OBJECT_MANAGER, PROPERTIES, SINK
from conntrackd.bus.names import MANAGER_PATH as PATH
from conntrackd.errors import ConntrackdError, UnavailableError
from tests.bus.private import JOURNAL, PrivateBus, Served, count_descriptors
from tests.bus.raw import Raw, call
from tests.bus.recorder import fail

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "values", "name"),
    [
        ("/", MANAGER, "Reload", "", [], "UnknownObject"),
        ("/org/conntrackd1/sink/nothing", SINK, "Enable", "", [], "UnknownObject"),
        (JOURNAL, MANAGER, "Reload", "", [], "UnknownInterface"),
        (PATH, SINK, "Enable", "", [], "UnknownInterface"),
        (PATH, MANAGER, "Explode", "", [], "UnknownMethod"),
        (PATH, MANAGER, "__init__", "", [], "UnknownMethod"),
        (PATH, MANAGER, "reload", "", [], "UnknownMethod"),
        (PATH, PROPERTIES, "Get", "ss", [MANAGER, "Secret"], "UnknownProperty"),
        (PATH, PROPERTIES, "Get", "ss", [SINK, "State"], "UnknownInterface"),
        (PATH, PROPERTIES, "Set", "ssv", [MANAGER, "LogLevel", Variant("s", "debug")], "PropertyReadOnly"),
        (PATH, PROPERTIES, "GetAll", "", [], "InvalidArgs"),
        (PATH, MANAGER, "SetFilter", "as", [["log any"]], "InvalidArgs"),
        (PATH, MANAGER, "SetFilter", "asi", [["log any"], -1], "InvalidArgs"),
        (PATH, MANAGER, "Reload", "s", ["now"], "InvalidArgs"),
        (JOURNAL, OBJECT_MANAGER, "GetManagedObjects", "", [], "UnknownInterface"),
    ],
)
def test_what_there_is_not_is_refused_by_the_name_that_the_specification_gives_it(
    path: str,
    interface: str,
    member: str,
    signature: str,
    values: list[Any],
    name: str,
    raw: Raw,
    served: Served,
) -> None:
    serial = raw.post(call(member, signature, path, interface), values)

    header, _ = raw.read_until(lambda header: header.reply_serial == serial)

    assert header.error_name == f"org.freedesktop.DBus.Error.{name}"
    assert served.control.asked == []


def test_an_error_of_the_daemon_comes_whole(client: Client, served: Served) -> None:
    served.control.failure = fail("this cannot be")

    with pytest.raises(DaemonError) as caught:
        client.call("Reload")

    assert str(caught.value) == "somewhere: this cannot be\n  text\n  ^^^^\nhint: a hint"
    assert caught.value.name == "org.conntrackd1.Error.InvalidArguments"


def test_a_fault_of_ours_shows_its_type_to_the_caller_and_the_rest_to_the_log(
    client: Client, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.control.failure = KeyError("a secret")

    with pytest.raises(DaemonError) as caught:
        client.call("Reload")

    assert str(caught.value) == "internal error: KeyError"
    assert "Reload failed" in caplog.text


def test_that_files_are_too_few_is_said_with_what_to_do_and_no_fault_of_ours(
    client: Client, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.control.failure = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/a/secret")

    with pytest.raises(DaemonError) as caught:
        client.call("Doctor")

    assert str(caught.value) == (
        "this process cannot open enough files: Too many open files\n"
        "hint: LimitNOFILE= in the unit, or ulimit -n, is too low"
    )
    assert "failed" not in caplog.text


def test_no_caller_sees_an_inner_error_as_an_object(client: Client, served: Served) -> None:
    served.control.failure = ConntrackdError("bad \ud800 text\0")

    with pytest.raises(DaemonError, match="bad"):
        client.call("Reload")


def test_an_unknown_log_level_is_reported_with_those_there_are(client: Client) -> None:
    with pytest.raises(DaemonError, match="unknown log level\nhint: one of: debug, info, warn, error"):
        client.call("SetLogLevel", "s", "loud")


def test_a_sink_that_is_not_there_is_reported_with_those_there_are(client: Client) -> None:
    with pytest.raises(UnavailableError, match="hint: sinks: journal, loki;"):
        client.call("Enable", sink="../../etc")


def test_a_filter_for_ever_and_a_month_is_refused(client: Client, served: Served) -> None:
    with pytest.raises(DaemonError, match="31 days at most"):
        client.call("SetFilter", "asu", ["log any"], 1 << 31)
    assert served.control.asked == []


@pytest.mark.parametrize(
    "rules",
    [
        ["x"] * (limits.MAX_RULES + 1),
        ["x" * (limits.MAX_TEXT + 1)],
        ["x" * 10_000_000],
        ["x" * 1_000_000] * 30,
        ["("] * 1_000_000,
        ["x" * limits.MAX_TEXT] * (limits.MAX_RULES_TEXT // limits.MAX_TEXT + 3),
    ],
    ids=["one too many", "one too long", "10 MB", "30 MB", "a million", "too long together"],
)
def test_more_than_anyone_may_ask_is_refused_and_the_next_call_is_answered(
    rules: list[str], client: Client, served: Served
) -> None:
    with pytest.raises(DaemonError) as caught:
        client.call("CheckFilter", "as", rules)

    assert caught.value.name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert served.control.asked == []
    assert client.call("CheckFilter", "as", ["x"]) == [["x"]]


def test_as_many_rules_as_there_may_be_as_long_as_they_may_be_pass(client: Client) -> None:
    rules = ["x" * (limits.MAX_RULES_TEXT // limits.MAX_RULES)] * limits.MAX_RULES

    assert client.call("CheckFilter", "as", rules) == [rules]


def test_what_is_refused_is_neither_parsed_nor_held(
    client: Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    deliver = Connection._deliver

    def note(self: Connection, size: int) -> None:
        parsed.append(size)
        deliver(self, size)

    longest = 0
    feed = Connection._feed

    def measure(self: Connection, data: bytes) -> None:
        nonlocal longest
        feed(self, data)
        longest = max(longest, len(self._frame))

    monkeypatch.setattr(Connection, "_deliver", note)
    monkeypatch.setattr(Connection, "_feed", measure)
    for size in (10_000_000, 30_000_000):
        with pytest.raises(DaemonError, match=r"bytes, at most \d+ are allowed"):
            client.call("CheckFilter", "as", ["x" * size])

    assert max(parsed, default=0) < 1000
    assert longest < 1 << 17


def test_descriptors_that_come_with_a_call_are_closed(raw: Raw, served: Served) -> None:
    reading, writing = os.pipe()
    before = count_descriptors()
    serial = raw.post(call("Reload"), [], [writing] * 16)

    raw.read_until(lambda header: header.reply_serial == serial)
    os.close(writing)

    assert count_descriptors() == before - 1
    assert os.read(reading, 1) == b""  # nobody holds the other end any more
    os.close(reading)


@pytest.mark.parametrize("depth", [1, 30, 62])
def test_variants_in_variants_are_no_trouble(depth: int, raw: Raw) -> None:
    value = Variant("s", "deep")
    for _ in range(depth):
        value = Variant("v", value)

    serial = raw.post(call("Set", "ssv", PATH, PROPERTIES), [MANAGER, "LogLevel", value])
    header, _ = raw.read_until(lambda header: header.reply_serial == serial)

    assert header.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"


def test_a_variant_that_is_too_deep_ends_with_the_bus_and_the_service_goes_on(
    bus: PrivateBus, raw: Raw, served: Served
) -> None:
    message = call("Set", "ssv", PATH, PROPERTIES)
    message.serial, message.body = 99, [MANAGER, "LogLevel", Variant("y", 1)]
    data = message._marshall(False)
    deep = data[:-4] + b"\1v\0" * 500 + data[-4:]  # by hand: dbus-fast would not
    struct.pack_into("<I", deep, 4, struct.unpack_from("<I", data, 4)[0] + 1500)
    raw.post_bytes(bytes(deep))
    with pytest.raises((EOFError, OSError)):
        raw.read_until(lambda header: header.reply_serial > 1)

    assert served.service.ready.is_set()
    with bus.connect() as other:
        assert other.read_properties()["LogLevel"] == "info"


def test_text_that_is_no_utf8_ends_with_the_bus_and_the_service_goes_on(bus: PrivateBus, raw: Raw) -> None:
    header = call("SetLogLevel", "s")
    header.serial, header.body = 99, ["debug"]
    raw.post_bytes(bytes(header._marshall(False)).replace(b"debug\0", b"\xff\xfe\xfd\xc0\xaf\0"))

    with pytest.raises((EOFError, OSError)):
        raw.read_until(lambda header: header.reply_serial == 99)

    with bus.connect() as other:
        assert other.read_properties()["LogLevel"] == "info"


def test_more_calls_than_a_person_makes_are_refused_and_cost_nobody_else_the_service(raw: Raw) -> None:
    count = 2000
    for _ in range(count):
        raw.post(call("Ping", "", PATH, "org.freedesktop.DBus.Peer"), [])

    answers = [raw.read_until(lambda header: header.reply_serial > 1)[0] for _ in range(count)]

    refused = [answer for answer in answers if answer.message_type is MessageType.ERROR]
    assert {reply.error_name for reply in refused} == {"org.freedesktop.DBus.Error.LimitsExceeded"}
    # Of a slow service the bus itself refuses some: it keeps few that are not answered.
    unasked = [reply for reply in refused if reply.sender == "org.freedesktop.DBus"]
    assert count - len(refused) + len(unasked) >= limits.BURST - limits.MAX_RUNNING
    assert count - len(refused) < count / 2


def test_beyond_the_rate_a_call_is_refused_though_no_other_is_in_progress(
    raw: Raw, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, while the clock stands: neither the bus nor another limit refuses any."""
    now = time.monotonic()
    monkeypatch.setattr(served.service._limiter, "_clock", lambda: now)
    answers = []
    for _ in range(limits.BURST + 3):
        serial = raw.post(call("Ping", "", PATH, "org.freedesktop.DBus.Peer"), [])
        answers.append(raw.read_until(lambda header: header.reply_serial == serial)[1])  # noqa: B023

    # The first counts for the name, because its user is not known yet.
    assert answers[: limits.BURST + 1] == [[]] * (limits.BURST + 1)
    assert answers[limits.BURST + 1 :] == [["too many calls, at most 200 a second are allowed"]] * 2


def test_so_many_calls_of_one_user_may_wait_and_no_more(raw: Raw, served: Served) -> None:
    known = raw.post(call("Ping", "", PATH, "org.freedesktop.DBus.Peer"), [])
    # Until its user is known, calls count for the name.
    raw.read_until(lambda header: header.reply_serial == known)
    release = served.hold()
    first = [raw.post(call("CheckFilter", "as"), [["x"]]) for _ in range(limits.MAX_RUNNING)]
    last = raw.post(call("CheckFilter", "as"), [["x"]])

    header, said = raw.read_until(lambda header: header.reply_serial == last)
    release()
    answers = [raw.read_until(lambda header: header.reply_serial in first)[0].message_type for _ in first]

    assert header.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert said[0].splitlines() == [
        "16 of your calls are in progress already",
        "hint: wait until one has ended; where one asks for a password, answer or cancel it",
    ]
    assert answers == [MessageType.METHOD_RETURN] * len(first)
