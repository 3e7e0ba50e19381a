"""Flows -> Rendered, in plain Python: the reference that the core is compared with, and its stand-in."""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from socket import AF_INET, AF_INET6, inet_ntop
from types import MappingProxyType
from typing import Any, Final

from conntrackd.flow import ABSENT, NANO, EventType, Flow, compute_nat, find_duration
from conntrackd.render.anonymize import conceal
from conntrackd.render.community import compute_community_id
from conntrackd.render.fields import IS_TEXT, NETWORK, PLACE, PROTOCOL_NAMES, TYPE_NAMES, Kind, OutputField
from conntrackd.render.rendered import Rendered, Stream
from conntrackd.render.template import WORD, Template, render_bsd_time, render_time

NO_LABELS: Final[Mapping[int, str]] = MappingProxyType({})
UNITS: Final = " kMGTPE"
# What no format has to escape, and no terminal obeys.
OWN_CHARACTERS: Final = frozenset(map(chr, range(ord(" "), ord("~") + 1))) - frozenset('"\\]')
# Fields that every message carries or that are 0 where it does not, and are shown where they are not 0.
NOT_ZERO: Final = frozenset({"mark", "zone", "reply_zone", "start", "stop", "first_seen", "nat"})


def render_flows(
    template: Template,
    flows: Sequence[Flow],
    moments: Sequence[int],
    label_names: Mapping[int, str],
    community_seed: int | None = None,
) -> Rendered:
    """What the core makes of the same events. `moments`: the time of each that no other one has."""
    order = list(range(len(flows)))
    streams: tuple[Stream, ...] = ()
    if template.by_stream:
        kinds = list(dict.fromkeys((flow.type, flow.protocol) for flow in flows))
        order.sort(key=lambda number: kinds.index((flows[number].type, flows[number].protocol)))
        streams = tuple(
            Stream(*kind, sum((flow.type, flow.protocol) == kind for flow in flows)) for kind in kinds
        )
    texts = [
        _render_flow(template, flows[number], moments[number], label_names, community_seed).encode()
        for number in order
    ]
    return Rendered(
        b"".join(texts),
        array("I", accumulate(map(len, texts))).tobytes(),
        len(flows),
        flows[0].time if flows else 0,
        streams,
        array("Q", [moments[number] for number in order]).tobytes() if template.by_stream else b"",
    )


def _render_flow(
    template: Template, flow: Flow, moment: int, label_names: Mapping[int, str], community_seed: int | None
) -> str:
    shown = flow if template.anonymizer is None else conceal(flow, template.anonymizer)
    nat = compute_nat(flow)  # of the addresses that there are
    words: dict[str, Callable[[], str]] = {
        "fields": lambda: _render_fields(template, shown, nat, label_names, community_seed),
        "message": lambda: describe_flow(shown),
        "type": lambda: TYPE_NAMES[flow.type],
        "time": lambda: render_time(flow.time),
        "micros": lambda: render_micros(flow.time),
        "bsd": lambda: render_bsd_time(flow.time),
        "moment": lambda: str(moment),
    }
    return WORD.sub(
        lambda found: words[found[1]]() if found[1] in words else template.event[found[1]], template.text
    )


def describe_flow(flow: Flow) -> str:
    """One sentence, without a character that a format would have to escape."""
    protocol = PROTOCOL_NAMES.get(flow.protocol) or str(flow.protocol)
    source, destination = _render_end(flow.src, flow.sport), _render_end(flow.dst, flow.dport)
    text = f"{TYPE_NAMES[flow.type]} {protocol} connection from {source} to {destination}"
    return text + "".join(_list_sums(flow)) if flow.type in (EventType.FLOW, EventType.ALIVE) else text


def _list_sums(flow: Flow) -> Iterator[str]:
    """What a flow comes to, in the end or so far."""
    for verb, octets, packets in (
        ("sent", flow.orig_bytes, flow.orig_packets),
        ("received", flow.reply_bytes, flow.reply_packets),
    ):
        if octets != ABSENT:
            yield f", {verb} {render_size(octets)}"
        if packets != ABSENT:
            yield f" in {packets} packet{'' if packets == 1 else 's'}"
    duration = find_duration(flow)
    if duration is not None:
        yield f", lasted {render_duration(duration)[:-6]} s"


def render_size(octets: int) -> str:
    """Bytes with one decimal, which is cut and not rounded: 3.4 kB."""
    power = max(0, (len(str(octets)) - 1) // 3)
    if power == 0:
        return f"{octets} B"
    tenths = octets // (1000**power // 10)
    return f"{tenths // 10}.{tenths % 10} {UNITS[power]}B"


def _render_end(address: bytes, port: int) -> str:
    text = render_address(address)
    if port == ABSENT:
        return text
    return f"{text}:{port}" if len(address) == 4 else f"[{text}]:{port}"


def render_address(address: bytes) -> str:
    """4 or 16 bytes -> text."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def render_micros(nanoseconds: int) -> str:
    """RFC 3339 with six digits: what RFC 5424 allows."""
    text = render_time(nanoseconds)
    point = text.index(".")
    return text[: point + 7] + text[point + 10 :]


def render_duration(nanoseconds: int) -> str:
    """Seconds with all nine decimals. Negative when the clock was set back between start and stop."""
    seconds, rest = divmod(abs(nanoseconds), NANO)
    return f"{'-' if nanoseconds < 0 else ''}{seconds}.{rest:09d}"


def _render_fields(
    template: Template, flow: Flow, nat: int, label_names: Mapping[int, str], community_seed: int | None
) -> str:
    texts, syntax = [], template.syntax
    for output in template.list_outputs():
        value = get_value(flow, nat, output, community_seed)
        if value is None:
            continue
        text = render_value(output, value, label_names)
        if output.kind is Kind.LIST and value in output.names:
            text = syntax.write_list(text)
        if output.kind in IS_TEXT:
            texts.append(syntax.text(output.name, text))
        else:
            texts.append(f"{syntax.open_number(output.name)}{text}{syntax.close_number}")
    for fields in (PLACE, NETWORK):
        for location, prefix in ((flow.dst_location, ""), (flow.src_location, "src_")):
            texts.append(template.render_places(fields, location, prefix))
    text = "".join(texts)
    return text[1:] if template.is_bare else text


def get_value(flow: Flow, nat: int, output: OutputField, community_seed: int | None) -> Any:  # noqa: ANN401  # a number, bytes or text
    """What the field shows; None where the event has none."""
    if output.needs == ("nat",) and not nat:
        return None
    match output.attribute:
        case "nat":
            value: Any = nat
        case "community_id":
            return None if community_seed is None else compute_community_id(flow, community_seed)
        case "duration":
            return find_duration(flow)
        case attribute:
            value = getattr(flow, attribute)
    is_missing = value in (ABSENT, b"") or (output.attribute in NOT_ZERO and value == 0)
    return None if is_missing else value


def render_value(output: OutputField, value: Any, label_names: Mapping[int, str] = NO_LABELS) -> str:  # noqa: ANN401
    """What stands for a value that the event has."""
    match output.kind:
        case Kind.NUMBER | Kind.NANOSECONDS | Kind.COMMUNITY_ID:
            return str(value)
        case Kind.NAME | Kind.LIST | Kind.TRUTH:
            return output.names.get(value) or str(value)
        case Kind.ADDRESS:
            return render_address(value)
        case Kind.TIME:
            return render_time(value)
        case Kind.DURATION:
            return render_duration(value)
        case Kind.OWN_TEXT:
            text = value.partition(b"\0")[0].decode("latin-1")
            return "".join(char if char in OWN_CHARACTERS else "?" for char in text)
        case Kind.LABELS:
            bits = int.from_bytes(value, "little")
            return ",".join(label_names.get(bit) or str(bit) for bit in range(128) if bits >> bit & 1)
