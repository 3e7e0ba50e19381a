"""render/fields.py: the names of fields, and what other programs call them."""

import pytest

from conntrackd.render.fields import ALIASES, list_names, suggest_name
from conntrackd.render.parse import NAMES


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *(("dst_port", "dport"), ("src_port", "sport"), ("source.port", "sport"), ("DestPort", "dport")),
        *(("src_ip", "src"), ("dest_ip", "dst"), ("dest", "dst"), ("daddr", "dst"), ("srcaddr", "src")),
        *(("proto", "prot"), ("protocol", "prot"), ("timestamp", "time"), ("message", "msg")),
        *(("EVENT_DPORT", "dport"), ("nat-src", "nat_src"), ("dst_country", "country"), ("SRC", "src")),
        *(("dpotr", "dport"), ("hostname", "host")),
    ],
)
def test_what_another_program_calls_a_field_is_understood(word: str, name: str) -> None:
    assert suggest_name(word, NAMES) == f"did you mean {name}?"


def test_names_without_commas_are_recognized() -> None:
    assert suggest_name("time src\tdport", NAMES) == "names have commas between them: 'time,src,dport'"


def test_every_alias_leads_to_a_field_and_hides_none() -> None:
    names = {*list_names(), "host"}

    assert set(ALIASES.values()) <= names
    assert {alias: name for alias, name in ALIASES.items() if alias in names and alias != name} == {}
