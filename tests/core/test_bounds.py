"""What the core is given by its own Python has bounds, too: what is out of them is refused, and not read."""

import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from conntrackd.core import _core as core
from conntrackd.engine import SLOTS
from conntrackd.filter.table import FORMAT
from conntrackd.flow import Location
from conntrackd.render import json, loki
from conntrackd.render.steps import SLICE, STEP, StepKind
from tests.core.deciding import load, select
from tests.engine.feed import ENGINES, RECEIVED_NS
from tests.engine.rendering import render
from tests.filter.rows import FLOW
from tests.messages import build_message
from tests.sinks.flows import make_flow, make_flows

MESSAGE = build_message(FLOW)
SRC, SPORT, TYPE, TIME, SRC_LOCATION, HELPER, LABELS = map(
    core.FIELDS.index, ("src", "sport", "type", "time", "src_location", "helper", "labels")
)
POOL = b"0123456789"
EMPTY = struct.pack("=8I", FORMAT, 0, 0, 0, 0, 0, 0, 0) + b"\0\0\0\0\1"


def step(
    kind: StepKind,
    field: int,
    *,
    before: int = 0,
    after: int = 0,
    constants: int = 0,
    offset: int = 0,
    length: int = 0,
) -> bytes:
    return STEP.pack(0, kind, field, before, after, constants, offset, length, 0)


def open_template(steps: bytes, names: bytes = SLICE.pack(0, 4) * 3) -> core.Template:
    return core.Template(steps, names, POOL, False)


RIGHT = {
    "a constant": step(StepKind.TEXT, TYPE, before=5, after=5),
    "a number": step(StepKind.NUMBER, SPORT),
    "a name": step(StepKind.NAME, TYPE, length=3),
    "an address": step(StepKind.ADDRESS, SRC),
    "an endpoint": step(StepKind.ENDPOINT, SRC, offset=SPORT),
    "a time": step(StepKind.TIME, TIME, length=2),
    "a duration": step(StepKind.DURATION, TIME, length=2),
    "a place": step(StepKind.PLACE, SRC_LOCATION, offset=3),
    "a text": step(StepKind.OWN_TEXT, HELPER),
    "labels": step(StepKind.LABELS, LABELS, length=3),
}
WRONG = {
    "no kind": STEP.pack(0, 99, TYPE, 0, 0, 0, 0, 0, 0),
    "no field": step(StepKind.NUMBER, len(core.FIELDS)),
    "a constant that ends behind the pool": step(StepKind.TEXT, TYPE, before=6, after=5),
    "a constant that begins behind it": step(StepKind.TEXT, TYPE, before=1, constants=10),
    "a constant whose end overflows": step(StepKind.TEXT, TYPE, before=2, constants=0xFFFFFFFF),
    "a number of an address": step(StepKind.NUMBER, SRC),
    "a name of a text": step(StepKind.NAME, HELPER, length=3),
    "more names than there are": step(StepKind.NAME, TYPE, length=4),
    "names that begin behind the last": step(StepKind.NAME, TYPE, offset=4),
    "names whose end overflows": step(StepKind.NAME, TYPE, offset=0xFFFFFFFF, length=2),
    "an address of a number": step(StepKind.ADDRESS, SPORT),
    "an endpoint without a port": step(StepKind.ENDPOINT, SRC, offset=TYPE),
    "an endpoint whose port is no field": step(StepKind.ENDPOINT, SRC, offset=len(core.FIELDS)),
    "a time of 2 bytes": step(StepKind.TIME, SPORT),
    "a duration in no style": step(StepKind.DURATION, TIME, length=3),
    "a time in no style": step(StepKind.TIME, TIME, length=3),
    "a place that a Location does not have": step(StepKind.PLACE, SRC_LOCATION, offset=4),
    "a place of a port": step(StepKind.PLACE, SPORT),
    "a text of a number": step(StepKind.OWN_TEXT, TYPE),
    "labels of an address's number": step(StepKind.LABELS, SPORT, length=3),
    "more names of labels than there are": step(StepKind.LABELS, LABELS, length=4),
    "half a step": b"x" * (STEP.size - 1),
    "more steps than any template has": step(StepKind.TEXT, TYPE) * 1025,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_step_that_is_right_is_taken(name: str) -> None:
    batch = load([FLOW])

    assert isinstance(batch.render(open_template(RIGHT[name]), None)[0], bytes)


@pytest.mark.parametrize("name", WRONG)
def test_a_step_out_of_bounds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="steps"):
        open_template(WRONG[name])


@pytest.mark.parametrize(
    "names", [SLICE.pack(0, 11), SLICE.pack(10, 1), SLICE.pack(0xFFFFFFFF, 2), SLICE.pack(0, 4)[:-1]]
)
def test_a_name_out_of_the_pool_is_refused(names: bytes) -> None:
    with pytest.raises(ValueError, match=r"steps|names"):
        open_template(b"", names)


@pytest.mark.parametrize(
    "use",
    [
        lambda batch, selection: batch.tally(selection),
        lambda batch, selection: batch.of_types(selection, -1),
        lambda batch, selection: batch.set_type(selection, 1),
        lambda batch, selection: batch.time(selection, 0),
        lambda batch, selection: batch.decide(core.Table(EMPTY), selection),
        lambda batch, selection: batch.locate(core.Locations(1), selection, True),
        lambda batch, selection: batch.render(open_template(b""), selection),
        lambda batch, selection: core.Anonymizer(1, 3).find_unknown(batch, selection),
        lambda batch, selection: core.Ids().add(batch, selection),
        lambda batch, selection: core.Ids().discard(batch, selection),
        lambda batch, selection: core.Ids().select(batch, selection, True),
    ],
)
def test_a_selection_of_another_batch_selects_nothing(use: Callable[[Any, bytes], object]) -> None:
    batch = load([FLOW, FLOW])
    use(batch, select(0, 1))

    for wrong in (select(2), select(0, 1, 65535), b"\0"):
        with pytest.raises(ValueError, match="a selection"):
            use(batch, wrong)


# No test, no rule: all is kept.


@pytest.mark.parametrize("index", [-1, 1, 1 << 40])
def test_an_event_that_is_not_there_is_not_described(index: int) -> None:
    batch = load([FLOW])

    with pytest.raises(IndexError):
        batch.describe(index)
    with pytest.raises(IndexError):
        batch.time(None, index if index > 0 else -2)


def test_a_message_whose_end_is_missing_is_left_for_the_next_load(engine: Any) -> None:
    batch = engine.open_batch()
    for end in range(1, len(MESSAGE)):
        assert batch.load(MESSAGE + MESSAGE[:end], 0, RECEIVED_NS) == (len(MESSAGE), 1, 0)


def test_an_offset_outside_of_the_messages_is_refused() -> None:
    batch = core.Batch(1, 2048, True)
    for offset in (-1, len(MESSAGE) + 1, 1 << 40):
        with pytest.raises(ValueError, match="an offset"):
            batch.load(MESSAGE, offset, 0)


@pytest.mark.parametrize("template", [json.TEMPLATE, loki.TEMPLATE])
def test_there_is_room_for_the_texts_of_every_event(template: Any) -> None:
    """Names of places as long as they get, and what the kernel gives as text, in a batch that is full."""
    place = Location("Ä" * 256, "DE", -12.345678901234567, -123.45678901234567, 4294967295, "ß" * 256)
    flows = [
        replace(flow, src_location=place, dst_location=place, helper=b"h" * 255, secctx=b"s" * 1000)
        for flow in make_flows(SLOTS)
    ]
    flows = [replace(flow, dst=flow.src, reply_src=flow.src) for flow in flows]

    assert render(ENGINES[0], template, flows) == render(ENGINES[1], template, flows)


def test_what_is_remembered_of_flows_grows() -> None:
    ids = core.Ids()
    for first in range(0, 100_000, SLOTS):
        batch = load([make_flow(number) for number in range(first, first + SLOTS)])
        assert len(array("H", ids.add(batch, None))) == SLOTS
        assert ids.add(batch, None) == b""

    assert len(ids) == first + SLOTS


@pytest.mark.parametrize("sides", [0, 4, 7, 1 << 31])
def test_there_are_two_sides_of_a_flow(sides: int) -> None:
    with pytest.raises(ValueError, match="sides"):
        core.Anonymizer(1, sides)


@pytest.mark.parametrize(("address", "written"), [(b"", b""), (b"1234", b"12345"), (bytes(4), bytes(16))])
def test_an_address_is_written_as_one_of_its_family(address: bytes, written: bytes) -> None:
    with pytest.raises(ValueError, match="no address"):
        core.Anonymizer(1, 3).put(address, written)


def test_nothing_but_an_anonymizer_conceals() -> None:
    batch = load([FLOW])

    with pytest.raises(TypeError, match="Anonymizer"):
        batch.render(open_template(b""), select(0), None, core.Table(EMPTY))  # type: ignore[arg-type]


def test_who_is_selected_twice_is_revealed_all_the_same() -> None:
    batch, anonymizer = load([FLOW]), core.Anonymizer(1, 3)
    before = batch.describe(0)

    batch.render(open_template(b""), select(0), None, anonymizer)
    batch.set_type(select(0), 1)

    assert {**batch.describe(0), "type": before["type"]} == before
