"""Sinks with names of their own: each gets its events in its form, through reloads, whatever others do."""

import json
import re
from pathlib import Path

import pytest

from conntrackd.bus.names import MANAGER_PATH, SINK_PATH
from conntrackd.cli import ctl
from conntrackd.errors import ConntrackdError
from conntrackd.history.source import list_readable_sinks, read_configuration
from tests.bus.private import PrivateBus
from tests.bus.raw import Raw
from tests.live.control import ask, count_sources, start_flood
from tests.live.daemon import daemon, settle
from tests.live.network import Network, inside
from tests.live.test_sink_filters import receive_syslog
from tests.live.test_sums import list_imbalance
from tests.metrics.client import get
from tests.sinks.loki_server import Store, run_server
from tests.sinks.syslog_servers import get_free_port

pytestmark = pytest.mark.privileged

FIRST, FLOWS = 10_000, 12_000
CONFIGURATION = """\
conntrack: {{events: new, protocols: udp, netns: {netns}}}
filter: ['log destination port 9', drop any]
state_directory: {state}
metrics.listen: unix://{state}/metrics
sink.stream: {{enable: true}}
sink.syslog:
  {{enable: true, address: 'udp://127.0.0.1:{port}', filter: [log source port 10000-11999, drop any]}}
sinks:
  disk-1:
    kind: stream
    writer: file://{state}/a.json
    filter: drop source port 10000-10999
    fields: -msg,-flow,+community_id
  siem:
    kind: syslog
    address: udp://127.0.0.1:{port}
    facility: local3
    format: cee
    fields: time,type,sport
    filter: [log source port 12000-12999, drop any]
"""
DEAD = "  dead: {{kind: loki, address: 'http://127.0.0.1:{closed}', batch_wait: 50ms}}\n"
GOING = "  going: {{kind: stream, writer: 'file://{state}/b.json'}}\n"
COMING = """\
  coming: {{kind: loki, address: 'http://127.0.0.1:{loki}', batch_wait: 50ms, fields: '-flow'}}
"""


def read_ports(path: Path) -> list[int]:
    return [json.loads(line)["sport"] for line in path.read_text().splitlines()]


def test_named_sinks_get_each_their_own_while_others_break_come_and_go(
    net: Network, bus: PrivateBus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside(net.router, "conntrack", "-F")
    store, restored, messages, path = Store(), Store(), list[bytes](), tmp_path / "conntrackd.yaml"
    with run_server(store) as server, run_server(restored) as late, receive_syslog(messages) as port:
        values = {"netns": net.router, "state": tmp_path, "port": port}
        values |= {"closed": get_free_port(), "loki": server.port}
        path.write_text((CONFIGURATION + DEAD + GOING).format(**values))
        arguments = ["--config", str(path), "--bus.address", bus.address]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running, Raw(bus.address, {}) as listener:
            running.wait_for_words("org.conntrackd1 is on")
            listener.ask_bus("AddMatch", "s", f"type='signal',path='{MANAGER_PATH}'")
            thread = start_flood(net, FIRST, FLOWS)
            running.wait(lambda: len(running.lines) > 200, "some events")
            path.write_text((CONFIGURATION + DEAD + COMING).format(**values))
            changes = ask(capsys, "reload")["changes"]
            running.wait(lambda: len(running.lines) >= FLOWS, "the events")
            thread.join()
            settle(running)
            for name in ("syslog", "siem", "disk-1", "coming"):
                assert ask(capsys, "sink", "flush", name) == {"emptied": True}
            stats, status = ask(capsys, "stats"), ask(capsys, "status")
            signals = {
                message.member: body[0]
                for message, body in (
                    listener.read_until(lambda message: str(message.member).startswith("Interfaces"))
                    for _ in "12"
                )
            }
            path.write_text(path.read_text().replace("kind: syslog", "kind: journal"))
            with pytest.raises(
                ConntrackdError, match=r"conntrackd\.yaml:1\d: sinks\.siem\.\w+ is a setting of"
            ):
                ctl.run(["reload"])
            shown = ask(capsys, "filter", "show", "--sink", "disk-1")
            metrics = get(str(tmp_path / "metrics")).body.decode()
            # What is removed leaves its spool where it is, and finds it when it is named again.
            path.write_text((CONFIGURATION + COMING).format(**values))
            removed = ask(capsys, "reload")["changes"]
            kept = list((tmp_path / "sink-dead").glob("loki-*.spool"))
            path.write_text((CONFIGURATION + COMING + DEAD).format(**{**values, "closed": late.port}))
            ask(capsys, "reload")
            assert ask(capsys, "sink", "flush", "dead") == {"emptied": True}
            assert running.stop() == 0

    everything = list(range(FIRST, FIRST + FLOWS))
    lines = [json.loads(line) for line in (tmp_path / "a.json").read_text().splitlines()]
    plain = [message for message in messages if b"@cee" not in message]
    going, coming = (
        read_ports(tmp_path / "b.json"),
        [int(dict(found.metadata)["sport"]) for found in store.query()],
    )
    # Those that a reload does not touch: exactly what their filters say, in the form that they have.
    assert count_sources(running) == everything
    assert sorted(line["sport"] for line in lines) == [number for number in everything if number >= 11_000]
    assert not any({"msg", "flow"} & line.keys() for line in lines)
    assert all("community_id" in line for line in lines)
    assert not any("community_id" in event for event in running.events)
    assert (
        sorted(int(found) for m in plain for found in re.findall(rb'sport="(\d+)"', m)) == everything[:2000]
    )
    cee = [json.loads(message.partition(b"@cee:")[2]) for message in messages if b"@cee" in message]
    assert sorted(record["sport"] for record in cee) == everything[2000:3000]
    assert all({"time", "type", "sport"} >= record.keys() - {"msg"} for record in cee)
    # The one that goes has all until it goes, the one that comes all from then on.
    assert changes[:2] == ["sink coming (loki) is new", "sink going (stream) is removed"]
    assert going == everything[: len(going)]
    assert 0 < len(going) < FLOWS
    assert sorted(coming) == everything[len(going) :]
    # And all by their names.
    assert signals == {"InterfacesAdded": f"{SINK_PATH}/coming", "InterfacesRemoved": f"{SINK_PATH}/going"}
    # The sums hold for all of them; of what was before it came it has nothing.
    assert list_imbalance(stats["counters"], stats["sinks"]) == {"coming: accepted": len(going)}
    assert list(status["Sinks"]) == ["coming", "dead", "disk-1", "siem", "stream", "syslog"]
    assert [name for name, sink in status["Sinks"].items() if sink["State"] != "ok"] == ["dead"]
    assert any(problem.startswith("sink dead is retrying: ") for problem in status["Problems"])
    assert stats["sinks"]["dead"]["sink_events_spooled"] == FLOWS
    assert (removed[0], len(kept)) == ("sink dead (loki) is removed", 1)
    assert sorted(int(dict(found.metadata)["sport"]) for found in restored.query()) == everything
    assert shown["rules"] == ["drop source port 10000-10999"]
    assert f'conntrackd_sink_events_delivered_total{{sink="disk-1"}} {FLOWS - 1000}.0' in metrics
    assert list_readable_sinks(read_configuration(path)) == [
        f"file:{tmp_path}/a.json",
        "loki:coming",
        "loki:dead",
    ]
