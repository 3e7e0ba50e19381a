"""What the published schemas say of the fields that are used: names, types, and the values that are allowed.

Facts alone, no texts. The table was made, and is made anew after a change of names or versions, by
`python -m tests.render.schema_facts ECS OTEL`, from clones of elastic/ecs and of
open-telemetry/semantic-conventions with the tags below.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from conntrackd.cli.render import list_members
from conntrackd.render.fields import REPORT_NAMES, REPORTS, list_names
from conntrackd.render.schema import ECS, OTEL, OWN, Schema

TABLE: Final = Path(__file__).with_name("schema_facts.tsv")
TAGS: Final = {"ecs": "v9.4.0", "otel": "v1.44.0"}
# https://opentelemetry.io/docs/specs/otel/logs/data-model/: Timestamp, SeverityText, Body, EventName.
LOG_RECORD: Final = {"timestamp", "severity_text", "body", "event_name"}


class Fact(NamedTuple):
    """Of one field. `kind` is the schema's word; an array has [] behind it."""

    kind: str
    values: frozenset[str]


def list_used(schema: Schema) -> set[str]:
    """The schema's own names that records can have."""
    names = {shown for name in list_names() for shown in list_members(schema, name)}
    names |= {schema.rename_loss(name) for name in REPORT_NAMES}
    for report in ("", *REPORTS):
        names |= schema.list_constants("gw1", report=report).keys()
    own = LOG_RECORD if schema is OTEL else set()
    return {name for name in names if not name.startswith(OWN)} - own


def read_facts(schema: Schema) -> dict[str, Fact]:
    """The table's rows of the schema."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines()]
    return {
        name: Fact(kind, frozenset(filter(None, values.split(","))))
        for tag, name, kind, values in rows
        if tag == f"{schema.name} {TAGS[schema.name]}"
    }


# ---- made from clones ---------------------------------------------------------------------------------


def _show(clone: str, tag: str, path: str) -> Any:
    import yaml  # noqa: PLC0415

    return yaml.safe_load(subprocess.check_output(["git", "-C", clone, "show", f"{tag}:{path}"]))


def _read_ecs(clone: str) -> Iterator[tuple[str, str, list[str]]]:
    for name, said in _show(clone, TAGS["ecs"], "generated/ecs/ecs_flat.yml").items():
        values = [value["name"] for value in said.get("allowed_values", ())]
        if name == "event.type":  # of the category network
            values = NETWORK_TYPES
        yield name, said["type"] + ("[]" if "array" in said["normalize"] else ""), values
        if name == "event.category":
            (network,) = (value for value in said["allowed_values"] if value["name"] == "network")
            NETWORK_TYPES.extend(network["expected_event_types"])


NETWORK_TYPES: list[str] = []


def _read_otel(clone: str) -> Iterator[tuple[str, str, list[str]]]:
    for part in ("destination", "geo", "host", "network", "service", "source"):
        said = _show(clone, TAGS["otel"], f"model/{part}/registry.yaml")
        groups = [*said.get("groups", ()), {"attributes": said.get("attributes", [])}]
        for attribute in (item for group in groups for item in group.get("attributes", ())):
            name, kind = attribute.get("id") or attribute["key"], attribute["type"]
            is_open = isinstance(kind, dict)
            yield (
                name,
                "string" if is_open else kind,
                [v["value"] for v in kind["members"]] if is_open else [],
            )


def get_registered_name(name: str) -> str:
    """The name in the registry: geo.* stands there without what it is the place of."""
    return name[name.index("geo.") :] if ".geo." in name else name


def main(ecs: str, otel: str) -> None:
    """Write the table; KeyError with a name that a schema does not have."""
    lines = []
    for schema, facts in ((ECS, _read_ecs(ecs)), (OTEL, _read_otel(otel))):
        known = {name: (kind, values) for name, kind, values in facts}
        for name in sorted(list_used(schema)):
            kind, values = known[get_registered_name(name) if schema is OTEL else name]
            lines.append(f"{schema.name} {TAGS[schema.name]}\t{name}\t{kind}\t{','.join(values)}\n")
    TABLE.write_text("".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
