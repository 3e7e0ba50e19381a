"""org.conntrackd1 on the bus: comes back by itself whatever becomes of the bus. Nothing else waits for it."""

import asyncio
import logging
import os
from typing import Final

from conntrackd.bus import interface
from conntrackd.bus.connection import Connection
from conntrackd.bus.control import Control
from conntrackd.bus.limits import REST, Limiter, Turns
from conntrackd.bus.names import MANAGER, NAME, SINK, SYSTEM_BUS
from conntrackd.bus.objects import Objects
from conntrackd.bus.properties import ManagerProperties, SinkProperties
from conntrackd.bus.session import Session
from conntrackd.bus.signals import Signals
from conntrackd.bus.transport import BUS
from conntrackd.errors import UnavailableError

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10.0
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0

# RequestName
DO_NOT_QUEUE: Final = 4  # and neither ALLOW_REPLACEMENT nor REPLACE_EXISTING
PRIMARY_OWNER: Final = 1


class BusService:
    """Offers the daemon's Control over D-Bus. run() in the event loop is all there is to call."""

    def __init__(self, control: Control, address: str | None = None) -> None:
        self._interfaces = interface.load()
        interface.check_control(self._interfaces, type(control))
        interface.check_properties(self._interfaces[MANAGER], ManagerProperties)
        interface.check_properties(self._interfaces[SINK], SinkProperties)
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
        self._objects = Objects(control, self._interfaces)
        self._signals = Signals(control, self._objects)
        # Lives longer than a connection, so that nobody gets a new allowance by breaking one.
        self._limiter = Limiter()
        self._turns = (Turns(), Turns(REST))
        self._delay = FIRST_DELAY
        self._told: set[object] = set()
        self._is_asked_for = self._address != SYSTEM_BUS
        self.ready = asyncio.Event()
        """Set while the name is owned and calls are answered."""
        control.subscribe(self._signals)

    async def run(self) -> None:
        """Serves until it is cancelled. Raises nothing: a bus that is not there is waited for."""
        while True:
            try:
                await self._serve()
            except Exception as error:  # the edge: whatever it is, the events go on, and so do the attempts
                self._complain(error)
            await asyncio.sleep(self._delay)
            self._delay = min(self._delay * 2, LONGEST_DELAY)

    def _complain(self, error: Exception) -> None:
        """Once for each kind of reason: the attempts go on for as long as the daemon runs.

        Of a kind, and not of a text, which may name a connection that is another one each time.
        """
        text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        kind = getattr(error, "errno", None) or getattr(error, "name", None) or type(error)
        if kind in self._told:
            return
        self._told.add(kind)
        if isinstance(error, FileNotFoundError) and not self._is_asked_for:
            logger.info("bus: no D-Bus here, so conntrackctl cannot be used; waiting for one")
        else:
            logger.warning("bus: %s: %s, retrying", self._address, text)

    async def _serve(self) -> None:
        """From connect() to the end of the connection."""
        session: Session | None = None
        bus = Connection(self._address)
        try:
            await asyncio.wait_for(bus.connect(), CONNECT_SECONDS)
            session = Session(bus, self._objects, self._interfaces, self._limiter, self._turns)
            bus.add_message_handler(session.take)
            bus.take_over(session.find_refusal)
            reply = await bus.ask(BUS, "RequestName", "su", [NAME, DO_NOT_QUEUE], CONNECT_SECONDS)
            if reply[0] != PRIMARY_OWNER:
                raise UnavailableError(f"{NAME} is owned by another process")
            self._signals.attach(bus)
            self._delay = FIRST_DELAY
            self._told.clear()
            self.ready.set()
            logger.info("bus: %s is on %s", NAME, self._address)
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        finally:
            self.ready.clear()
            self._signals.detach()
            if session is not None:
                session.close()
            bus.end()
