"""org.conntrackd1.xml -> methods, properties, signals and their polkit actions. Knows nothing of the daemon.

The XML is the contract: a method that names no action does not load, and the service does not start with
a Control or properties that differ from it (check_control(), check_properties()).
"""

import inspect
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

from conntrackd.bus.control import Descriptor, Finding, SetEntry, SetStatus
from conntrackd.bus.names import MANAGER, SINK, SINK_PATH

ACTION: Final = "org.conntrackd1.Action"
EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"
INFO: Final = "org.conntrackd1.info"
OBSERVE: Final = "org.conntrackd1.observe"
CONTROL: Final = "org.conntrackd1.control"
ACTIONS: Final = (INFO, OBSERVE, CONTROL)

# How the signatures that occur here are annotated in Python.
TYPES: Final[dict[str, Any]] = {
    "": type(None),
    "a(ssss)": list[Finding],
    "a(ssu)": list[SetEntry],
    "a(ssuuuuas)": list[SetStatus],
    "a{sa{st}}": dict[str, dict[str, int]],
    "a{st}": dict[str, int],
    "as": list[str],
    "at": list[int],
    "b": bool,
    "h": Descriptor,
    "s": str,
    "t": int,
    "u": int,
}


class ContractError(Exception):
    """The XML and the code disagree: a mistake of ours, found when the module is loaded."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a method or signal."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Method:
    """One method; `handler` is the name of the coroutine of Control that answers it."""

    name: str
    handler: str
    action: str
    takes: tuple[Argument, ...]
    gives: tuple[Argument, ...]

    @property
    def in_signature(self) -> str:
        return "".join(argument.type for argument in self.takes)

    @property
    def out_signature(self) -> str:
        return "".join(argument.type for argument in self.gives)


@dataclass(frozen=True, slots=True)
class Property:
    """One property, all of them read-only. `emits` is true, invalidates, const or false."""

    name: str
    action: str
    type: str
    emits: str

    @property
    def attribute(self) -> str:
        """Its name in Python."""
        return to_snake(self.name)


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal."""

    name: str
    gives: tuple[Argument, ...]

    @property
    def signature(self) -> str:
        return "".join(argument.type for argument in self.gives)


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of the XML, and its text as introspection shows it."""

    name: str
    methods: dict[str, Method]
    properties: dict[str, Property]
    signals: dict[str, Signal]
    text: str


def to_snake(name: str) -> str:
    """`GetStatistics` -> `get_statistics`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def read_xml() -> str:
    """The text of the contract."""
    return Path(__file__).with_name("org.conntrackd1.xml").read_text(encoding="utf-8")


def parse_interfaces(text: str) -> dict[str, Interface]:
    """The interfaces of an XML that we wrote ourselves. Raises ContractError."""
    root = ET.fromstring(text)  # noqa: S314  # a file of this package
    found = [_parse_interface(element) for element in root.iter("interface")]
    return {item.name: item for item in found}


def _parse_interface(element: ET.Element) -> Interface:
    is_sink = element.attrib["name"] == SINK
    methods = [_parse_method(child, is_sink=is_sink) for child in element.iter("method")]
    properties = [_parse_property(child) for child in element.iter("property")]
    signals = [
        Signal(child.attrib["name"], _parse_arguments(child, None)) for child in element.iter("signal")
    ]
    for group in (methods, properties, signals):
        names = [child.name for child in group]
        if len(set(names)) != len(names):
            raise ContractError(f"{element.attrib['name']}: a name is given twice in {names}")
    return Interface(
        element.attrib["name"],
        {method.name: method for method in methods},
        {prop.name: prop for prop in properties},
        {signal.name: signal for signal in signals},
        ET.tostring(element, encoding="unicode").strip(),
    )


def _parse_method(element: ET.Element, *, is_sink: bool) -> Method:
    # One class has the methods of both interfaces: SetFilter of a sink is set_sink_filter().
    verb, *rest = to_snake(element.attrib["name"]).split("_")
    return Method(
        element.attrib["name"],
        "_".join([verb, *(["sink"] if is_sink else []), *rest]),
        _read_action(element),
        _parse_arguments(element, "in"),
        _parse_arguments(element, "out"),
    )


def _parse_property(element: ET.Element) -> Property:
    name = element.attrib["name"]
    if element.attrib["access"] != "read":
        raise ContractError(f"{name}: a property that can be written has no authorisation")
    emits = [note.attrib["value"] for note in element.iter("annotation") if note.attrib["name"] == EMITS]
    return Property(name, _read_action(element), element.attrib["type"], emits[0] if emits else "true")


def _parse_arguments(element: ET.Element, direction: str | None) -> tuple[Argument, ...]:
    return tuple(
        Argument(argument.attrib["name"], argument.attrib["type"])
        for argument in element.iter("arg")
        if argument.attrib.get("direction") == direction
    )


def _read_action(element: ET.Element) -> str:
    found = [note.attrib["value"] for note in element.iter("annotation") if note.attrib["name"] == ACTION]
    if len(found) != 1 or found[0] not in ACTIONS:
        raise ContractError(f"{element.attrib['name']}: names {found} and not exactly one polkit action")
    return found[0]


def check_control(interfaces: dict[str, Interface], control: type) -> None:
    """Raises ContractError unless the class has exactly the methods of the interfaces, of the same types."""
    found = {name for name, _ in inspect.getmembers(control, inspect.iscoroutinefunction) if name[0] != "_"}
    methods = [method for interface in interfaces.values() for method in interface.methods.values()]
    _compare("methods", found, {method.handler for method in methods})
    for interface in interfaces.values():
        first: list[tuple[str, type]] = [("name", str)] if interface.name == SINK else []
        for method in interface.methods.values():
            _check_method(method, first, getattr(control, method.handler))


def _check_method(method: Method, first: list[tuple[str, type]], handler: Callable[..., Any]) -> None:
    hints = get_type_hints(handler)
    result = hints.pop("return")
    gives: Any = tuple[tuple(TYPES[argument.type] for argument in method.gives)]  # type: ignore[misc]
    if len(method.gives) < 2:
        gives = TYPES[method.out_signature]
    _compare(method.handler, result, gives)
    takes = [(argument.name, TYPES[argument.type]) for argument in method.takes]
    _compare(method.handler, list(hints.items()), [*first, *takes])


def check_properties(interface: Interface, kind: type) -> None:
    """As check_control(), for the properties of an interface."""
    members = inspect.getmembers(kind, lambda member: isinstance(member, property))
    properties = {prop.attribute: prop for prop in interface.properties.values()}
    _compare(f"{interface.name}: properties", {name for name, _ in members}, set(properties))
    for name, member in members:
        hint = get_type_hints(member.fget)["return"]
        _compare(f"{interface.name}: {name}", hint, TYPES[properties[name].type])


def _compare(what: str, code: object, xml: object) -> None:
    if code != xml:
        raise ContractError(f"{what}: the code has {code}, the XML has {xml}")


def load() -> dict[str, Interface]:
    """The interfaces by name."""
    interfaces = parse_interfaces(read_xml())
    if set(interfaces) != {MANAGER, SINK}:
        raise ContractError(f"interfaces are {sorted(interfaces)}")
    return interfaces


def to_path(name: str) -> str:
    """The object path of a sink; what no path may hold becomes `_` and its number in hexadecimal."""
    escaped = re.sub(rb"[^A-Za-z0-9]", lambda match: b"_%02x" % match.group()[0], name.encode()).decode()
    return f"{SINK_PATH}/{escaped or '_'}"
