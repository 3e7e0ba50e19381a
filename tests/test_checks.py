"""The doctor's checks, on machines made of files."""

import ctypes
import os
import re
import shlex
import socket
from pathlib import Path

import pytest

from conntrackd import advice, checks
from conntrackd.bus.control import Finding, SinkStatus
from conntrackd.checks import Situation, examine
from conntrackd.cli.doctor import address_reader
from conntrackd.config.options import OPTIONS
from conntrackd.config.read import Config, read_config
from conntrackd.errors import ConfigError, OutputError
from conntrackd.filter.never import list_silence
from conntrackd.sinks import SINKS
from tests.bus.private import as_user
from tests.filter.rows import parse
from tests.geoip.test_databases import write_database

NOWHERE = Path("/nonexistent")


def configure(**values: str) -> Config:
    return read_config({key.replace("__", "."): [value] for key, value in values.items()}, {}, None, NOWHERE)


def write(root: Path, path: str, text: object) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{text}\n")
    return target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which all is well."""
    write(tmp_path, "proc/self/status", "CapEff:\t000001ffffffffff")
    for name, value in (("events", 1), ("acct", 1), ("timestamp", 1), ("count", 10), ("max", 1000)):
        write(tmp_path, f"proc/sys/net/netfilter/nf_conntrack_{name}", value)
    write(tmp_path, "proc/sys/net/core/rmem_max", 212992)
    return tmp_path


GOOD = Situation(is_tracking=True, buffer=64 << 20, lost=0, sinks={"stream": SinkStatus("ok", "", {})})


def keep(name: str, value: int, table: str = "netfilter") -> str:
    """The line that sets it now and after each boot."""
    short = name.removeprefix("nf_conntrack_")
    path = f"/etc/sysctl.d/60-conntrackd-{short}.conf"
    line = f"echo net.{table}.{name}={value} > {path}; sysctl -p {path}"
    return line if table == "core" else f"echo nf_conntrack > /etc/modules-load.d/conntrackd.conf; {line}"


def list_trouble(found: list[Finding]) -> list[tuple[str, str, str]]:
    """Severity, check and remedy of what is not well; the clock is that of the machine the test runs on."""
    return [
        (entry.severity, entry.check, entry.remedy)
        for entry in found
        if entry.severity != "ok" and entry.check != "clock"
    ]


def test_where_all_is_well_nothing_is_found(root: Path) -> None:
    found = examine(configure(sink__stream__enable="true"), GOOD, root=root)

    assert list_trouble(found) == []
    assert {entry.check for entry in found} == {
        *("module", "tracking", "events", "acct", "timestamp", "table"),
        *("buffer", "filter", "loss", "sink", "clock", "packages", "core"),
    }


@pytest.mark.parametrize(
    ("name", "value", "trouble"),
    [
        ("events", 0, ("error", "events", keep("nf_conntrack_events", 1))),
        ("events", 2, ("note", "events", keep("nf_conntrack_events", 1))),
        ("acct", 0, ("note", "acct", keep("nf_conntrack_acct", 1))),
        ("timestamp", 0, ("note", "timestamp", keep("nf_conntrack_timestamp", 1))),
        ("count", 800, ("warning", "table", keep("nf_conntrack_max", 2000))),
        ("count", 999, ("error", "table", keep("nf_conntrack_max", 2000))),
    ],
)
def test_a_setting_of_the_kernel_is_reported_with_its_sysctl(
    name: str, value: int, trouble: tuple[str, str, str], root: Path
) -> None:
    write(root, f"proc/sys/net/netfilter/nf_conntrack_{name}", value)

    assert list_trouble(examine(configure(sink__stream__enable="true"), GOOD, root=root)) == [trouble]


@pytest.mark.parametrize("name", ["acct", "timestamp"])
@pytest.mark.parametrize(
    ("records", "severity"), [("events", "note"), ("flows", "warning"), ("both", "warning")]
)
def test_whoever_asks_for_flows_is_advised_to_have_them_counted_and_timed(
    name: str, records: str, severity: str, root: Path
) -> None:
    write(root, f"proc/sys/net/netfilter/nf_conntrack_{name}", 0)
    config = configure(sink__stream__enable="true", conntrack__records=records)

    assert list_trouble(examine(config, GOOD, root=root)) == [
        (severity, name, keep(f"nf_conntrack_{name}", 1))
    ]


@pytest.mark.parametrize(
    ("flows_max", "lack"),
    [
        ("10", "start and stop, those of flows older than the daemon also without duration"),
        ("0", "start, stop and duration"),
    ],
)
def test_a_duration_that_the_daemon_finds_itself_is_not_missed(flows_max: str, lack: str, root: Path) -> None:
    write(root, "proc/sys/net/netfilter/nf_conntrack_timestamp", 0)
    config = configure(conntrack__records="flows", conntrack__flows_max=flows_max)

    (found,) = (entry for entry in checks.check_settings(root, config) if entry.check == "timestamp")
    assert (found.severity, found.message) == ("warning", f"FLOW records come without {lack}")


@pytest.mark.parametrize(("name", "severity"), [("acct", "warning"), ("timestamp", "note")])
def test_whoever_asks_for_heartbeats_is_advised_to_have_flows_counted(
    name: str, severity: str, root: Path
) -> None:
    write(root, f"proc/sys/net/netfilter/nf_conntrack_{name}", 0)
    config = configure(sink__stream__enable="true", conntrack__heartbeat="60s")

    assert list_trouble(examine(config, GOOD, root=root)) == [
        (severity, name, keep(f"nf_conntrack_{name}", 1))
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("table inet conntrackd { # progname python3\n\tflags owner\n}\n", ["firewall"]),
        ("table inet filter {\n}\ntable inet conntrackd-4294963219 {\n\tflags owner\n}\n", ["firewall"]),
        ("table inet conntrackd {\n\tchain own {\n\t}\n}\n", []),
        ("table inet other {\n\tflags owner\n}\n", []),
    ],
)
def test_a_saved_ruleset_that_cannot_be_loaded_beside_the_daemon_is_found(
    text: str, found: list[str], root: Path
) -> None:
    write(root, "etc/nftables.conf", text)

    assert [
        check
        for _, check, _ in list_trouble(examine(configure(sink__stream__enable="true"), GOOD, root=root))
    ] == found


def test_advice_is_for_the_namespace_that_is_watched_and_for_who_reads_it() -> None:
    here, there = configure(), configure(conntrack__netns="of fice")
    line = advice.advise_conntrack("nf_conntrack_acct", 1, here)
    other = advice.advise_conntrack("nf_conntrack_acct", 1, there)

    assert line == keep("nf_conntrack_acct", 1)
    assert other.startswith("ip netns exec 'of fice' sysctl -w net.netfilter.nf_conntrack_acct=1  #")
    assert advice.advise_conntrack("nf_conntrack_max", 9, there) == keep("nf_conntrack_max", 9)
    assert address_reader(line, is_root=True) == line
    assert shlex.split(address_reader(line, is_root=False)) == ["sudo", "sh", "-c", line]
    assert address_reader(other, is_root=False) == f"sudo {other}"
    assert address_reader("restart it", is_root=False) == "restart it"


def test_a_missing_module_is_reported_and_nothing_that_depends_on_it(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/net").mkdir(parents=True)
    found = list(checks.check_kernel(tmp_path, GOOD, configure()))

    assert [(entry.severity, entry.check, entry.remedy) for entry in found] == [
        ("error", "module", "modprobe nf_conntrack")
    ]


def test_a_sandbox_that_hides_the_settings_is_no_missing_module(tmp_path: Path) -> None:
    found = list(checks.check_kernel(tmp_path, GOOD, configure()))

    assert [(entry.severity, entry.check) for entry in found] == [("ok", "tracking"), ("note", checks.HIDDEN)]


@pytest.mark.parametrize(
    ("situation", "trouble"),
    [
        (
            Situation(False, 64 << 20, 0, GOOD.sinks),
            (
                "error",
                "tracking",
                "'conntrackd run --conntrack.activate', or a firewall rule with 'ct state'",
            ),
        ),
        (
            Situation(False, 64 << 20, 0, GOOD.sinks, is_active=True),
            ("error", "tracking", "conntrackctl reload"),
        ),
        (Situation(None, 64 << 20, 0, GOOD.sinks), ("note", "tracking", "")),
        (
            Situation(True, 64 << 20, 0, {"loki": SinkStatus("refused", "the server replied 401", {})}),
            ("error", "sink", "check the receiver's log, and sink.loki here"),
        ),
        (
            Situation(True, 64 << 20, 0, GOOD.sinks, troubles={"stream": "drops events: its queue is full"}),
            (
                *("warning", "sink"),
                "a faster receiver, a larger sink.stream.queue, or a filter that keeps less",
            ),
        ),
        (Situation(True, 212992, 0, GOOD.sinks), ("warning", "buffer", keep("rmem_max", 64 << 20, "core"))),
        (
            Situation(True, 64 << 20, 0, GOOD.sinks, has_room=False),
            ("warning", "filter", f"{keep('optmem_max', 131072, 'core')}; conntrackctl reload-filter"),
        ),
        (
            Situation(True, 64 << 20, 0, GOOD.sinks, silence=list_silence(parse("drop any"))),
            ("error", "filter", "put a rule that logs before the one that drops any"),
        ),
        (
            Situation(True, 64 << 20, 0, GOOD.sinks, unwritten=[OutputError("x", hint="make room")]),
            ("warning", "files", "make room"),
        ),
        (
            Situation(True, 64 << 20, 7, GOOD.sinks),
            ("warning", "loss", "in conntrackd.yaml: conntrack: {buffer: 128M}"),
        ),
        (
            Situation(True, 64 << 20, 0, {"loki": SinkStatus("retrying", "refused", {})}),
            ("warning", "sink", "check that the receiver at sink.loki.address is up"),
        ),
        (
            Situation(True, 64 << 20, 0, {"loki": SinkStatus("failed", "gone", {})}),
            ("error", "sink", "conntrackctl sink enable loki"),
        ),
        (
            Situation(True, 64 << 20, 0, {"loki": SinkStatus("disabled", "", {})}),
            ("note", "sink", "conntrackctl sink enable loki"),
        ),
    ],
)
def test_what_the_daemon_knows_is_reported(
    situation: Situation, trouble: tuple[str, str, str], root: Path
) -> None:
    assert list_trouble(examine(configure(sink__stream__enable="true"), situation, root=root)) == [trouble]


@pytest.mark.parametrize("state", ["refused", "retrying", "failed", "disabled"])
def test_what_is_to_be_done_about_a_sink_names_settings_that_there_are(state: str, root: Path) -> None:
    sinks = {kind.name: SinkStatus(state, "away", {}) for kind in SINKS}
    findings = examine(configure(), Situation(True, 64 << 20, 0, sinks), root=root)
    remedies = [each.remedy for each in findings if each.check == "sink" and each.remedy]
    words = [word for remedy in remedies for word in re.findall(r"sink[.\w]+", remedy)]

    known = {option.key for option in OPTIONS}
    assert [word for word in words if not any(key.startswith(word) for key in known)] == []
    assert len(remedies) >= len(sinks)


def test_without_a_sink_or_a_namespace_that_is_named_the_doctor_says_so(root: Path) -> None:
    found = examine(configure(conntrack__netns="nowhere-at-all"), Situation(True, 64 << 20), root=root)

    assert [(entry.severity, entry.check) for entry in found if entry.severity == "error"] == [
        ("error", "namespace"),
        ("error", "sink"),
    ]


def test_without_the_capability_a_note_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/status", "CapEff:\t0000000000000000")

    assert checks.check_capability(tmp_path).remedy == "sudo conntrackctl doctor"


def test_an_old_or_missing_database_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, "city.mmdb", "")
    os.utime(path, (0, 0))
    config = configure(geoip__database=str(path))

    assert [item.severity for item in checks.check_geoip(config, GOOD, 59 * 86400.0)] == ["ok"]
    assert [item.severity for item in checks.check_geoip(config, GOOD, 61 * 86400.0)] == ["warning"]
    path.unlink()
    assert [item.severity for item in checks.check_geoip(config, GOOD)] == ["error"]


def test_a_database_that_cannot_be_used_is_not_said_to_be_ok(tmp_path: Path) -> None:
    path, other = (write(tmp_path, name, "") for name in ("city.mmdb", "asn.mmdb"))
    config = configure(geoip__database=f"{path}, {other}")
    faults = {path: ConfigError("it is damaged", hint="geoipupdate", origin="geoip.database")}
    situation = Situation(True, 64 << 20, 0, databases=faults)

    assert [finding for finding in examine(config, situation) if finding.check == "geoip"] == [
        Finding("warning", "geoip", "geoip.database: it is damaged", "geoipupdate"),
        Finding("ok", "geoip", f"{other} is 0 days old", ""),
    ]


def test_without_a_daemon_each_database_is_read_from_here(tmp_path: Path) -> None:
    good = write_database(tmp_path / "good.mmdb", {"autonomous_system_number": 64496})
    path = write(tmp_path, "city.mmdb", "garbage")
    found = list(checks.check_geoip(configure(geoip__database=f"{good}, {path}")))

    text = f"{path} is not a usable database: its metadata is missing"
    assert found == [
        Finding("ok", "geoip", f"{good} is 0 days old"),
        Finding("error", "geoip", text, "geoipupdate, or fix geoip.database"),
    ]


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("file_mode", "mode", "text"),
    [(0o640, 0o755, " cannot be read: Permission denied"), (0o644, 0o750, ": Permission denied")],
    ids=["file", "directory"],
)
def test_of_a_database_that_only_others_may_read_nothing_is_said_but_that(
    file_mode: int, mode: int, text: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "city.mmdb", "")
    path.chmod(file_mode)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    tmp_path.chmod(mode)
    with as_user(65534):
        found = list(checks.check_geoip(configure(geoip__database=str(path))))

    assert found == [Finding("note", "geoip", f"{path}{text}", "sudo conntrackctl doctor")]


@pytest.mark.parametrize(
    ("files", "severity"),
    [
        ({}, "warning"),
        ({"etc/systemd/journald.conf": "[Journal]\n#RateLimitBurst=0"}, "warning"),
        ({"etc/systemd/journald.conf": "[Journal]\nRateLimitBurst=0"}, "ok"),
        ({"etc/systemd/journald.conf.d/a.conf": "[Journal]\nRateLimitIntervalSec = 0"}, "ok"),
        ({"usr/lib/systemd/system/conntrackd.service": "[Service]\nLogRateLimitIntervalSec=0"}, "warning"),
        ({"usr/lib/systemd/system/conntrackd.service": "[Service]\nLogRateLimitBurst=0"}, "warning"),
        ({"usr/lib/systemd/system/conntrackd.service": "[Service]\nLogRateLimitBurst=10000000"}, "ok"),
        (
            {
                "usr/lib/systemd/system/conntrackd.service": "[Service]\nLogRateLimitBurst=10000000",
                "etc/systemd/system/conntrackd.service.d/own.conf": "[Service]\nLogRateLimitBurst=100",
            },
            "warning",
        ),
    ],
)
def test_journalds_rate_limit_is_found_wherever_it_is_set(
    files: dict[str, str], severity: str, tmp_path: Path
) -> None:
    for path, text in files.items():
        write(tmp_path, path, text)

    assert checks.check_journal_rate(tmp_path).severity == severity


def test_a_receiver_is_tried_and_what_fails_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert checks.try_address(f"http://{address}") == ""
    assert checks.try_address(f"tcp://{address}") == os.strerror(111)
    assert checks.try_address("udp://127.0.0.1") == ""
    assert checks.try_address(f"unix://{tmp_path}/none") == "no such socket"


def test_each_kind_of_sink_is_tried_from_here(tmp_path: Path) -> None:
    config = configure(
        sink__journal__enable="true",
        sink__stream__enable="true",
        sink__syslog__enable="true",
        sink__syslog__address=f"unix://{tmp_path}/log",
        sink__loki__enable="true",
        sink__loki__address="http://127.0.0.1:1",
    )
    found = {
        sink.message.split(":")[0].split(" ")[0]: sink.severity
        for sink in checks.check_sinks(config, None, tmp_path)
    }

    assert found == {"stream": "ok", "journal": "error", "syslog": "warning", "loki": "warning"}


def test_named_sinks_are_examined_by_their_names(tmp_path: Path) -> None:
    flags = {"sinks.a.kind": ["loki"], "sinks.a.address": ["http://127.0.0.1:1"], "sinks.b.kind": ["journal"]}
    config = read_config(flags, {}, etc=tmp_path)
    away = {name: SinkStatus("retrying", "away", {}) for name in ("a", "b", "gone")}
    situation = checks.Situation(True, 0, sinks=away)
    here = list(checks.check_sinks(config, None, tmp_path))
    seen = list(checks.check_sinks(config, situation, tmp_path))

    assert [(finding.severity, finding.remedy) for finding in here] == [
        ("warning", "fix sinks.a.address"),
        ("error", "use another sink"),
    ]
    assert here[0].message.startswith("a: http://127.0.0.1:1: ")
    assert [finding.message for finding in seen] == ["a is retrying: away", "b is retrying: away"]
    assert seen[0].remedy == "check that the receiver at sinks.a.address is up"
    assert "journald" in seen[1].remedy


@pytest.mark.parametrize(
    ("now", "synchronized", "severity"),
    [(0.0, True, "error"), (2e9, False, "note"), (2e9, None, "ok"), (2e9, True, "ok")],
)
def test_the_clock(now: float, synchronized: bool | None, severity: str) -> None:
    assert checks.check_clock(now, synchronized).severity == severity


@pytest.mark.parametrize(("state", "answer"), [(-1, None), (0, True), (1, True), (5, False)])
def test_the_kernel_says_whether_its_clock_is_kept_right(state: int, answer: bool | None) -> None:
    def adjtimex(timex: ctypes.Array[ctypes.c_char]) -> int:
        assert not any(timex.raw)  # modes is 0: nothing is set
        return state

    assert checks.is_synchronized(adjtimex) is answer


def test_the_other_conntrackd_is_reported(tmp_path: Path) -> None:
    assert checks.check_packages(tmp_path).severity == "ok"
    write(tmp_path, "etc/conntrackd/conntrackd.conf", "Sync {}")
    assert checks.check_packages(tmp_path).severity == "warning"
