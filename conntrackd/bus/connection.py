"""A connection to the bus that looks at a message's header before anything of the message is parsed.

dbus-fast reads from a bus for as long as there is something to read: a flood of calls would keep its event
loop, and with it signals and the watchdog, from ever turning (measured with 1.84, 2.44 and 5.2). And it
parses what it reads, 30 MB of strings too. So the reading is done here: a bounded amount each turn of the
loop, refused by header, and handed to dbus-fast when it may pass.
"""

import asyncio
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast._private.marshaller import Marshaller
from dbus_fast._private.unmarshaller import Unmarshaller
from dbus_fast.aio import MessageBus

from conntrackd.bus import wire
from conntrackd.bus.limits import MAX_ERROR_TEXT, MAX_PAUSE, PAUSE
from conntrackd.errors import ConntrackdError

# About 100 small calls: the loop turns at least every 10 ms.
CHUNK: Final = 16384
# Of a long message that may pass, at once.
LONG_CHUNK: Final = 1 << 20
MAX_REPLY: Final = 8 << 20  # from the bus itself or from polkit

# dbus-fast 1.84 (Debian 12) gives the length of a string in characters instead of bytes, for which the bus
# closes the connection: there, what is not ASCII is escaped.
TEXT_ENCODING: Final = "utf-8" if bytes(Marshaller("s", ["\xe4"]).marshall())[0] == 2 else "ascii"

FindRefusal = Callable[[wire.Header, int], ConntrackdError | None]


@dataclass(frozen=True, slots=True)
class Service:
    """One interface of another service on the bus."""

    name: str
    path: str
    interface: str


BUS: Final = Service("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class RemoteError(Exception):
    """Another service answered with an error, or not at all. `name` is D-Bus's name of it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Connection(MessageBus):
    """A MessageBus whose calls have passed `find_refusal`, which gets a header and the length of the body.

    What that returns is sent to the caller as the error; the body is skipped, never held. File
    descriptors are never received: the kernel closes them, because nothing here makes room for them.
    """

    def __init__(self, address: str, find_refusal: FindRefusal) -> None:
        try:
            super().__init__(bus_address=address, negotiate_unix_fd=True)
        except BaseException:
            # Where there is no bus, dbus-fast leaves them to the garbage collector.
            for source in (getattr(self, "_stream", None), getattr(self, "_sock", None)):
                if source is not None:
                    source.close()
            raise
        self._find_refusal = find_refusal
        self._number = -1
        self._frame = bytearray()
        self._wanted = 0  # size of the first message in _frame, when it may pass
        self._skip = 0  # bytes to come of a message that was refused
        self._refused = 0

    def take_over(self) -> None:
        """To be called once after connect(): from here on it is this class that reads."""
        assert self._sock is not None
        self._number = self._sock.fileno()
        self._loop.remove_reader(self._number)
        self._loop.add_reader(self._number, self._read)

    def end(self, error: Exception | None = None) -> None:
        """Close everything. May be called twice, and before connect()."""
        if self._sock is None or self._stream is None:
            return
        if not self._disconnected:
            self._user_disconnect = error is None
            self._finalize(error)
        with contextlib.suppress(OSError):  # what it had not sent yet
            self._stream.close()
        self._sock.close()

    def _read(self) -> None:
        assert self._sock is not None
        wanted = max(CHUNK, min(self._missing(), LONG_CHUNK))
        try:
            data = self._sock.recv(wanted)
            if not data:
                raise EOFError("the bus has closed the connection")
            self._feed(data)
        except BlockingIOError:
            return
        except (OSError, EOFError, wire.WireError) as error:
            self.end(error)
            return
        if self._refused and not self._disconnected:
            self._pause()

    def _missing(self) -> int:
        """Bytes of a long message that are still to come."""
        return self._skip or self._wanted - len(self._frame)

    def _pause(self) -> None:
        """A flood is not read: it waits in the bus, which refuses more when its own limits are reached."""
        seconds = min(self._refused * PAUSE, MAX_PAUSE)
        self._refused = 0
        self._loop.remove_reader(self._number)
        self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if not self._disconnected:
            self._loop.add_reader(self._number, self._read)

    def _feed(self, data: bytes) -> None:
        """Cut the stream into messages. Raises WireError where it is none."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._frame += data
        while self._take_one() and not self._disconnected:
            pass

    def _take_one(self) -> bool:
        """Take the first message of what was read, or its header when the rest is to be skipped."""
        if len(self._frame) < max(wire.FIXED, self._wanted):
            return False
        if self._wanted:
            self._deliver(self._wanted)
            return True
        head, body = wire.measure(self._frame)
        if len(self._frame) < min(head, wire.MAX_HEADER):
            return False
        # A longer header would have a path of that length: not worth an answer.
        if head > wire.MAX_HEADER or self._refuse(wire.parse_header(self._frame), body):
            self._drop(head + body)
        else:
            self._wanted = head + body
        return True

    def _drop(self, size: int) -> None:
        self._skip = max(0, size - len(self._frame))
        del self._frame[:size]

    def _refuse(self, header: wire.Header, body: int) -> bool:
        if header.type != wire.METHOD_CALL:
            return body > MAX_REPLY or header.unix_fds > 0
        error = self._find_refusal(header, body)
        if error is None:
            return False
        self._refused += 1
        if not header.flags & wire.NO_REPLY_EXPECTED:
            self.post(make_error(header, error))
        return True

    def _deliver(self, size: int) -> None:
        frame = self._frame[:size]
        del self._frame[:size]
        frame[2] = simplify_flags(frame[2])
        self._wanted = 0
        message = Unmarshaller(io.BytesIO(bytes(frame))).unmarshall()  # type: ignore[arg-type]  # it calls read() only
        if message is not None:
            self._process_message(message)

    def post(self, message: Message, on_done: Callable[[], None] = lambda: None) -> None:
        """Send what nobody waits for. `on_done` is called when it was sent, or could not be."""

        def done(future: asyncio.Future[Any]) -> None:
            if not future.cancelled():
                future.exception()  # retrieved: the end of the connection is reported elsewhere
            on_done()

        if self.connected:
            self.send(message).add_done_callback(done)
        else:
            on_done()

    async def ask(
        self, service: Service, member: str, signature: str, body: list[Any], timeout: float
    ) -> list[Any]:
        """Call another service. Raises RemoteError where it fails or does not answer in time."""
        call = Message(service.name, service.path, service.interface, member, signature=signature, body=body)
        try:
            reply = await asyncio.wait_for(self.call(call), timeout)
        except TimeoutError as error:
            raise RemoteError("org.freedesktop.DBus.Error.NoReply", f"no answer in {timeout:g} s") from error
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            name = "" if reply is None else str(reply.error_name)
            raise RemoteError(name, str(reply.body[0]) if reply is not None and reply.body else "")
        return list(reply.body)


def make_error(call: wire.Header | Message, error: ConntrackdError) -> Message:
    """The answer to a call that failed: the error's name, and its text as people read it."""
    return Message(
        destination=call.sender,
        message_type=MessageType.ERROR,
        flags=MessageFlag.NO_REPLY_EXPECTED,
        error_name=error.dbus_name,
        reply_serial=call.serial,
        signature="s",
        body=[clean_text(str(error)[:MAX_ERROR_TEXT])],
    )


def simplify_flags(flags: int) -> int:
    """The one flag of a call that matters here: dbus-fast 1.84 fails for two of them in one message."""
    for flag in (wire.NO_REPLY_EXPECTED, wire.ALLOW_INTERACTIVE_AUTHORIZATION):
        if flags & flag:
            return flag
    return 0


def clean_text(text: str, encoding: str = TEXT_ENCODING) -> str:
    """As D-Bus can carry it: without NUL, and as UTF-8. The bus would close the connection for either."""
    if encoding == "ascii":
        return text.replace("\0", "?").encode("ascii", "backslashreplace").decode()
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
