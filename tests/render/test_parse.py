"""What was written is read back as the event that it was: render, parse, render is the same."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from conntrackd.errors import DataError
from conntrackd.flow import Flow, Location
from conntrackd.render import journal
from conntrackd.render import json as json_lines
from conntrackd.render.fields import FIELDS, NETWORK, PLACE
from conntrackd.render.parse import parse_flow, parse_line, parse_text
from conntrackd.render.plain import render_flows
from tests.engine.test_render import flows
from tests.sinks.flows import make_flow

LABELS = {0: "zero", 2: "web-server", 127: "last"}
NUMBERS = {name: bit for bit, name in LABELS.items()}


def write(flow: Flow) -> str:
    return render_flows(json_lines.TEMPLATE, [flow], [flow.time], LABELS).text.decode()


@given(flows())
@settings(max_examples=150)
def test_a_line_is_read_back_as_what_wrote_it(flow: Flow) -> None:
    line = write(flow)

    assert write(parse_flow(parse_line(line), NUMBERS)) == line


@given(flows())
def test_a_record_of_the_journal_is_that_of_the_stream(flow: Flow) -> None:
    text = render_flows(journal.TEMPLATE, [flow], [flow.time], LABELS).text.decode()
    fields = dict(re.findall(r"(?m)^EVENT_(\w+)=(.*)$", text))
    record = {name.lower(): parse_text(name.lower(), value) for name, value in fields.items()}

    line = json.loads(write(flow))
    assert record == {name: value for name, value in line.items() if name not in {"level", "msg"}}


def test_a_field_that_is_written_can_be_read() -> None:
    flow = make_flow(1)
    flow.src_location = flow.dst_location = Location("x", "Y", 1.0, 2.0, 3, "z", "YY")
    written = {field.name for field in FIELDS} | {
        f"{prefix}{name}" for name in (*PLACE, *NETWORK) for prefix in ("", "src_")
    }

    assert json.loads(write(flow)).keys() - {"time", "level", "msg"} <= written
    assert parse_flow(json.loads(write(flow))).src_location == flow.src_location


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "OLD"}, '"OLD" is not a valid type'),
        ({"type": None}, "the required field 'type' is missing"),
        ({"src": "x"}, '"x" is not a valid src'),
        ({"src": "::1"}, "src and dst are not of one family"),
        ({"dport": 65536}, "65536 is not a valid dport"),
        ({"dport": True}, "true is not a valid dport"),
        ({"prot": "256"}, "256 is not a valid prot"),
        ({"time": "yesterday"}, '"yesterday" is not a valid time'),
        ({"city": 5}, "5 is not a valid city"),
        ({"asn": "x"}, '"x" is not a valid asn'),
        ({"helper": 1}, "1 is not a valid helper"),
        ({"ct_labels": 1}, "1 is not a valid ct_labels"),
        ({"duration": "long"}, '"long" is not a valid duration'),
    ],
)
def test_what_is_no_event_is_refused_with_its_field(change: dict[str, Any], message: str) -> None:
    record = json.loads(write(make_flow(1))) | change

    with pytest.raises(DataError) as caught:
        parse_flow(record)
    assert caught.value.message == message


def test_what_is_not_known_is_passed_over() -> None:
    record = json.loads(write(make_flow(1)))
    flow = parse_flow({**record, "ct_labels": "unheard,2,999", "news": {"of": "later"}})

    assert flow.labels == (1 << 2).to_bytes(16, "little")
