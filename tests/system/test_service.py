"""The service on a booted machine: started, logging, controlled, killed, and never without a restart."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.debian import ROOT, run
from tests.system.machine import SERVICE, Machine
from tests.system.traffic import compute_address

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

PROBE = Path(__file__).parent / "probe.py"
TALK = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
server.accept()[0].close()
client.close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
"""
BUS = ("busctl", "call", "org.conntrackd1", "/org/conntrackd1", "org.conntrackd1.Manager")
STATISTICS = "a{st}a{sa{st}}at "  # the signature of its answer
GAP = 3000
METRICS = "conntrackd-metrics.socket"
SCRAPE = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9477/metrics", timeout=10).read().decode())
"""
MANY = 60_000  # less than the journal's queue holds: journald may be slower than the kernel


@pytest.fixture(autouse=True)
def fresh_limit_of_starts(service: Machine) -> None:
    """systemd takes five starts in ten seconds; those of the tests before are none of this one."""
    service.run("systemctl", "reset-failed", SERVICE)


def as_user(name: str, *command: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={name}", "--init-groups", f"--regid={name}", "--", *command)


def test_it_is_ready_and_warns_of_nothing(service: Machine) -> None:
    assert (service.show("ActiveState"), service.show("SubState")) == ("active", "running")
    assert service.run("systemctl", "is-system-running") == "running"
    assert "healthy" in service.run("conntrackctl", "status")
    assert service.run("journalctl", "-q", "-p", "warning", "-u", "conntrackd") == ""


def test_real_connections_are_records_with_all_fields(service: Machine) -> None:
    service.run("/usr/bin/python3", "-c", TALK)
    service.wait(lambda: service.count("EVENT_TYPE=NEW", "EVENT_SRC=127.0.0.1") >= 2, "two new flows")

    (tcp,) = service.events("EVENT_TYPE=NEW", "EVENT_PROT=TCP")
    (udp,) = service.events("EVENT_TYPE=NEW", "EVENT_PROT=UDP")
    wanted = {
        *("EVENT_TYPE", "EVENT_FLOW", "EVENT_PROT", "EVENT_SRC", "EVENT_DST", "EVENT_SPORT", "EVENT_DPORT"),
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "_SYSTEMD_UNIT"),
    }
    assert wanted - tcp.keys() == set()
    assert wanted - udp.keys() == set()
    assert (tcp["EVENT_SRC"], tcp["EVENT_DPORT"], tcp["_SYSTEMD_UNIT"]) == ("127.0.0.1", "8080", SERVICE)
    assert (udp["EVENT_DST"], udp["EVENT_DPORT"], udp["PRIORITY"]) == ("127.0.0.1", "9", "6")
    assert tcp["MESSAGE"] == f"NEW TCP connection from 127.0.0.1:{tcp['EVENT_SPORT']} to 127.0.0.1:8080"
    rules = ("log type NEW and destination port 8080", "drop any")
    for source in ((), ("--from", "journal")):  # the package's configuration has the journal on, and no file
        shown = service.run("conntrackctl", "events", *source, "-o", "jsonl", "--since", "-1h", *rules)
        (record,) = (json.loads(line) for line in shown.splitlines())
        assert (record["sport"], record["msg"]) == (int(tcp["EVENT_SPORT"]), tcp["MESSAGE"])


def test_conntrackctl_controls_it(service: Machine) -> None:
    assert "events_lost_total" in service.run("conntrackctl", "stats")
    assert "rules in force" in service.run("conntrackctl", "reload-filter")
    assert "is disabled" in service.run("conntrackctl", "sink", "disable", "journal")
    assert "is enabled" in service.run("conntrackctl", "sink", "enable", "journal")
    service.run("systemctl", "reload", "conntrackd")


def test_a_bad_configuration_is_explained_and_not_loaded(service: Machine) -> None:
    service.configure("filter: [drop protocol TPC]\n")
    try:
        assert "did you mean TCP?" in service.refuse("conntrackctl", "reload-filter")
        service.refuse("systemctl", "reload", "conntrackd")
        assert service.show("ActiveState") == "active"
    finally:
        service.unconfigure()
    service.run("conntrackctl", "reload")


def test_who_may_do_what_on_the_real_bus_with_the_real_polkit(service: Machine) -> None:
    service.run("useradd", "joe")
    service.run("useradd", "-G", "conntrackd-observers", "ann")
    info, control = (*BUS, "GetStatistics"), (*BUS, "SetFilter", "asu", "1", "log any", "60")

    assert service.run(*info).startswith(STATISTICS)
    assert service.run(*control).startswith("as 1 ")
    assert "Access denied" in service.refuse(*as_user("joe", *info))
    assert "Access denied" in service.refuse(*as_user("joe", *control))
    assert "not permitted to talk to conntrackd" in service.refuse(*as_user("joe", "conntrackctl", "status"))
    assert service.run(*as_user("ann", *info)).startswith(STATISTICS)
    refused = service.refuse(*as_user("ann", "busctl", "--allow-interactive-authorization=no", *control[1:]))
    assert re.search("authenticat|authoriz|denied", refused, re.IGNORECASE)

    rules = service.root / "etc/polkit-1/rules.d/10-test.rules"
    rules.write_text(
        'polkit.addRule(function(action, subject) { if (action.id == "org.conntrackd1.control" && '
        'subject.user == "ann") return polkit.Result.YES; });\n'
    )
    service.wait(lambda: _may(service, as_user("ann", *control)), "polkit reads its rules")
    service.run("conntrackctl", "filter", "reset")


def test_who_may_look_reads_no_secret(service: Machine) -> None:
    service.sh("id eve >/dev/null 2>&1 || useradd -G conntrackd-observers eve")
    service.sh("install -m 0640 -o root -g conntrackd /dev/null /etc/conntrackd/loki.token")
    try:
        service.run(*as_user("conntrackd", "cat", "/etc/conntrackd/loki.token"))
        assert "denied" in service.refuse(*as_user("eve", "cat", "/etc/conntrackd/loki.token"))
        assert "denied" in service.refuse(*as_user("eve", "ls", "/var/lib/conntrackd"))
        assert "healthy" in service.run(*as_user("eve", "conntrackctl", "status"))
    finally:
        service.run("rm", "/etc/conntrackd/loki.token")


def test_a_file_of_events_is_rotated_and_no_event_is_lost(service: Machine) -> None:
    """In the one folder where the unit lets the daemon write one."""
    service.install("logrotate")
    folder, pattern = "/var/log/conntrackd", r"127\.\d+\.\d+\.\d+"
    service.configure(f"sink.stream: {{enable: true, writer: 'file://{folder}/events.json'}}\n")
    service.run("systemctl", "restart", SERVICE)

    def read(name: str, first: int) -> list[str]:
        path = service.root / folder[1:] / name
        text = path.read_text() if path.exists() else ""
        sent = set(map(compute_address, range(first, first + 100)))
        return [
            address for address in re.findall(rf'"type":"NEW".*?"dst":"({pattern})"', text) if address in sent
        ]

    try:
        service.send(150_000, 100)
        service.wait(lambda: len(read("events.json", 150_000)) == 100, "100 lines")
        service.run("logrotate", "--force", "/etc/logrotate.d/conntrackd-events")
        service.wait((service.root / folder[1:] / "events.json").exists, "a new file")
        service.send(151_000, 100)
        service.wait(lambda: len(read("events.json", 151_000)) == 100, "100 lines in the new file")
        assert len(read("events.json.1", 150_000)) == 100
        assert read("events.json", 150_000) == []
    finally:
        service.unconfigure()
        service.run("systemctl", "restart", SERVICE)


def test_it_listens_in_another_namespace_as_the_manual_says(service: Machine) -> None:
    manual = (ROOT / "man/conntrackd.8").read_text().replace("\\-", "-")
    (settings,) = re.findall(r"\[Service\]\n(NetworkNamespacePath=.*)\n", manual)
    name = settings.rpartition("/")[2]
    service.sh(f"ip netns add {name} && ip -n {name} link set lo up")
    talk = 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.9.9.9", 9))'
    try:
        with _changed_unit(service, settings):
            service.run("systemctl", "restart", SERVICE)
            service.run("ip", "netns", "exec", name, "python3", "-c", talk)
            service.wait(lambda: service.count("EVENT_TYPE=NEW", "EVENT_DST=127.9.9.9") == 1, "its event")
    finally:
        service.run("systemctl", "restart", SERVICE)
        service.run("ip", "netns", "del", name)


def _may(machine: Machine, command: tuple[str, ...]) -> bool:
    return (
        machine.sh(f"{' '.join(repr(word) for word in command)} >/dev/null 2>&1 && echo yes || true") == "yes"
    )


def test_the_sandbox_is_as_tight_as_it_says(service: Machine) -> None:
    said = service.run("systemd-analyze", "security", "--no-pager", SERVICE)
    level = re.search(r"Overall exposure level for conntrackd.service: ([\d.]+)", said)

    assert level
    assert float(level[1]) <= 1.5


@pytest.mark.parametrize("name", ["conntrackd-probe", "conntrackd-probe-metrics"])
def test_what_it_needs_works_in_the_sandbox_and_nothing_else_does(service: Machine, name: str) -> None:
    """Also with the socket of metrics passed: it can bind no other."""
    shutil.copy(PROBE, service.root / "usr/lib/conntrackd-probe.py")
    start = "ExecStart=/usr/bin/python3 -I /usr/lib/conntrackd-probe.py"
    text = re.sub(r"(?m)^ExecStart=.*", start, service.run("systemctl", "cat", SERVICE))
    text = re.sub(r"(?m)^(Restart|WatchdogSec|ExecReload|Alias|FileDescriptorStore).*\n", "", text)
    units = Path(f"/proc/{service.leader}/root/run/systemd/system")
    units.mkdir(exist_ok=True)
    (units / f"{name}.service").write_text(text.replace("Type=notify", "Type=oneshot"))
    listen = service.run("systemctl", "cat", METRICS).replace(SERVICE, f"{name}.service")
    (units / f"{name}.socket").write_text(listen)
    service.run("systemctl", "daemon-reload")
    is_passed = name.endswith("metrics")
    if is_passed:
        service.run("systemctl", "start", f"{name}.socket")
    try:
        done = service.sh(f"systemctl start {name}; journalctl -u {name} -o cat")
    finally:
        service.run("systemctl", "stop", f"{name}.socket")

    assert "MUST" not in done
    assert ("ok: passed-socket" in done) == is_passed
    assert done.count("ok") > 10


def test_a_kill_is_followed_by_a_restart_that_has_the_events_of_the_gap(service: Machine) -> None:
    process = service.show("MainPID")
    first, before = 100_000, service.count("EVENT_TYPE=LOST")
    service.run("systemctl", "kill", "-s", "STOP", SERVICE)
    service.send(first, GAP)
    service.run("systemctl", "kill", "-s", "KILL", SERVICE)

    service.wait(lambda: service.show("MainPID") not in {process, "0"}, "the restart")
    _wait_for_flows(service, first, GAP)
    (lost,) = service.events("EVENT_TYPE=LOST")[before:]
    assert (lost["EVENT_WHERE"], lost["EVENT_REASON"]) == ("daemon", "ended without a stop")


def test_systemctl_restart_has_the_events_of_the_gap(service: Machine) -> None:
    process, first, before = service.show("MainPID"), 105_000, service.count("EVENT_TYPE=LOST")
    with service.background("-m", "tests.system.traffic", str(first), str(GAP), "slowly") as sender:
        service.run("systemctl", "restart", SERVICE)
        assert sender.wait(120) == 0

    assert service.show("MainPID") != process
    _wait_for_flows(service, first, GAP)
    assert service.count("EVENT_TYPE=LOST") == before


def test_the_time_between_stop_and_start_is_reported(service: Machine) -> None:
    before = service.count("EVENT_TYPE=LOST")
    service.run("systemctl", "stop", SERVICE)
    service.send(140_000, 10)
    service.run("systemctl", "start", SERVICE)
    service.send(141_000, 10)
    _wait_for_flows(service, 141_000, 10)

    (lost,) = service.events("EVENT_TYPE=LOST")[before:]
    assert (lost["EVENT_WHERE"], "EVENT_LOST" in lost) == ("daemon", False)
    assert lost["EVENT_SINCE"] < lost["EVENT_UNTIL"]


def test_the_watchdog_restarts_what_hangs_without_loss(service: Machine) -> None:
    # Ten seconds: on a loaded machine the next process may stand for three, and be killed with events in it.
    with _changed_unit(service, "WatchdogSec=10\nTimeoutAbortSec=1"):
        service.run("systemctl", "restart", SERVICE)
        process, first = service.show("MainPID"), 110_000
        service.run("systemctl", "kill", "-s", "STOP", SERVICE)
        service.send(first, GAP)

        service.wait(lambda: service.show("MainPID") not in {process, "0"}, "the watchdog")
        _wait_for_flows(service, first, GAP)
        assert "watchdog" in service.run("journalctl", "-u", "conntrackd", "-o", "cat").lower()


@contextmanager
def _changed_unit(machine: Machine, settings: str) -> Iterator[None]:
    """The unit with these settings of its service."""
    folder = Path(f"/proc/{machine.leader}/root/run/systemd/system/conntrackd.service.d")
    folder.mkdir(parents=True)
    try:
        (folder / "test.conf").write_text(f"[Service]\n{settings}\n")
        machine.run("systemctl", "daemon-reload")
        yield
    finally:
        shutil.rmtree(folder)
        machine.run("systemctl", "daemon-reload")


def test_twenty_descriptors_are_enough(service: Machine) -> None:
    with _changed_unit(service, "LimitNOFILE=20"):
        service.run("systemctl", "restart", SERVICE)
        service.send(130_000, 100)
        _wait_for_flows(service, 130_000, 100)
        assert "healthy" in service.run("conntrackctl", "status")
    service.run("systemctl", "restart", SERVICE)


def test_a_limit_too_small_to_start_is_explained_once_and_not_tried_again(service: Machine) -> None:
    """TasksMax= would take a controller of the kernel that the machine's container may not have."""
    with _changed_unit(service, "LimitNOFILE=8"):
        service.sh("systemctl restart conntrackd || true")
        service.wait(lambda: service.show("ActiveState") == "failed", "the end")
        assert (service.show("NRestarts"), service.show("ExecMainStatus")) == ("0", "71")
        process = service.show("ExecMainPID")
        said = service.run("journalctl", "-o", "cat", f"_PID={process}")
    service.run("systemctl", "reset-failed", SERVICE)
    service.run("systemctl", "restart", SERVICE)

    assert "cannot open enough files" in said
    assert "hint: " in said
    assert "Traceback" not in said


def test_nothing_but_systemd_starts_it(service: Machine) -> None:
    service.sh("id eve >/dev/null 2>&1 || useradd -G conntrackd-observers eve")
    service.run("systemctl", "stop", SERVICE)
    try:
        for command in (("conntrackctl", "status"), ("conntrackctl", "doctor"), (*BUS, "GetStatistics")):
            service.refuse(*as_user("eve", *command))
            service.refuse(*command)
        said = service.refuse("conntrackctl", "status")

        assert (service.show("ActiveState"), service.show("NRestarts")) == ("inactive", "0")
        assert said.endswith("hint: systemctl start conntrackd")
    finally:
        service.run("systemctl", "start", SERVICE)


def test_after_a_start_that_failed_status_and_doctor_say_why_within_a_second(service: Machine) -> None:
    service.run("useradd", "-G", "conntrackd", "kim")  # who may not read the journal
    service.configure("filter: [drop protocol TPC]\n")
    try:
        service.sh("systemctl restart conntrackd || true")
        service.wait(lambda: service.show("ActiveState") == "failed", "the end")
        began = time.monotonic()
        said = service.refuse("conntrackctl", "status")
        took = time.monotonic() - began
        found = service.refuse("conntrackctl", "doctor")
        member = service.refuse(*as_user("kim", "conntrackctl", "status"))

        assert "it has failed (exit status 78)" in said
        assert "did you mean TCP?" in said
        assert took < 1.5, "nsenter and a loaded machine have their part in it"
        assert "did you mean TCP?" in "".join(found.splitlines()[:4])
        assert member.endswith("(exit status 78)\nhint: sudo journalctl -u conntrackd -n 20")
        assert service.show("ActiveState") == "failed"
    finally:
        service.unconfigure()
        service.run("systemctl", "reset-failed", SERVICE)
        service.run("systemctl", "start", SERVICE)


def test_its_own_lines_have_its_name_and_its_files_are_for_the_group(service: Machine) -> None:
    own = service.run("journalctl", "-u", "conntrackd", "_TRANSPORT=stdout", "-o", "json", "-n", "20")
    names = {json.loads(line)["SYSLOG_IDENTIFIER"] for line in own.splitlines()}

    assert names == {"conntrackd"}
    assert "psched" not in own
    assert service.show("UMask") == "0027"


def test_metrics_come_by_a_socket_that_systemd_passes(service: Machine) -> None:
    told = service.refuse("sh", "-c", "conntrackd check --metrics.listen 127.0.0.1:9477 --sink.stream.enable")
    assert "hint: apt install python3-prometheus-client" in told
    service.install("python3-prometheus-client")
    service.configure("metrics.textfile: /run/conntrackd/conntrackd.prom\n")
    service.run("systemctl", "enable", METRICS)
    service.run("systemctl", "restart", SERVICE)
    try:
        first = 118_000
        service.send(first, 1000)
        _wait_for_flows(service, first, 1000)
        page = service.python("-c", SCRAPE)
        assert "\nconntrackd_healthy 1.0\n" in page
        assert '\nconntrackd_sink_state{sink="journal",state="ok"} 1.0\n' in page
        received = re.search(r"(?m)^conntrackd_events_received_total (\S+)$", page)
        entries = re.search(r"(?m)^conntrackd_table_entries (\S+)$", page)
        assert received is not None
        assert entries is not None
        assert min(float(received[1]), float(entries[1])) >= 1000
        assert re.search(r'(?m)^conntrackd_kernel_insert_failed_total{cpu="0"} ', page)
        file = "/run/conntrackd/conntrackd.prom"
        service.wait(lambda: "healthy 1.0" in service.sh(f"cat {file} || true"), "the file")
        assert service.run("stat", "-c", "%a %U", file) == "644 conntrackd"

        # A scrape does not start again what somebody has stopped.
        service.run("systemctl", "stop", SERVICE)
        assert service.refuse("systemctl", "is-active", METRICS) == "inactive"
        service.run("systemctl", "start", SERVICE)
        assert "\nconntrackd_healthy 1.0\n" in service.python("-c", SCRAPE)
        # Nor is it gone after a crash.
        process = service.show("MainPID")
        service.run("systemctl", "kill", "-s", "KILL", SERVICE)
        service.wait(lambda: service.show("MainPID") not in {process, "0"}, "the restart")
        service.wait(lambda: service.show("ActiveState") == "active", "the start")
        assert "\nconntrackd_healthy 1.0\n" in service.python("-c", SCRAPE)
        assert "healthy" in service.run("conntrackctl", "status")
    finally:
        service.unconfigure()
        service.run("systemctl", "disable", METRICS)
        service.run("systemctl", "stop", SERVICE)
        service.run("systemctl", "start", SERVICE)
    assert service.refuse("systemctl", "is-active", METRICS) == "inactive"


def test_the_table_is_read_and_guarded_in_the_sandbox(service: Machine) -> None:
    first = 115_000
    service.send(first, 1000)
    _wait_for_flows(service, first, 1000)
    service.configure("conntrack: {reliable: true, resync: snapshot, snapshot: true}\n")
    service.run("systemctl", "restart", SERVICE)
    _wait_for_flows(service, first, 1000, kind="SNAPSHOT")
    assert _list_processes(service) == ["conntrack-guard", "python3"]

    process = service.show("MainPID")
    service.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", SERVICE)
    service.wait(lambda: service.show("MainPID") not in {process, "0"}, "the restart")
    service.wait(lambda: len(_list_processes(service)) == 2, "one guard, of the new process")
    assert "healthy" in service.run("conntrackctl", "status")
    service.unconfigure()
    service.run("systemctl", "restart", SERVICE)
    assert _list_processes(service) == ["python3"]


def _list_processes(machine: Machine) -> list[str]:
    """Those of the service's user, by name."""
    mine = '[ "$(stat -c %U $each 2>/dev/null)" != conntrackd ] || cat $each/comm'
    return sorted(machine.sh(f"for each in /proc/[0-9]*; do {mine}; done").split())


def _wait_for_flows(machine: Machine, first: int, count: int, kind: str = "NEW") -> None:
    """Each is told once."""
    sent = set(map(compute_address, range(first, first + count)))
    reported: list[str] = []

    def all_are_told() -> bool:
        reported[:] = [
            event["EVENT_DST"] for event in machine.events(f"EVENT_TYPE={kind}") if event["EVENT_DST"] in sent
        ]
        return len(reported) >= count

    machine.wait(all_are_told, f"{count} flows")
    assert sorted(reported) == sorted(sent)


def test_a_kill_loses_nothing_that_is_spooled(service: Machine) -> None:
    spool = "/var/lib/conntrackd/loki"
    service.configure(
        f"sink: {{loki: {{enable: true, spool: {spool}, batch_wait: 100ms, address: 'http://127.0.0.1:3100'}}}}\n"
    )
    service.run("systemctl", "restart", SERVICE)
    first = 120_000
    service.send(first, 2000)
    # In the spool once there is a file as long as 2,000 records are.
    service.wait(lambda: int(service.sh(f"du -sb {spool} | cut -f1")) > 2000 * 50, "the spool")
    process = service.show("MainPID")
    service.run("systemctl", "kill", "-s", "KILL", SERVICE)
    service.wait(lambda: service.show("MainPID") not in {process, "0"}, "the restart")

    with service.background("-m", "tests.system.loki") as server:
        assert server.stdin
        assert server.stdout
        assert server.stdout.readline() == "ready\n"
        sent, reported = set(map(compute_address, range(first, first + 2000))), set[str]()

        def all_are_told() -> bool:
            assert server.stdin
            assert server.stdout
            print(file=server.stdin, flush=True)
            reported.update(re.findall(r"[\d.]+", server.stdout.readline()))
            return reported >= sent

        service.wait(all_are_told, "2,000 flows in Loki")
    service.unconfigure()
    service.run("systemctl", "restart", SERVICE)


def test_journald_keeps_120_000_records_of_the_shipped_unit(service: Machine) -> None:
    before = {kind: service.count(f"EVENT_TYPE={kind}") for kind in ("NEW", "DESTROY")}
    run(*service.enter("conntrack", "-F", spaces="n"))
    service.wait(lambda: service.count("EVENT_TYPE=DESTROY") > before["DESTROY"], "the flush")
    before = {kind: service.count(f"EVENT_TYPE={kind}") for kind in ("NEW", "DESTROY")}
    lost = service.count("EVENT_TYPE=LOST")
    service.send(200_000, MANY)
    service.wait(lambda: service.count("EVENT_TYPE=NEW") >= before["NEW"] + MANY, "60,000 records", 120)
    run(*service.enter("conntrack", "-F", spaces="n"))

    service.wait(
        lambda: service.count("EVENT_TYPE=DESTROY") >= before["DESTROY"] + MANY, "120,000 records", 120
    )
    assert service.count("EVENT_TYPE=NEW") == before["NEW"] + MANY
    assert service.count("EVENT_TYPE=LOST") == lost
    assert "Suppressed" not in service.run("journalctl", "-u", "systemd-journald", "-o", "cat")
