"""Whatever stands in a file is shown or damaged: never a traceback, and nothing that a terminal obeys."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.cli.events import FORMS, choose_fields, choose_renderer
from conntrackd.cli.lines import Style, render_json
from conntrackd.cli.summary import Summary, render_summary, to_json
from conntrackd.errors import DataError
from conntrackd.flow import Flow, Location, Lost
from conntrackd.render.parse import NAMES, parse_line
from tests.engine.test_render import flows
from tests.history.written import select, write_file, write_lines
from tests.live.daemon import ctl_command, environment
from tests.sinks.flows import BASE, make_flow

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["NEW", "LOST", "::1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
changes = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), st.none() | values, max_size=3)
losses = st.just(Lost(5, BASE, BASE, "kernel"))


def read_line(line: bytes) -> dict[str, Any] | None:
    """The record, unless it is refused, with a message that a terminal can show."""
    message = ""
    try:
        record = parse_line(line)
        if select().accepts(record):
            return record
    except DataError as error:
        message = str(error)
    assert message
    assert message.replace("\n", "").isprintable()
    return None


@given(flows() | losses, changes, st.booleans())
@settings(max_examples=120)
def test_a_record_with_odd_values_is_shown_or_refused(
    record: Flow | Lost, change: dict[str, Any], utc: bool
) -> None:
    odd = read_line(json.dumps(json.loads(write_lines([record])[0]) | change).encode())
    if odd is None:
        return
    for form in FORMS:
        style = Style(fields=choose_fields(form, has_host=True), services=True, utc=utc, has_dates=True)
        render, heading = (render_json, "") if form == "json" else choose_renderer(form, style)
        assert f"{heading}{render(odd, style)}".replace("\n", "").isprintable()
    summary = Summary(("src", "port", "country", "flow", "city"))
    summary.add(odd)
    json.dumps(to_json(summary, 5), allow_nan=False)
    assert "".join(render_summary(summary, 5)).isprintable()


@given(flows(), st.integers(0, 10_000), st.integers(1, 255))
def test_a_line_with_a_wrong_byte_is_read_or_refused(flow: Flow, place: int, change: int) -> None:
    line = bytearray(write_lines([flow])[0])
    line[place % len(line)] ^= change

    read_line(bytes(line))  # which checks


def test_a_terminal_that_has_not_every_letter_gets_what_it_can_show(tmp_path: Path) -> None:
    flow = make_flow(1)
    flow.dst_location = Location(city="Łódź", country="Österreich")
    path = write_file(tmp_path / "events.json", write_lines([flow]))
    done = subprocess.run(
        ctl_command("summary", "--from", f"file:{path}", "--by", "city,country"),
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "latin-1", "PATH": os.environ["PATH"]},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert "\\u0141ód\\u017a".encode("latin-1") in done.stdout
    assert "Österreich".encode("latin-1") in done.stdout
