"""A record as it was written -> its values and the Flow: the way back from fields.py, for what was logged.

A record is what a JSON line of the stream holds; records of other sinks are turned into that form first, by
parse_text(). What a record does not carry is absent in the Flow too, so that a rule about it does not match.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, Final, NoReturn

from conntrackd.errors import DataError
from conntrackd.flow import ABSENT, NANO, Flow, Location
from conntrackd.render.fields import FIELDS, NETWORK, PLACE, Kind, OutputField
from conntrackd.render.schema import find_schema
from conntrackd.units import MAX_U32

Record = dict[str, Any]
Parse = Callable[[Any], Any]

# Types of records that are none of an event, with the field that has the number of these.
REPORTS: Final = {"LOST": "lost", "SUPPRESSED": "suppressed"}
MAX_U8: Final = (1 << 8) - 1
MAX_U16: Final = (1 << 16) - 1
MAX_U64: Final = (1 << 64) - 1
# What the kernel has room for, by attribute of Flow; counters have 64 bits.
MAXIMA: Final = {
    **dict.fromkeys(("icmp_type", "icmp_code"), MAX_U8),
    **dict.fromkeys(("sport", "dport", "reply_sport", "reply_dport", "icmp_id", "reply_icmp_id"), MAX_U16),
    **dict.fromkeys(("zone", "reply_zone", "master_sport", "master_dport"), MAX_U16),
    **dict.fromkeys(("id", "mark", "status"), MAX_U32),
}
# Follow from the others: whether there is a translation, the time from start to stop, and the Community ID.
COMPUTED: Final = frozenset({"nat", "duration", "community_id"})
# Where a field has no value of its own, it is that of the other direction: there is no translation.
TURNED: Final = {
    "reply_src": "dst",
    "reply_dst": "src",
    "reply_sport": "dport",
    "reply_dport": "sport",
    "reply_icmp_id": "icmp_id",
}
NEEDED: Final = {"src": "src", "dst": "dst", "type": "type", "protocol": "prot"}
LEFT_OUT: Final = "what sink.NAME.fields leaves out cannot be read back, see conntrackd-events(7)"
OTHER_NAMES: Final = (
    "conntrackctl reads conntrackd's own names alone: sink.stream.schema: native, or another sink"
)
MAX_LABELS: Final = 128
# RFC 3339: date and time, the fraction of the second, the offset.
TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII)
EXAMPLE_TIME: Final = "2025-11-22T11:34:43.181432081+01:00"
PLACES: Final = {f"{prefix}{name}": (prefix, name) for prefix in ("", "src_") for name in (*PLACE, *NETWORK)}
NUMBERS_OF_PLACES: Final[Mapping[str, type[int | float]]] = {"lat": float, "lon": float, "asn": int}


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)


# NaN and Infinity are no JSON, though Python reads them.
_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode


def parse_record(record: Mapping[str, Any], labels: Mapping[str, int] | None = None) -> Flow | None:
    """As parse_flow(); None for a report, of which the number is checked, and nothing else."""
    name = REPORTS.get(str(record.get("type")))
    if name is None:
        return parse_flow(record, labels)
    count = record.get(name)
    if count is not None and (type(count) is not int or not 0 <= count <= MAX_U64):
        _refuse(record.get(name), name, f"a number from 0 to {MAX_U64}")
    return None


def parse_line(line: bytes | str) -> Record:
    """A line of the stream: what is `null` is absent. Nothing is checked but that it is a JSON object.

    Raises DataError.
    """
    try:
        found = _decode(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError):
        raise DataError("not JSON") from None
    if not isinstance(found, dict):
        raise DataError("not a JSON object")
    if None in found.values():
        return {name: value for name, value in found.items() if value is not None}
    return found


def parse_text(name: str, text: str) -> str | int | float:
    """A value that a sink gives as text -> as it stands in JSON; what cannot be converted stays text."""
    convert = TEXTS.get(name)
    try:
        return text if convert is None else convert(text)
    except ValueError:
        return text


def parse_flow(record: Mapping[str, Any], labels: Mapping[str, int] | None = None) -> Flow:
    """The event. What it does not hold is not checked. Raises DataError with the field that is not valid.

    `labels`: the bit of each name of a conntrack label, as this machine has them; a name that it does not
    have is left out.
    """
    values: dict[str, Any] = {}
    ends: dict[str, dict[str, Any]] = {}
    for name, value in record.items():
        if value is None:
            continue
        reader = READERS.get(name)
        if reader is not None:
            values[reader[0]] = reader[1](value)
        elif name in PLACES:
            prefix, attribute = PLACES[name]
            ends.setdefault(prefix, {})[attribute] = _parse_place(name, attribute, value)
    if "labels" in values:
        values["labels"] = _make_bits(values["labels"], labels or {})
    for attribute, name in NEEDED.items():
        if attribute not in values:
            schema = find_schema(record)
            if schema is not None:
                raise DataError(f"its fields have the names of {schema.name}", hint=OTHER_NAMES)
            _refuse(record.get(name), name, LEFT_OUT)
    if len(values["src"]) != len(values["dst"]):
        raise DataError("src and dst are not of one family")
    for attribute, other in TURNED.items():
        if attribute not in values:
            values[attribute] = values.get(other, ABSENT)
    has_times = "first_seen" in values or ("start" in values and "stop" in values)
    if "duration" in record and not has_times:
        values |= _make_times(record)
    defaults = {"time": 0, "id": 0, "sport": ABSENT, "dport": ABSENT}
    return Flow(
        **{**defaults, **values},
        family=AF_INET if len(values["src"]) == 4 else AF_INET6,
        src_location=Location(**ends["src_"]) if "src_" in ends else None,
        dst_location=Location(**ends[""]) if "" in ends else None,
    )


def _refuse(value: object, name: str, hint: str) -> NoReturn:
    if value is None:
        raise DataError(f"the required field {name!r} is missing", hint=hint)
    raise DataError(f"{json.dumps(value)[:60]} is not a valid {name}", hint=hint)


def _number(output: OutputField) -> Parse:
    maximum = MAXIMA.get(output.attribute, MAX_U64)

    def parse(value: Any) -> int:  # noqa: ANN401  # whatever JSON can hold
        # Not isinstance: true and false are numbers to Python.
        if type(value) is not int or not 0 <= value <= maximum:
            _refuse(value, output.name, f"a number from 0 to {maximum}")
        return value

    return parse


def _name(output: OutputField) -> Parse:
    numbers = {name: number for number, name in output.names.items()}
    if output.attribute == "protocol":
        hint = "a protocol by its name or number"
    else:
        hint = f"one of: {', '.join(numbers)}"
    has_others = output.attribute != "type"

    def parse(value: Any) -> int:  # noqa: ANN401
        number = numbers.get(value) if isinstance(value, str) else None
        if number is not None:
            return number
        if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value):
            value = int(value)
        if not has_others or type(value) is not int or not 0 <= value <= MAX_U8:
            _refuse(value, output.name, hint)
        return value

    return parse


def _address(output: OutputField) -> Parse:
    def parse(value: Any) -> bytes:  # noqa: ANN401
        try:
            if isinstance(value, str):
                return inet_pton(AF_INET6 if ":" in value else AF_INET, value)
        except (OSError, ValueError):  # a zero byte, or what is not ASCII
            pass
        _refuse(value, output.name, "an IPv4 or IPv6 address")

    return parse


def _time(output: OutputField) -> Parse:
    def parse(value: Any) -> int:  # noqa: ANN401
        found = find_nanoseconds(value)
        if found is None:
            _refuse(value, output.name, f"a time such as {EXAMPLE_TIME}")
        return found

    return parse


def find_nanoseconds(value: object) -> int | None:
    """RFC 3339 -> nanoseconds since the epoch; None where it is not one."""
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    seconds = _find_seconds(match[1] + match[3])
    return None if seconds is None else seconds * NANO + int((match[2] or "0").ljust(9, "0"))


@lru_cache(maxsize=256)  # many events are of the same second
def _find_seconds(text: str) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return None


def _own_text(output: OutputField) -> Parse:
    def parse(value: Any) -> bytes:  # noqa: ANN401
        if not isinstance(value, str):
            _refuse(value, output.name, "a text")
        return value.encode("latin-1", "replace")

    return parse


def _labels(output: OutputField) -> Parse:
    def parse(value: Any) -> list[str]:  # noqa: ANN401
        if not isinstance(value, str):
            _refuse(value, output.name, "names of labels")
        return value.split(",")

    return parse


def _truth(output: OutputField) -> Parse:
    def parse(value: Any) -> int:  # noqa: ANN401
        if value is not True:
            _refuse(value, output.name, "true")
        return 1

    return parse


def _convert_truth(text: str) -> bool:
    if text != "true":
        raise ValueError(text)
    return True


def _make_bits(names: list[str], labels: Mapping[str, int]) -> bytes:
    bits = 0
    for name in names:
        bit = labels.get(name, int(name) if re.fullmatch("[0-9]{1,3}", name) else MAX_LABELS)
        bits |= 1 << bit if bit < MAX_LABELS else 0
    return bits.to_bytes(MAX_LABELS // 8, "little") if bits else b""


def _make_times(record: Mapping[str, Any]) -> dict[str, int]:
    """Where only the duration is given, any two times that are so far apart."""
    duration = record["duration"]
    if type(duration) not in {int, float} or not abs(duration) < MAX_U32:
        _refuse(record.get("duration"), "duration", "a number of seconds")
    return {"start": NANO * MAX_U32, "stop": NANO * MAX_U32 + round(duration * NANO)}


def _parse_place(name: str, attribute: str, value: Any) -> str | int | float:  # noqa: ANN401
    number: type[int | float] | None = NUMBERS_OF_PLACES.get(attribute)
    if number is None and isinstance(value, str):
        return value
    if number is not None and type(value) in {int, number}:
        return number(value)
    _refuse(value, name, "a number" if number else "a text")


MAKERS: Final[Mapping[Kind, Callable[[OutputField], Parse]]] = {
    Kind.NUMBER: _number,
    Kind.NAME: _name,
    Kind.ADDRESS: _address,
    Kind.TIME: _time,
    Kind.OWN_TEXT: _own_text,
    Kind.LABELS: _labels,
    Kind.TRUTH: _truth,
}
# The time stands before the fields; the status in no field: who adds it to a line has it read.
OTHERS: Final = (OutputField("time", Kind.TIME, "time"), OutputField("status", Kind.NUMBER, "status"))
READERS: Final[Mapping[str, tuple[str, Parse]]] = {
    output.name: (output.attribute, MAKERS[output.kind](output))
    for output in (*OTHERS, *FIELDS)
    if output.attribute not in COMPUTED
}
# Of events and of reports, in the order in which the stream has them; the host is the journal's.
NAMES: Final = tuple(
    dict.fromkeys(
        (
            *("time", "level", "host", "msg", *(output.name for output in FIELDS)),
            *(*PLACES, *REPORTS.values(), "rule", "since", "until", "where", "reason"),
        )
    )
)
# What is a number in JSON; the last ones are fields of reports alone.
TEXTS: Final[Mapping[str, Callable[[str], int | float]]] = {
    **{output.name: int for output in FIELDS if output.kind is Kind.NUMBER},
    **{output.name: float for output in FIELDS if output.kind is Kind.DURATION},
    **{output.name: _convert_truth for output in FIELDS if output.kind is Kind.TRUTH},
    **{name: NUMBERS_OF_PLACES[at] for name, (_, at) in PLACES.items() if at in NUMBERS_OF_PLACES},
    **dict.fromkeys((*REPORTS.values(), "rule"), int),
}
