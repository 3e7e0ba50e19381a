"""Records -> syslog messages: RFC 5424, RFC 3164 and CEE; message -> the frame that it has on a stream."""

import os
import socket
from collections.abc import Callable
from itertools import count
from typing import Final

from conntrackd.flow import Batch, EventType, Lost
from conntrackd.options import FACILITIES
from conntrackd.sinks.encode import JSON, Rendered, Renderer, Syntax, make_visible

APP_NAME: Final = "conntrackd"
# RFC 5612: the enterprise number that is reserved for examples; there is none of our own.
SD_ID: Final = "event@32473"
INFO, WARNING = 6, 4  # RFC 5424, 6.2.1
MAX_SEQUENCE: Final = 2147483647  # RFC 5424, 7.3.1: then it begins at 1 again
MAX_HOSTNAME: Final = 255
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
TYPES: Final = {int(each): str(each.name) for each in EventType}


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


class SyslogEncoder:
    """Records -> one message each, without a frame. Belongs to one thread."""

    def __init__(
        self, form: str, facility: str, host: str = "", pid: int = 0, *, is_local: bool = False
    ) -> None:
        """`is_local`: to a socket of this host, over which RFC 3164's messages carry no name of it."""
        self._host = clean_name(host or socket.gethostname())
        # As syslog(3): rsyslog, syslog-ng and journald take what stands there for the program.
        self._origin = "" if is_local else f"{self._host} "
        self._pid = pid or os.getpid()
        base = find_facility(facility) * 8
        self._info, self._warning = f"<{base + INFO}>", f"<{base + WARNING}>"
        self._renderer = Renderer(JSON if form == "cee" else PARAMETERS)
        self._build = {"rfc5424": self._build_5424, "rfc3164": self._build_3164, "cee": self._build_cee}[form]
        self._numbers = count()

    def encode(self, batch: Batch) -> list[bytes]:
        """In the order of the batch."""
        build = self._build
        return [build(each).encode() for each in self._renderer.render(batch)]

    def _build_5424(self, each: Rendered) -> str:
        when, _, message, fields, record = each
        is_lost = isinstance(record, Lost)
        sequence = next(self._numbers) % MAX_SEQUENCE + 1
        # Six digits of a second at most, where we have nine.
        return (
            f"{self._warning if is_lost else self._info}1 {when[:26]}{when[29:]} {self._host} {APP_NAME} "
            f"{self._pid} {'LOST' if isinstance(record, Lost) else TYPES.get(record.type, '-')} "
            f'[meta sequenceId="{sequence}"][{SD_ID}{fields}] {message}'
        )

    def _build_3164(self, each: Rendered) -> str:
        return f"{self._build_head(each)} {each[2]}{each[3]}"

    def _build_cee(self, each: Rendered) -> str:
        when, level, message, fields, _ = each
        head = self._build_head(each)
        return f'{head} @cee: {{"time":"{when}","level":"{level}","msg":"{message}"{fields}}}'

    def _build_head(self, each: Rendered) -> str:
        """RFC 3164, 4.1.2: local time without a year, the day in two places."""
        when, record = each[0], each[4]
        month, day = MONTHS[int(when[5:7]) - 1], int(when[8:10])
        priority = self._warning if isinstance(record, Lost) else self._info
        return f"{priority}{month} {day:2} {when[11:19]} {self._origin}{APP_NAME}[{self._pid}]:"


def find_facility(name: str) -> int:
    """RFC 5424, 6.2.1. Between ftp (11) and local0 (16) are four that nobody sends events to."""
    index = FACILITIES.index(name)
    return index if index < FACILITIES.index("local0") else index + 4


def clean_name(host: str) -> str:
    """RFC 5424, 6: PRINTUSASCII, at most 255; `-` for none."""
    return "".join(each for each in host if "!" <= each <= "~")[:MAX_HOSTNAME] or "-"
