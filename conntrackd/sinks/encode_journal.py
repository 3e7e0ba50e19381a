"""Records -> datagrams of the journal's native protocol: one `NAME=value` a line.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/

One entry a datagram. journald would take many, an empty line apart (src/journal/journald-native.c, from 38 to
261), and the sender save 2 us for each, but one that is killed takes with it the datagram that it holds.
"""

from typing import Final

from conntrackd.flow import Batch
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import Form, Syntax, make_visible

# Of these two kinds of messages, made once with `systemd-id128 new`: journalctl MESSAGE_ID=...
EVENT_ID: Final = "0c9dd05e29894436947944875e347a2c"
LOST_ID: Final = "6f16e6d0f38344c283a33bebfc27c046"
INFO, WARNING = 6, 4  # syslog(3)
END: Final = b"\0"  # stands in no entry


def _open(name: str) -> str:
    return f"EVENT_{name.upper()}="


JOURNAL: Final = Syntax(_open, "\n", _open, "\n", make_visible)


FORM: Final = Form(
    JOURNAL,
    "MESSAGE=$message\nPRIORITY=$priority\nSYSLOG_IDENTIFIER=conntrackd\nMESSAGE_ID=$id\nEVENT_TIME=$time\n$fields\0",
    {"priority": str(INFO), "id": EVENT_ID},
    {"priority": str(WARNING), "id": LOST_ID},
)


class JournalEncoder:
    """Records -> one datagram each. Belongs to one thread."""

    form = FORM

    def __init__(self) -> None:
        self._composer = Composer()

    def encode(self, batch: Batch) -> list[bytes]:
        """In the order of the batch."""
        return "".join(self._composer.compose_each(self.form, batch)).encode().split(END)[:-1]
