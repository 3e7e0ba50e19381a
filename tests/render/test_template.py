"""Losses, in every template."""

import json
from typing import Any

import pytest

from conntrackd.flow import ABSENT, Lost
from conntrackd.render import journal
from conntrackd.render import json as json_lines
from conntrackd.render.syslog import make_template
from conntrackd.render.template import describe_loss
from tests.rendering import list_texts

ZONE = "CET-1"  # an hour ahead in winter
SECOND = 10**9
WHEN = 1_763_807_683_181_432_081


def show(lost: Lost) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json_lines.TEMPLATE.render_loss(lost).text)
    return record


def test_a_loss_has_its_number_its_times_and_its_place() -> None:
    kernel = show(Lost(7, WHEN, WHEN + SECOND, "kernel"))
    queue = show(Lost(1, WHEN, WHEN + SECOND, "loki", "queue"))

    assert kernel == {
        "time": "2025-11-22T11:34:44.181432081+01:00",
        "level": "WARN",
        "msg": "LOST 7 events in the kernel's buffer",
        "type": "LOST",
        "lost": 7,
        "since": "2025-11-22T11:34:43.181432081+01:00",
        "until": "2025-11-22T11:34:44.181432081+01:00",
        "where": "kernel",
    }
    assert (queue["where"], queue["reason"], queue["lost"]) == ("loki", "queue", 1)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (Lost(1, 0, 0, "kernel"), "LOST 1 event in the kernel's buffer"),
        (Lost(2, 0, 0, "loki", "spool"), "LOST 2 events in sink loki (spool)"),
        (
            Lost(ABSENT, 0, 0, "daemon", "not running"),
            "LOST events in the daemon (not running): between since and until some may be missing",
        ),
        (Lost(ABSENT, 0, 0, "kernel", "merged"), "LOST events in the kernel's buffer (merged)"),
    ],
)
def test_a_loss_is_one_sentence(lost: Lost, said: str) -> None:
    assert describe_loss(lost) == said
    assert ("lost" in show(lost)) == (lost.count != ABSENT)


@pytest.mark.parametrize(
    "template", [json_lines.TEMPLATE, journal.TEMPLATE, make_template("rfc5424", "daemon", "gw1", 1)]
)
def test_a_loss_is_one_text_and_no_event(template: Any) -> None:
    loss = template.render_loss(Lost(7, WHEN, WHEN + SECOND, "kernel"))

    assert (loss.events, loss.time, list_texts(loss)) == (0, WHEN + SECOND, [loss.text])
