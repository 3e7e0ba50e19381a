"""Lists of messages in a spool: the same lists come out, also after a restart."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from conntrackd.sinks.messages import MessageSpool, pack, unpack
from conntrackd.sinks.sink import Parcel
from conntrackd.sinks.spool import Spool

PAYLOAD = [b"5 <30>1", b"", b"a\nb\0", bytes(70_000)]


@given(st.lists(st.binary()))
def test_what_is_packed_is_unpacked(messages: list[bytes]) -> None:
    assert unpack(pack(messages)) == messages


@given(st.binary())
def test_nothing_that_is_unpacked_is_a_mistake(text: bytes) -> None:
    assert sum(map(len, unpack(text))) <= len(text)


def test_a_spool_gives_back_the_same_messages_after_a_restart(tmp_path: Path) -> None:
    spool = MessageSpool(Spool(tmp_path, "syslog", 1 << 20))
    assert spool.append([Parcel(PAYLOAD, 4, 7)]) == []
    spool.close()
    again = MessageSpool(Spool(tmp_path, "syslog", 1 << 20))
    row = again.first()
    assert row is not None
    assert (row.parcel, row.intact, again.rows, again.events, again.oldest) == (
        Parcel(PAYLOAD, 4, 7),
        True,
        1,
        4,
        7,
    )
    again.remove(row)
    assert (again.first(), again.rows) == (None, 0)
    again.close()
