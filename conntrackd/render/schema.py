"""Names of other schemas for the fields of records: Elastic Common Schema and OpenTelemetry's conventions.

The one place that knows them: the texts of both engines, those of losses and conntrackd-events(7) follow from
it. What neither schema has a name for is `conntrackd.` and our own name, a field of tomorrow as well.
https://www.elastic.co/docs/reference/ecs, https://opentelemetry.io/docs/specs/semconv/registry/attributes/
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from conntrackd.flow import EventType, Protocol, TcpState
from conntrackd.render.fields import TYPE_NAMES, Kind, OutputField

OWN: Final = "conntrackd."
SERVICE: Final = "conntrackd"
# include/linux/socket.h
FAMILIES: Final = {2: "ipv4", 10: "ipv6"}
# As IANA spells them, in lower case.
TRANSPORTS: Final = {
    **{protocol.value: protocol.name.lower() for protocol in Protocol},
    Protocol.ICMPV6.value: "ipv6-icmp",
}


Constants = Mapping[str, str | tuple[str, ...]]


class Member(NamedTuple):
    """A field's name in a schema, and where it says something else than ours: what, and how."""

    name: str
    kind: Kind | None = None
    attribute: str = ""
    names: Mapping[int, str] | None = None

    def show(self, output: OutputField) -> OutputField:
        """Our field as this one."""
        return replace(
            output,
            name=self.name,
            kind=self.kind or output.kind,
            attribute=self.attribute or output.attribute,
            names=output.names if self.names is None else self.names,
        )


@dataclass(frozen=True, eq=False, slots=True)
class Schema:
    """By our own names: those that a record has in their place."""

    name: str
    members: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    losses: Mapping[str, str] = field(default_factory=dict)
    """The names of a LOST record that are not as in `members`."""
    type_prefix: str = ""
    """What stands before the type of a record, in lower case."""
    constants: Constants = field(default_factory=dict)
    """What stands in every event: a text, or a list of texts."""
    report_constants: Mapping[str, Constants] = field(default_factory=dict)
    """And in every report of one of these types."""
    has_points: bool = False
    """Whether latitude and longitude are one field."""

    @property
    def is_native(self) -> bool:
        """Whether names are our own."""
        return not self.members

    def rename(self, name: str) -> str:
        """The first name that stands in its place."""
        if self.is_native:
            return name
        return self.members[name][0].name if name in self.members else f"{OWN}{name}"

    def list_outputs(self, output: OutputField) -> Iterator[OutputField]:
        """The fields that show what ours does."""
        if self.is_native:
            yield output
        elif output.name not in self.members:
            yield replace(output, name=f"{OWN}{output.name}")
        else:
            for member in self.members[output.name]:
                yield member.show(output)

    def name_type(self, text: str) -> str:
        """The type of a record as a text."""
        return text if self.is_native else f"{self.type_prefix}{text.lower()}"

    def rename_loss(self, name: str) -> str:
        """The same for a field of a LOST record."""
        return self.losses.get(name) or self.rename(name)

    def rename_place(self, name: str) -> str:
        """The same for one of a Location's; empty for what is part of a point."""
        is_part = self.has_points and name.removeprefix("src_") in {"lat", "lon"}
        return "" if is_part else self.rename(name)

    def list_constants(
        self, host: str | None = None, *, report: str = ""
    ) -> dict[str, str | tuple[str, ...]]:
        """What stands in each event, or in each report of this type; its origin where nothing else has it."""
        if self.is_native:
            return {}
        origin = {"host.name": host, "service.name": SERVICE} if host is not None else {}
        return {**self.report_constants.get(report, self.constants), **origin}


def _name_types(prefix: str) -> dict[int, str]:
    return {number: f"{prefix}{name.lower()}" for number, name in TYPE_NAMES.items()}


def _list_event_types() -> dict[int, str]:
    """https://www.elastic.co/docs/reference/ecs/ecs-allowed-values-event-type, of the category network."""
    words = {EventType.NEW: "start", EventType.DESTROY: "end", EventType.FLOW: "end"}
    return {number: f"connection,{words.get(EventType(number), 'info')}" for number in TYPE_NAMES}


NATIVE: Final = Schema("native")
ENDS: Final = (("", "destination"), ("src_", "source"))
# https://github.com/elastic/ecs, 9.4.0
ECS_VERSION: Final = "9.4.0"
ECS: Final = Schema(
    "ecs",
    {
        "time": (Member("@timestamp"),),
        "level": (Member("log.level"),),
        "msg": (Member("message"),),
        "type": (
            Member("event.action", names=_name_types("")),
            Member("event.type", Kind.LIST, names=_list_event_types()),
        ),
        "prot": (
            Member("network.transport", names=TRANSPORTS),
            Member("network.iana_number", names={}),  # a text there
        ),
        "src": (Member("source.ip"), Member("network.type", Kind.NAME, "family", FAMILIES)),
        "dst": (Member("destination.ip"),),
        "sport": (Member("source.port"),),
        "dport": (Member("destination.port"),),
        "nat_src": (Member("source.nat.ip"),),
        "nat_sport": (Member("source.nat.port"),),
        "nat_dst": (Member("destination.nat.ip"),),
        "nat_dport": (Member("destination.nat.port"),),
        "packets": (Member("source.packets"),),
        "bytes": (Member("source.bytes"),),
        "reply_packets": (Member("destination.packets"),),
        "reply_bytes": (Member("destination.bytes"),),
        # No event has both.
        "start": (Member("event.start"),),
        "first_seen": (Member("event.start"),),
        "stop": (Member("event.end"),),
        "duration": (Member("event.duration", Kind.NANOSECONDS),),
        "reason": (Member("event.reason"),),
        "community_id": (Member("network.community_id"),),
        **{
            f"{prefix}{name}": (Member(f"{end}.{theirs}"),)
            for prefix, end in ENDS
            for name, theirs in (
                ("city", "geo.city_name"),
                ("country", "geo.country_name"),
                ("country_code", "geo.country_iso_code"),
                ("lat", "geo.location"),
                ("lon", "geo.location"),
                ("asn", "as.number"),
                ("as_org", "as.organization.name"),
            )
        },
    },
    losses={"since": "event.start", "until": "event.end"},
    constants={"ecs.version": ECS_VERSION, "event.kind": "event", "event.category": ("network",)},
    # That data may be missing is what a pipeline_error says there. What a limit held back is not missing.
    report_constants={
        report: {
            "ecs.version": ECS_VERSION,
            "event.kind": kind,
            "event.category": ("network",),
            "event.type": ("info",),
        }
        for report, kind in (("LOST", "pipeline_error"), ("SUPPRESSED", "event"))
    },
    has_points=True,
)
# https://github.com/open-telemetry/semantic-conventions, v1.44.0; the first four are of the model of logs:
# https://opentelemetry.io/docs/specs/otel/logs/data-model/
OTEL_STATES: Final = {
    **{state.value: state.name.lower() for state in TcpState},
    TcpState.SYN_SENT2.value: "syn_sent",
    TcpState.SYN_RECV.value: "syn_received",
    TcpState.FIN_WAIT.value: "fin_wait_1",
    TcpState.CLOSE.value: "closed",
}
OTEL: Final = Schema(
    "otel",
    {
        "time": (Member("timestamp"),),
        "level": (Member("severity_text"),),
        "msg": (Member("body"),),
        "type": (Member("event_name", names=_name_types(OWN)),),
        "prot": (Member("network.transport", names=TRANSPORTS),),
        "src": (Member("source.address"), Member("network.type", Kind.NAME, "family", FAMILIES)),
        "dst": (Member("destination.address"),),
        "sport": (Member("source.port"),),
        "dport": (Member("destination.port"),),
        "state": (Member("network.connection.state", names=OTEL_STATES),),
        # The conventions put geo.* under the name of what is there.
        **{
            f"{prefix}{name}": (Member(f"{end}.{theirs}"),)
            for prefix, end in ENDS
            for name, theirs in (
                ("city", "geo.locality.name"),
                ("country_code", "geo.country.iso_code"),
                ("lat", "geo.location.lat"),
                ("lon", "geo.location.lon"),
            )
        },
    },
    type_prefix=OWN,
)
SCHEMAS: Final[Mapping[str, Schema]] = {schema.name: schema for schema in (NATIVE, ECS, OTEL)}


def find_schema(record: Mapping[str, object]) -> Schema | None:
    """That of a line of JSON, by what stands in each; None for our own."""
    if "ecs.version" in record:
        return ECS
    return OTEL if "service.name" in record else None
