"""Entries of the journal's native protocol: one `NAME=value` a line.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from typing import Final

from conntrackd.render.template import Syntax, Template, make_visible

# Of these three kinds of messages, made once with `systemd-id128 new`: journalctl MESSAGE_ID=...
EVENT_ID: Final = "0c9dd05e29894436947944875e347a2c"
LOST_ID: Final = "6f16e6d0f38344c283a33bebfc27c046"
SUPPRESSED_ID: Final = "10ca537565604bb9bb7b05f01f34e14c"
INFO, WARNING = 6, 4  # syslog(3)


def _open(name: str) -> str:
    return f"EVENT_{name.upper()}="


SYNTAX: Final = Syntax(_open, "\n", _open, "\n", make_visible)
TEXT: Final = "MESSAGE=$message\nPRIORITY=$priority\nSYSLOG_IDENTIFIER=conntrackd\nMESSAGE_ID=$id\n"
TIME: Final = "EVENT_TIME=$time\n"


def _make_template(names: frozenset[str] | None) -> Template:
    has_time = names is None or "time" in names
    return Template(
        f"{TEXT}{TIME if has_time else ''}$fields",
        SYNTAX,
        {"priority": str(INFO), "id": EVENT_ID},
        {"priority": str(WARNING), "id": LOST_ID},
        {"id": SUPPRESSED_ID},
        fields=names,
        loss_text=f"{TEXT}{TIME}$fields",
    )


TEMPLATE: Final = _make_template(None)


def make_template(names: frozenset[str] | None) -> Template:
    """Entries with these fields; None for all."""
    return TEMPLATE if names is None else _make_template(names)
