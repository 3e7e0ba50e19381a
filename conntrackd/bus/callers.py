"""Who is calling, and may he? The user behind a bus name, until that goes away; and what polkit says of him.

polkit is asked by the caller's bus name, which nobody else can take over.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import Final

from dbus_fast import Message, Variant

from conntrackd.bus.connection import Connection
from conntrackd.bus.interface import INFO
from conntrackd.bus.limits import MAX_CALLERS
from conntrackd.bus.transport import BUS, RemoteError, Service
from conntrackd.errors import NotPermittedError

LOOK_UP_SECONDS: Final = 10.0

POLKIT: Final = Service(
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
# polkit's CheckAuthorizationFlags
ALLOW_USER_INTERACTION: Final = 1
# Of the answer's details: somebody was asked for the password, and would not give it.
DISMISSED: Final = "polkit.dismissed"
ANSWER_SECONDS: Final = 10.0
PASSWORD_SECONDS: Final = 120.0

ROOT: Final = 0
AS_ROOT: Final = "run it as root, for example with sudo"


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
        self._bus.post_call(BUS, member, rule)


class AuthenticationNeededError(NotPermittedError):
    """It might be allowed after a password, for which nobody could ask, or should not."""

    dbus_name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


class Polkit:
    """Asks polkit. Root may do everything; where polkit does not answer, others may only read `info`."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._numbers = count(1)

    async def check(self, caller: str, user: int, action: str, *, interactive: bool) -> None:
        """Raises NotPermittedError unless this caller may do this. May wait for a password to be typed."""
        if user == ROOT:
            return
        try:
            allowed, challenge, details = await self._ask(caller, action, interactive)
        except RemoteError as error:
            if action == INFO:
                return
            raise NotPermittedError(
                f"polkit does not answer: only root may do this ({action})", hint=AS_ROOT
            ) from error
        if not allowed and challenge and DISMISSED not in details:
            raise AuthenticationNeededError(f"needs authentication for {action}", hint=AS_ROOT)
        if not allowed:
            raise NotPermittedError(f"polkit does not allow {action}", hint=AS_ROOT)

    async def _ask(self, caller: str, action: str, interactive: bool) -> tuple[bool, bool, dict[str, str]]:
        ticket = f"conntrackd-{next(self._numbers)}"
        subject = ["system-bus-name", {"name": Variant("s", caller)}]
        flags = ALLOW_USER_INTERACTION if interactive else 0
        seconds = PASSWORD_SECONDS if interactive else ANSWER_SECONDS
        arguments = [subject, action, {}, flags, ticket]
        try:
            reply = await self._bus.ask(POLKIT, "CheckAuthorization", "(sa{sv})sa{ss}us", arguments, seconds)
        except (asyncio.CancelledError, RemoteError):
            # Or a dialogue for a caller who is gone would stay open.
            self._bus.post_call(POLKIT, "CancelCheckAuthorization", ticket)
            raise
        allowed, challenge, details = reply[0]
        return bool(allowed), bool(challenge), dict(details)
