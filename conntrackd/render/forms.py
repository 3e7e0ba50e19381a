"""What each form of records cannot do without, where a setting says which fields are written."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from conntrackd.render.fields import ALWAYS, HEADS
from conntrackd.render.loki import LABELS


class Form(NamedTuple):
    """A form of records, as far as it does not leave the choice of fields to people."""

    needs: Mapping[str, str]
    """What it needs, by name, and why."""
    heads: tuple[str, ...] | None = None
    """What may stand before an event's own fields; None where nothing separates fields from each other."""


HEADER: Final = "it stands in the header of the message"
STREAM_LABEL: Final = "it is a label of Loki's streams"
FORMS: Final[Mapping[str, Form]] = {
    "stream": Form({}, HEADS),
    "journal": Form({"level": "it is the entry's PRIORITY", "msg": "it is the entry's MESSAGE"}),
    "loki": Form(
        {
            "time": "an entry of Loki's has one",
            "msg": "it is the line of an entry",
            "type": STREAM_LABEL,
            "prot": STREAM_LABEL,
        },
        ("level",),
    ),
    "rfc5424": Form({"time": HEADER, "level": HEADER, "type": HEADER}),
    "rfc3164": Form({"time": HEADER, "level": HEADER}, ("msg",)),
    "cee": Form({}, HEADS),
}
"""By the name of the sink, or of syslog's form."""


def explain_choice(form: str, names: frozenset[str]) -> tuple[str, str]:
    """Why a record of this form cannot have these fields alone, and what to do; both empty where it can."""
    needs, heads = FORMS[form]
    for name, reason in needs.items():
        if name not in names:
            return f"leaves out {name}: {reason}", f"it has to be written: add {name}, or remove -{name}"
    rest = names - needs.keys() - set(HEADS)
    # Where no head stands before it a field is the first, and it has to be known which one.
    has_first = bool(rest & set(ALWAYS)) or (form == "loki" and not rest)
    if heads is None or names & set(heads) or has_first:
        return "", ""
    first = [name for name in ALWAYS if form != "loki" or name not in LABELS]
    return "has no field that is there in every record", f"add one of {', '.join([*heads, *first])}"
