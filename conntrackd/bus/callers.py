"""Who is calling: the user behind a bus name, and what to do when the name goes away."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from dbus_fast import Message, MessageFlag

from conntrackd.bus.connection import Connection
from conntrackd.bus.limits import MAX_CALLERS
from conntrackd.bus.transport import BUS

LOOK_UP_SECONDS: Final = 10.0


class Callers:
    """The users of the bus names that have called. No bus gives a unique name twice, so they can be kept."""

    def __init__(self, bus: Connection, on_gone: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_gone = on_gone
        self._users: OrderedDict[str, int] = OrderedDict()
        self._look_ups: dict[str, asyncio.Task[int]] = {}

    def key(self, name: str) -> int | str:
        """The user, or the name itself while its user is not known."""
        return self._users.get(name, name)

    async def look_up_user(self, name: str) -> int:
        """The user id behind a name. Raises RemoteError when the name is gone already."""
        if name in self._users:
            return self._users[name]
        if name not in self._look_ups:
            self._look_ups[name] = asyncio.create_task(self._look_up(name))
        # shield: one look-up may have several calls waiting for it, of which one may be cancelled
        return await asyncio.shield(self._look_ups[name])

    async def _look_up(self, name: str) -> int:
        try:
            # First, so that no moment is left in which the name could go unnoticed.
            self._match("AddMatch", name)
            user = (await self._bus.ask(BUS, "GetConnectionUnixUser", "s", [name], LOOK_UP_SECONDS))[0]
        except BaseException:
            self._match("RemoveMatch", name)
            raise
        finally:
            del self._look_ups[name]
        self._users[name] = int(user)
        if len(self._users) > MAX_CALLERS:
            self._match("RemoveMatch", self._users.popitem(last=False)[0])
        return int(user)

    def handle_signal(self, message: Message) -> None:
        """Handle a signal: forget a name that the bus reports as gone, ignore all others."""
        if message.sender != BUS.name or message.member != "NameOwnerChanged" or message.signature != "sss":
            return
        name, _, owner = message.body
        if owner:
            return
        if self._users.pop(name, None) is not None:
            self._match("RemoveMatch", name)
        self._on_gone(name)

    def close(self) -> None:
        for task in self._look_ups.values():
            task.cancel()

    def _match(self, member: str, name: str) -> None:
        rule = (
            f"type='signal',sender='{BUS.name}',interface='{BUS.interface}',"
            f"member='NameOwnerChanged',arg0='{name}',arg2=''"
        )
        call = Message(BUS.name, BUS.path, BUS.interface, member, signature="s", body=[rule])
        call.flags = MessageFlag.NO_REPLY_EXPECTED
        self._bus.post(call)
