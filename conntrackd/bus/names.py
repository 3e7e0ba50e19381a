"""The names on the bus: ours, which the XML has to have too, and those of D-Bus. Imports nothing."""

from typing import Final

NAME: Final = "org.conntrackd1"
MANAGER_PATH: Final = "/org/conntrackd1"
SINK_PATH: Final = "/org/conntrackd1/sink"
MANAGER: Final = "org.conntrackd1.Manager"
SINK: Final = "org.conntrackd1.Sink"

# https://dbus.freedesktop.org/doc/dbus-specification.html, "Standard Interfaces" and "Message Bus Messages"
INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"
PEER: Final = "org.freedesktop.DBus.Peer"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
ERRORS: Final = "org.freedesktop.DBus.Error."

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
