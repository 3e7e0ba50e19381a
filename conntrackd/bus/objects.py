"""What is at which path: the objects, their properties, and how they introduce themselves."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from dbus_fast import Variant

from conntrackd.bus.control import Control
from conntrackd.bus.interface import Interface, Method, Property, to_path
from conntrackd.bus.names import MANAGER, MANAGER_PATH, SINK
from conntrackd.bus.properties import ManagerProperties, SinkProperties
from conntrackd.bus.transport import to_body
from conntrackd.errors import ConntrackdError

DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
# https://dbus.freedesktop.org/doc/dbus-specification.html, "Standard Interfaces"
STANDARD: Final = """\
<interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
"""
STANDARD_PROPERTIES: Final = """\
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="props" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
"""
STANDARD_MANAGER: Final = """\
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object_path" type="o"/>
      <arg name="interfaces_and_properties" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object_path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
"""


class UnknownObjectError(ConntrackdError):
    """There is nothing at this path."""

    dbus_name = "org.freedesktop.DBus.Error.UnknownObject"


class UnknownInterfaceError(ConntrackdError):
    """The object has no such interface."""

    dbus_name = "org.freedesktop.DBus.Error.UnknownInterface"


class UnknownMethodError(ConntrackdError):
    """The interface has no such method."""

    dbus_name = "org.freedesktop.DBus.Error.UnknownMethod"


class UnknownPropertyError(ConntrackdError):
    """The interface has no such property."""

    dbus_name = "org.freedesktop.DBus.Error.UnknownProperty"


class ReadOnlyError(ConntrackdError):
    """No property can be set."""

    dbus_name = "org.freedesktop.DBus.Error.PropertyReadOnly"


class Objects:
    """The manager, and one object for each sink that there is at the moment."""

    def __init__(self, control: Control, interfaces: dict[str, Interface]) -> None:
        self._control = control
        self._interfaces = interfaces

    def list_sinks(self) -> dict[str, str]:
        """Paths and names."""
        return {to_path(name): name for name in self._control.list_sinks()}

    def get_object(self, path: str) -> tuple[Interface, tuple[str, ...]]:
        """The interface at a path, and the name of the sink that it is of. Raises UnknownObjectError."""
        if path == MANAGER_PATH:
            return self._interfaces[MANAGER], ()
        # The path is looked up among those there are: no text of a caller becomes a name.
        name = self.list_sinks().get(path)
        if name is None:
            raise UnknownObjectError("no such object")
        return self._interfaces[SINK], (name,)

    def get_interface(self, path: str, name: str) -> tuple[Interface, tuple[str, ...]]:
        """As get_object(), for this interface; an empty name is the one there is."""
        interface, sink = self.get_object(path)
        if name not in {"", interface.name}:
            raise UnknownInterfaceError("the object has no such interface")
        return interface, sink

    def get_handler(self, method: Method) -> Callable[..., Awaitable[object]]:
        """What answers a method: takes the name of the sink, where it is one's, and the arguments."""
        handler: Callable[..., Awaitable[object]] = getattr(self._control, method.handler)
        return handler

    def introspect(self, path: str) -> str:
        """The XML of the contract for an object, and the names of those below it for any path on the way."""
        paths = [MANAGER_PATH, *self.list_sinks()]
        start = path.rstrip("/") + "/"
        children = sorted({child[len(start) :].split("/")[0] for child in paths if child.startswith(start)})
        if path not in paths and not children:
            raise UnknownObjectError("no such object")
        text = f"  {STANDARD}"
        if path in paths:
            text += STANDARD_PROPERTIES + (STANDARD_MANAGER if path == MANAGER_PATH else "")
            text += f"  {self.get_object(path)[0].text}\n"
        text += "".join(f'  <node name="{child}"/>\n' for child in children)
        return f"{DOCTYPE}<node>\n{text}</node>\n"

    def get_property(self, path: str, interface: str, name: str) -> Property:
        """Get a property. Raises UnknownInterfaceError or UnknownPropertyError."""
        properties = self.get_interface(path, interface)[0].properties
        if name not in properties:
            raise UnknownPropertyError("no such property")
        return properties[name]

    def read(self, path: str, wanted: Iterable[Property]) -> dict[str, Variant]:
        """The values of an object's properties, all of one moment."""
        _, sink = self.get_object(path)
        values = SinkProperties(self._control, *sink) if sink else ManagerProperties(self._control)
        return {prop.name: Variant(prop.type, to_body(getattr(values, prop.attribute))) for prop in wanted}

    def read_all(self, path: str, actions: set[str]) -> dict[str, Variant]:
        """All properties of an object that may be read with these actions."""
        properties = self.get_object(path)[0].properties.values()
        return self.read(path, [prop for prop in properties if prop.action in actions])

    def read_managed(self, actions: set[str]) -> dict[str, dict[str, dict[str, Variant]]]:
        """The answer of GetManagedObjects: the objects below the manager."""
        return {path: {SINK: self.read_all(path, actions)} for path in self.list_sinks()}
