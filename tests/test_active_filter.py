"""active_filter.py: what rules become, and the change from one list to another while events flow."""

import json as parser
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from conntrackd.active_filter import Filter, change_filter, compile_filter
from conntrackd.config.read import Config, read_config
from conntrackd.delivery.loan import Loan, Passed, Way
from conntrackd.delivery.outbox import Outbox
from conntrackd.errors import ManyErrors, RuleError
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.kernel import REMEMBERS
from conntrackd.filter.sets import NO_SETS
from conntrackd.flow import ALL_EVENTS, EventType
from conntrackd.netlink.namespace import enter
from conntrackd.netlink.socket import EventSockets
from conntrackd.pipeline import Pipeline
from conntrackd.render import json
from conntrackd.render.rendered import Rendered
from conntrackd.stats import Stats
from conntrackd.tails import Tails
from tests.engine.feed import ENGINES
from tests.live.network import TRACKING, Network, call_inside, inside, network
from tests.messages import build_message
from tests.sinks.flows import make_flows


def read(**environ: str) -> Config:
    return read_config({}, {f"CONNTRACKD_{name}": value for name, value in environ.items()})


def make(config: Config, *texts: str, readers: int = 1) -> Filter:
    return compile_filter([RuleText(text) for text in texts], "test", config, ENGINES[0], readers)


def test_rules_become_canonical_text_groups_and_a_program() -> None:
    some = make(read(), "log  TYPE new", "deny any")

    assert some.rules == ("log type NEW", "drop any")
    assert some.groups == EventType.NEW
    assert some.program is not None
    assert len(some.program) == 8 * some.instructions
    assert some.warnings == ()


def test_without_the_kernels_filter_all_wanted_events_are_passed_up() -> None:
    some = make(read(CONNTRACK_KERNEL_FILTER="no", CONNTRACK_EVENTS="new,destroy"), "drop any")

    assert (some.groups, some.program) == (EventType.NEW | EventType.DESTROY, None)
    assert [warning.partition("\n")[0] for warning in some.warnings] == ["the filter logs no event"]


@pytest.mark.parametrize(
    ("settings", "timestamp", "groups", "has_program"),
    [
        ({"RECORDS": "flows"}, 1, EventType.DESTROY, True),
        ({"RECORDS": "flows"}, 0, EventType.NEW | EventType.DESTROY, True),
        ({"RECORDS": "flows", "FLOWS_MAX": "0"}, 0, EventType.DESTROY, True),
        ({"RECORDS": "flows", "PROTOCOLS": "all"}, 0, EventType.NEW | EventType.DESTROY, True),
        ({"RECORDS": "flows", "KERNEL_FILTER": "no"}, 0, EventType.NEW | EventType.DESTROY, False),
        ({"RECORDS": "flows", "KERNEL_FILTER": "no"}, 1, EventType.DESTROY, False),
        ({"RECORDS": "both", "EVENTS": "destroy"}, 0, EventType.NEW | EventType.DESTROY, True),
        ({"RECORDS": "both"}, 1, ALL_EVENTS, True),
        ({"EVENTS": "destroy"}, 0, EventType.DESTROY, True),
        ({"EVENTS": "destroy", "HEARTBEAT": "1m", "KERNEL_FILTER": "no"}, 0, EventType.DESTROY, False),
    ],
)
def test_the_kernel_is_asked_for_what_flows_are_written_from(
    settings: dict[str, str], timestamp: int, groups: int, has_program: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conntrackd.records.tracking.read_setting", {"nf_conntrack_timestamp": timestamp}.get)
    config = read(**{f"CONNTRACK_{name}": value for name, value in settings.items()})
    some = make(config, "drop destination port 53")

    assert (some.groups, some.program is not None) == (groups, has_program)
    assert (some.records.remembered > 0) == (groups & EventType.NEW > 0 and groups != ALL_EVENTS)
    assert (REMEMBERS in some.explain(config, NO_SETS)) == (some.records.remembered > 0)


def test_a_rule_about_a_type_that_no_flow_is_written_from_is_in_vain() -> None:
    (warning,) = make(read(CONNTRACK_RECORDS="flows"), "drop type NEW").warnings

    assert "can never match" in warning
    assert "conntrack.records: flows" in warning


def test_a_rule_about_flows_that_live_is_in_vain_without_heartbeats() -> None:
    (warning,) = make(read(), "drop type ALIVE").warnings

    assert "can never match" in warning
    assert "set conntrack.heartbeat" in warning
    for records in ("events", "flows"):
        for rule in ("drop type ALIVE", "drop type ALIVE and bytes < 1M"):
            assert make(read(CONNTRACK_HEARTBEAT="60s", CONNTRACK_RECORDS=records), rule).warnings == ()


@pytest.mark.parametrize("records", ["events", "flows"])
def test_flows_that_live_are_no_matter_of_event_types_and_none_of_the_kernels(records: str) -> None:
    made = make(
        read(CONNTRACK_HEARTBEAT="60s", CONNTRACK_RECORDS=records, CONNTRACK_EVENTS="destroy"),
        "drop type ALIVE and destination port 22",
        "log type ALIVE",
        "drop type UPDATE",
    )
    (table,) = made.tables
    batch = ENGINES[0].open_batch()
    batch.load(b"".join(map(build_message, make_flows(3))), 0, 1)
    batch.set_type(None, EventType.ALIVE)

    assert len(ENGINES[0].decide(batch, table, None, None)) == 3 * 2
    assert table.counts == [0, 0, 3, 0]
    assert made.groups & ~EventType.NEW == EventType.DESTROY


def test_all_mistakes_are_raised_and_a_rule_in_vain_is_a_warning() -> None:
    with pytest.raises(ManyErrors) as caught:
        make(read(), "log prot TCP", "log protocol TPC")
    warned = make(read(), "drop protocol TCP", "log protocol TCP")

    assert len(caught.value.errors) == 2
    assert all(isinstance(error, RuleError) for error in caught.value.errors)
    assert len(warned.warnings) == 1


class Gathering:
    """In the place of an outbox: keeps what it is given, and lends what it keeps it in."""

    name = "stream"
    template = json.TEMPLATE
    batch_wait = 0.0

    def __init__(self) -> None:
        self._file = os.memfd_create("lines")

    @property
    def lines(self) -> list[bytes]:
        return Path(f"/proc/self/fd/{self._file}").read_bytes().splitlines()

    def get_room(self) -> int:
        return 1 << 20

    def put(self, rendered: Rendered, **_: object) -> None:
        os.write(self._file, rendered.text)

    def lend(self) -> Loan:
        return Loan(Way.WRITE, self._file)

    def end_loan(self, passed: Passed, _: float = 0.0) -> None:
        assert (passed.rest.events, passed.torn) == (0, 0)

    def report(self, _: object) -> None:
        raise AssertionError("the buffer is large enough for all")

    def close(self) -> None:
        os.close(self._file)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as built:
        built.load(TRACKING)
        yield built


def send(count: int) -> int:
    """One flow from each port, all of them wanted by every filter below, and one that only some want."""
    for port in range(10_000, 10_000 + count):
        for target in (9, 10):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.1.0.2", port))
                sock.sendto(b"", ("10.2.0.2", target))
    return os.getpid()


@pytest.mark.privileged
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_what_both_filters_keep_is_never_lost_or_doubled_by_a_change(net: Network, readers: int) -> None:
    inside(net.router, "conntrack", "-F")
    config, stats, gathering, tails = read(), Stats(), Gathering(), Tails()
    filters = [
        make(config, *texts, readers=readers)
        for texts in (
            ("log type NEW and destination port 9", "drop any"),
            ("drop destination port 10 and type NEW", "log destination port 9", "drop type UPDATE"),
            (),
        )
    ]
    with enter(net.router):
        events = EventSockets.open(
            readers, groups=filters[0].groups, buffer=64 << 20, program=filters[0].program
        )
    pipeline = Pipeline(ENGINES[0], filters[0].tables, None, [cast(Outbox, gathering)], tails, stats)
    threads = [
        threading.Thread(target=reader.listen, args=(one,))
        for reader, one in zip(pipeline.readers, events.sockets.values(), strict=True)
    ]
    for thread in threads:
        thread.start()
    sender = threading.Thread(target=call_inside, args=(net.client, send, 5000))
    sender.start()
    changes, old = 0, filters[0]
    while sender.is_alive():
        new = filters[(changes + 1) % len(filters)]
        change_filter(pipeline, events, old, new, {})
        changes, old = changes + 1, new
    sender.join()
    pipeline.stop()
    for thread in threads:
        thread.join()
    events.close()
    flows = [parser.loads(line) for line in gathering.lines]
    gathering.close()
    wanted = [flow["sport"] for flow in flows if flow["type"] == "NEW" and flow["dport"] == 9]

    assert changes > 100
    assert sorted(wanted) == list(range(10_000, 15_000))
    assert readers > 1 or wanted == sorted(wanted)
    assert stats.events_lost_total == stats.events_malformed_total == 0


def test_what_is_in_vain_beside_the_settings_is_a_warning() -> None:
    default = make(read(), "log protocol ICMP", "log country DE", "log type NEW and bytes > 1")
    wide = make(
        read(CONNTRACK_PROTOCOLS="all", CONNTRACK_RESYNC="snapshot"),
        "log protocol ICMP",
        "log type NEW and bytes > 1",
    )

    assert [warning.split("hint: ")[1] for warning in default.warnings] == [
        "add icmp to conntrack.protocols",
        "set geoip.database",
        "remove it",
    ]
    assert wide.warnings == ()
