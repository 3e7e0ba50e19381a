"""JSON lines, as the stream sink and the tails write them."""

from typing import Final

from conntrackd.render.fields import HEADS
from conntrackd.render.template import JSON_SYNTAX, Template

MEMBERS: Final = {"time": '"time":"$time"', "level": '"level":"$level"', "msg": '"msg":"$message"'}


def write_object(names: frozenset[str] | None = None) -> str:
    """The text of one object, with those of `time`, `level` and `msg` that are among the names; None: all."""
    heads = [MEMBERS[name] for name in HEADS if names is None or name in names]
    return f"{{{','.join(heads)}$fields}}"


def _make_template(names: frozenset[str] | None) -> Template:
    return Template(
        f"{write_object(names)}\n",
        JSON_SYNTAX,
        {"level": "INFO"},
        {"level": "WARN"},
        fields=names,
        loss_text=f"{write_object()}\n",
        is_bare=names is not None and not names & set(HEADS),
    )


TEMPLATE: Final = _make_template(None)


def make_template(names: frozenset[str] | None) -> Template:
    """Lines with these fields; None for all."""
    return TEMPLATE if names is None else _make_template(names)
