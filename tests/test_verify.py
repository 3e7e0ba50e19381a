"""`check` finds all that would keep `run` from working, in one go, and changes nothing."""

import os
import pwd
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from conntrackd.config.options import CONNTRACK_NETNS, SINK_LOKI_SPOOL, STATE_DIRECTORY
from conntrackd.config.read import read_fragment
from conntrackd.daemon import Daemon, Sources
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.errors import ConfigError
from conntrackd.sinks import SINKS
from conntrackd.verify import Report, list_hindrances, verify
from tests.bus.private import as_user
from tests.geoip.test_databases import BERLIN, write_database
from tests.odd_files import make_odd_file
from tests.sinks.authority import Authority

Check = Callable[..., Report]
STREAM = "sink.stream: {enable: true, writer: discard}\n"
LOKI = "sink.loki: {enable: true, address: 'https://loki', "
SYSLOG = "sink.syslog: {enable: true, address: 'tls://log', "


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Verify a text that stands in conntrackd.yaml."""

    def verify_text(text: str, **flags: str) -> Report:
        (tmp_path / "conntrackd.yaml").write_text(text)
        overrides = {key.replace("__", "."): [value] for key, value in flags.items()}
        return verify(Sources(overrides, {}, etc=tmp_path).examine())

    return verify_text


def tell(report: Report, folder: Path) -> list[str]:
    return [str(mistake).splitlines()[0].replace(f"{folder}/", "") for mistake in report.mistakes]


def list_all(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_mistakes_of_every_stage_are_reported_in_one_go(check: Check, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("log any\nlog protocol TPC\n")
    text = """\
log.level: loud
filter_file: rules
filter: ['log prot', 'log any', 'log port 22']
geoip.database: [a.mmdb, rules]
conntrack.netns: nowhere-at-all
state_directory: rules/state
sink:
  stream: {enable: true, writer: 'file:///nowhere/x'}
  loki: {enable: true, address: 'https://a', tls: {ca: ca.pem}, username: u, password_file: pw, tenent: x}
  syslog: {enable: true, address: 'tls://a', spool: rules/spool, tls: {cert: rules, key: rules}}
"""

    report = check(text)

    assert tell(report, tmp_path) == [
        "conntrackd.yaml:1: log.level: 'loud' is not one of debug, info, warn, error",
        "conntrackd.yaml:9: unknown key 'sink.loki.tenent'",
        "rules:2: unknown protocol 'TPC', did you mean TCP?",
        "conntrackd.yaml:3: unexpected 'prot', did you mean protocol?",
        "conntrackd.yaml:4: geoip.database: a.mmdb: No such file or directory",
        "conntrackd.yaml:4: geoip.database: rules is not a usable database: its metadata is missing",
        "conntrackd.yaml:5: conntrack.netns: there is no network namespace 'nowhere-at-all'",
        "conntrackd.yaml:6: state_directory: rules/state: rules is not a directory",
        "conntrackd.yaml:8: sink.stream.writer: file:///nowhere/x: no directory /nowhere",
        "conntrackd.yaml:10: sink.syslog.spool: rules/spool: rules is not a directory",
        "conntrackd.yaml:10: sink.syslog.tls.cert: cannot use rules, rules: "
        "no certificate with its private key, in PEM form",
        "conntrackd.yaml:9: sink.loki.tls.ca: ca.pem: No such file or directory",
        "conntrackd.yaml:9: sink.loki.password_file: pw: No such file or directory",
    ]
    assert "conntrackd.yaml:3: this rule can never match" in str(report.warnings[-1])


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("filter_file: gone.rules", "gone.rules: cannot be read"),
        ("state_directory: gone/state", "gone/state: there is no directory gone"),
        ("state_directory: gone/a/b/state", "gone/a/b/state: there is no directory gone"),
        ("state_directory: conntrackd.yaml", "conntrackd.yaml: conntrackd.yaml is not a directory"),
        ("state_directory: conntrackd.yaml/x", "conntrackd.yaml/x: conntrackd.yaml is not a directory"),
        ("state_directory: /proc/x", "/proc/x: in /proc the kernel has its own files"),
        ("geoip.database: [gone.mmdb]", "gone.mmdb"),
        ("conntrack.replay: gone.nl", "gone.nl: no such file"),
        ('conntrack.replay: "-"', "-: no such file: standard input is /dev/stdin"),
        ("conntrack.replay: /", "/: is a directory"),
        ("conntrack.replay: conntrackd.yaml", "conntrackd.yaml: is not a recording of netlink messages"),
        ("sink.stream.writer: file:///gone/x", "file:///gone/x: no directory /gone"),
        ("sink.stream.writer: file:///proc/x", "file:///proc/x: in /proc the kernel has its own files"),
        ("sink.loki.spool: gone/spool", "gone/spool: there is no directory gone"),
        ("sink.loki.spool: /sys/x", "/sys/x: in /sys the kernel has its own files"),
    ],
)
def test_a_path_whose_target_is_missing_is_named_alike_with_its_line_by_run_and_check(
    line: str, missing: str, check: Check, tmp_path: Path
) -> None:
    text = "sink.stream.enable: true\nsink.loki.enable: true\n" + line

    found = [tell(check(text), tmp_path)]
    with pytest.raises(ConfigError) as error:
        Daemon(Sources({}, {}, etc=tmp_path))
    found.append([str(error.value).splitlines()[0].replace(f"{tmp_path}/", "").replace(str(tmp_path), "")])

    key = line.partition(":")[0]
    assert all(len(each) == 1 for each in found)
    assert all(each[0].startswith(f"conntrackd.yaml:3: {key}: {missing}") for each in found), found
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("sink.loki.tls.ca: gone.pem", "sink.loki.tls.ca: cannot use gone.pem"),
        ("sink.loki.token_file: gone", "sink.loki.token_file: cannot read gone"),
        (
            "sink.loki: {username: u, password_file: gone}",
            "sink.loki.password_file: cannot read gone",
        ),
        ("sink.loki.tls: {cert: conntrackd.yaml, key: gone.key}", "sink.loki.tls.key: cannot use gone.key"),
        ("sink.syslog.tls.ca: gone.pem", "sink.syslog.tls.ca: cannot use gone.pem"),
    ],
)
def test_a_file_that_a_sink_has_to_do_without_is_named_with_the_line_of_its_setting(
    line: str, reason: str, tmp_path: Path
) -> None:
    name = line.split(".")[1].partition(":")[0]
    scheme = "https" if name == "loki" else "tls"
    text = f"sink.{name}.enable: true\nsink.{name}.address: {scheme}://127.0.0.1:9\n{line}"
    (tmp_path / "conntrackd.yaml").write_text(text)
    config = Sources({}, {}, etc=tmp_path).read()
    sink = next(kind for kind in SINKS if kind.name == name).create(config)

    with pytest.raises(SinkUnavailable) as absence:
        sink.open()
    sink.close()

    told = absence.value.reason.replace(f"{tmp_path}/", "")
    assert told == f"conntrackd.yaml:3: {reason}: No such file or directory"


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("line", "untried", "mistakes"),
    [
        ("sink.stream.writer: file://%s/x/log", ["conntrackd.yaml:2: sink.stream.writer"], []),
        ("state_directory: %s/x/y", ["state_directory"], []),
        ("sink.syslog: {enable: true, address: 'unix://%s/x'}", ["sink.syslog.address", "sink.syslog"], []),
        ("conntrack.replay: %s/x", [], ["conntrackd.yaml:2: conntrack.replay: hidden/x: not permitted"]),
    ],
)
def test_what_an_ordinary_user_may_not_look_at_is_named_with_its_setting(
    line: str, untried: list[str], mistakes: list[str], tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        hidden = Path(folder, "hidden")
        hidden.mkdir(mode=0o700)
        text = f"sink.stream: {{enable: true}}\n{line.replace('%s', str(hidden))}\n"
        Path(folder, "conntrackd.yaml").write_text(text)
        with as_user(65534):
            report = verify(Sources({}, {}, etc=Path(folder)).examine())

        names = [each.replace(f"{folder}/", "").partition(": whether")[0] for each in report.untried]
        assert [name.startswith(start) for name, start in zip(names, untried, strict=True)] == [True] * len(
            untried
        )
        assert tell(report, Path(folder)) == mistakes


def test_what_would_keep_the_next_start_from_working_is_found_before_it(tmp_path: Path) -> None:
    (tmp_path / "conntrackd.yaml").write_text(
        "state_directory: gone/x\nconntrack.netns: nowhere\nsink.loki:\n  enable: true\n  spool: gone/y\n"
    )
    config = Sources({}, {}, etc=tmp_path).read()
    found = list_hindrances(config, [STATE_DIRECTORY, CONNTRACK_NETNS, SINK_LOKI_SPOOL.path])

    assert [str(each).splitlines()[0].replace(f"{tmp_path}/", "") for each in found] == [
        "conntrackd.yaml:1: state_directory: gone/x: there is no directory gone",
        "conntrackd.yaml:2: conntrack.netns: there is no network namespace 'nowhere'",
        "conntrackd.yaml:5: sink.loki.spool: gone/y: there is no directory gone",
    ]
    assert list_hindrances(config, []) == []


def test_a_local_servers_socket_is_looked_at(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = f"sink.syslog: {{enable: true, address: 'unix://{tmp_path}/%s'}}"
    absent, odd, below = (check(text % name) for name in ("absent", "file", "file/x"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{tmp_path}/log")
        good = check(text % "log")

    assert [tell(each, tmp_path) for each in (absent, odd, below, good)] == [
        [],
        ["conntrackd.yaml:1: sink.syslog.address: file is not a socket"],
        ["conntrackd.yaml:1: sink.syslog.address: file/x: Not a directory"],
        [],
    ]
    assert [str(each).splitlines()[0].replace(f"{tmp_path}/", "") for each in absent.warnings] == [
        "conntrackd.yaml:1: sink.syslog.address: there is no socket absent now"
    ]
    assert good.warnings == []


def test_the_name_of_a_country_that_no_database_has_is_a_warning(check: Check, tmp_path: Path) -> None:
    write_database(tmp_path / "city.mmdb", BERLIN)
    text = f"{STREAM}geoip.database: [city.mmdb]\nsink.stream.filter: ['log country %s']\n"

    warned, good = check(text % "Gremany"), check(text % "Germany")

    assert [str(each).replace(f"{tmp_path}/", "") for each in warned.warnings] == [
        "conntrackd.yaml:3: no database has a country 'gremany'\n"
        "  log country Gremany\n      ^^^^^^^^^^^^^^^\nhint: did you mean Germany?"
    ]
    assert (warned.mistakes, good.warnings) == ([], [])


def test_what_is_right_is_good_and_nothing_is_made(check: Check, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = authority.issue("client", "DNS:client")
    write_database(tmp_path / "city.mmdb", BERLIN)
    (tmp_path / "pw").write_text("secret\n")
    (tmp_path / "conntrackd.yaml").write_text("")
    before = list_all(tmp_path)

    report = check(
        f"{STREAM}state_directory: state\ngeoip.database: city.mmdb\nfilter: [drop country DE]\n"
        f"{LOKI}tls: {{ca: ca.pem, cert: {client}, key: {client}}}, username: u, password_file: pw}}\n"
        f"{SYSLOG}tls.ca: ca.pem, spool: c}}"
    )

    assert (report.mistakes, report.warnings) == ([], [])
    assert report.untried == [
        "sink.syslog: whether tls://log can be reached; conntrackctl doctor",
        "sink.loki: whether https://loki can be reached; conntrackctl doctor",
    ]
    assert list_all(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "large"])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"{STREAM}geoip.database: odd", "geoip.database"),
        (f"{LOKI}tls.ca: odd}}", "sink.loki.tls.ca"),
        (f"{SYSLOG}tls: {{cert: odd, key: odd}}}}", "sink.syslog.tls.cert"),
        (f"{LOKI}token_file: odd}}", "sink.loki.token_file"),
        (f"{LOKI}username: u, password_file: odd}}", "sink.loki.password_file"),
    ],
)
def test_what_is_no_file_is_refused_by_its_kind(
    text: str, key: str, kind: str, check: Check, tmp_path: Path
) -> None:
    make_odd_file(tmp_path / "odd", kind)

    (first, *_) = check(text).mistakes

    assert (key in str(first), "odd is " in str(first)) == (True, True)


def test_a_database_that_knows_nothing_of_ours_is_refused(check: Check, tmp_path: Path) -> None:
    write_database(tmp_path / "odd.mmdb", {"country": "Germany", "asn": "AS24940"})

    (mistake,) = check(f"{STREAM}geoip.database: odd.mmdb").mistakes

    assert "no record has a city, country, coordinates or network in MaxMind's layout" in str(mistake)


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"x" * (17 << 20), b"a\x00"])
def test_a_secret_that_cannot_be_sent_is_refused(content: bytes, check: Check, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)

    (mistake,) = check(f"{LOKI}token_file: token}}").mistakes

    assert mistake.origin == f"{tmp_path}/conntrackd.yaml:1: sink.loki.token_file"


@pytest.mark.privileged
def test_a_secret_that_the_service_may_not_read_is_a_warning(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conntrackd.verify.SERVICE", "nobody")
    monkeypatch.setattr("conntrackd.verify.ETC", tmp_path)
    (tmp_path / "token").write_text("secret\n")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        token = Path(folder, "token")
        token.write_text("secret\n")
        token.chmod(0o644)

        assert check(f"{LOKI}token_file: {token}}}").warnings == []
        assert "cannot be read by user nobody" in str(check(f"{LOKI}token_file: token}}").warnings)


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("sink", "before"), [("sink.stream", "{enable: true"), ("sinks.audit", "{kind: stream")]
)
def test_a_key_of_pseudonyms_that_the_service_may_not_read_is_a_warning(
    sink: str, before: str, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conntrackd.verify.SERVICE", "nobody")
    monkeypatch.setattr("conntrackd.verify.ETC", tmp_path)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        key = Path(folder, "audit.key")
        key.write_bytes(bytes(32))
        key.chmod(0o640)
        text = f"{sink}: {before}, writer: discard, anonymize: pseudonym, anonymize_key_file: {key}}}\n"

        (warning,) = check(text).warnings
        os.chown(key, -1, pwd.getpwnam("nobody").pw_gid)

        message = f"{key} cannot be read by user nobody, which the service runs as"
        assert warning.message == f"{sink}.anonymize_key_file: {message}"
        assert check(text).warnings == []


def test_an_authority_that_has_expired_is_a_warning(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Authority(tmp_path)
    assert check(f"{LOKI}tls.ca: ca.pem}}").warnings == []

    monkeypatch.setattr("time.time", lambda: 4e9)
    (warning,) = check(f"{LOKI}tls.ca: ca.pem}}").warnings

    assert warning.message == "sink.loki.tls.ca has a certificate that has expired: test"


def test_a_sink_that_is_not_enabled_is_not_tried(check: Check) -> None:
    assert check(f"{STREAM}sink.loki: {{enable: false, token_file: nowhere}}").mistakes == []


def test_without_a_sink_that_is_reported_beside_the_rest(check: Check) -> None:
    assert [str(mistake).split("\n")[0] for mistake in check("log.level: loud").mistakes][1:] == [
        "no sink is enabled: events would go nowhere"
    ]
    assert len(check("sink.stream.enabel: true").mistakes) == 1


def test_a_namespace_that_the_unit_cannot_enter_is_a_warning(check: Check) -> None:
    (warning,) = check(f"{STREAM}conntrack.netns: /proc/1/ns/net").warnings

    assert "NetworkNamespacePath=/proc/1/ns/net" in str(warning)
    assert check(STREAM, conntrack__netns="/proc/1/ns/net").warnings == []


@pytest.mark.parametrize("address", ["127.0.0.1:9477", "unix:///run/conntrackd/metrics.sock"])
def test_an_address_that_the_unit_cannot_bind_is_a_warning(address: str, check: Check) -> None:
    (warning,) = check(f"{STREAM}metrics.listen: {address}").warnings

    assert "systemctl enable conntrackd-metrics.socket" in str(warning)
    by_hand = check(STREAM, metrics__listen=address)
    assert (by_hand.warnings, by_hand.untried) == (
        [],
        [f"metrics.listen: whether {address} can be bound"],
    )


def test_metrics_need_a_library_and_a_folder(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{STREAM}metrics.textfile: missing/x.prom"
    assert tell(check(text), tmp_path) == ["conntrackd.yaml:2: metrics.textfile: missing is not a directory"]

    (tmp_path / "missing").mkdir()
    assert tell(check(text), tmp_path) == []
    monkeypatch.delitem(sys.modules, "conntrackd.metrics.exposition", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    (mistake,) = check(text).mistakes
    assert str(mistake).startswith(
        f"{tmp_path}/conntrackd.yaml:2: metrics.textfile: metrics need the Python library prometheus_client"
    )
    assert "apt install python3-prometheus-client" in mistake.hint


def test_a_fragment_is_checked_alone(tmp_path: Path) -> None:
    (tmp_path / "conntrackd.d").mkdir()
    (tmp_path / "conntrackd.d/rules").write_text("log any\n")
    path = tmp_path / "ansible-tmp.source"
    path.write_text("filter_file: rules\nsink.loki.password_file: x\nlog.level: loud\nfilter: [log prot]")

    assert tell(verify(read_fragment(path, tmp_path)), tmp_path) == [
        "ansible-tmp.source:3: log.level: 'loud' is not one of debug, info, warn, error",
        "ansible-tmp.source:4: unexpected 'prot', did you mean protocol?",
    ]


def test_the_rules_of_each_sink_are_checked_with_their_places(check: Check, tmp_path: Path) -> None:
    report = check(
        f"{STREAM}sink.stream.filter: [log prot, log any, log port 22]\nsink.loki.filter: [log prot]\n"
    )

    assert tell(report, tmp_path) == [
        "conntrackd.yaml:2: unexpected 'prot', did you mean protocol?",
        "conntrackd.yaml:3: unexpected 'prot', did you mean protocol?",
    ]
    assert any("log port 22" in str(warning) for warning in report.warnings)


def test_a_named_sink_is_tried_with_its_own_settings(check: Check, tmp_path: Path) -> None:
    report = check(
        f"{STREAM}sinks:\n  a: {{kind: stream, writer: 'file:///nowhere/x', filter: [log prot]}}\n"
        "  b: {kind: loki, address: 'https://b', tls: {ca: ca.pem}, token_file: token}\n"
        "  c: {kind: syslog, address: 'unix:///nowhere'}\n  d: {kind: loki, enable: no, tls: {ca: d.pem}}\n"
    )

    assert tell(report, tmp_path) == [
        "conntrackd.yaml:6: sinks.d.tls.ca has no effect on http://localhost:3100",
        "conntrackd.yaml:3: unexpected 'prot', did you mean protocol?",
        "conntrackd.yaml:3: sinks.a.writer: file:///nowhere/x: no directory /nowhere",
        "conntrackd.yaml:4: sinks.b.tls.ca: ca.pem: No such file or directory",
        "conntrackd.yaml:4: sinks.b.token_file: token: No such file or directory",
    ]
    assert [str(warning).partition(": ")[2].splitlines()[0] for warning in report.warnings] == [
        "sinks.c.address: there is no socket /nowhere now"
    ]
    assert [text.partition(":")[0] for text in report.untried] == ["sinks.b", "sinks.c"]


def test_rules_of_a_sink_that_is_switched_off_are_kept_for_later(check: Check, tmp_path: Path) -> None:
    report = check(f"{STREAM}sink.loki: {{enable: false, filter: [x]}}\n")

    assert tell(report, tmp_path) == []


@pytest.mark.parametrize(
    ("rules", "is_told"),
    [
        ("drop any", True),
        ("drop port 22, drop any, log any", True),
        ("log type NEW, drop any", False),
        ("drop port 22", False),
    ],
)
def test_a_sink_whose_rules_log_nothing_is_a_warning(check: Check, rules: str, *, is_told: bool) -> None:
    report = check(f"{STREAM}sink.stream.filter: [{rules}]\n")

    assert report.mistakes == []
    told = [warning for warning in report.warnings if "logs no event" in warning.message]
    assert len(told) == is_told
    assert all("switch off the sink" in warning.hint for warning in told)


def test_so_is_a_filter_of_all_sinks_that_logs_nothing(check: Check) -> None:
    told = [check(f"{STREAM}filter: [{rules}]\n").warnings for rules in ("drop any", "drop port 22")]

    assert [[warning.message for warning in warnings] for warnings in told] == [
        ["the filter logs no event"],
        [],
    ]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("sink.stream.fields: -type,-msg,-src", "src, type"),
        ("sink.stream.fields: -msg", ""),
        ("sink.stream.fields: src,dst,dport", ""),
        ("sink.stream.fields: -type\nsink.stream.schema: ecs", ""),
        ("sink.journal: {enable: true, fields: -prot}", "prot"),
        ("sink.syslog: {enable: true, address: 'udp://127.0.0.1:5140', fields: -src}", ""),
    ],
)
def test_fields_without_which_nothing_is_read_back_are_a_warning(
    check: Check, settings: str, names: str
) -> None:
    report = check(f"{STREAM}{settings}\n")
    told = [warning.message for warning in report.warnings if "leaves out" in warning.message]

    assert report.mistakes == []
    assert len(told) == bool(names)
    assert all(f"leaves out {names}: conntrackctl events and summary cannot read" in text for text in told)


def test_sets_are_read_and_what_is_wrong_with_them_is_no_fault_of_the_rules(
    check: Check, tmp_path: Path
) -> None:
    (tmp_path / "good").write_text("10.0.0.0/8\n")
    (tmp_path / "bad").write_text("10.0.0.1\nnothing\n")
    (tmp_path / "empty").write_text("# not yet\n")
    rules = "filter: ['log address @good', 'drop address @bad,@gone']\n"
    report = check(f"{STREAM}{rules}sets:\n  good: good\n  bad: bad\n  gone: gone\n")

    assert tell(report, tmp_path) == [
        "bad:2: 'nothing' is not a valid address",
        "conntrackd.yaml:6: sets: gone: gone: No such file or directory",
    ]
    assert report.warnings == []
    report = check(
        f"{STREAM}filter: ['log address @empty', 'log address @god']\nsets: {{empty: empty, good: good}}"
    )
    assert tell(report, tmp_path) == ["conntrackd.yaml:2: there is no set '@god', did you mean good?"]
    assert "the set @empty is empty" in str(report.warnings[0])


def test_a_file_alone_may_name_a_set_of_another_one(tmp_path: Path) -> None:
    path = tmp_path / "10-more.yaml"
    path.write_text("filter: ['log address @bad', 'drop address 10.0.0.1/8']")

    found = verify(read_fragment(path, tmp_path), alone=True)
    assert tell(found, tmp_path) == ["10-more.yaml:1: '10.0.0.1/8' has host bits set under its prefix length"]


def test_rules_of_metrics_are_checked_with_the_sets(check: Check, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("192.0.2.0/24\n")
    text = f"""{STREAM}
sets: {{bad: bad.txt}}
metrics.flows:
- {{name: a, where: log source address @bad}}
- name: b
  where: [log prot TCP, drop any, log any]
- {{name: c, where: log any limit 1/second}}
- {{name: d, where: [drop any, log any]}}
"""

    report = check(text)

    assert tell(report, tmp_path) == [
        "conntrackd.yaml:6: metrics.flows: b: unexpected 'prot', did you mean protocol?",
        "conntrackd.yaml:8: metrics.flows: c: a limit would count what opens and not what closes",
    ]
    assert "conntrackd.yaml:9: metrics.flows: d: this rule can never match" in str(report.warnings[-1])
