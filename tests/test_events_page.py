"""man/conntrackd-events.7: every field of a record, and every attribute of the kernel, is in its tables."""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import pytest

from conntrackd.cli.render import list_members
from conntrackd.config import labels
from conntrackd.flow import Lost
from conntrackd.netlink.message import VALUES
from conntrackd.render import fields
from conntrackd.render.fields import FIELDS, HELD_NAMES, LOSS_NAMES, NETWORK, PLACE
from conntrackd.render.journal import EVENT_ID, LOST_ID, SUPPRESSED_ID, TEMPLATE
from conntrackd.render.schema import ECS, ECS_VERSION, OTEL

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "man" / "conntrackd-events.7").read_text()
EVENT, LOST, SUPPRESSED, KERNEL = re.split(r"^\.Sh .*\n", PAGE, flags=re.MULTILINE)[3:7]
WALK: Final = (ROOT / "conntrackd" / "core" / "event.c").read_text()
HEADER: Final = Path("/usr/include/linux/netfilter/nfnetlink_conntrack.h")
ATTRIBUTES: Final = dict(re.findall(r"^\.It Dv (CTA_[A-Z0-9_*]+) Ta (.*)$", KERNEL, re.MULTILINE))
# In no table of fields: the time of the record itself, and what only rules ask for.
OTHERS: Final = {"time": ["time"], "status": [], "timeout": ["reason"]}


def list_fields(section: str) -> list[tuple[str, str]]:
    """Names, and those in the journal."""
    return re.findall(r"^\.It Va (\w+) Ta Va (\w+) Ta \S", section, re.MULTILINE)


def read_row(attribute: str) -> str:
    """What the page says of an attribute, by its own row or by one for several."""
    rows = [row for row in ATTRIBUTES if fnmatchcase(attribute, row)]
    return ATTRIBUTES[attribute if attribute in rows else max(rows, key=len)] if rows else ""


def list_names(attribute: str) -> list[str]:
    """The fields that show an attribute of a Flow."""
    return [field.name for field in FIELDS if field.attribute == attribute] or OTHERS[attribute]


def test_every_field_is_in_the_table_in_its_order_and_no_other() -> None:
    places = [f"{prefix}{name}" for kind in (PLACE, NETWORK) for prefix in ("", "src_") for name in kind]
    names = [*(field.name for field in FIELDS), *places]

    assert list_fields(EVENT) == [(name, TEMPLATE.syntax.open_text(name).rstrip("=")) for name in names]


def test_every_field_of_a_loss_is_in_the_table_and_no_other() -> None:
    assert list_fields(LOST) == [(name, f"EVENT_{name.upper()}") for name in LOSS_NAMES]
    assert f".Ql {EVENT_ID}\n" in PAGE
    assert f".Ql {LOST_ID} ." in PAGE or f".Ql {LOST_ID}\n" in PAGE


def test_every_field_of_what_a_limit_held_back_is_in_the_table_and_no_other() -> None:
    held = TEMPLATE.render_loss(Lost(5, 0, 0, "filter", "log any limit 1/day", 3)).text.decode()

    assert list_fields(SUPPRESSED) == [(name, f"EVENT_{name.upper()}") for name in HELD_NAMES]
    assert re.findall(r"^EVENT_(\w+)=", held, re.MULTILINE) == ["TIME", *map(str.upper, HELD_NAMES)]
    assert f"MESSAGE_ID={SUPPRESSED_ID}\n" in held
    assert f".Ql {SUPPRESSED_ID}\n" in PAGE


def test_every_field_is_in_the_table_of_other_schemas() -> None:
    section = PAGE.partition(".Sh NAMES IN OTHER SCHEMAS\n")[2].partition("\n.Sh ")[0]
    tables = re.split(r"^\.Ss ", section, flags=re.MULTILINE)

    for schema in (ECS, OTEL):
        shown = set(re.findall(r"\bVa (\S+)", section))
        for name in fields.list_names():
            members = list_members(schema, name)
            if members != [f"conntrackd.{name}"]:
                assert f"\n.It Va {name} Ta Va {members[0]}\n" in tables[1]
                assert set(members) <= shown
        for report in ("", *fields.REPORTS):
            assert schema.list_constants("gw1", report=report).keys() <= shown
    assert f"Elastic Common Schema {ECS_VERSION};" in section


def test_no_label_of_ones_own_can_hide_a_field_of_the_table() -> None:
    names = {name for name, _ in (*list_fields(EVENT), *list_fields(LOST), *list_fields(SUPPRESSED))}

    assert names - labels.OWN_LABELS - labels.FIELDS == set()


def test_every_attribute_that_the_walk_reads_is_in_the_table() -> None:
    read = {name.removesuffix("_NUMBER") for name in re.findall(r"\[(CTA_\w+)\] =", WALK)}

    assert len(read) >= 40
    assert read <= ATTRIBUTES.keys()
    assert not [name for name in read - {"CTA_STATUS"} if "not shown:" in ATTRIBUTES[name]]


def test_an_attribute_is_said_to_be_shown_as_the_fields_that_show_it() -> None:
    found = re.findall(
        r"\[(CTA_\w+)\] = \{? ?(?:\w+_TO\(|TEXT, 0, FIELD\(|BITS, LABEL_BYTES, FIELD\()(\w+)", WALK
    )

    assert {field for _, field in found} >= {value.field for value in VALUES.values()} - {
        *("reply_src", "reply_dst", "master_src", "master_dst")
    }
    for attribute, field in found:
        row = ATTRIBUTES[attribute.removesuffix("_NUMBER")]
        assert all(re.search(rf"\b{name}\b", row) for name in list_names(field)), attribute


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_every_attribute_of_the_kernels_header_is_in_the_table() -> None:
    names = set(re.findall(r"^\s+(CTA_\w+)\b", HEADER.read_text(), re.MULTILINE))
    names = {name for name in names if not name.endswith(("_UNSPEC", "_PAD"))}

    assert len(names) > 80
    assert [name for name in sorted(names) if not read_row(name)] == []
