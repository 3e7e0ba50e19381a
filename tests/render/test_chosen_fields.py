"""Fields that are chosen: both engines write them and no others, and every form stays what it is."""

import json as parser
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.config.field_list import FIELD_LIST, choose_names
from conntrackd.config.together import FORMS, explain_choice
from conntrackd.config.values import BadValueError
from conntrackd.core import _core as core
from conntrackd.flow import Flow, Lost
from conntrackd.render import journal, json, loki, syslog
from conntrackd.render.fields import ALWAYS, FIELDS, HEADS, list_names
from conntrackd.render.template import Template
from tests.engine.feed import ENGINES
from tests.engine.rendering import render
from tests.engine.test_render import flows
from tests.rendering import list_texts
from tests.sinks.flows import make_flows

NATIVE, PLAIN = ENGINES
NAMES: Final = tuple(list_names())
EITHER: Final = "either the names of all that is written, or -NAME for one less and +NAME for one more"
LOST: Final = Lost(3, 10**18, 10**18 + 5, "kernel", "")


def make_syslog(form: str) -> Callable[[frozenset[str] | None], Template]:
    return lambda names: syslog.make_template(form, "daemon", "gw1", 42, names=names)


MAKE: Final[Mapping[str, Callable[[frozenset[str] | None], Template]]] = {
    "stream": json.make_template,
    "journal": journal.make_template,
    "loki": loki.make_template,
    **{form: make_syslog(form) for form in ("rfc5424", "rfc3164", "cee")},
}


def parse_parameters(text: str) -> dict[str, str]:
    return dict(re.findall(r' ?(\w+)="((?:[^"\\]|\\.)*)"', text))


def parse(form: str, text: str) -> dict[str, Any]:
    """The fields of a record by their names, those included that have a place of their own in the form."""
    match form:
        case "stream":
            found: dict[str, Any] = parser.loads(text)
        case "cee":
            header, _, line = text.partition(" @cee: ")
            assert re.fullmatch(r"<30>\w{3} [ \d]\d [\d:]{8} gw1 conntrackd\[42\]:", header)
            found = parser.loads(line)
        case "journal":
            assert text.endswith("\n")
            pairs = dict(line.split("=", 1) for line in text.splitlines())
            named = {"MESSAGE": "msg", "PRIORITY": "level", "EVENT_TIME": "time"}
            found = {
                named.get(key, key.removeprefix("EVENT_").lower()): value
                for key, value in pairs.items()
                if key not in {"SYSLOG_IDENTIFIER", "MESSAGE_ID"}
            }
        case "loki":
            moment, line, metadata = parser.loads(text.removesuffix(","))
            found = {"time": moment, "msg": line, "type": "", "prot": "", **metadata}
        case "rfc5424":
            match = re.fullmatch(
                r"(<30>1) (\S+) gw1 conntrackd 42 (\w+) \[meta [^]]*\]\[event@32473(.*?)\](.*)", text
            )
            assert match is not None
            found = {"level": match[1], "time": match[2], **parse_parameters(match[4])}
            found |= {"msg": match[5]} if match[5] else {}
        case _:
            match = re.fullmatch(r"(<30>)(\w{3} [ \d]\d [\d:]{8}) gw1 conntrackd\[42\]: (.*)", text)
            assert match is not None
            assert match[3].strip() == match[3]
            message = re.match(r'[^"=]*(?= \w+="|$)', match[3])
            found = {"level": "", "time": match[2], **parse_parameters(match[3])}
            found |= {"msg": message[0]} if message and message[0] else {}
    return found


@st.composite
def choices(draw: st.DrawFn) -> tuple[str, frozenset[str]]:
    """A form and names that it can be without; often few."""
    form = draw(st.sampled_from(sorted(MAKE)))
    some = draw(st.sets(st.sampled_from(NAMES), min_size=1, max_size=8))
    names = frozenset(NAMES) - some if draw(st.booleans()) else frozenset(some)
    names |= FORMS[form].needs.keys()
    if explain_choice(form, names) != ("", ""):
        names |= {draw(st.sampled_from(["src", "dst", "flow"]))}
    return form, names


@settings(max_examples=150)
@given(choices(), st.lists(flows(), min_size=1, max_size=3))
def test_a_record_has_the_chosen_fields_of_the_whole_record_and_no_others(
    choice: tuple[str, frozenset[str]], batch: list[Flow]
) -> None:
    form, names = choice
    template = MAKE[form](names)
    assert explain_choice(form, names) == ("", "")

    rendered = render(NATIVE, template, batch)
    whole = render(PLAIN, MAKE[form](None), batch)

    assert rendered == render(PLAIN, template, batch)
    for text, full in zip(list_texts(rendered), list_texts(whole), strict=True):
        expected = {name: value for name, value in parse(form, full.decode()).items() if name in names}
        assert parse(form, text.decode()) == expected


@pytest.mark.parametrize("form", MAKE)
def test_a_loss_has_all_of_its_fields_whatever_is_chosen(form: str) -> None:
    names = frozenset({"src", *FORMS[form].needs})

    assert MAKE[form](names).render_loss(LOST) == MAKE[form](None).render_loss(LOST)


def test_what_every_event_has_is_the_first_of_all() -> None:
    first = FIELDS[: len(ALWAYS)]

    assert tuple(output.name for output in first) == ALWAYS
    assert [core.HAS[output.attribute] for output in first] == [0] * len(ALWAYS)


# -- from the settings


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ((), None),
        (("src", " DST "), {"src", "dst"}),
        (("-msg", "-flow", "-src_city"), set(NAMES) - {"msg", "flow", "src_city"}),
        (("-msg", "+community_id"), set(NAMES) - {"msg"}),
        (("+community_id",), None),
    ],
)
def test_a_list_is_of_what_is_written_or_of_what_is_not(
    items: tuple[str, ...], names: set[str] | None
) -> None:
    assert choose_names(FIELD_LIST.parse(items)) == names


@pytest.mark.parametrize(
    ("items", "text", "message", "hint"),
    [
        (("src", "dpotr"), "dpotr", "is not a field of a record", "did you mean dport?"),
        (("-dsst",), "-dsst", "is not a field of a record", "did you mean dst?"),
        (("+scr",), "+scr", "is not a field of a record", "did you mean src?"),
        (("src", "+dst"), "+dst", "does not go with what stands before it", EITHER),
        (("xyzzy",), "xyzzy", "is not a field of a record", "conntrackd-events(7) has all of them"),
        (("src", "-dst"), "-dst", "does not go with what stands before it", EITHER),
    ],
)
def test_a_mistake_in_a_list_names_the_nearest_field(
    items: tuple[str, ...], text: str, message: str, hint: str
) -> None:
    with pytest.raises(BadValueError) as caught:
        FIELD_LIST.parse(items)

    assert (caught.value.text, caught.value.message, caught.value.hint) == (text, message, hint)


@pytest.mark.parametrize(
    ("form", "left_out", "message"),
    [
        ("loki", {"time"}, "leaves out time: an entry of Loki's has one"),
        ("loki", {"msg"}, "leaves out msg: it is the line of an entry"),
        ("loki", {"prot"}, "leaves out prot: it is a label of Loki's streams"),
        ("loki", {"level", "flow", "src", "dst"}, "has no field that is there in every record"),
        ("journal", {"msg"}, "leaves out msg: it is the entry's MESSAGE"),
        ("rfc5424", {"type"}, "leaves out type: it stands in the header of the message"),
        ("rfc3164", {"msg", *ALWAYS}, "has no field that is there in every record"),
        ("rfc3164", {"level"}, "leaves out level: it stands in the header of the message"),
        ("stream", {*HEADS, *ALWAYS}, "has no field that is there in every record"),
        ("cee", set(NAMES), "has no field that is there in every record"),
    ],
)
def test_what_a_form_cannot_be_without_is_refused(form: str, left_out: set[str], message: str) -> None:
    assert explain_choice(form, frozenset(NAMES) - left_out)[0] == message


def test_the_fewest_fields_of_each_form_make_a_record() -> None:
    (text,) = list_texts(render(NATIVE, json.make_template(frozenset({"level"})), make_flows(1)))
    assert text == b'{"level":"INFO"}\n'
    (text,) = list_texts(render(NATIVE, json.make_template(frozenset({"dst", "dport"})), make_flows(1)))
    assert parser.loads(text).keys() == {"dst", "dport"}
    needs = frozenset(FORMS["loki"].needs)
    (text,) = list_texts(render(NATIVE, loki.make_template(needs), make_flows(1)))
    assert text.endswith(b",{}],")
