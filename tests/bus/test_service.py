"""Each method and property over a real bus; refusals; callers and buses that come and go."""

import os
import re
from typing import Any, Final

import pytest

from conntrackd.bus import limits, wire
from conntrackd.bus.client import (
    MANAGER,
    OBJECT_MANAGER,
    PATH,
    PROPERTIES,
    SINK,
    Client,
    NotRunningError,
    RemoteError,
)
from conntrackd.bus.connection import Connection, clean_text
from conntrackd.bus.interface import load, parse_interfaces
from conntrackd.errors import ConntrackdError, UnavailableError
from tests.bus.private import PrivateBus, Raw, Served, count_descriptors, wait_until
from tests.bus.recorder import fail

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged

JOURNAL: Final = "/org/conntrackd1/sink/journal"
FINDING: Final = ("warning", "acct", "nf_conntrack_acct is 0", "sysctl -w net.netfilter.nf_conntrack_acct=1")
CALLS: Final[list[tuple[str | None, str, str, list[Any], list[Any], Any]]] = [
    (None, "Reload", "", [], [["filter: 2 rules"]], ("reload",)),
    (None, "ReloadFilter", "", [], [["filter: 2 rules"]], ("reload_filter",)),
    (
        None,
        "SetFilter",
        "asu",
        [["log any"], 600],
        [["filter: 1 rules, until a restart or reload"]],
        ("set_filter", ("log any",), 600),
    ),
    (None, "ResetFilter", "", [], [[]], ("reset_filter",)),
    (None, "SetLogLevel", "s", ["debug"], [["log level is debug"]], ("set_log_level", "debug")),
    (None, "CheckFilter", "as", [["LOG any"]], [["log any"]], ("check_filter", ("LOG any",))),
    (None, "ExplainFilter", "as", [[]], ["def select(batch): ..."], ("explain_filter", ())),
    (None, "Tail", "asu", [["log any"], 3], [0], ("open_tail", ("log any",), 3)),
    (None, "Doctor", "", [], [[FINDING]], ("examine",)),
    (
        None,
        "GetStatistics",
        "",
        [],
        [
            {"events_received_total": 5, "events_lost_total": 0},
            {"journal": {"sink_events_delivered_total": 7}, "loki": {"sink_events_delivered_total": 0}},
            [3, 1, 1],
        ],
        None,
    ),
    ("journal", "Enable", "", [], [["sink journal is enabled"]], ("enable_sink", "journal")),
    ("journal", "Disable", "", [], [["sink journal is disabled"]], ("disable_sink", "journal")),
    ("journal", "Flush", "", [], [True], ("flush_sink", "journal", 10.0)),
]
VALUES: Final = {
    "Version": "2.0.0",
    "StartTime": 1_700_000_000_000_000,
    "ConfigurationPaths": ["/etc/conntrackd/conntrackd.yaml"],
    "Rules": ["drop destination network LOCAL", "drop protocol UDP"],
    "RuleCount": 2,
    "FilterOrigin": "configuration",
    "FilterExpires": 0,
    "KernelGroups": ["new", "destroy"],
    "KernelInstructions": 42,
    "Buffer": 64 << 20,
    "LogLevel": "info",
    "RunTimeChanges": [],
    "Problems": [],
    "Counters": {"events_received_total": 5, "events_lost_total": 0},
}
LOKI: Final = {
    "Name": "loki",
    "State": "retrying",
    "LastError": "connection refused",
    "Counters": {"sink_events_delivered_total": 0},
}


def call(member: str, signature: str = "", path: str = PATH, interface: str = MANAGER) -> wire.Header:
    return wire.Header(
        wire.METHOD_CALL,
        path=path,
        interface=interface,
        member=member,
        destination="org.conntrackd1",
        signature=signature,
    )


# ---- the contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sink", "member", "signature", "values", "answer", "asked"), CALLS)
def test_a_method_asks_the_daemon_and_gives_its_answer(
    sink: str | None,
    member: str,
    signature: str,
    values: list[Any],
    answer: list[Any],
    asked: Any,
    client: Client,
    served: Served,
) -> None:
    assert client.call(member, signature, *values, sink=sink) == answer
    assert served.control.asked == ([] if asked is None else [asked])


def test_every_method_is_tried_here() -> None:
    there = {
        (interface.name, method.name)
        for interface in load().values()
        for method in interface.methods.values()
    }

    assert {(SINK if sink else MANAGER, member) for sink, member, *_ in CALLS} == there


def test_properties_one_by_one_and_together_are_what_the_daemon_says(client: Client, raw: Raw) -> None:
    assert client.read_properties() == VALUES
    for name, value in VALUES.items():
        assert raw.ask(PATH, PROPERTIES, "Get", "ss", MANAGER, name) == [value]
    assert set(VALUES) == set(load()[MANAGER].properties)


def test_sinks_are_objects_with_properties(client: Client) -> None:
    sinks = client.read_sinks()

    assert list(sinks) == ["journal", "loki"]
    assert sinks["loki"] == LOKI
    assert set(LOKI) == set(load()[SINK].properties)


@pytest.mark.parametrize(("path", "name"), [(PATH, MANAGER), (JOURNAL, SINK)])
def test_introspection_shows_the_contract(path: str, name: str, raw: Raw) -> None:
    text = raw.ask(path, "org.freedesktop.DBus.Introspectable", "Introspect", "")[0]

    assert parse_interfaces(
        re.sub(r'<interface name="org\.freedesktop.*?</interface>', "", text, flags=re.S)
    ) == {name: load()[name]}


def test_the_tree_can_be_walked_from_its_root_to_each_sink(raw: Raw) -> None:
    def walk(path: str) -> list[str]:
        text = raw.ask(path or "/", "org.freedesktop.DBus.Introspectable", "Introspect", "")[0]
        below = re.findall(r'<node name="(\w+)"/>', text)
        return [path, *(each for name in below for each in walk(f"{path}/{name}"))]

    assert walk("")[1:] == [
        "/org",
        PATH,
        "/org/conntrackd1/sink",
        JOURNAL,
        "/org/conntrackd1/sink/loki",
    ]


def test_a_ping_is_answered(raw: Raw) -> None:
    assert raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "") == []


# ---- refusals -----------------------------------------------------------------------------------------


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
        (PATH, PROPERTIES, "Set", "ssv", [MANAGER, "LogLevel", ("s", "debug")], "PropertyReadOnly"),
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

    header, _ = raw.read_until(lambda each: each.reply_serial == serial)

    assert header.error_name == f"org.freedesktop.DBus.Error.{name}"
    assert served.control.asked == []


def test_an_error_of_the_daemon_comes_whole(client: Client, served: Served) -> None:
    served.control.failure = fail("this cannot be")

    with pytest.raises(RemoteError) as caught:
        client.call("Reload")

    assert str(caught.value) == "somewhere: this cannot be\n  text\n  ^^^^\nhint: a hint"
    assert caught.value.name == "org.conntrackd1.Error.InvalidArguments"


def test_a_fault_of_ours_tells_its_type_to_the_caller_and_the_rest_to_the_log(
    client: Client, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.control.failure = KeyError("a secret")

    with pytest.raises(RemoteError) as caught:
        client.call("Reload")

    assert str(caught.value) == "internal error: KeyError"
    assert "Reload failed" in caplog.text


def test_an_unknown_log_level_is_told_with_those_there_are(client: Client) -> None:
    with pytest.raises(RemoteError, match="unknown log level\nhint: one of: debug, info, warn, error"):
        client.call("SetLogLevel", "s", "loud")


def test_a_filter_for_ever_and_a_month_is_refused(client: Client, served: Served) -> None:
    with pytest.raises(RemoteError, match="31 days at most"):
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
    ],
    ids=["one too many", "one too long", "10 MB", "30 MB", "a million"],
)
def test_more_than_anyone_may_ask_is_refused_and_the_next_call_is_answered(
    rules: list[str], client: Client, served: Served
) -> None:
    with pytest.raises(RemoteError) as caught:
        client.call("CheckFilter", "as", rules)

    assert caught.value.name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert served.control.asked == []
    assert client.call("CheckFilter", "as", ["x"]) == [["x"]]


def test_as_many_rules_as_there_may_be_as_long_as_they_may_be_pass(client: Client) -> None:
    rules = ["x" * limits.MAX_TEXT] * limits.MAX_RULES

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
        with pytest.raises(RemoteError, match=r"bytes, \d+ are possible"):
            client.call("CheckFilter", "as", ["x" * size])

    assert max(parsed, default=0) < 1000
    assert longest < 1 << 17


def test_descriptors_are_refused_and_closed(raw: Raw, served: Served) -> None:
    reading, writing = os.pipe()
    before = count_descriptors()
    serial = raw.post(call("Reload"), [], [writing] * 16)

    header, _ = raw.read_until(lambda each: each.reply_serial == serial)
    os.close(writing)

    assert header.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert count_descriptors() == before - 1
    assert os.read(reading, 1) == b""  # nobody holds the other end any more
    os.close(reading)


@pytest.mark.parametrize("depth", [1, 30, 62])
def test_variants_in_variants_are_no_trouble(depth: int, raw: Raw) -> None:
    value: tuple[str, Any] = ("s", "deep")
    for _ in range(depth):
        value = ("v", value)

    serial = raw.post(call("Set", "ssv", PATH, PROPERTIES), [MANAGER, "LogLevel", value])
    header, _ = raw.read_until(lambda each: each.reply_serial == serial)

    assert header.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"


def test_a_variant_that_is_too_deep_ends_with_the_bus_and_the_service_goes_on(
    bus: PrivateBus, raw: Raw, served: Served
) -> None:
    value: tuple[str, Any] = ("s", "deep")
    for _ in range(500):
        value = ("v", value)

    raw.post(call("Set", "ssv", PATH, PROPERTIES), [MANAGER, "LogLevel", value])
    with pytest.raises((EOFError, OSError)):
        raw.read_until(lambda each: each.reply_serial > 1)

    assert served.service.ready.is_set()
    with bus.connect() as other:
        assert other.read_properties()["LogLevel"] == "info"


def test_text_that_is_no_utf8_ends_with_the_bus_and_the_service_goes_on(bus: PrivateBus, raw: Raw) -> None:
    header = call("SetLogLevel", "s")
    header.serial = 99
    raw.post_bytes(wire.encode_call(header, ["debug"]).replace(b"debug\0", b"\xff\xfe\xfd\xc0\xaf\0"))

    with pytest.raises((EOFError, OSError)):
        raw.read_until(lambda each: each.reply_serial == 99)

    with bus.connect() as other:
        assert other.read_properties()["LogLevel"] == "info"


def test_more_calls_than_a_person_makes_are_refused_and_cost_nobody_else_the_service(raw: Raw) -> None:
    count = 2000
    for _ in range(count):
        raw.post(call("Ping", "", PATH, "org.freedesktop.DBus.Peer"), [])

    answers = [raw.read_until(lambda each: each.reply_serial > 1)[0] for _ in range(count)]

    refused = [each for each in answers if each.type == wire.ERROR]
    assert {each.error_name for each in refused} == {"org.freedesktop.DBus.Error.LimitsExceeded"}
    assert limits.BURST - limits.MAX_RUNNING <= count - len(refused) < count / 2


def test_so_many_calls_of_one_user_may_wait_and_no_more(raw: Raw, served: Served) -> None:
    release = served.hold()
    first = [raw.post(call("CheckFilter", "as"), [["x"]]) for _ in range(limits.MAX_RUNNING)]
    last = raw.post(call("CheckFilter", "as"), [["x"]])

    header, _ = raw.read_until(lambda each: each.reply_serial == last)
    release()
    answers = [raw.read_until(lambda each: each.reply_serial in first)[0].type for _ in first]

    assert header.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert answers == [wire.METHOD_RETURN] * len(first)


def test_changes_are_made_one_after_the_other(raw: Raw, served: Served) -> None:
    release = served.hold()
    raw.post(call("Reload"), [])
    raw.post(call("ReloadFilter"), [])
    raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "")

    assert served.control.asked == [("reload",)]
    release()
    raw.read_until(lambda each: each.type == wire.METHOD_RETURN)
    raw.read_until(lambda each: each.type == wire.METHOD_RETURN)
    assert served.control.asked == [("reload",), ("reload_filter",)]


# ---- descriptors that leave ---------------------------------------------------------------------------


def test_a_tail_is_a_pipe_with_lines(client: Client) -> None:
    with os.fdopen(client.open_tail(["log any"], 0), "rb") as file:
        assert file.read() == b'{"msg":"one"}\n'


def test_a_tail_for_a_caller_who_wants_no_reply_or_is_gone_leaves_no_descriptor(
    bus: PrivateBus, served: Served
) -> None:
    with Raw(bus.address, {}) as raw:
        raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "")
        before = count_descriptors()
        header = call("Tail", "asu")
        header.flags = wire.NO_REPLY_EXPECTED
        raw.post(header, [["log any"], 0])
        wait_until(lambda: len(served.control.asked) == 1)
        raw.post(call("Tail", "asu"), [["log any"], 0])

    wait_until(lambda: count_descriptors() == before - 1)  # the client's own is closed too


# ---- callers and buses that come and go ---------------------------------------------------------------


def test_a_caller_who_goes_away_takes_his_question_along_but_no_change_stops_half_way(
    bus: PrivateBus, served: Served
) -> None:
    finished: list[str] = []
    control = served.control
    ask, change = control.check_filter, control.reload

    async def check_filter(rules: list[str]) -> list[str]:
        answer = await ask(rules)
        finished.append("question")
        return answer

    async def reload() -> list[str]:
        answer = await change()
        finished.append("change")
        return answer

    control.check_filter, control.reload = check_filter, reload  # type: ignore[method-assign]
    release = served.hold()
    with Raw(bus.address, {}) as raw:
        raw.post(call("CheckFilter", "as"), [["x"]])
        raw.post(call("Reload"), [])
        wait_until(lambda: len(control.asked) == 2)
    with bus.connect() as other:
        other.read_properties()  # what the bus told of the first one is behind us
    release()

    wait_until(lambda: finished != [])
    assert finished == ["change"]


def test_the_service_comes_back_when_the_bus_does(bus: PrivateBus, served: Served) -> None:
    bus.stop()
    served.wait_lost()
    bus.start()

    served.wait_ready()

    with bus.connect() as client:
        assert client.read_properties()["Version"] == "2.0.0"


def test_a_bus_that_comes_after_the_service_is_found(caplog: pytest.LogCaptureFixture) -> None:
    bus = PrivateBus()
    served = Served(bus.address)
    try:
        wait_until(lambda: "retrying" in caplog.text)
        bus.start()
        served.wait_ready()
        with bus.connect() as client:
            assert client.read_properties()["Version"] == "2.0.0"
    finally:
        served.close()
        bus.close()


def test_a_name_that_another_has_is_waited_for_and_told(
    bus: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    with Raw(bus.address, {}) as owner:
        assert owner.ask_bus("RequestName", "su", "org.conntrackd1", 0) == [1]
        served = Served(bus.address)
        wait_until(lambda: "org.conntrackd1 is owned by another process, retrying" in caplog.text)
    try:
        served.wait_ready()
    finally:
        served.close()


@pytest.mark.parametrize(("flags", "answer"), [(2 | 4, 3), (2, 2), (1 | 2, 2)])
def test_nobody_takes_the_name_away(flags: int, answer: int, raw: Raw, client: Client) -> None:
    # 1 ALLOW_REPLACEMENT, 2 REPLACE_EXISTING, 4 DO_NOT_QUEUE; 2 IN_QUEUE, 3 EXISTS
    assert raw.ask_bus("RequestName", "su", "org.conntrackd1", flags) == [answer]
    assert client.read_properties()["Version"] == "2.0.0"


def test_without_service_or_bus_a_sentence_says_so(bus: PrivateBus) -> None:
    with bus.connect() as client, pytest.raises(NotRunningError, match="conntrackd is not running"):
        client.read_properties()
    bus.stop()
    with bus.connect() as client, pytest.raises(NotRunningError, match="no D-Bus to reach conntrackd over"):
        client.read_properties()


def test_a_sink_that_is_not_there_is_told_with_those_there_are(client: Client) -> None:
    with pytest.raises(UnavailableError, match="hint: there are: journal, loki;"):
        client.call("Enable", sink="../../etc")


# ---- signals ------------------------------------------------------------------------------------------


@pytest.fixture
def listener(raw: Raw) -> Raw:
    raw.ask_bus("AddMatch", "s", "type='signal',sender='org.conntrackd1'")
    return raw


def test_what_changes_is_told_together(listener: Raw, served: Served) -> None:
    async def change() -> None:
        served.control.set_state("loki", "ok")
        served.control.tell_lost(3)
        served.control.tell_lost(4)
        await served.control.set_filter(["log any"], 0)

    served.do(change)
    told: dict[str, list[Any]] = {}
    while "EventsLost" not in told:
        header, body = listener.read_until(lambda each: each.type == wire.SIGNAL)
        told[f"{header.path} {header.member}" if header.member == "PropertiesChanged" else header.member] = (
            body
        )

    assert told == {
        "/org/conntrackd1/sink/loki PropertiesChanged": [SINK, {"State": "ok"}, []],
        "SinkStateChanged": ["loki", "ok"],
        f"{PATH} PropertiesChanged": [
            MANAGER,
            {"RuleCount": 1, "FilterOrigin": "run-time", "KernelGroups": ["new"], "KernelInstructions": 3},
            ["Rules"],
        ],
        "FilterChanged": [1, "run-time"],
        "EventsLost": [7],
    }


def test_another_log_level_is_told(listener: Raw, client: Client) -> None:
    client.call("SetLogLevel", "s", "debug")

    _, body = listener.read_until(lambda each: each.member == "PropertiesChanged")

    assert body == [MANAGER, {"LogLevel": "debug"}, []]


def test_sinks_that_come_and_go_are_told(listener: Raw, served: Served) -> None:
    async def change() -> None:
        sinks = served.control.sinks
        sinks["syslog"] = sinks.pop("loki")
        for each in served.control.listeners:
            each.sink_changed("syslog")

    served.do(change)
    found = {
        header.member: body[0]
        for header, body in (
            listener.read_until(lambda each: each.member.startswith("Interfaces")) for _ in range(2)
        )
    }

    assert found == {
        "InterfacesAdded": "/org/conntrackd1/sink/syslog",
        "InterfacesRemoved": "/org/conntrackd1/sink/loki",
    }


@pytest.mark.parametrize("flags", range(8))
def test_any_flags_of_a_call_are_understood(flags: int, raw: Raw) -> None:
    header = call("Ping", "", PATH, "org.freedesktop.DBus.Peer")
    header.flags = flags
    raw.post(header, [])

    assert raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "") == []


@pytest.mark.parametrize(
    ("encoding", "text"), [("utf-8", "Z\xfcrich ?\ufffd"), ("ascii", "Z\\xfcrich \\ud800?")]
)
def test_text_is_as_the_bus_and_the_library_can_carry_it(encoding: str, text: str) -> None:
    assert clean_text("Z\xfcrich \ud800\0", encoding) == text


def test_no_caller_sees_an_inner_error_as_an_object(client: Client, served: Served) -> None:
    served.control.failure = ConntrackdError("bad \ud800 text\0")

    with pytest.raises(RemoteError, match="bad"):
        client.call("Reload")
