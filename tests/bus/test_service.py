"""Each method and property over a real bus, the descriptors that leave, and the signals."""

import json
import os
import re
from dataclasses import replace
from typing import Any, Final

import pytest
from dbus_fast import MessageFlag, MessageType

from conntrackd.bus.client import Client
from conntrackd.bus.interface import load, parse_interfaces
from conntrackd.bus.names import MANAGER, PROPERTIES, SINK
from conntrackd.bus.names import MANAGER_PATH as PATH
from conntrackd.bus.transport import clean_text
from conntrackd.errors import ConntrackdError
from tests.bus.private import JOURNAL, ROOT, PrivateBus, Served, count_descriptors, wait_until
from tests.bus.raw import Raw, call

# The caller of most calls is root: where no polkit answers, nobody else may change anything.
pytestmark = pytest.mark.privileged

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
            [3, 1, 4],
        ],
        None,
    ),
    ("journal", "Enable", "", [], [["sink journal is enabled"]], ("enable_sink", "journal")),
    ("journal", "Disable", "", [], [["sink journal is disabled"]], ("disable_sink", "journal")),
    ("journal", "Flush", "", [], [True], ("flush_sink", "journal", 10.0)),
    (
        "loki",
        "SetFilter",
        "asu",
        [["log any"], 600],
        [["sink loki: 1 rules"]],
        ("set_sink_filter", "loki", ("log any",), 600),
    ),
    ("loki", "ResetFilter", "", [], [["sink loki: 0 rules"]], ("reset_sink_filter", "loki")),
    (
        "journal",
        "ExplainFilter",
        "as",
        [["drop any"]],
        ["Rules\n     1  drop any"],
        ("explain_sink_filter", "journal", ("drop any",)),
    ),
    (
        None,
        "ListSets",
        "",
        [],
        [
            [
                ["bad", "/etc/bad.txt", 1234, 2, 1, 90, ["rule 1", "rule 2 of sink loki"]],
                ["own", "/etc/own.txt", 0, 0, 0, 0, []],
            ]
        ],
        ("list_sets",),
    ),
    (
        None,
        "ShowSet",
        "ss",
        ["bad", "192.0.2.7"],
        [[["2001:db8::1", "removed", 0]]],
        ("show_set", "bad", "192.0.2.7"),
    ),
    (None, "ReloadSets", "as", [["bad"]], [["nothing has changed"]], ("reload_sets", ("bad",))),
    (
        None,
        "AddToSet",
        "sasu",
        ["bad", ["::1"], 60],
        [["added to @bad"]],
        ("add_to_set", "bad", ("::1",), 60),
    ),
    (
        None,
        "RemoveFromSet",
        "sasu",
        ["bad", ["::1"], 0],
        [["removed from @bad"]],
        ("remove_from_set", "bad", ("::1",), 0),
    ),
]
VALUES: Final = {
    "Version": "2.0.0",
    "StartTime": 1_700_000_000_000_000,
    "ConfigurationPaths": ["/etc/conntrackd/conntrackd.yaml"],
    "Rules": ["drop destination network LOCAL", "drop protocol UDP"],
    "RuleCount": 2,
    "RuleSuppressed": [0, 0, 3],
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
    "Rules": [],
    "RuleCount": 0,
    "RuleMatches": [],
    "RuleSuppressed": [],
    "FilterOrigin": "",
    "FilterExpires": 0,
}


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
    said = client.call(member, signature, *values, sink=sink)

    # A struct is a list or a tuple, as the version of dbus-fast has it.
    assert json.loads(json.dumps(said)) == json.loads(json.dumps(answer))
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
        return [path, *(node for name in below for node in walk(f"{path}/{name}"))]

    assert walk("")[1:] == [
        "/org",
        PATH,
        "/org/conntrackd1/sink",
        JOURNAL,
        "/org/conntrackd1/sink/loki",
    ]


def test_a_ping_is_answered(raw: Raw) -> None:
    assert raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "") == []


@pytest.mark.parametrize("flags", range(8))
def test_any_flags_of_a_call_are_understood(flags: int, raw: Raw) -> None:
    header = call("Ping", "", PATH, "org.freedesktop.DBus.Peer")
    header.flags = MessageFlag(flags)
    raw.post(header, [])

    assert raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "") == []


def test_text_is_as_the_bus_can_carry_it() -> None:
    assert clean_text("Z\xfcrich \ud800\0") == "Z\xfcrich ?\ufffd"


def test_text_that_is_not_ascii_comes_and_goes_whole(client: Client) -> None:
    rules = ['log source city "z\xfcrich"', "\N{SNOWMAN}\N{GRINNING FACE}"]

    assert client.call("CheckFilter", "as", rules) == [rules]


def test_changes_are_made_one_after_the_other(raw: Raw, served: Served) -> None:
    release = served.hold()
    raw.post(call("Reload"), [])
    raw.post(call("ReloadFilter"), [])
    raw.ask(PATH, "org.freedesktop.DBus.Peer", "Ping", "")

    assert served.control.asked == [("reload",)]
    release()
    raw.read_until(lambda header: header.message_type is MessageType.METHOD_RETURN)
    raw.read_until(lambda header: header.message_type is MessageType.METHOD_RETURN)
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
        header.flags = MessageFlag.NO_REPLY_EXPECTED
        raw.post(header, [["log any"], 0])
        wait_until(lambda: len(served.control.asked) == 1)
        raw.post(call("Tail", "asu"), [["log any"], 0])

    wait_until(lambda: count_descriptors() == before - 1)  # the client's own is closed too


# ---- signals ------------------------------------------------------------------------------------------


@pytest.fixture
def listener(raw: Raw) -> Raw:
    raw.ask_bus("AddMatch", "s", "type='signal',sender='org.conntrackd1'")
    return raw


def test_what_changes_is_reported_together(listener: Raw, served: Served) -> None:
    async def change() -> None:
        served.control.set_state("loki", "ok")
        served.control.tell_lost(3)
        served.control.tell_lost(4)
        await served.control.set_filter(["log any"], 0)

    served.do(change)
    reported: dict[str, list[Any]] = {}
    while "EventsLost" not in reported:
        header, body = listener.read_until(lambda header: header.message_type is MessageType.SIGNAL)
        reported[
            f"{header.path} {header.member}" if header.member == "PropertiesChanged" else str(header.member)
        ] = body

    assert reported == {
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


def test_a_problem_that_nobody_signals_is_noticed_when_it_comes_and_when_it_goes(
    listener: Raw, served: Served
) -> None:
    control = served.control
    for problems in (("connections are not tracked",), ()):
        control.present = replace(control.present, problems=problems, buffer=len(problems) << 20)

        _, body = listener.read_until(lambda header: header.member == "PropertiesChanged")

        assert body == [MANAGER, {"Problems": list(problems), "Buffer": len(problems) << 20}, []]


def test_every_property_signals_its_changes_but_for_those_that_the_manual_names() -> None:
    silent = {
        f"{interface.name.rpartition('.')[2]}.{prop.name}"
        for interface in load().values()
        for prop in interface.properties.values()
        if prop.emits == "false"
    }
    page = (ROOT / "man/org.conntrackd1.5").read_text()
    said = page.partition("signal changes")[2].partition("change all the time")[0]

    assert silent == {
        "Manager.Counters",
        "Manager.FilterExpires",
        "Sink.Counters",
        "Sink.FilterExpires",
        "Sink.RuleMatches",
        "Sink.RuleSuppressed",
        "Manager.RuleSuppressed",
    }
    assert set(re.findall(r"(?m)^\.Va (\w+)", said)) == {prop.partition(".")[2] for prop in silent}


def test_another_filter_of_a_sink_is_reported_there_without_its_rules(listener: Raw, client: Client) -> None:
    client.call("SetFilter", "asu", ["log any"], 60, sink="loki")

    message, body = listener.read_until(lambda each: each.member == "PropertiesChanged")

    assert (message.path, body) == (
        f"{PATH}/sink/loki",
        [SINK, {"RuleCount": 1, "FilterOrigin": "run-time"}, ["Rules"]],
    )


def test_a_filter_of_a_sink_lasts_no_longer_than_that_of_all(client: Client) -> None:
    with pytest.raises(ConntrackdError, match="a run-time change lasts 31 days at most"):
        client.call("SetFilter", "asu", ["log any"], 32 * 86_400, sink="loki")


def test_another_log_level_is_reported(listener: Raw, client: Client) -> None:
    client.call("SetLogLevel", "s", "debug")

    _, body = listener.read_until(lambda header: header.member == "PropertiesChanged")

    assert body == [MANAGER, {"LogLevel": "debug", "RunTimeChanges": ["log level"]}, []]


def test_sinks_that_come_and_go_are_reported(listener: Raw, served: Served) -> None:
    async def change() -> None:
        sinks = served.control.sinks
        sinks["syslog"] = sinks.pop("loki")
        for entry in served.control.listeners:
            entry.status_changed()

    served.do(change)
    found = {
        header.member: body[0]
        for header, body in (
            listener.read_until(lambda header: str(header.member).startswith("Interfaces")) for _ in range(2)
        )
    }

    assert found == {
        "InterfacesAdded": "/org/conntrackd1/sink/syslog",
        "InterfacesRemoved": "/org/conntrackd1/sink/loki",
    }
