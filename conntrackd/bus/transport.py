"""dbus-fast's connection as both ends use it, with what the versions of Debian 12 and 13 lack."""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Any, Final

from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.auth import AuthExternal

from conntrackd.bus import names

# Of the bus's answers while it authenticates: a word and 32 digits.
MAX_LINE: Final = 512


@dataclass(frozen=True, slots=True)
class Service:
    """One interface of a service on the bus."""

    name: str
    path: str
    interface: str


BUS: Final = Service(names.BUS, names.BUS_PATH, names.BUS)


class RemoteError(Exception):
    """Another service answered with an error, or not at all. `name` is D-Bus's name of it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Text(str):
    """Text whose length is that of its UTF-8.

    dbus-fast 1.84 (Debian 12) asks a string for its length and means bytes, for which the bus would close the
    connection.
    """

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.encode())


class Transport(MessageBus):
    """A MessageBus that leaves nothing open, waits for no answer of a bus that is gone, and has ask()."""

    def __init__(self, address: str) -> None:
        try:
            super().__init__(bus_address=address, auth=AuthExternal(os.geteuid()), negotiate_unix_fd=True)
        except BaseException:
            # Where there is no bus, dbus-fast leaves them to the garbage collector.
            for source in (getattr(self, "_stream", None), getattr(self, "_sock", None)):
                if source is not None:
                    source.close()
            raise

    async def _auth_readline(self) -> str:
        """Read a line. Until 5.0 dbus-fast reads on when the bus has closed the connection: for ever."""
        line = b""
        while not line.endswith(b"\r\n"):
            assert self._sock is not None
            data = await self._loop.sock_recv(self._sock, MAX_LINE)
            line += data
            if not data or len(line) > MAX_LINE:
                raise EOFError("what answers there does not authenticate as a D-Bus does")
        return line[:-2].decode(errors="replace")

    def end(self, error: Exception | None = None) -> None:
        """Close everything. May be called twice, and before connect()."""
        if self._sock is None:
            return
        if not self._disconnected:
            self._user_disconnect = error is None
            self._finalize(error)
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what it had not sent yet
                self._stream.close()
        self._sock.close()

    async def request(
        self,
        service: Service,
        member: str,
        signature: str,
        body: list[Any],
        timeout: float,
        flags: MessageFlag = MessageFlag.NONE,
    ) -> Message:
        """Call a method. Raises RemoteError for an error, TimeoutError, and OSError or EOFError."""
        if self._disconnected:
            raise EOFError("no reason given")
        call = Message(service.name, service.path, service.interface, member, signature=signature, body=body)
        call.flags = flags
        reply = await asyncio.wait_for(self.call(call), timeout)
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            name = "" if reply is None else str(reply.error_name)
            raise RemoteError(name, str(reply.body[0]) if reply is not None and reply.body else "")
        return reply

    async def ask(
        self, service: Service, member: str, signature: str, body: list[Any], timeout: float
    ) -> list[Any]:
        """As request(), for the values of the answer. Raises RemoteError also where none comes in time."""
        try:
            return list((await self.request(service, member, signature, body, timeout)).body)
        except TimeoutError as error:
            raise RemoteError(f"{names.ERRORS}NoReply", f"no answer in {timeout:g} s") from error


def to_body(value: Any) -> Any:  # noqa: ANN401  # any value of a call or handler
    """A value as dbus-fast expects it: structs as lists, text as the bus can carry it."""
    match value:
        case str():
            return clean_text(value)
        case list() | tuple():
            return [to_body(item) for item in value]
        case dict():
            return {to_body(key): to_body(item) for key, item in value.items()}
    return value


def clean_text(text: str) -> Text:
    """Without NUL, and as UTF-8. The bus would close the connection for either."""
    return Text(text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode())
