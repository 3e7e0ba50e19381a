"""The XML, Control and the packages' files agree, and a method without an action does not load."""

import xml.etree.ElementTree as ET
from typing import Final

import pytest

from conntrackd.bus.control import Control
from conntrackd.bus.interface import (
    ACTIONS,
    CONTROL,
    INFO,
    OBSERVE,
    ContractError,
    Interface,
    check_control,
    check_properties,
    load,
    parse_interfaces,
    read_xml,
    to_path,
)
from conntrackd.bus.names import MANAGER, SINK
from conntrackd.bus.properties import ManagerProperties
from tests.bus.private import ROOT


def check(interfaces: dict[str, Interface]) -> None:
    check_control(interfaces, Control)
    check_properties(interfaces[MANAGER], ManagerProperties)


# Who needs what: reviewed by hand, so that no edit of the XML alone can give a right away.
METHODS: Final = {
    (MANAGER, "Reload"): CONTROL,
    (MANAGER, "ReloadFilter"): CONTROL,
    (MANAGER, "SetFilter"): CONTROL,
    (MANAGER, "ResetFilter"): CONTROL,
    (MANAGER, "SetLogLevel"): CONTROL,
    (MANAGER, "CheckFilter"): OBSERVE,
    (MANAGER, "ExplainFilter"): OBSERVE,
    (MANAGER, "Tail"): OBSERVE,
    (MANAGER, "ListSets"): OBSERVE,
    (MANAGER, "ShowSet"): OBSERVE,
    (MANAGER, "ReloadSets"): CONTROL,
    (MANAGER, "AddToSet"): CONTROL,
    (MANAGER, "RemoveFromSet"): CONTROL,
    (MANAGER, "Doctor"): OBSERVE,
    (MANAGER, "GetStatistics"): INFO,
    (SINK, "Enable"): CONTROL,
    (SINK, "Disable"): CONTROL,
    (SINK, "Flush"): CONTROL,
    (SINK, "SetFilter"): CONTROL,
    (SINK, "ResetFilter"): CONTROL,
    (SINK, "ExplainFilter"): OBSERVE,
}


def test_every_method_has_the_action_that_was_decided() -> None:
    found = {
        (interface.name, method.name): method.action
        for interface in load().values()
        for method in interface.methods.values()
    }

    assert found == METHODS


def test_rules_are_for_those_who_may_observe_and_all_other_properties_are_information() -> None:
    found = {
        prop.name
        for interface in load().values()
        for prop in interface.properties.values()
        if prop.action != INFO
    }

    assert found == {"Rules"}


def test_signals_carry_numbers_names_and_states_and_never_an_event() -> None:
    found = {
        signal.name: [argument.name for argument in signal.gives]
        for interface in load().values()
        for signal in interface.signals.values()
    }

    assert found == {
        "FilterChanged": ["rule_count", "origin"],
        "EventsLost": ["count"],
        "SinkStateChanged": ["sink", "state"],
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<annotation name="org.conntrackd1.Action" value="org.conntrackd1.observe"/>', ""),
        ('value="org.conntrackd1.observe"', 'value="org.conntrackd1.everything"'),
        ('access="read"', 'access="readwrite"'),
        ('<method name="Tail">', '<method name="Doctor">'),
    ],
)
def test_what_has_no_action_or_could_be_written_or_is_there_twice_does_not_load(old: str, new: str) -> None:
    with pytest.raises(ContractError):
        parse_interfaces(read_xml().replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<method name="Tail">', '<method name="Head">'),
        ('<arg name="limit" type="u"', '<arg name="limit" type="s"'),
        ('<arg name="limit" type="u"', '<arg name="maximum" type="u"'),
        ('<arg name="canonical" type="as"', '<arg name="canonical" type="s"'),
        ('<property name="Version" type="s"', '<property name="Version" type="u"'),
        ('<property name="Version"', '<property name="Edition"'),
    ],
)
def test_an_xml_that_differs_from_the_code_does_not_load(old: str, new: str) -> None:
    interfaces = parse_interfaces(read_xml().replace(old, new, 1))

    with pytest.raises(ContractError):
        check(interfaces)


def test_a_handler_that_the_xml_does_not_know_does_not_load() -> None:
    class More(Control):
        async def shut_down(self) -> None:
            """Not in the XML."""

    with pytest.raises(ContractError, match="shut_down"):
        check_control(load(), More)


def test_the_polkit_policy_has_the_actions_and_control_needs_a_password() -> None:
    root = ET.parse(ROOT / "dbus/org.conntrackd1.policy").getroot()
    found = {
        node.attrib["id"]: {default.text for default in node.iterfind("defaults/*")}
        for node in root.iter("action")
    }

    assert found == {INFO: {"yes"}, OBSERVE: {"yes"}, CONTROL: {"auth_admin_keep"}}
    assert set(found) == set(ACTIONS)


def test_no_call_starts_the_daemon_for_the_bus_does_not_know_how() -> None:
    """A member of the group, who may only look, could start what an administrator has stopped."""
    assert sorted(path.name for path in (ROOT / "dbus").iterdir()) == [
        "org.conntrackd1.conf",
        "org.conntrackd1.policy",
    ]
    assert not [path for path in (ROOT / "systemd").iterdir() if "dbus-org" in path.read_text()]


@pytest.mark.parametrize(
    ("name", "path"),
    [("loki", "loki"), ("a/../b", "a_2f_2e_2e_2fb"), ("", "_"), ("ä", "_c3_a4"), ("_", "_5f")],
)
def test_a_name_of_a_sink_cannot_leave_its_place_in_the_tree(name: str, path: str) -> None:
    assert to_path(name) == f"/org/conntrackd1/sink/{path}"
