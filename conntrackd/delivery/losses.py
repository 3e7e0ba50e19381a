"""LOST records as numbers: joined by kind, and written down so that they survive the process."""

from collections.abc import Iterable
from typing import Any

from conntrackd.flow import ABSENT, Lost

Losses = tuple[Lost, ...]


def join_losses(losses: Iterable[Lost]) -> Losses:
    """Those of one place and reason as one. What has a number is not joined with what has none."""
    joined: dict[tuple[str, str, bool], Lost] = {}
    for lost in losses:
        kind = _get_kind(lost)
        joined[kind] = join_two(joined[kind], lost) if kind in joined else lost
    return tuple(joined.values())


def is_alike(one: Lost, other: Lost) -> bool:
    """Whether one record can stand for both."""
    return _get_kind(one) == _get_kind(other)


def _get_kind(lost: Lost) -> tuple[str, str, bool]:
    return lost.where, lost.reason, lost.count == ABSENT


def join_two(one: Lost, other: Lost) -> Lost:
    """One record for two that are alike."""
    count = ABSENT if one.count == ABSENT else one.count + other.count
    return Lost(count, min(one.since, other.since), max(one.until, other.until), one.where, one.reason)


def dump_losses(losses: Iterable[Lost]) -> list[list[Any]]:
    """For json.dumps()."""
    return [[lost.count, lost.since, lost.until, lost.where, lost.reason] for lost in losses]


def load_losses(rows: list[list[Any]]) -> Losses:
    """What dump_losses() made. ValueError or TypeError for anything else."""
    return tuple(
        Lost(int(count), int(since), int(until), str(where), str(reason))
        for count, since, until, where, reason in rows
    )


def describe_losses(losses: Iterable[Lost], without: str = "") -> str:
    """For people: what was lost where, but for one reason."""
    return ", ".join(
        f"{lost.reason or lost.where}: {'unknown number' if lost.count == ABSENT else lost.count}"
        for lost in join_losses(losses)
        if lost.reason != without
    )
