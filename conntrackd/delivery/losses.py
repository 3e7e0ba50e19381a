"""LOST records as numbers: joined by kind, and written down so that they survive the process."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from conntrackd.flow import ABSENT, Lost

Losses = tuple[Lost, ...]
Kind = tuple[str, str, int, bool]
"""Of losses for which one record can stand."""


def join_losses(losses: Iterable[Lost]) -> Losses:
    """Those of one place and reason as one. What has a number is not joined with what has none."""
    joined: dict[Kind, Lost] = {}
    for lost in losses:
        kind = _get_kind(lost)
        joined[kind] = join_two(joined[kind], lost) if kind in joined else lost
    return tuple(joined.values())


def is_alike(one: Lost, other: Lost) -> bool:
    """Whether one record can stand for both."""
    return _get_kind(one) == _get_kind(other)


def _get_kind(lost: Lost) -> Kind:
    return lost.where, lost.reason, lost.rule, lost.count == ABSENT


def join_two(one: Lost, other: Lost) -> Lost:
    """One record for two that are alike."""
    count = ABSENT if one.count == ABSENT else one.count + other.count
    return replace(one, count=count, since=min(one.since, other.since), until=max(one.until, other.until))


def dump_losses(losses: Iterable[Lost]) -> list[list[Any]]:
    """For json.dumps()."""
    return list(map(dump_loss, losses))


def dump_loss(lost: Lost) -> list[Any]:
    """One, with its rule where it has one."""
    rule = (lost.rule,) if lost.rule else ()
    return [lost.count, lost.since, lost.until, lost.where, lost.reason, *rule]


def load_losses(rows: list[list[Any]]) -> Losses:
    """What dump_losses() made. ValueError or TypeError for anything else."""
    return tuple(
        Lost(int(count), int(since), int(until), str(where), str(reason), *map(int, rule))
        for count, since, until, where, reason, *rule in rows
    )


def describe_losses(losses: Iterable[Lost], without: str = "") -> str:
    """For people: what was lost where, but for one reason; what a limit has held back is not."""
    return ", ".join(
        f"{lost.reason or lost.where}: {'unknown number' if lost.count == ABSENT else lost.count}"
        for lost in join_losses(losses)
        if lost.reason != without and not lost.rule
    )
