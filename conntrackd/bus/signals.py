"""What changes -> signals on the bus, a few a second at most however often it happens."""

import asyncio
from typing import Any, Final

from dbus_fast import Message

from conntrackd.bus.connection import Connection
from conntrackd.bus.control import Control
from conntrackd.bus.interface import INFO
from conntrackd.bus.names import MANAGER, MANAGER_PATH, OBJECT_MANAGER, PROPERTIES, SINK
from conntrackd.bus.objects import Objects
from conntrackd.bus.transport import to_body

# Changes within this time are sent together.
GATHER_SECONDS: Final = 0.1
# Some changes are not announced, such as a problem that is over: they are polled this often.
LOOK_SECONDS: Final = 2.0
MAX_COUNT: Final = (1 << 64) - 1


class Signals:
    """The daemon's Listener: collects changes from any thread, and sends them from the event loop.

    Signals go to everybody whom the bus lets hear them: they carry numbers, states and names of sinks, and
    neither events nor rules.
    """

    def __init__(self, control: Control, objects: Objects) -> None:
        self._control = control
        self._objects = objects
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bus: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._filter = False
        self._lost = 0
        self._known: dict[str, dict[str, Any]] = {}  # properties that were sent last, by path

    # ---- Listener: any thread -------------------------------------------------------------------------

    def filter_changed(self) -> None:
        self._schedule(self._note_filter)

    def events_lost(self, count: int) -> None:
        self._schedule(self._note_lost, count)

    def status_changed(self) -> None:
        self._schedule(self._note)

    def _schedule(self, note: Any, *arguments: int) -> None:  # noqa: ANN401  # one of the methods below
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(note, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    # ---- the event loop -------------------------------------------------------------------------------

    def attach(self, bus: Connection) -> None:
        """From now on changes are sent over this connection."""
        self._loop = asyncio.get_running_loop()
        self._bus = bus
        self._filter, self._lost = False, 0
        self._known = self._read()
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def detach(self) -> None:
        """There is no connection."""
        self._loop = self._bus = None
        for timer in (self._timer, self._looking):
            if timer is not None:
                timer.cancel()
        self._timer = self._looking = None

    def _look(self) -> None:
        self._note()
        if self._loop is not None:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def _note_filter(self) -> None:
        self._filter = True
        self._note()

    def _note_lost(self, count: int) -> None:
        self._lost = min(self._lost + count, MAX_COUNT)
        self._note()

    def _note(self) -> None:
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(GATHER_SECONDS, self._send_all)

    def _send_all(self) -> None:
        self._timer = None
        lost, changed, known = self._lost, self._filter, self._known
        self._lost, self._filter, self._known = 0, False, self._read()
        self._send_sinks(known)
        for path in self._known.keys() & known.keys():
            self._send_properties(path, known[path])
        if changed:
            status = self._control.status().filter
            self._send(MANAGER_PATH, MANAGER, "FilterChanged", "us", [len(status.rules), status.origin])
        if lost:
            self._send(MANAGER_PATH, MANAGER, "EventsLost", "t", [lost])

    def _read(self) -> dict[str, dict[str, Any]]:
        return {
            path: self._objects.read(
                path,
                [
                    prop
                    for prop in self._objects.get_object(path)[0].properties.values()
                    if prop.emits in {"true", "invalidates"}
                ],
            )
            for path in (MANAGER_PATH, *self._objects.list_sinks())
        }

    def _send_properties(self, path: str, before: dict[str, Any]) -> None:
        interface = self._objects.get_object(path)[0]
        changed = {name: value for name, value in self._known[path].items() if value != before[name]}
        if not changed:
            return
        sent = {name: value for name, value in changed.items() if interface.properties[name].emits == "true"}
        hidden = [name for name in changed if name not in sent]
        self._send(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", [interface.name, sent, hidden])
        if interface.name == SINK and "State" in changed:
            name = self._objects.list_sinks()[path]
            self._send(MANAGER_PATH, MANAGER, "SinkStateChanged", "ss", [name, changed["State"].value])

    def _send_sinks(self, before: dict[str, dict[str, Any]]) -> None:
        for path in self._known.keys() - before.keys():
            properties = self._objects.read_all(path, {INFO})
            self._send(
                MANAGER_PATH, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, {SINK: properties}]
            )
        for path in before.keys() - self._known.keys():
            self._send(MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [SINK]])

    def _send(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        if self._bus is not None:
            self._bus.post(Message.new_signal(path, interface, member, signature, to_body(body)))
