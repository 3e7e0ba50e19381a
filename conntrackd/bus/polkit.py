"""May this caller do this? polkit is asked by the caller's bus name, which nobody else can take over."""

import asyncio
from itertools import count
from typing import Final

from dbus_fast import Message, MessageFlag, Variant

from conntrackd.bus.connection import Connection
from conntrackd.bus.interface import INFO
from conntrackd.bus.transport import RemoteError, Service
from conntrackd.errors import NotPermittedError

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
            self._cancel(ticket)  # or a dialogue for a caller who is gone would stay open
            raise
        allowed, challenge, details = reply[0]
        return bool(allowed), bool(challenge), dict(details)

    def _cancel(self, ticket: str) -> None:
        call = Message(
            POLKIT.name,
            POLKIT.path,
            POLKIT.interface,
            "CancelCheckAuthorization",
            signature="s",
            body=[ticket],
        )
        call.flags = MessageFlag.NO_REPLY_EXPECTED
        self._bus.post(call)
