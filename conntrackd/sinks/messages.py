"""A spool for payloads that are lists of messages: each with its length before it, in one text of bytes."""

import struct
from collections.abc import Sequence
from typing import Any, Final

from conntrackd.flow import Lost
from conntrackd.sinks.sink import Parcel
from conntrackd.sinks.spool import Row, Spool

LENGTH: Final = struct.Struct(">I")


def pack(messages: list[bytes]) -> bytes:
    """One text, from which unpack() makes the same list."""
    return b"".join([LENGTH.pack(len(message)) + message for message in messages])


def unpack(text: bytes) -> list[bytes]:
    """What pack() got. Of another text it makes anything."""
    messages, at = [], 0
    while at + LENGTH.size <= len(text):
        (length,) = LENGTH.unpack_from(text, at)
        at += LENGTH.size
        messages.append(text[at : at + length])
        at += length
    return messages


class MessageSpool:
    """A Store; see there. All but the form of a payload is the Spool's."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.note = spool.note
        self.set_aside = spool.set_aside
        self.close = spool.close

    def remove(self, row: Row[Any]) -> None:
        self._spool.remove(row)

    @property
    def damage(self) -> str:
        return self._spool.damage

    @property
    def missing(self) -> int:
        return self._spool.missing

    @property
    def restored(self) -> int | None:
        return self._spool.restored

    @property
    def rows(self) -> int:
        return self._spool.rows

    @property
    def events(self) -> int:
        return self._spool.events

    @property
    def oldest(self) -> int:
        return self._spool.oldest

    @property
    def losses(self) -> tuple[Lost, ...]:
        return self._spool.losses

    def append(
        self, parcels: Sequence[Parcel[list[bytes]]], *, keep: int | None = None, is_report: bool = False
    ) -> list[Row[list[bytes]]]:
        packed = [Parcel(pack(each.payload), each.events, each.oldest, each.losses) for each in parcels]
        return [_unpack_row(row) for row in self._spool.append(packed, keep=keep, is_report=is_report)]

    def first(self) -> Row[list[bytes]] | None:
        row = self._spool.first()
        return None if row is None else _unpack_row(row)


def _unpack_row(row: Row[bytes]) -> Row[list[bytes]]:
    parcel = row.parcel
    messages = unpack(parcel.payload) if row.intact else []
    return Row(row.number, Parcel(messages, parcel.events, parcel.oldest, parcel.losses), row.intact)
