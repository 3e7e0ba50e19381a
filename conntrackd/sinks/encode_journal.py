"""Records -> datagrams of the journal's native protocol: one `NAME=value` a line.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from typing import Final

from conntrackd.flow import Batch, Lost
from conntrackd.sinks.encode import Renderer, Syntax, make_visible

# Of these two kinds of messages, made once with `systemd-id128 new`: journalctl MESSAGE_ID=...
EVENT_ID: Final = "0c9dd05e29894436947944875e347a2c"
LOST_ID: Final = "6f16e6d0f38344c283a33bebfc27c046"
INFO, WARNING = 6, 4  # syslog(3)


def _open(name: str) -> str:
    return f"EVENT_{name.upper()}="


JOURNAL: Final = Syntax(_open, "\n", _open, "\n", make_visible)


class JournalEncoder:
    """Records -> one datagram each. Belongs to one thread."""

    def __init__(self) -> None:
        self._renderer = Renderer(JOURNAL)

    def encode(self, batch: Batch) -> list[bytes]:
        return [
            (
                f"MESSAGE={message}\nPRIORITY={WARNING if isinstance(record, Lost) else INFO}\n"
                f"SYSLOG_IDENTIFIER=conntrackd\n"
                f"MESSAGE_ID={LOST_ID if isinstance(record, Lost) else EVENT_ID}\nEVENT_TIME={when}\n{fields}"
            ).encode()
            for when, _, message, fields, record in self._renderer.render(batch)
        ]
