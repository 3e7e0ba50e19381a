"""metrics.flows: which connections are counted, and by what. An item is a section, or the same in one line.

`{name: by_port, by: [protocol, destination.port], where: log destination network PRIVATE, max_series: 200}`
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Final

from conntrackd.config.document import Items, Node, Scalar, Section, parse_yaml
from conntrackd.config.values import BadValueError, ValueType, count, parse_flag
from conntrackd.errors import ConfigError
from conntrackd.render.fields import FIELDS as OUTPUT_FIELDS
from conntrackd.render.fields import Kind, OutputField, translate
from conntrackd.text import suggest

# Each is a look at every event, and a decision where it has rules.
MAX_METRICS: Final = 8
MAX_FIELDS: Final = 8
# Of all together: a page of 1,000 has 18,000 lines, and every scrape stores as many series.
MAX_SERIES: Final = 1000
DEFAULT_SERIES: Final = 200
NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_NAME: Final = 32
MAX_ITEM: Final = 2048  # characters; PyYAML takes 17 us for two of them
KEYS: Final = ("name", "by", "where", "max_series", "bytes")
EXAMPLE: Final = "{name: by_port, by: [protocol, destination.port]}"
NAMING: Final = f"up to {MAX_NAME} letters, digits and _ between them, such as by_port"
PLAIN_WORD: Final = re.compile(r"[A-Za-z][\w.-]*( [\w.-]+)*")  # what YAML takes for text, without quotes


OUTPUTS: Final = {output.name: output for output in OUTPUT_FIELDS}
# What connections are counted by. NEW and DESTROY say the same of it: by any other field a connection would
# open in one series and be closed in another.
FIELDS: Final[Mapping[str, OutputField]] = {
    "protocol": OUTPUTS["prot"],
    "family": OutputField("family", Kind.NAME, "family", names={AF_INET: "IPV4", AF_INET6: "IPV6"}),
    "source.address": OUTPUTS["src"],
    "source.port": OUTPUTS["sport"],
    "destination.address": OUTPUTS["dst"],
    "destination.port": OUTPUTS["dport"],
    "icmp.type": OUTPUTS["icmp_type"],
    "icmp.code": OUTPUTS["icmp_code"],
    "zone": OUTPUTS["zone"],
    "nat": OUTPUTS["nat"],
    "nat.source.address": OUTPUTS["nat_src"],
    "nat.source.port": OUTPUTS["nat_sport"],
    "nat.destination.address": OUTPUTS["nat_dst"],
    "nat.destination.port": OUTPUTS["nat_dport"],
}


@dataclass(frozen=True, slots=True)
class FlowMetricSetting:
    """One item."""

    name: str
    by: tuple[str, ...] = ()
    """Names of FIELDS."""
    where: tuple[str, ...] = ()
    """Rules, as they were written."""
    max_series: int = DEFAULT_SERIES
    bytes: bool = False
    """Whether bytes and packets are shown."""

    @property
    def labels(self) -> tuple[str, ...]:
        """As Prometheus may call the fields."""
        return tuple(name.replace(".", "_") for name in self.by)


def _parse(items: Sequence[str]) -> tuple[FlowMetricSetting, ...]:
    found = tuple(map(_parse_item, items))
    names = [metric.name for metric in found]
    for name in names:
        if names.count(name) > 1:
            raise BadValueError(name, "is the name of two")
    total = sum(metric.max_series for metric in found)
    if total > MAX_SERIES:
        hint = f"at most {MAX_SERIES} in all: each is up to 18 numbers that every scrape stores"
        raise BadValueError("", f"has a max_series of {total} in all", hint)
    return found


def _parse_item(text: str) -> FlowMetricSetting:
    if len(text) > MAX_ITEM:
        raise BadValueError(text, f"has more than {MAX_ITEM} characters")
    try:
        node = parse_yaml(text)
    except ConfigError as error:
        raise BadValueError(text, error.message, error.hint) from error
    if not isinstance(node, Section):
        raise BadValueError(text, "is not a section", f"such as {EXAMPLE}")
    found: dict[str, Node] = {}
    for entry in node.entries:
        if entry.key not in KEYS:
            hint = suggest(entry.key, KEYS) or f"valid keys: {', '.join(KEYS)}"
            raise BadValueError(entry.key, "is not a key of an item", hint)
        if entry.key in found:
            raise BadValueError(entry.key, "is given twice")
        found[entry.key] = entry.node
    name = _read_name(found)
    where = tuple(_list_texts("where", found.get("where"), separator="\n"))
    series = _read_text("max_series", found.get("max_series"), str(DEFAULT_SERIES))
    shows_bytes = parse_flag(_read_text("bytes", found.get("bytes"), "false"))
    return FlowMetricSetting(name, _read_fields(found), where, _read_limit(series), shows_bytes)


def _read_name(found: Mapping[str, Node]) -> str:
    if "name" not in found:
        raise BadValueError("", "has an item without a name", f"such as {EXAMPLE}")
    name = _read_text("name", found["name"], "")
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise BadValueError(name, "is not a valid name of a metric", NAMING)
    return name


def _read_fields(found: Mapping[str, Node]) -> tuple[str, ...]:
    names = tuple(name.lower() for name in _list_texts("by", found.get("by"), separator=","))
    for name in names:
        if name not in FIELDS:
            meant = {known.attribute: word for word, known in FIELDS.items()}
            meant |= {"prot": "protocol"}
            word = translate(name)
            near = f"did you mean {meant[word]}?" if word in meant else suggest(name, FIELDS)
            rest = "what NEW and DESTROY say alike: " + ", ".join(FIELDS)
            raise BadValueError(name, "is not a field to count connections by", near or rest)
        if names.count(name) > 1:
            raise BadValueError(name, "is there twice in by")
    if len(names) > MAX_FIELDS:
        raise BadValueError("", f"has {len(names)} fields in by, {MAX_FIELDS} are possible")
    return names


def _read_limit(text: str) -> int:
    try:
        return LIMIT.parse([text])
    except BadValueError as error:
        raise BadValueError(error.text, f"{error.message} (max_series)", error.hint) from error


def _read_text(key: str, node: Node | None, default: str) -> str:
    if node is None:
        return default
    if not isinstance(node, Scalar) or node.type == "null":
        raise BadValueError(key, "takes one value")
    return node.text


def _list_texts(key: str, node: Node | None, separator: str) -> Iterator[str]:
    """Of a list, or of a text with this between the items."""
    match node:
        case None | Scalar(type="null"):
            return
        case Scalar():
            yield from filter(None, map(str.strip, node.text.split(separator)))
        case Items():
            for item in node.items:
                yield _read_text(key, item, "").strip()
        case Section():
            raise BadValueError(key, "takes a list")


def _render(metrics: Sequence[FlowMetricSetting]) -> str:
    return "\n".join(map(_render_item, metrics))


def _render_item(metric: FlowMetricSetting) -> str:
    parts = [f"name: {metric.name}"]
    parts += [f"by: [{', '.join(metric.by)}]"] if metric.by else []
    parts += [f"where: [{', '.join(map(_quote, metric.where))}]"] if metric.where else []
    parts.append(f"max_series: {metric.max_series}")
    parts += ["bytes: true"] if metric.bytes else []
    return f"{{{', '.join(parts)}}}"


def _quote(text: str) -> str:
    return text if PLAIN_WORD.fullmatch(text) else json.dumps(text)


LIMIT: Final = count(1, MAX_SERIES)
FLOW_METRICS: Final = ValueType(
    "METRIC",
    f"sections of name, by, where, max_series and bytes, such as {EXAMPLE}",
    _parse,
    _render,
    separator="\n",
    off=(),
    max_items=MAX_METRICS,
    max_section=MAX_ITEM,
)
