"""Records -> syslog messages: RFC 5424, RFC 3164 and CEE; message -> the frame that it has on a stream."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from conntrackd.flow import Batch
from conntrackd.options import FACILITIES
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import JSON, Form, Syntax, make_visible

APP_NAME: Final = "conntrackd"
# RFC 5612: the enterprise number that is reserved for examples; there is none of our own.
SD_ID: Final = "event@32473"
INFO, WARNING = 6, 4  # RFC 5424, 6.2.1
MAX_SEQUENCE: Final = 2147483647  # RFC 5424, 7.3.1: then it begins at 1 again
MAX_HOSTNAME: Final = 255


def escape_value(value: str) -> str:
    """RFC 5424, 6.3.3. Control characters become visible too: one line is one record."""
    return make_visible(value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]"))


# PARAM-VALUE is always in quotes.
PARAMETERS: Final = Syntax(' {}="'.format, '"', ' {}="'.format, '"', escape_value)

Frame = Callable[[bytes], bytes]


def frame_by_octets(message: bytes) -> bytes:
    """RFC 6587, 3.4.1."""
    return b"%d %b" % (len(message), message)


def frame_by_line(message: bytes) -> bytes:
    """RFC 6587, 3.4.2: no message of ours holds a line's end."""
    return message + b"\n"


def frame_by_nul(message: bytes) -> bytes:
    """As syslog(3) over a local stream."""
    return message + b"\0"


# Where a message's number comes: a character that no message holds.
PLACE: Final = "\0"
FORMATS: Final = {
    "rfc5424": (
        PARAMETERS,
        f'<$priority>1 $micros $host $app $pid $type [meta sequenceId="{PLACE}"][{SD_ID}$fields] $message\n',
    ),
    "rfc3164": (PARAMETERS, "<$priority>$bsd $origin$app[$pid]: $message$fields\n"),
    "cee": (
        JSON,
        "<$priority>$bsd $origin$app[$pid]: @cee: "
        '{"time":"$time","level":"$level","msg":"$message"$fields}\n',
    ),
}


class SyslogEncoder:
    """Records -> one message each, without a frame. Belongs to one thread."""

    def __init__(
        self, form: str, facility: str, host: str = "", pid: int = 0, *, is_local: bool = False
    ) -> None:
        """`is_local`: to a socket of this host, over which RFC 3164's messages carry no name of it."""
        host = clean_name(host or socket.gethostname())
        # As syslog(3): rsyslog, syslog-ng and journald take what stands there for the program.
        origin = "" if is_local else f"{host} "
        own = {"host": host, "origin": origin, "app": APP_NAME, "pid": str(pid or os.getpid())}
        base = find_facility(facility) * 8
        syntax, template = FORMATS[form]
        self.form = Form(
            syntax,
            template,
            {**own, "priority": str(base + INFO), "level": "INFO"},
            {**own, "priority": str(base + WARNING), "level": "WARN"},
        )
        self._composer = Composer()
        self._next = 0

    def encode(self, batch: Batch) -> list[bytes]:
        """In the order of the batch."""
        text = "".join(self._composer.compose_each(self.form, batch))
        # Not only in a format that has numbers: what waits may be of the one before a reload.
        return self._number(text).encode().split(b"\n")[:-1]

    def _number(self, text: str) -> str:
        """Puts the number of each message in its place: only who sends them knows their order."""
        parts = text.split(PLACE)
        first, self._next = self._next, (self._next + len(parts) - 1) % MAX_SEQUENCE
        woven = [""] * (2 * len(parts) - 1)
        woven[::2] = parts
        woven[1::2] = [str(each % MAX_SEQUENCE + 1) for each in range(first, first + len(parts) - 1)]
        return "".join(woven)


def find_facility(name: str) -> int:
    """RFC 5424, 6.2.1. Between ftp (11) and local0 (16) are four that nobody sends events to."""
    index = FACILITIES.index(name)
    return index if index < FACILITIES.index("local0") else index + 4


def clean_name(host: str) -> str:
    """RFC 5424, 6: PRINTUSASCII, at most 255; `-` for none.

    A name in other letters becomes what DNS has for it (`xn--...`): with letters left out it would be the
    name of another machine.
    """
    with suppress(UnicodeError):
        host = host.encode("idna").decode()
    return "".join(each if "!" <= each <= "~" else "?" for each in host)[:MAX_HOSTNAME] or "-"
