"""The service's connection, which looks at a message's header before the rest of it is parsed.

dbus-fast parses whatever the bus passes on: 30 MB of variants from a member of the observers' group stop its
loop, and with it signals and the watchdog, for 4 s, and take 600 MiB. And it reads for as long as there is
something to read. So the reading is done here: a bounded amount each turn of the loop, refused by the header,
which dbus-fast parses alone, and handed to dbus-fast when it may pass.
"""

import asyncio
import io
import logging
import struct
from collections.abc import Callable
from typing import Any, Final

from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast._private.unmarshaller import Unmarshaller

from conntrackd.bus.limits import MAX_ERROR_TEXT, MAX_PAUSE, PAUSE
from conntrackd.bus.transport import Service, Transport, clean_text
from conntrackd.errors import ConntrackdError

# About 100 small calls: the loop turns at least every 10 ms.
CHUNK: Final = 16384
# Of a long message that may pass, at once.
LONG_CHUNK: Final = 1 << 20
MAX_REPLY: Final = 8 << 20  # from the bus itself or from polkit
# D-Bus specification, "Message Protocol".
FIXED: Final = 16  # bytes from the start of a message to the end of the length of its header fields
MAX_HEADER: Final = 16384  # names are at most 255 bytes, a path is refused by the bus only at its own limit
MAX_BODY: Final = 128 << 20  # "the maximum length of a message ... is 128 MiB"

logger = logging.getLogger(__name__)

FindRefusal = Callable[[Message, int], ConntrackdError | None]


class Connection(Transport):
    """A Transport whose calls have passed `find_refusal`, which gets a header and the length of the body.

    What that returns is sent to the caller as the error; the body is skipped, never held. File
    descriptors are never received: the kernel closes them, because nothing here makes room for them.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._find_refusal: FindRefusal
        self._number = -1
        self._frame = bytearray()
        self._wanted = 0  # size of the first message in _frame, when it may pass
        self._skip = 0  # bytes to come of a message that was refused
        self._refused = 0

    def take_over(self, find_refusal: FindRefusal) -> None:
        """To be called once after connect(): from here on it is this class that reads."""
        assert self._sock is not None
        self._find_refusal = find_refusal
        self._number = self._sock.fileno()
        self._loop.remove_reader(self._number)
        self._loop.add_reader(self._number, self._read)

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
        except (OSError, EOFError) as error:
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
        """Cut the stream into messages. Raises EOFError where it is none."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._frame += data
        while self._take_one() and not self._disconnected:
            pass

    def _take_one(self) -> bool:
        """Take the first message of what was read, or its header when the rest is to be skipped."""
        if len(self._frame) < max(FIXED, self._wanted):
            return False
        if self._wanted:
            self._deliver(self._wanted)
            return True
        head, body = measure(self._frame)
        if len(self._frame) < min(head, MAX_HEADER):
            return False
        # A longer header would have a path of that length: not worth an answer.
        if head > MAX_HEADER or self._refuse(parse_header(self._frame[:head]), body):
            self._drop(head + body)
        else:
            self._wanted = head + body
        return True

    def _drop(self, size: int) -> None:
        self._skip = max(0, size - len(self._frame))
        del self._frame[:size]

    def _refuse(self, header: Message | None, body: int) -> bool:
        if header is None:
            return True
        if header.message_type is not MessageType.METHOD_CALL:
            return body > MAX_REPLY
        error = self._find_refusal(header, body)
        if error is None:
            return False
        self._refused += 1
        if not header.flags & MessageFlag.NO_REPLY_EXPECTED:
            self.post(make_error(header, error))
        return True

    def _deliver(self, size: int) -> None:
        frame = self._frame[:size]
        del self._frame[:size]
        self._wanted = 0
        message = parse(frame)
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

    def post_call(self, service: Service, member: str, text: str) -> None:
        """Call a method that takes a text, and wait for no answer."""
        call = Message(service.name, service.path, service.interface, member, signature="s", body=[text])
        call.flags = MessageFlag.NO_REPLY_EXPECTED
        self.post(call)


def measure(data: bytes | bytearray) -> tuple[int, int]:
    """Length of the header with its padding, and of the body. Needs FIXED bytes. Raises EOFError."""
    order = {0x6C: "<", 0x42: ">"}.get(data[0])
    if order is None or data[3] != 1:
        raise EOFError("what the bus sends is not D-Bus")
    body, _, fields = struct.unpack_from(f"{order}III", data, 4)
    if fields > MAX_BODY or body > MAX_BODY:
        raise EOFError("the bus sends what is longer than a message can be")
    return FIXED + (fields + 7) // 8 * 8, body


def parse_header(data: bytes | bytearray) -> Message | None:
    """A message without its body, from the bytes of its header alone."""
    head = bytearray(data)
    head[4:8] = bytes(4)  # the length of the body
    return parse(head)


def parse(data: bytes | bytearray) -> Message | None:
    """A whole message, or None for one that dbus-fast does not read, though the bus has."""
    frame = bytearray(data)
    frame[2] = simplify_flags(frame[2])
    try:
        message: Message | None = Unmarshaller(io.BytesIO(bytes(frame))).unmarshall()  # type: ignore[arg-type]  # it calls read() only
    except Exception as error:  # whatever its versions raise for a header field or type that they do not know
        logger.debug("bus: a message was skipped: %r", error)
        return None
    return message


def make_error(call: Message, error: ConntrackdError) -> Message:
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
    for flag in (MessageFlag.NO_REPLY_EXPECTED, MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION):
        if flags & flag:
            return int(flag)
    return 0
