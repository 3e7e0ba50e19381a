"""conntrackctl against the daemon itself, while events flow."""

import json
import signal
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.bus.client import DaemonError
from conntrackd.cli import ctl
from tests.bus.private import wait_until
from tests.live.control import ask, count_descriptors, count_new, talk
from tests.live.daemon import Running, settle
from tests.live.network import SNAT, TRACKING, Network, inside
from tests.sinks.syslog_servers import get_free_port

pytestmark = pytest.mark.privileged
RULESET = TRACKING + SNAT


def test_status_stats_and_doctor_of_a_daemon_in_a_namespace(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(net, 5)
    running.wait(lambda: count_new(running) == 5, "five events")
    settle(running)  # relayed events are counted a moment after they are written

    status = ask(capsys, "status")
    assert (status["healthy"], status["Problems"], status["RuleCount"]) == (True, [], 1)
    assert status["Sinks"]["stream"]["State"] == "ok"
    stats = ask(capsys, "stats")
    assert stats["counters"]["events_new_total"] == 5
    assert stats["sinks"]["stream"]["sink_events_delivered_total"] >= 5
    findings = {finding["check"]: finding["severity"] for finding in ask(capsys, "doctor")}
    assert {findings[name] for name in ("daemon", "module", "tracking", "buffer", "loss", "sink")} == {"ok"}


def test_a_filter_of_run_time_decides_at_once_and_goes_with_reset(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "drop protocol UDP")
    talk(net, 3)
    settle(running)
    assert count_new(running) == 0
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol UDP"]

    ask(capsys, "filter", "reset")
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol TCP"]


def test_each_rule_counts_what_it_decided_here_and_nothing_that_the_kernel_dropped(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "filter", "set", "drop type UPDATE", "log type NEW", "log type DESTROY and type NEW")
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")

    assert ask(capsys, "stats")["rule_matches"][1:] == [0, 3, 0]


@pytest.mark.parametrize("sink", [[], ["--sink", "stream"]])
def test_where_rules_of_run_time_drop_nothing_that_is_noted(
    sink: list[str], running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [
        ask(capsys, "filter", "set", *sink, "log port 443", *more)["changes"] for more in ([], ["drop any"])
    ]

    note = "note: no rule drops anything: events that no rule matches are logged, too\nhint: "
    assert changes[0][1].startswith(note)
    assert [len(lines) for lines in changes] == [2, 1]


def test_a_filter_with_a_time_reverts_by_itself(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "filter", "set", "drop any", "--for", "1s")
    assert ask(capsys, "filter", "show")["expires_s"] == 1

    wait_until(lambda: ask(capsys, "filter", "show")["rules"] == ["drop protocol TCP"])


def test_a_program_that_the_kernel_has_no_room_for_is_named_and_its_rules_are_kept(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    if "net.core.optmem_max" not in inside(net.router, "sysctl", "-aN"):
        pytest.skip("in older kernels this limit is that of the whole machine")
    before = int(inside(net.router, "sysctl", "-n", "net.core.optmem_max"))
    rules = [f"drop destination port {port} and source address 10.9.9.9" for port in range(1, 100)]
    net.set("net.core.optmem_max", 4096)
    try:
        reported = ask(capsys, "filter", "set", *rules, "drop protocol UDP")["changes"]
        status, findings = ask(capsys, "status"), ask(capsys, "doctor")
        talk(net, 3)
        settle(running)
    finally:
        net.set("net.core.optmem_max", before)

    assert count_new(running) == 0
    assert reported == ["100 rules in force, from run time, until a reload or restart; none in the kernel"]
    assert "no room for the filter's program" in status["Problems"][0]
    assert status["KernelInstructions"] == 0
    assert [finding["remedy"] for finding in findings if finding["check"] == "filter"] == [
        f"ip netns exec {net.router} sysctl -w net.core.optmem_max=131072; conntrackctl reload-filter"
        "  # and where the namespace is made"
    ]
    ask(capsys, "filter", "set", *rules, "drop protocol UDP")
    assert ask(capsys, "status")["KernelInstructions"] > 1000


def test_what_was_changed_at_run_time_is_named_until_a_reload(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        ask(capsys, "filter", "set", "log any")["changes"],
        ask(capsys, "log-level", "debug")["changes"],
        ask(capsys, "sink", "disable", "stream")["changes"],
    ]
    changed = ask(capsys, "status")["RunTimeChanges"]
    ended, again = (ask(capsys, "reload")["changes"] for _ in range(2))

    assert ended == [f"{what} is as configured again" for what in changed]
    assert again == ["nothing has changed"]
    assert all("until a reload or restart" in answer for (answer,) in answers)
    assert changed == ["filter", "log level", "sink stream"]
    assert ask(capsys, "status")["RunTimeChanges"] == []
    assert ask(capsys, "log-level", "info")["changes"] == ["log level is info, as configured"]


def test_what_waits_for_a_restart_is_reported_by_each_reload_until_it_is_taken_back(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = configuration.read_text()
    configuration.write_text(f"{before}\nshutdown_timeout: 7s\nconntrack: {{buffer: 1M}}\n")
    waits = "conntrack.buffer has changed and needs a restart: systemctl restart conntrackd"

    first, second = (ask(capsys, "reload")["changes"] for _ in range(2))
    configuration.write_text(before)
    third = ask(capsys, "reload")["changes"]

    assert waits in first
    assert second == [waits]
    assert third == ["shutdown_timeout is 10s"]
    assert ask(capsys, "reload")["changes"] == ["nothing has changed"]


def test_a_daemon_whose_sinks_are_all_off_is_not_healthy(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(capsys, "sink", "disable", "stream")
    off = ask(capsys, "status")
    ask(capsys, "sink", "enable", "stream")
    on = ask(capsys, "status")

    assert (off["healthy"], off["Problems"]) == (
        False,
        ["no sink is in use: events go nowhere; conntrackctl sink enable NAME"],
    )
    assert (on["healthy"], on["Problems"]) == (True, [])


def test_a_daemon_whose_rules_log_nothing_is_not_healthy(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = "put a rule that logs before the one that drops any"
    silent, of_sinks = f"the filter logs no event; {hint}", f"the filters of all sinks log no event; {hint}"
    ask(capsys, "filter", "set", "drop any")
    off, findings = ask(capsys, "status"), ask(capsys, "doctor")
    ask(capsys, "filter", "reset")
    on = ask(capsys, "status")
    ask(capsys, "filter", "set", "--sink", "stream", "drop any")
    nowhere = ask(capsys, "status")["Problems"]
    ask(capsys, "filter", "set", "drop any")
    both = ask(capsys, "status")["Problems"]

    assert (off["healthy"], off["Problems"]) == (False, [silent])
    assert ("error", "filter") in {(finding["severity"], finding["check"]) for finding in findings}
    assert (on["healthy"], on["Problems"]) == (True, [])
    assert (nowhere, both) == ([of_sinks], [silent, of_sinks])


def test_buffer_and_memory_are_the_same_in_every_view(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = ask(capsys, "stats")["counters"]
    findings = {finding["check"]: finding["message"] for finding in ask(capsys, "doctor")}

    assert ask(capsys, "status")["Buffer"] == counters["buffer_bytes"] == 64 << 20
    assert findings["buffer"].startswith("64M")
    assert counters["process_memory_bytes"] <= counters["process_memory_peak_bytes"]


def test_a_reload_with_one_mistake_changes_nothing_and_names_it(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [f"  - drop destination port {port}" for port in range(1, 1001)]
    rules[499] = "  - drop destination prot 500"
    settings = ["sink: {stream: {enable: true}}", "log: {level: debug}", "conntrack: {events: new}"]
    configuration.write_text("\n".join([*settings, "filter:", *rules]))

    with pytest.raises(DaemonError) as caught:
        ctl.run(["reload"])

    place, _, excerpt = str(caught.value).partition("\n")
    assert place.startswith(f"{configuration}:504: unexpected 'prot', did you mean port?")
    assert excerpt.splitlines()[:2] == ["  drop destination prot 500", "                   ^^^^"]
    status = ask(capsys, "status")
    assert (status["Rules"], status["LogLevel"], len(status["KernelGroups"])) == (
        ["drop protocol TCP"],
        "info",
        3,
    )
    configuration.write_text("sink: {stream: {enable: true}}\nfilter: [drop protocol GRE]\n")
    assert ctl.run(["reload"]) == 0
    capsys.readouterr()
    assert ask(capsys, "filter", "show")["rules"] == ["drop protocol GRE"]


@pytest.mark.parametrize("by_signal", [False, True], ids=["by D-Bus", "by SIGHUP"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sink: {stream: {enable: true}\nfilter: [", "2: "),
        ("sink: {stream: {enable: true, colour: red}}", "1: unknown key 'sink.stream.colour'"),
        ("sink: {stream: {enable: 7.5}}", "1: sink.stream.enable: "),
        (None, " cannot be read: "),
        (
            "sink: {stream: {enable: true}}\nstate_directory: /nonexistent/x",
            "2: state_directory: /nonexistent/x: there is no directory /nonexistent",
        ),
    ],
    ids=["syntax error", "unknown field", "wrong type", "missing file", "no restart"],
)
def test_a_configuration_that_cannot_be_used_changes_nothing(
    text: str | None,
    said: str,
    by_signal: bool,
    running: Running,
    configuration: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask(capsys, "sink", "disable", "stream")
    before = ask(capsys, "status"), count_descriptors(running)
    if text is None:
        configuration.unlink()
    else:
        configuration.write_text(text)

    if by_signal:
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_words("nothing has changed")
        message = "".join(running.said)
    else:
        with pytest.raises(DaemonError) as caught:
            ctl.run(["reload"])
        message = str(caught.value)
    after = ask(capsys, "status"), count_descriptors(running)

    assert f"{configuration}:{said}" in message
    assert (after[0]["Rules"], after[0]["Sinks"]["stream"]["State"]) == (["drop protocol TCP"], "disabled")
    assert after[0]["Counters"]["reloads_failed_total"] == 1
    for item in (before[0], after[0]):
        del item["Counters"], item["Sinks"]
    assert after == before


def test_a_reload_that_fails_half_way_leaves_no_spool_open(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = configuration.with_name("spool"), configuration.with_name("bad") / "x"
    ask(capsys, "status")
    before, after = count_descriptors(running), -1
    for writer in (f"file://{bad}", "discard"):
        settings = {
            "stream": {"enable": True},
            "syslog": {"enable": True, "address": "tcp://127.0.0.1:9", "spool": str(good)},
        }
        own = {"last": {"kind": "stream", "writer": writer}}
        configuration.write_text(json.dumps({"sink": settings, "sinks": own}))
        if writer != "discard":
            with pytest.raises(DaemonError, match=r"sinks\.last\.writer: .*: no directory "):
                ctl.run(["reload"])
            after = count_descriptors(running)
        else:
            ask(capsys, "reload")

    assert after <= before  # what answered before may have been open
    assert list(ask(capsys, "status")["Sinks"]) == ["last", "stream", "syslog"]


def test_a_reload_takes_databases_and_refuses_what_is_none(
    running: Running, net: Network, configuration: Path
) -> None:
    writer = MMDBWriter(4, "GeoLite2-City")
    writer.insert_network(IPSet(["10.0.0.0/8"]), {"city": {"names": {"en": "Nuremberg", "de": "Nürnberg"}}})
    path, broken = configuration.with_name("a.mmdb"), configuration.with_name("b.mmdb")
    writer.to_db_file(str(path))
    broken.write_bytes(path.read_bytes()[:100])
    cities = []
    for geoip in (
        {},
        {"database": str(path)},
        {"database": str(path), "locale": "de"},
        {"database": str(broken)},
    ):
        settings = {"sink": {"stream": {"enable": True}}, "geoip": geoip}
        configuration.write_text(json.dumps(settings))
        if geoip.get("database") == str(broken):
            with pytest.raises(Exception, match=r"b\.mmdb is not a usable database"):
                ctl.run(["reload"])
        else:
            assert ctl.run(["reload"]) == 0
        before = len(running.lines)
        talk(net, 1)
        running.wait_for_events(before + 1)
        cities.append(running.events[before].get("city"))

    assert cities == [None, "Nuremberg", "Nürnberg", "Nürnberg"]


def test_a_sink_that_comes_to_acknowledge_is_said_to_have_no_spool_yet(
    running: Running, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reported = []
    for scheme in ("udp", "udp", "tcp", "tls", "udp"):
        syslog = {"enable": True, "address": f"{scheme}://127.0.0.1:{get_free_port()}"}
        configuration.write_text(json.dumps({"sink": {"stream": {"enable": True}, "syslog": syslog}}))
        assert ctl.run(["reload"]) == 0
        reported.append("sink syslog gets its spool at the next start" in capsys.readouterr().out)

    assert reported == [False, False, True, True, False]


def test_a_sink_switched_off_drops_and_counts_and_goes_on_afterwards(
    running: Running, net: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl.run(["sink", "disable", "stream"])
    talk(net, 3)
    capsys.readouterr()
    wait_until(
        lambda: ask(capsys, "stats")["sinks"]["stream"].get("sink_events_dropped_disabled_total", 0) >= 3
    )
    ctl.run(["sink", "enable", "stream"])
    before = len(running.lines)
    talk(net, 2)

    running.wait(lambda: len(running.lines) > before + 1, "events after it was enabled")


def test_a_set_is_read_again_by_a_reload_and_a_bad_one_changes_nothing(
    running: Running, net: Network, configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = configuration.with_name("ours.txt")
    addresses.write_text("192.0.2.0/24 # nobody\n")
    rules = "filter: [drop protocol TCP, log source address @ours, drop any]"
    configuration.write_text(f"sink: {{stream: {{enable: true}}}}\nsets: {{ours: ours.txt}}\n{rules}\n")
    assert f"sets is ours={addresses}" in ask(capsys, "reload")["changes"]
    talk(net, 2)
    settle(running)
    assert count_new(running) == 0

    addresses.write_text("192.0.2.0/24\n10.1.0.2\n2001:db8::/32\n")
    assert ask(capsys, "reload")["changes"] == ["set @ours (3 entries) has changed"]
    talk(net, 3)
    running.wait(lambda: count_new(running) == 3, "three events")

    addresses.write_text("192.0.2.0/24\nnothing\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait_for_words("nothing has changed")
    assert f"reload: {addresses}:2: 'nothing' is not a valid address" in "".join(running.said)
    talk(net, 2)
    running.wait(lambda: count_new(running) == 5, "two more events")

    # Rules of the run time and those who only look have the sets in force, too.
    assert ask(capsys, "filter", "set", "drop address @ours")["changes"]
    talk(net, 2)
    settle(running)
    assert count_new(running) == 5
    sets = ask(capsys, "filter", "explain", "--running")["sets"]
    assert sets == [f"@ours (3 entries) from {addresses}"]
    with pytest.raises(DaemonError, match="there is no set '@our', did you mean ours"):
        ctl.run(["filter", "set", "drop address @our"])
