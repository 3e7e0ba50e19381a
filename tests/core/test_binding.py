"""What Python may ask of the core: whatever it is, the answer is an exception and no crash."""

import gc
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from conntrackd.core import _core as core
from conntrackd.engine.native import open_table
from conntrackd.filter.table import assemble, compile_table
from conntrackd.render.json import TEMPLATE
from conntrackd.render.steps import STEP, StepKind, compile_template
from tests.engine.feed import MESSAGES, QUEUE, pair
from tests.sinks.syslog_servers import wait_until

TYPES = (core.Batch, core.Table, core.Template, core.Locations, core.Ids, core.Flows, core.AddressSet)
PROGRAM = assemble(compile_table([]))


def load(*messages: bytes, slots: int = 512) -> core.Batch:
    batch = core.Batch(slots, 2048, True)
    batch.load(b"".join(messages), 0, 1)
    return batch


@pytest.mark.parametrize("made", TYPES, ids=lambda made: made.__name__)
def test_no_object_is_there_before_it_is_made(made: Any) -> None:
    if made is not core.Ids:
        with pytest.raises(TypeError):
            made.__new__(made)
    assert made.__init__ is object.__init__
    with pytest.raises(TypeError):
        type("Derived", (made,), {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: core.Batch(0, 2048, True),
        lambda: core.Batch(-1, 2048, True),
        lambda: core.Batch(4097, 2048, True),
        lambda: core.Batch(1, 0, True),
        lambda: core.Batch(1, (1 << 20) + 1, True),
        lambda: core.Locations(-1),
        lambda: core.Table(PROGRAM[:-1]),
        lambda: core.Template(b"x", b"", b"", False),
        lambda: core.Template(bytes(STEP.size), b"x", b"", False),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"slots|limit|not a program|steps|names"):
        make()


@pytest.mark.parametrize(
    "step",
    [
        (0, 99, 0, 0, 0, 0, 0, 0, 0),
        (0, max(StepKind) + 1, core.FIELDS.index("src"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.TEXT, 999, 0, 0, 0, 0, 0, 0),
        (0, StepKind.TEXT, 0, 5, 0, 0, 0, 0, 0),
        (0, StepKind.TEXT, 0, 0, 1, 4, 0, 0, 0),
        (0, StepKind.TEXT, 0, 65535, 65535, 0xFFFFFFFF, 0, 0, 0),
        (0, StepKind.NAME, 0, 0, 0, 0, 1, 1, 0),
        (0, StepKind.NAME, 0, 0, 0, 0, 0xFFFFFFFF, 2, 0),
        (0, StepKind.NUMBER, core.FIELDS.index("src"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.ADDRESS, core.FIELDS.index("time"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.ENDPOINT, core.FIELDS.index("src"), 0, 0, 0, 999, 0, 0),
        (0, StepKind.TIME, core.FIELDS.index("time"), 0, 0, 0, 0, 3, 0),
        (0, StepKind.PLACE, core.FIELDS.index("src_location"), 0, 0, 0, 4, 0, 0),
        (0, StepKind.OWN_TEXT, core.FIELDS.index("labels"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.LABELS, core.FIELDS.index("src"), 0, 0, 0, 0, 1, 0),
        (0, StepKind.ADDRESS, core.FIELDS.index("labels"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.ENDPOINT, core.FIELDS.index("labels"), 0, 0, 0, core.FIELDS.index("sport"), 0, 0),
        (0, StepKind.COMMUNITY_ID, 0, 0, 0, 0, 65_536, 0, 0),
        (0, StepKind.AMOUNT, core.FIELDS.index("src"), 0, 0, 0, 0, 0, 0),
        (0, StepKind.AMOUNT, core.FIELDS.index("type"), 0, 0, 0, 0, 1, 0),
    ],
)
def test_a_step_that_is_out_of_bounds_is_refused(step: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="steps that cannot be right"):
        core.Template(STEP.pack(*step), struct.pack("=II", 0, 4), b"pool", False)


def test_a_template_of_too_much_text_is_refused() -> None:
    name = struct.pack("=II", 0, 1 << 18)
    labels = STEP.pack(0, StepKind.LABELS, core.FIELDS.index("labels"), 0, 0, 0, 0, 1, 0)

    with pytest.raises(ValueError, match="steps that cannot be right"):
        core.Template(labels, name, bytes(1 << 18), False)


@pytest.mark.parametrize("count", [3, 1000, 100_000])
def test_a_selection_has_no_more_events_than_the_batch(count: int) -> None:
    batch, table = load(MESSAGES[0], MESSAGES[1], slots=1), core.Table(PROGRAM)
    assert len(batch) == 1
    selection = array("H", [0] * count).tobytes()

    for call in (
        lambda: batch.decide(table, selection),
        lambda: batch.of_types(selection, 15),
        lambda: core.Ids().add(batch, selection),
        lambda: batch.tally(selection),
    ):
        with pytest.raises(ValueError, match="a selection of another batch"):
            call()


@pytest.mark.parametrize("selection", [b"x", b"\1\0", b"\xff\xff"])
def test_a_selection_of_what_is_not_there_is_refused(selection: bytes) -> None:
    with pytest.raises(ValueError, match="a selection"):
        load(MESSAGES[0]).tally(selection)


@pytest.mark.parametrize("event_type", [-1, 0, 3, 16, 77, 256, 257])
def test_an_event_has_one_of_four_types(event_type: int) -> None:
    batch = load(MESSAGES[0])
    before = batch.describe(0)

    with pytest.raises(ValueError, match="no such type"):
        batch.set_type(None, event_type)
    assert batch.describe(0) == before


def test_nothing_selected_is_no_text() -> None:
    template = compile_template(TEMPLATE, {})

    for batch in (core.Batch(1, 2048, True), load(MESSAGES[0])):
        assert batch.render(template, b"") == (b"", b"", (), b"", 0)


def test_events_keep_the_bytes_that_they_were_read_from() -> None:
    message = bytes(bytearray(MESSAGES[0]))
    references = sys.getrefcount(message)
    batch = core.Batch(4, 2048, True)
    for _ in range(3):
        batch.load(message, 0, 1)
        assert sys.getrefcount(message) == references + 1
    batch.load(b"", 0, 1)
    assert sys.getrefcount(message) == references


def test_bytes_that_load_others_at_their_end_find_the_batch_in_use() -> None:
    refused: list[str] = []

    class Lasting(bytes):
        def __del__(self) -> None:
            try:
                batch.load(b"", 0, 1)
            except RuntimeError as error:
                refused.append(str(error))

    batch = core.Batch(512, 2048, True)
    batch.load(Lasting(MESSAGES[0]), 0, 1)
    batch.load(MESSAGES[0], 0, 1)

    assert len(refused) == 1
    assert "in use" in refused[0]
    assert len(batch) == 1


@pytest.mark.parametrize("offset", [-1, 1, 1 << 62])
def test_messages_are_loaded_from_a_place_within_them(offset: int) -> None:
    with pytest.raises(ValueError, match="an offset outside the messages"):
        core.Batch(1, 2048, True).load(b"", offset, 0)


@pytest.mark.parametrize(("patience_ms", "gather_us"), [(-1, 0), (0, -1), (0, -(1 << 31)), (0, 1_000_001)])
def test_no_receive_waits_for_ever(patience_ms: int, gather_us: int) -> None:
    with pair() as (one, _), pytest.raises(ValueError, match="a time that is negative or too long"):
        core.Batch(1, 2048, True).receive(one.fileno(), patience_ms, gather_us)


@pytest.mark.parametrize("limit", [-1, -(1 << 62), 0])
def test_no_datagrams_are_none(limit: int) -> None:
    batch = core.Batch(QUEUE, 2048, True)
    with pair() as (one, other):
        other.send(MESSAGES[0])
        batch.receive(one.fileno(), 5000, 0)

    assert batch.datagrams(1) == (1, MESSAGES[0])
    assert batch.datagrams(limit) == (0, b"")


@pytest.mark.parametrize(
    ("text", "ends", "first", "patience_ms"),
    [
        (b"ab", (1, 2), -1, 0),
        (b"ab", (1, 2), 0, -1),
        (b"ab", (1, 3), 0, 0),
        (b"ab", (2, 1), 0, 0),
        (b"", (0xFFFFFFFF,), 0, 0),
    ],
)
def test_parts_are_sent_only_from_within_their_text(
    text: bytes, ends: tuple[int, ...], first: int, patience_ms: int
) -> None:
    with pair() as (one, _), pytest.raises(ValueError, match=r"negative|within the text"):
        core.send(one.fileno(), text, array("I", ends).tobytes(), first, patience_ms, False)


def test_parts_are_bytes_that_nobody_can_change() -> None:
    with pytest.raises(TypeError):
        core.frame(memoryview(b"ab"), b"\2\0\0\0", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        core.frame(b"ab", bytearray(4), 1, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "framing"), [(0, 0), (-1, 0), (2**31, 0), (2**32 + 1, 0), (1, -1), (1, 5), (1, 1 << 20)]
)
def test_a_message_has_a_number_and_a_framing(number: int, framing: int) -> None:
    with pytest.raises(ValueError, match="no framing, no number"):
        core.frame(b"a", b"\1\0\0\0", number, framing)


@pytest.mark.parametrize("number", [-1, 1 << 24, (1 << 32) + 1, (1 << 32) - 1])
def test_a_location_has_a_number_that_is_not_cut(number: int) -> None:
    with pytest.raises(ValueError, match="number"):
        core.Locations(10).put(bytes(4), number)
    with pytest.raises(ValueError, match="number"):
        compile_template(TEMPLATE, {}).set_location_texts(number, b"", b"", b"", b"")


def call_until_refused(tally: Callable[[bytes], object]) -> None:
    while True:  # the other thread is about to be in
        tally(b"")


def test_a_batch_belongs_to_the_thread_that_is_in_it() -> None:
    batch = load(MESSAGES[0])
    template = compile_template(TEMPLATE, {})
    with pair() as (one, other):
        reader = threading.Thread(target=batch.receive, args=(one.fileno(), 5000, 0))
        reader.start()
        try:
            with pytest.raises(RuntimeError, match="in use by another thread"):
                call_until_refused(batch.tally)
            for call in (
                lambda: batch.load(b"", 0, 0),
                lambda: batch.receive(one.fileno(), 0, 0),
                lambda: batch.datagrams(1),
                lambda: batch.describe(0),
                lambda: batch.time(None, 0),
                lambda: batch.render(template, None),
                lambda: core.Ids().add(batch, None),
            ):
                with pytest.raises(RuntimeError, match="in use by another thread"):
                    call()
        finally:
            other.send(MESSAGES[0])
            reader.join()

    assert batch.tally(None)


def test_a_table_whose_rates_are_lent_to_a_batch_decides_nothing_meanwhile() -> None:
    batch, other, template = core.Batch(4096, 4096, False), load(MESSAGES[0]), compile_template(TEMPLATE, {})
    is_over = threading.Event()
    batch.load(MESSAGES[0] * 4096, 0, 0)
    part = open_table(compile_table(()))
    batch.decide(part, None, True)

    def render_often() -> None:
        while not is_over.is_set():
            with suppress(RuntimeError):
                batch.render(template, None, part)

    def is_refused() -> bool:
        try:
            other.decide(part, b"", True)
        except RuntimeError:
            return True
        return False

    renderer = threading.Thread(target=render_often)
    renderer.start()
    try:
        wait_until(is_refused, "a refusal")  # now and then: a table that is asked all the time is never lent
    finally:
        is_over.set()
        renderer.join()

    assert batch.decide(part, None, True)


def test_a_call_that_fails_leaves_everything_usable() -> None:
    batch, table = load(MESSAGES[0]), core.Table(PROGRAM)
    with socket.socket() as closed:
        descriptor = closed.fileno()
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        batch.receive(descriptor, 0, 0)
    for _ in range(2):
        batch.load(MESSAGES[0], 0, 1)
        assert batch.decide(table, None) == b"\0\0"
        with pytest.raises(IndexError):
            batch.describe(1)
        assert batch.describe(0)["family"] == 2


def test_the_module_can_be_collected() -> None:
    def count() -> int:
        gc.collect()
        return sum(type(found) is type and found.__name__ == "Batch" for found in gc.get_objects())

    before = count()
    spec = core.__spec__
    assert spec is not None
    assert spec.loader is not None
    for _ in range(3):
        module = spec.loader.create_module(spec)
        assert module is not None
        spec.loader.exec_module(module)
        assert module.Batch is not core.Batch
    del module

    assert count() == before
