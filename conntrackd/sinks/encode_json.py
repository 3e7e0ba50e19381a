"""Records -> JSON lines, as the stream sink and the tails write them."""

from typing import Final

from conntrackd.flow import Batch
from conntrackd.sinks.compose import Composer
from conntrackd.sinks.encode import JSON, Form, parse_time

BEGIN: Final = '{"time":"'
LOST_MARK: Final = b',"type":"LOST"'
LINE: Final = Form(
    JSON, BEGIN + '$time","level":"$level","msg":"$message"$fields}\n', {"level": "INFO"}, {"level": "WARN"}
)


class JsonEncoder:
    """Records -> one object a line. Belongs to one thread."""

    form = LINE

    def __init__(self) -> None:
        self._composer = Composer()

    def encode(self, batch: Batch) -> bytes:
        """Each line ended by a newline, UTF-8."""
        return "".join(self._composer.compose_each(self.form, batch)).encode()


def count_events(lines: bytes) -> int:
    """Lines that are no LOST records: the quotes of a value are escaped, so that none can hold the mark."""
    return lines.count(b"\n") - lines.count(LOST_MARK)


def find_time(lines: bytes) -> int:
    """Of the first line, in nanoseconds since the epoch; 0 where there is none."""
    begin = len(BEGIN)
    return parse_time(lines[begin : lines.index(b'"', begin)].decode()) if lines else 0
