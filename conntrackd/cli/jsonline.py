"""A JSON line of the stream sink -> Flow, for rules to be tried on events that were recorded."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from typing import Any, Final, NoReturn

from conntrackd.errors import DataError
from conntrackd.flow import ABSENT, EventType, Flow, Location, Protocol, TcpState

SECOND: Final = 10**9
MAX_PORT: Final = (1 << 16) - 1
MAX_ICMP_ID: Final = (1 << 16) - 1
MAX_U32: Final = (1 << 32) - 1
MAX_U64: Final = (1 << 64) - 1
# RFC 3339: date and time, the fraction of the second, the offset.
TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def decode_json_line(line: bytes) -> Flow | None:
    """The event of one line; None for a LOST record, which no filter reaches. Raises DataError.

    What the filter does not look at is not checked. The form has no status: it is 0, or what `status` says.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError("not JSON") from None
    if not isinstance(found, dict):
        raise DataError("not a JSON object")
    if found.get("type") == "LOST":
        return None
    return _build_flow(_Fields(found))


def _build_flow(fields: "_Fields") -> Flow:
    src, dst = fields.address("src"), fields.address("dst")
    sport, dport = fields.number("sport", MAX_PORT), fields.number("dport", MAX_PORT)
    icmp_id = fields.number("icmp_id", MAX_ICMP_ID)
    if len(src) != len(dst):
        raise DataError("src and dst are not of one family")
    start, stop = _read_times(fields)
    return Flow(
        type=_read_type(fields),
        time=fields.time("time"),
        family=AF_INET if len(src) == 4 else AF_INET6,
        protocol=_read_protocol(fields),
        id=fields.number("flow", MAX_U32, 0),
        src=src,
        dst=dst,
        sport=sport,
        dport=dport,
        reply_src=fields.address("nat_dst", dst),
        reply_dst=fields.address("nat_src", src),
        reply_sport=fields.number("nat_dport", MAX_PORT, dport),
        reply_dport=fields.number("nat_sport", MAX_PORT, sport),
        state=_read_state(fields),
        status=fields.number("status", MAX_U32, 0),
        mark=fields.number("mark", MAX_U32, 0),
        zone=fields.number("zone", MAX_PORT, 0),
        orig_packets=fields.number("packets", MAX_U64),
        orig_bytes=fields.number("bytes", MAX_U64),
        reply_packets=fields.number("reply_packets", MAX_U64),
        reply_bytes=fields.number("reply_bytes", MAX_U64),
        start=start,
        stop=stop,
        icmp_id=icmp_id,
        reply_icmp_id=fields.number("nat_icmp_id", MAX_ICMP_ID, icmp_id),
        src_location=fields.location("src_"),
        dst_location=fields.location(""),
    )


def _read_type(fields: "_Fields") -> int:
    name = fields.text("type")
    try:
        return EventType[name].value
    except KeyError:
        fields.refuse("type", f"one of: {', '.join(EventType.__members__)}")


def _read_protocol(fields: "_Fields") -> int:
    value = fields.values.get("prot")
    if isinstance(value, str) and value in Protocol.__members__:
        return Protocol[value].value
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value) else value
    if type(number) is not int or not 0 <= number <= 255:
        fields.refuse("prot", "a protocol by its name or number")
    return number


def _read_state(fields: "_Fields") -> int:
    name = fields.text("state", "")
    if not name:
        return ABSENT
    if name not in TcpState.__members__:
        fields.refuse("state", f"one of: {', '.join(TcpState.__members__)}")
    return TcpState[name].value


def _read_times(fields: "_Fields") -> tuple[int, int]:
    """Start and stop; where only the duration is given, any two times that are so far apart."""
    start, stop = fields.time("start"), fields.time("stop")
    duration = fields.values.get("duration")
    if duration is None or (start and stop):
        return start, stop
    if type(duration) not in {int, float} or not abs(duration) < MAX_U32:
        fields.refuse("duration", "a number of seconds")
    return SECOND * MAX_U32, SECOND * MAX_U32 + round(duration * SECOND)


class _Fields:
    """The fields of one event, each checked when it is read; `null` is as good as absent."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    def refuse(self, name: str, hint: str) -> NoReturn:
        if name not in self.values:
            raise DataError(f"the required field {name!r} is missing", hint=hint)
        raise DataError(f"{name} cannot be {json.dumps(self.values[name])[:60]}", hint=hint)

    def number(self, name: str, maximum: int, absent: int = ABSENT) -> int:
        value = self.values.get(name, absent)
        # Not isinstance: true and false are numbers to Python.
        if type(value) is not int or not (0 <= value <= maximum or value == absent):
            self.refuse(name, f"a number from 0 to {maximum}")
        return value

    def text(self, name: str, absent: str | None = None) -> str:
        value = self.values.get(name, absent)
        if not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def address(self, name: str, absent: bytes | None = None) -> bytes:
        if name not in self.values and absent is not None:
            return absent
        try:
            return ip_address(self.text(name)).packed
        except ValueError:
            self.refuse(name, "an IPv4 or IPv6 address")

    def time(self, name: str) -> int:
        """Nanoseconds since the epoch, 0 where it is absent."""
        if name not in self.values:
            return 0
        match = TIME.fullmatch(self.text(name))
        try:
            if match is None:
                raise ValueError
            whole = datetime.fromisoformat(f"{match[1]}{match[3]}")
            return int(whole.timestamp()) * SECOND + int((match[2] or "0").ljust(9, "0"))
        except (ValueError, OverflowError):
            self.refuse(name, "a time such as 2025-11-22T11:34:43.181432081+01:00")

    def location(self, prefix: str) -> Location | None:
        """Of the source (`src_`) or the destination; only what rules can ask for."""
        city, country = self.text(f"{prefix}city", ""), self.text(f"{prefix}country", "")
        code = self.text(f"{prefix}country_code", "")
        return Location(city, country, country_code=code) if city or country or code else None
