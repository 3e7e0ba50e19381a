"""Settings come from four places in a fixed order; every mistake is reported with its origin, all at once."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from conntrackd import engine
from conntrackd.config import options
from conntrackd.config.document import MAX_FILE
from conntrackd.config.option import Option
from conntrackd.config.options import OPTIONS
from conntrackd.config.read import (
    Config,
    changed,
    check_sinks,
    get_host,
    list_unapplied,
    read_config,
)
from conntrackd.config.rules import read_rules
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.render import render
from conntrackd.history.lines import COMPRESSED
from conntrackd.sinks import SINKS
from tests.odd_files import make_odd_file

Read = Callable[..., Config]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A folder in place of /etc/conntrackd."""
    return tmp_path


@pytest.fixture
def read(etc: Path) -> Read:
    """Write text to conntrackd.yaml and read it."""

    def read_text(
        text: str = "",
        *,
        name: str = "conntrackd.yaml",
        flags: Mapping[str, Sequence[str]] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Config:
        (etc / name).write_text(text)
        return read_config(flags or {}, environ or {}, etc=etc)

    return read_text


def describe(error: ConntrackdError, etc: Path) -> list[str]:
    errors = error.errors if isinstance(error, ManyErrors) else (error,)
    return [str(error).replace(f"{etc}/", "") for error in errors]


@pytest.fixture
def mistakes(read: Read, etc: Path) -> Callable[..., list[str]]:
    """The mistakes of a text."""

    def describe_mistakes(text: str = "", **more: Any) -> list[str]:
        with pytest.raises((ConfigError, ManyErrors)) as caught:
            read(text, **more)
        assert caught.value.exit_status == 78
        return describe(caught.value, etc)

    return describe_mistakes


def test_without_anything_all_settings_have_their_default(etc: Path) -> None:
    config = read_config({}, {"HOME": "/root"}, etc=etc / "missing")

    assert {option.key: config[option] for option in OPTIONS} == {
        option.key: option.default for option in OPTIONS
    }
    assert {config.origin(option) for option in OPTIONS} == {"default"}
    assert config.paths == ()


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(read: Read, etc: Path) -> None:
    text = "log: {level: debug}\nconntrack:\n  buffer: 1M\n  netns: a\n"

    config = read(
        text,
        environ={"CONNTRACKD_CONNTRACK_BUFFER": "2M", "CONNTRACKD_CONNTRACK_NETNS": "b"},
        flags={"conntrack.netns": ["x", "c"]},
    )

    picked = (options.LOG_LEVEL, options.CONNTRACK_BUFFER, options.CONNTRACK_NETNS, options.BUS_ENABLE)
    assert [(config[option], config.origin(option)) for option in picked] == [
        ("debug", f"{etc}/conntrackd.yaml:1"),
        (2 << 20, "CONNTRACKD_CONNTRACK_BUFFER"),
        ("c", "--conntrack.netns"),
        (True, "default"),
    ]


def test_the_first_of_the_four_files_is_read(etc: Path) -> None:
    (etc / "conntrackd.toml").write_text('log.level = "warn"')
    (etc / "conntrackd.json").write_text('{"log": {"level": "error"}}')

    config = read_config({}, {}, etc=etc)

    assert (config[options.LOG_LEVEL], config.paths) == ("error", (etc / "conntrackd.json",))


def test_drop_ins_change_the_file_in_the_order_of_their_names(read: Read, etc: Path) -> None:
    folder = etc / "conntrackd.d"
    folder.mkdir()
    (folder / "20.yaml").write_text("log.level: error\nfilter: [drop any]")
    (folder / "10.yaml").write_text("log.level: warn\ngeoip.locale: de")
    (folder / ".hidden.yaml").write_text("nonsense: 1")
    (folder / "30.yaml.dpkg-old").write_text("nonsense: 1")

    config = read("log.level: debug\nfilter: [log any]\nconntrack.netns: a")

    assert [config[option] for option in (options.LOG_LEVEL, options.FILTER, options.GEOIP_LOCALE)] == [
        "error",
        ("drop any",),
        "de",
    ]
    assert config[options.CONNTRACK_NETNS] == "a"
    assert config.paths == (etc / "conntrackd.yaml", folder / "10.yaml", folder / "20.yaml")


def test_a_path_takes_the_place_of_all_files(read: Read, etc: Path) -> None:
    (etc / "conntrackd.d").mkdir()
    (etc / "conntrackd.d/10.yaml").write_text("log.level: warn")
    (etc / "other").write_text("log.level: error")

    config = read_config({}, {}, etc / "other", etc)

    assert (config[options.LOG_LEVEL], config.paths) == ("error", (etc / "other",))


def test_a_named_file_must_be_there(etc: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({}, {}, str(etc / "missing.yaml"))

    assert (caught.value.origin, caught.value.exit_status) == (str(etc / "missing.yaml"), 78)


def test_a_link_without_target_does_not_hide_behind_the_next_file(etc: Path) -> None:
    (etc / "conntrackd.yaml").symlink_to("missing")
    (etc / "conntrackd.json").write_text("{}")

    with pytest.raises(ConfigError) as caught:
        read_config({}, {}, etc=etc)

    assert caught.value.origin == str(etc / "conntrackd.yaml")


def test_values_have_the_types_of_their_options(read: Read) -> None:
    config = read("conntrack: {buffer: 1M, protocols: [tcp, 89], activate: on}\nsink.loki.labels: [a=b]\n")

    buffer: int = config[options.CONNTRACK_BUFFER]
    protocols: frozenset[int] = config[options.CONNTRACK_PROTOCOLS]
    activate: bool = config[options.CONNTRACK_ACTIVATE]
    labels: tuple[tuple[str, str], ...] = config[options.SINK_LOKI_LABELS]
    assert (buffer, protocols, activate, labels) == (1 << 20, frozenset({6, 89}), True, (("a", "b"),))


def test_a_section_whose_keys_are_all_commented_out_is_empty(read: Read) -> None:
    assert read("log:\n#  level: debug\nsink:\n  loki:\n    tls:\n")[options.LOG_LEVEL] == "info"


def test_paths_in_a_file_are_found_beside_it(read: Read, etc: Path) -> None:
    config = read(
        "filter_file: rules\ngeoip.database: [a.mmdb, /b.mmdb]", flags={"state_directory": ["state"]}
    )

    assert config[options.FILTER_FILE] == etc / "rules"
    assert config[options.GEOIP_DATABASE] == (etc / "a.mmdb", Path("/b.mmdb"))
    assert config[options.STATE_DIRECTORY] == Path("state")


def test_lists_come_in_parts_with_commas_or_as_lists(read: Read) -> None:
    protocols = options.CONNTRACK_PROTOCOLS

    assert {
        read(flags={protocols.key: ["tcp", "sctp,gre"]})[protocols],
        read(environ={protocols.variable: "tcp, sctp ,gre,"})[protocols],
        read("conntrack.protocols: tcp,sctp,gre")[protocols],
        read("conntrack.protocols: [TCP, sctp, 47]")[protocols],
    } == {frozenset({6, 132, 47})}


def test_each_rule_knows_its_place(read: Read, etc: Path) -> None:
    file = f"{etc}/conntrackd.yaml"

    assert read("filter:\n  - log any\n  - drop any").origins(options.FILTER) == (f"{file}:2", f"{file}:3")
    assert read("filter: |\n  log any\n\n  drop any").origins(options.FILTER) == (f"{file}:2", f"{file}:4")
    assert read(environ={"CONNTRACKD_FILTER": "log any\ndrop port 1,2"})[options.FILTER] == (
        "log any",
        "drop port 1,2",
    )
    assert read(flags={"filter": ["log any", "drop any"]}).origins(options.FILTER) == ("--filter", "--filter")


def test_rules_of_the_file_come_before_those_of_filter(read: Read, etc: Path) -> None:
    (etc / "rules").write_text("# comment\nlog port 1\n\n  drop port 2 # why\n")

    config = read("filter_file: rules\nfilter:\n- drop any")

    assert read_rules(config) == [
        RuleText("log port 1", f"{etc}/rules:2"),
        RuleText("drop port 2 # why", f"{etc}/rules:4"),
        RuleText("drop any", f"{etc}/conntrackd.yaml:3"),
    ]


def test_a_missing_file_of_rules_is_reported(read: Read, etc: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rules(read("filter_file: rules"))

    assert caught.value.origin == f"{etc}/conntrackd.yaml:1: filter_file: {etc}/rules"


def test_all_mistakes_are_reported_at_once(mistakes: Callable[..., list[str]]) -> None:
    text = """\
log:
  level: loud
sink.stream:
  enabel: true
  writer: stdot
snik: {a: 1}
level: 1
conntrack:
  protocols:
    - tcp
    - tpc
  buffer: [1]
"""

    assert mistakes(text, environ={"CONNTRACKD_LOG_LEVL": "1"}, flags={"conntrack.events": ["old"]}) == [
        "conntrackd.yaml:2: log.level: 'loud' is not one of debug, info, warn, error",
        "conntrackd.yaml:4: unknown key 'sink.stream.enabel'\nhint: did you mean sink.stream.enable?",
        "conntrackd.yaml:5: sink.stream.writer: 'stdot' is not one of stdout, stderr, discard, file:///PATH\n"
        "hint: did you mean stdout?",
        "conntrackd.yaml:6: unknown key 'snik'\nhint: did you mean sink?",
        "conntrackd.yaml:7: unknown key 'level'\nhint: did you mean log.level?",
        "conntrackd.yaml:11: conntrack.protocols: 'tpc' is not a valid protocol\nhint: did you mean tcp?",
        "conntrackd.yaml:12: conntrack.buffer: must be a size from 4K to 1023M, such as 64M, not a list",
        "environment: unknown variable 'CONNTRACKD_LOG_LEVL'\nhint: did you mean CONNTRACKD_LOG_LEVEL?",
        "--conntrack.events: 'old' is not one of new, update, destroy",
    ]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (
            "log.level:",
            ":1: log.level: has no value\nhint: set it to one of debug, info, warn, error, or remove the key",
        ),
        ("log: {level: {a: 1}}", ":1: log.level: must be one of debug, info, warn, error, not a section"),
        ("log: debug", ":1: log: is a section and has no value of its own\nhint: its keys are: level"),
        ("log: [a]", ":1: log: is a section and has no value of its own\nhint: its keys are: level"),
        (
            "log: {level: info}\nlog.level: info",
            ":2: log.level: is given twice\nhint: first in conntrackd.yaml:1",
        ),
        ("bus:\nbus:", ":2: bus: is given twice\nhint: first in conntrackd.yaml:1"),
        ("filter: [[a]]", ":1: filter: must be filter rules, not a list or section in a list"),
        ("filter: [1]", ":1: filter: '1' is a number, expected filter rules\nhint: put it in quotes"),
        ("filter: [null]", ":1: filter: has no value\nhint: set it to filter rules, or remove the key"),
        (
            "sink.loki.tenant: 5",
            ":1: sink.loki.tenant: '5' is a number, expected a tenant's name\nhint: put it in quotes",
        ),
        (
            "conntrack.buffer: true",
            ":1: conntrack.buffer: 'true' is a boolean, expected a size from 4K to 1023M, such as 64M",
        ),
        (
            r'log.level: "a\e[31m"',
            r":1: log.level: 'a\x1b[31m' is not one of debug, info, warn, error",
        ),
        (r'conntrack.netns: "\ud800"', r":1: conntrack.netns: '\ud800' is not UTF-8 text"),
        (
            "sink.loki.password: hunter2",
            ":1: unknown key 'sink.loki.password'\nhint: did you mean sink.loki.password_file?",
        ),
        (
            "sink.journal.schema: ecs",
            ":1: a sink of kind journal has no setting schema\n"
            "hint: there are sink.stream.schema and sink.loki.schema",
        ),
        (
            "sink.journal.facility: 1",
            ":1: a sink of kind journal has no setting facility\nhint: there is sink.syslog.facility",
        ),
        (
            "sink: {stream: {tls: {ca: a}}}",
            ":1: a sink of kind stream has no setting tls\nhint: there are sink.syslog.tls and sink.loki.tls",
        ),
        (
            "zzzz: 1",
            ":1: unknown key 'zzzz'\n"
            "hint: valid keys: log, conntrack, filter, filter_file, sets, geoip, community_id, sink, bus, "
            "metrics, shutdown_timeout, state_directory, host, sinks",
        ),
        ("log.zzzz: 1", ":1: unknown key 'log.zzzz'\nhint: valid keys: level"),
        (
            "sink: {stream: {qqqq: 1}}",
            ":1: unknown key 'sink.stream.qqqq'\n"
            "hint: valid keys: enable, writer, queue, filter, fields, schema, anonymize, anonymize_which, "
            "anonymize_only, anonymize_ipv4_bits, anonymize_ipv6_bits, anonymize_key_file",
        ),
        (
            "sink.loki.password_file: a",
            ":1: sink.loki.password_file has no effect alone\nhint: set sink.loki.username too",
        ),
        (
            "sink.syslog.tls.key: a",
            ":1: sink.syslog.tls.key has no effect alone\nhint: set sink.syslog.tls.cert too",
        ),
        (
            "sink.loki.tls.ca: a",
            ":1: sink.loki.tls.ca has no effect on http://localhost:3100\nhint: use an address with https://",
        ),
        (
            "sink.syslog.spool: a",
            ":1: sink.syslog.spool has no effect on udp://localhost:514\n"
            "hint: only TCP and TLS detect that the server is unavailable",
        ),
        (
            "sink.stream.fields:\n- src\n- dpotr",
            ":3: sink.stream.fields: 'dpotr' is not a field of a record\nhint: did you mean dport?",
        ),
        (
            "sink.stream.fields: -dest_ip",
            ":1: sink.stream.fields: '-dest_ip' is not a field of a record\nhint: did you mean dst?",
        ),
        (
            "sink.loki.fields: -time",
            ":1: sink.loki.fields leaves out time: an entry of Loki's has one\n"
            "hint: it has to be written: add time, or remove -time",
        ),
        (
            "sink.loki: {schema: ecs, labels: [site=a, source_ip=b]}",
            ":1: sink.loki.labels has source_ip, which would hide the field of that name in "
            "sink.loki.schema: ecs\nhint: give the label another name",
        ),
        (
            "sink.stream.schema: esc",
            ":1: sink.stream.schema: 'esc' is not one of native, ecs, otel\nhint: did you mean ecs?",
        ),
        (
            "sink.stream.fields: [dport, bytes]",
            ":1: sink.stream.fields has no field that is there in every record\n"
            "hint: add one of time, level, msg, type, flow, prot, src, dst",
        ),
        (
            "sink.syslog.fields: -type",
            ":1: sink.syslog.fields leaves out type: it stands in the header of the message\n"
            "hint: it has to be written: add type, or remove -type",
        ),
        (
            "sink.syslog: {format: rfc3164, fields: src}",
            ":1: sink.syslog.fields leaves out time: it stands in the header of the message\n"
            "hint: it has to be written: add time, or remove -time",
        ),
    ],
)
def test_a_mistake_in_yaml_is_reported(text: str, mistake: str, mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(text) == [f"conntrackd.yaml{mistake}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conntrackd.json", '{"conntrack": {"buffer": 1e99}, "log": {"level": NaN, "level": "info"}}'),
        ("conntrackd.toml", 'conntrack.buffer = 1e99\nlog.level = nan\n"log.level" = "info"'),
    ],
)
def test_a_mistake_in_json_and_toml_names_the_key(name: str, text: str, read: Read, etc: Path) -> None:
    (etc / name).write_text(text)

    with pytest.raises(ManyErrors) as caught:
        read_config({}, {}, etc=etc)

    found = describe(caught.value, etc)
    assert [mistake.splitlines()[0].lower() for mistake in found] == [
        f"{name}: conntrack.buffer: '1e99' is not a valid size",
        f"{name}: log.level: 'nan' is not one of debug, info, warn, error",
        f"{name}: log.level: is given twice",
    ]


def test_a_secret_is_not_repeated_when_it_stands_where_its_file_should(
    mistakes: Callable[..., list[str]],
) -> None:
    assert mistakes("sink.loki.token_file: 12345") == [
        "conntrackd.yaml:1: sink.loki.token_file: the value is a number, expected a path\n"
        "hint: put it in quotes"
    ]
    assert mistakes(environ={"CONNTRACKD_SINK_LOKI_PASSWORD_FILE": "hunter2\n"}) == [
        "CONNTRACKD_SINK_LOKI_PASSWORD_FILE: the value has control characters"
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            "sink.loki.labels:\n  - env\n  - env=prod\n  - 1a=b\n  - a: b\n  - city=x\n  - env=b\n  - 5\n",
            [
                ":5: sink.loki.labels: must be labels such as env=prod,team=platform, "
                "not a list or section in a list",
                ":8: sink.loki.labels: '5' is a number, expected labels such as env=prod,team=platform",
                ":2: sink.loki.labels: 'env' is not a valid label",
                ":4: sink.loki.labels: '1a' is not a valid label name",
                ":6: sink.loki.labels: 'city' would hide the field of that name",
                ":1: sink.loki.labels: 'env' is given twice",
            ],
        ),
        (
            "conntrack:\n  protocols:\n    - tpc\n    - udp\n    - 300\n  events: [old, new, older]\n",
            [
                ":3: conntrack.protocols: 'tpc' is not a valid protocol",
                ":5: conntrack.protocols: '300' is not a valid protocol",
                ":6: conntrack.events: 'old' is not one of new, update, destroy",
                ":6: conntrack.events: 'older' is not one of new, update, destroy",
            ],
        ),
        (
            "filter:\n  - 1\n  - 2\n",
            [f":{n}: filter: '{n - 1}' is a number, expected filter rules" for n in (2, 3)],
        ),
    ],
)
def test_of_a_list_every_item_that_is_wrong_is_named_with_its_line(
    text: str, wrong: list[str], mistakes: Callable[..., list[str]]
) -> None:
    assert [found.splitlines()[0] for found in mistakes(text)] == [f"conntrackd.yaml{line}" for line in wrong]


def test_of_a_list_on_the_command_line_every_item_that_is_wrong_is_named(
    mistakes: Callable[..., list[str]],
) -> None:
    found = mistakes(
        flags={"conntrack.protocols": ["tpc,udp", "x"]}, environ={"CONNTRACKD_SINK_LOKI_LABELS": "a,b=c,d"}
    )

    assert [line.splitlines()[0] for line in found] == [
        "CONNTRACKD_SINK_LOKI_LABELS: 'a' is not a valid label",
        "CONNTRACKD_SINK_LOKI_LABELS: 'd' is not a valid label",
        "--conntrack.protocols: 'tpc' is not a valid protocol",
        "--conntrack.protocols: 'x' is not a valid protocol",
    ]


def test_a_file_full_of_mistakes_is_not_reported_to_its_end(mistakes: Callable[..., list[str]]) -> None:
    found = mistakes("".join(f"key{number}: 1\n" for number in range(1000)))

    assert (len(found), found[-1]) == (101, "more mistakes are not shown")


def test_a_list_has_a_limit(mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(flags={"filter": ["log any"] * 1001}) == ["--filter: has 1001 items, the maximum is 1000"]


def test_an_alias_that_holds_itself_ends(mistakes: Callable[..., list[str]]) -> None:
    assert len(mistakes("sink: &a {stream: *a, loki: *a}")) == 4


@pytest.mark.parametrize("name", ["CONNTRACKD_REPLACE", engine.VARIABLE])
def test_the_variables_of_the_package_and_of_the_engine_are_no_settings(name: str, read: Read) -> None:
    assert read(environ={name: "plain"})[options.LOG_LEVEL] == "info"


@pytest.mark.parametrize("kind", ["stream", "journal", "syslog", "loki"])
def test_one_sink_is_enough(kind: str, read: Read) -> None:
    check_sinks(read(f"sink.{kind}.enable: true"))


def test_without_a_sink_the_error_says_how_to_enable_one(read: Read, etc: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sinks(read())

    assert describe(caught.value, etc) == [
        "no sink is enabled: events would go nowhere\n"
        "hint: one of --sink.stream.enable, --sink.journal.enable, --sink.syslog.enable, "
        "--sink.loki.enable on the command line, or 'sink.journal.enable: true' in conntrackd.yaml"
    ]


def test_a_reload_reports_what_it_can_apply(read: Read) -> None:
    old = read("log.level: info\nconntrack.buffer: 1M")
    new = read("log.level: debug\nconntrack.buffer: 2M\nfilter: [log any]")

    assert changed(old, old) == []
    assert changed(old, new) == [options.LOG_LEVEL, options.CONNTRACK_BUFFER, options.FILTER]
    assert list_unapplied(changed(old, new)) == [options.CONNTRACK_BUFFER]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log any\n" * 1_000_000, "rules:1001: more than 1,000 rules"),
        ("#" * 10_000_000, "conntrackd.yaml:1: filter_file: rules: is larger than 8 MiB"),
    ],
)
def test_a_file_of_too_many_rules_is_read_no_further(read: Read, etc: Path, text: str, message: str) -> None:
    (etc / "rules").write_text(text)
    config = read("filter_file: rules\nfilter: [log any]")

    with pytest.raises(ConfigError) as caught:
        read_rules(config)

    assert describe(caught.value, etc) == [message]


def test_the_rules_of_file_and_configuration_are_as_many_as_there_may_be(read: Read, etc: Path) -> None:
    (etc / "rules").write_text("\n# x\n log any \r\n" * 999)

    assert read_rules(read("filter_file: rules\nfilter: [drop any]")) == [
        *(RuleText("log any", f"{etc}/rules:{line}") for line in range(3, 3000, 3)),
        RuleText("drop any", f"{etc}/conntrackd.yaml:2"),
    ]


def attempt(
    flags: Mapping[str, Sequence[str]] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Config | ConntrackdError:
    """The configuration, or what it says instead; any other exception fails the test."""
    try:
        return read_config(flags or {}, environ or {}, path, Path("/nonexistent"))
    except ConntrackdError as error:
        return error


HOSTILE: dict[str, Any] = {
    "null": None,
    "list": [],
    "nested list": [[1], [[2]]],
    "list of null": [None],
    "map": {},
    "nested map": {"a": {"b": 1}},
    "empty": "",
    "text": "some text",
    "control characters": "\x00\x1b\r\n",
    "lone surrogate": "\ud800",
    "-1": -1,
    "1e99": 1e99,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "huge integer": 10**4000,
    "true": True,
    "long": "x" * (MAX_FILE - 100),
    "too long": "x" * MAX_FILE,
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
@pytest.mark.parametrize("name", HOSTILE)
def test_any_value_of_any_key_is_taken_or_reported(option: Option[Any], name: str, tmp_path: Path) -> None:
    value: Any = HOSTILE[name]
    for word in reversed(option.key.split(".")):
        value = {word: value}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))

    result = attempt(path=path)

    if isinstance(result, Config):
        assert result.origin(option) == str(path)
    else:
        assert (result.exit_status, str(result).isascii(), len(str(result)) < 1000) == (78, True, True)


@pytest.mark.parametrize("key", ["sinks", "sinks.a", "sinks.a.kind", "sinks.a.b.c"])
@pytest.mark.parametrize("name", HOSTILE)
def test_anything_in_the_place_of_named_sinks_is_nothing_or_reported(
    key: str, name: str, tmp_path: Path
) -> None:
    value: Any = HOSTILE[name]
    for word in reversed(key.split(".")):
        value = {word: value}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))

    result = attempt(path=path)

    if isinstance(result, Config):
        assert not result.named
        assert value in ({"sinks": None}, {"sinks": {}}, {"sinks": {"a": None}})
    else:
        assert (result.exit_status, str(result).isascii(), len(str(result)) < 1000) == (78, True, True)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner))


@given(option=st.sampled_from(OPTIONS), value=trees)
def test_a_random_value_in_yaml_is_taken_or_reported(
    option: Option[Any], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_text(yaml.safe_dump({option.key: value}))

    result = attempt(path=path)

    assert isinstance(result, Config) or result.exit_status == 78


@given(option=st.sampled_from(OPTIONS), text=st.text() | st.text("-:/=,.|&a1\udc80"))
@example(option=options.SINK_STREAM_WRITER, text="/\x1b")
@example(option=options.SINK_STREAM_FIELDS, text="src \x1b")
def test_a_random_text_of_flag_or_variable_is_taken_or_reported(option: Option[Any], text: str) -> None:
    for flags, environ in (({option.key: [text]}, {}), ({}, {option.variable: text})):
        result = attempt(flags, environ)

        if not isinstance(result, Config):
            assert (result.exit_status, str(result).replace("\n", "").isprintable()) == (78, True)


# ---- what other programs put into the environment ---------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["CONNTRACKD_SERVICE_HOST", "CONNTRACKD_PORT_9100_TCP_ADDR", "CONNTRACKD_PORT", "CONNTRACKD_"]
)
def test_a_variable_that_is_none_of_ours_is_a_warning(name: str, read: Read) -> None:
    config = read(environ={name: "10.0.0.1"})

    assert [warning.message for warning in config.warnings] == [f"unknown variable '{name}', ignoring"]


def test_a_variable_of_a_setting_that_other_kinds_of_sinks_have_says_so(read: Read) -> None:
    config = read(environ={"CONNTRACKD_SINK_JOURNAL_TLS_VERIFY": "no"})

    assert [warning.hint for warning in config.warnings] == [
        "a sink of kind journal has no setting tls.verify: "
        "there are sink.syslog.tls.verify and sink.loki.tls.verify"
    ]


@pytest.mark.parametrize(
    "name",
    [
        *["CONNTRACKD_LOG_LEVL", "CONNTRACKD_LOG_LEVEEL", "CONNTRACKD_LOG_LVEEL", "CONNTRACKD_LOG_LEVER"],
        "CONNTRACKD_log_level",
    ],
)
def test_a_variable_that_is_one_typo_away_from_ours_is_a_mistake(
    name: str, mistakes: Callable[..., list[str]]
) -> None:
    assert mistakes(environ={name: "x"}) == [
        f"environment: unknown variable '{name}'\nhint: did you mean CONNTRACKD_LOG_LEVEL?"
    ]


def test_an_empty_variable_is_none(read: Read) -> None:
    config = read("sink.loki.tenant: a", environ=dict.fromkeys([option.variable for option in OPTIONS], ""))

    assert config[options.SINK_LOKI_TENANT] == "a"
    assert {config.origin(option) for option in OPTIONS if option is not options.SINK_LOKI_TENANT} == {
        "default"
    }
    assert not read(environ={"CONNTRACKD_NONSENSE": ""}).warnings


# ---- set to nothing ---------------------------------------------------------------------------------------

OPTIONAL = [option for option in OPTIONS if option.is_optional]


@pytest.mark.parametrize("option", OPTIONAL, ids=lambda option: option.key)
@pytest.mark.parametrize("text", ["off", "none", "null", "''", "'off'", "~", "", "OFF", "'None'"])
def test_a_drop_in_takes_back_what_a_file_says(option: Option[Any], text: str, read: Read, etc: Path) -> None:
    (etc / "conntrackd.d").mkdir()
    (etc / "conntrackd.d/a.yaml").write_text(f"{option.key}: {text}")

    config = read(f"{option.key}: [{option.example}]" if option.kind.separator else "")

    assert not config[option]
    assert config.origin(option) == f"{etc}/conntrackd.d/a.yaml:1"


@pytest.mark.parametrize("option", OPTIONAL, ids=lambda option: option.key)
@pytest.mark.parametrize("text", ["off", "none", "null", "OFF"])
def test_flags_and_variables_have_the_same_words_for_nothing(
    option: Option[Any], text: str, read: Read
) -> None:
    assert not read(flags={option.key: [text]})[option]
    assert not read(environ={option.variable: text})[option]
    assert not read(flags={option.key: [""]})[option]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"sink": {"loki": {"spool": null}}}'),
        ("a.json", '{"sink": {"loki": {"spool": false}}}'),
        ("a.json", '{"sink": {"loki": {"spool": ""}}}'),
        ("a.toml", "sink.loki.spool = false"),
        ("a.toml", 'sink.loki.spool = "none"'),
    ],
)
def test_json_and_toml_have_words_for_nothing(name: str, text: str, etc: Path) -> None:
    (etc / name).write_text(text)

    assert read_config({}, {}, etc / name)[options.SINK_LOKI_SPOOL.path] is False


def test_a_setting_that_always_has_a_value_cannot_be_set_to_nothing(
    mistakes: Callable[..., list[str]],
) -> None:
    assert len(mistakes("log.level: null\nconntrack.buffer: off\nsink.loki.address: none")) == 3


def test_a_spool_that_is_off_is_reported_from_one_that_nobody_set(read: Read, tmp_path: Path) -> None:
    state = f"state_directory: {tmp_path}/state\nsink.loki.enable: true\n"

    without, off = read(state), read(f"{state}sink.loki.spool: off")

    assert changed(without, off) == [options.SINK_LOKI_SPOOL.path]
    assert next(sink for sink in SINKS if sink.name == "loki").open_spool(off) is None
    assert not (tmp_path / "state").exists()


# ---- which files are read ---------------------------------------------------------------------------------


def test_drop_ins_may_have_the_endings_of_the_main_file(etc: Path) -> None:
    folder = etc / "conntrackd.d"
    folder.mkdir()
    (folder / "1.toml").write_text('log.level = "error"\ngeoip.locale = "de"')
    (folder / "2.yml").write_text("geoip.locale: fr\nfilter: [drop any]")
    (folder / "3.json").write_text('{"filter": ["log any"]}')

    config = read_config({}, {}, etc=etc)

    assert [path.name for path in config.paths] == ["1.toml", "2.yml", "3.json"]
    assert (config[options.LOG_LEVEL], config[options.GEOIP_LOCALE]) == ("error", "fr")
    assert config[options.FILTER] == ("log any",)


def test_a_file_that_is_not_read_is_named(read: Read, etc: Path) -> None:
    folder = etc / "conntrackd.d"
    folder.mkdir()
    for name in ("loki.conf", "LOKI.YAML", "a.yaml.dpkg-old", "a.yaml~", "README", ".a", "x.yaml.rpmsave"):
        (folder / name).write_text("")
    (etc / "conntrackd.toml").write_text("")

    assert [str(warning).splitlines()[0].replace(f"{etc}/", "") for warning in read().warnings] == [
        "conntrackd.toml: is ignored, because " + f"{etc}/conntrackd.yaml exists".replace(f"{etc}/", ""),
        "conntrackd.d/LOKI.YAML: is ignored",
        "conntrackd.d/loki.conf: is ignored",
    ]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
@pytest.mark.parametrize("name", [".", "conntrackd.d"])
def test_a_folder_into_which_every_user_may_put_files_is_refused(
    name: str, mode: int, read: Read, etc: Path
) -> None:
    (etc / "conntrackd.d").mkdir()
    (etc / name).chmod(mode)

    with pytest.raises(ConfigError) as caught:
        read("log.level: debug")

    assert caught.value.message == "is writable by every user"
    assert (caught.value.origin, caught.value.exit_status) == (str(etc / name), 78)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "large"])
@pytest.mark.parametrize("name", ["conntrackd.yaml", "conntrackd.d/a.yaml", "rules"])
def test_what_is_no_file_of_reasonable_size_is_refused_by_its_kind(name: str, kind: str, etc: Path) -> None:
    (etc / "conntrackd.d").mkdir()
    make_odd_file(etc / name, kind)
    if name == "rules":
        (etc / "conntrackd.yaml").write_text("filter_file: rules")
    named_by = f"{etc}/conntrackd.yaml:1: filter_file: " if name == "rules" else ""

    with pytest.raises(ConfigError) as caught:
        read_rules(read_config({}, {}, etc=etc))

    assert (caught.value.origin, caught.value.message) == (
        f"{named_by}{etc / name}",
        {
            "pipe": "is a named pipe, not a file",
            "device": "is a device, not a file",
            "socket": "is a socket, not a file",
            "folder": "is a directory, not a file",
            "large": f"is larger than {8 if name == 'rules' else 1} MiB",
        }[kind],
    )


def test_a_file_whose_name_is_no_text_is_refused(etc: Path) -> None:
    (etc / "conntrackd.d").mkdir()
    Path(os.fsdecode(os.fsencode(etc / "conntrackd.d") + b"/\xff.yaml")).write_text("")

    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_config({}, {}, etc=etc)


@pytest.mark.parametrize(
    ("flags", "environ", "is_alone"),
    [
        ({"conntrack.replay": ["a"]}, {}, True),
        ({}, {"CONNTRACKD_CONNTRACK_REPLAY": "a"}, True),
        ({"sink.stream.enable": ["true"]}, {}, True),
        ({"sink.loki.enable": ["false", "yes"]}, {}, True),
        ({"sink.loki.enable": ["false"]}, {}, False),
        ({"sink.loki.address": ["http://a"], "log.level": ["debug"]}, {}, False),
        ({}, {"CONNTRACKD_SINK_STREAM_ENABLE": "1"}, False),
    ],
)
def test_a_replay_and_a_sink_on_the_command_line_leave_the_files_alone(
    flags: dict[str, list[str]], environ: dict[str, str], is_alone: bool, read: Read, etc: Path
) -> None:
    config = read("sink.journal.enable: true", flags=flags, environ=environ)

    assert config[options.SINK_JOURNAL_ENABLE] is not is_alone
    assert config.paths == (() if is_alone else (etc / "conntrackd.yaml",))
    assert read_config(flags, environ, etc / "conntrackd.yaml")[options.SINK_JOURNAL_ENABLE]


# ---- what is wrong together -------------------------------------------------------------------------------


def test_mistakes_of_all_stages_are_reported_in_one_go(mistakes: Callable[..., list[str]]) -> None:
    text = "log.level: loud\nsink.syslog.tls.key: a\nsink.loki.tls.ca: b\ngeoip.local: c"

    assert [mistake.splitlines()[0] for mistake in mistakes(text)] == [
        "conntrackd.yaml:1: log.level: 'loud' is not one of debug, info, warn, error",
        "conntrackd.yaml:4: unknown key 'geoip.local'",
        "conntrackd.yaml:2: sink.syslog.tls.key has no effect alone",
        "conntrackd.yaml:3: sink.loki.tls.ca has no effect on http://localhost:3100",
    ]


@pytest.mark.parametrize(
    "text", ["records: both, resync: snapshot, snapshot: true", "records: flows, events: destroy"]
)
def test_records_of_flows_go_with_all_that_is_left(text: str, read: Read) -> None:
    assert read(f"conntrack: {{{text}}}")[options.CONNTRACK_RECORDS] != "events"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("records: flows, events: new", "records has no effect without destroy events"),
        ("records: both, events: [new, update]", "records has no effect without destroy events"),
        ("records: flows, snapshot: true", "snapshot has no effect with conntrack.records: flows"),
        ("records: flows, resync: snapshot", "resync has no effect with conntrack.records: flows"),
    ],
)
def test_records_of_flows_need_their_end_and_no_table(
    text: str, mistake: str, mistakes: Callable[..., list[str]]
) -> None:
    (found,) = mistakes(f"conntrack: {{{text}}}")

    assert found.splitlines()[0] == f"conntrackd.yaml:1: conntrack.{mistake}"
    assert "\nhint: " in found


def test_a_mistake_is_not_reported_again_as_what_follows_from_it(mistakes: Callable[..., list[str]]) -> None:
    assert len(mistakes("sink.loki: {address: 'htps://a', tls.ca: a}")) == 1
    assert len(mistakes("sink.loki: {adress: 'https://a', tls.ca: a}")) == 1
    assert len(mistakes("sink.loki.tls.ca: a", flags={"sink.loki.address": ["x"]})) == 1


def test_a_flag_or_variable_is_named_once(mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(flags={"sink.loki.password_file": ["a"]}) == [
        "--sink.loki.password_file: has no effect alone\nhint: set sink.loki.username too"
    ]
    assert mistakes(environ={"CONNTRACKD_SINK_LOKI_PASSWORD_FILE": "a"}) == [
        "CONNTRACKD_SINK_LOKI_PASSWORD_FILE: has no effect alone\nhint: set sink.loki.username too"
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("geoip.locale: de", "geoip.locale has no effect without geoip.database"),
        ("community_id.seed: 1", "community_id.seed has no effect without community_id.enable"),
        ("community_id.seed: 1\nsink.stream: {enable: true, fields: +community_id}", ""),
        ("community_id.seed: 1\nsinks.a: {kind: stream, fields: [src, community_id]}", ""),
        ("conntrack.flows_max: 10", "conntrack.flows_max has no effect without FLOW and ALIVE records"),
        ("conntrack: {flows_max: 10, records: both}", ""),
        ("conntrack: {flows_max: 10, heartbeat: 60}", ""),
        (
            "conntrack: {replay: a, heartbeat: 1m}",
            "conntrack.heartbeat has no effect in a replay (conntrack.replay)",
        ),
        (
            "{conntrack.replay: a, metrics.listen: 'unix:///a'}",
            "metrics.listen has no effect in a replay",
        ),
        ("sink.loki.address: http://a", "sink.loki.address has no effect: sink.loki.enable is not set"),
        ("sink.loki: {enable: false, address: http://a}", ""),
        *(
            (
                f"sink.stream: {{enable: true, writer: 'file:///a{ending}'}}",
                f"sink.stream.writer ends in {ending} and is not compressed:"
                " conntrackctl reads nothing of it",
            )
            for ending in COMPRESSED
        ),
        ("sink.stream: {enable: true, writer: 'file:///a.gz.json'}", ""),
        ("sinks.a: {kind: syslog, address: 'udp://a.gz'}", ""),
        (
            "sink.syslog: {enable: true, framing: lf}",
            "sink.syslog.framing has no effect on udp://localhost:514",
        ),
        ("sink.syslog: {enable: true, framing: lf, address: tcp://a}", ""),
        (
            "conntrack: {replay: a.nl, netns: office}",
            "conntrack.netns has no effect in a replay (conntrack.replay)",
        ),
        (
            "conntrack: {replay: a.nl, resync: snapshot}",
            "conntrack.resync has no effect in a replay (conntrack.replay)",
        ),
        (
            "{conntrack.replay: a.nl, bus.address: 'unix:path=/x'}",
            "bus.address has no effect in a replay (conntrack.replay)",
        ),
        ("conntrack: {replay: a.nl, activate: false, resync: off, events: [new]}", ""),
        (
            "sink.loki: {enable: on, labels: a=1 b=2}",
            "sink.loki.labels the value of a seems to contain another label",
        ),
    ],
)
def test_what_does_nothing_is_a_warning(text: str, warning: str, read: Read, etc: Path) -> None:
    expected = [f"{etc}/conntrackd.yaml:1: {warning}"] if warning else []
    assert [str(warning).splitlines()[0] for warning in read(text).warnings] == expected


# ---- the document's own samples ---------------------------------------------------------------------------


def test_the_labels_of_the_document_are_taken(read: Read) -> None:
    config = read("sink.loki.labels: [env=prod, host=edge1]")

    assert config[options.SINK_LOKI_LABELS] == (("env", "prod"), ("host", "edge1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conntrackd.yaml", "filter:\n  - |\n    # why\n    log port 22\n      or port 80\n"),
        ("conntrackd.toml", 'filter = ["""\n# why\nlog port 22\r\n\tor port 80"""]'),
        ("conntrackd.json", json.dumps({"filter": ["# why\nlog port 22\nor port 80"]})),
    ],
)
def test_a_rule_has_line_breaks_where_its_item_has(name: str, text: str, etc: Path) -> None:
    (etc / name).write_bytes(text.encode())

    (rule,) = parse_rules(read_rules(read_config({}, {}, etc=etc)))

    assert render(rule) == "log port 22 or port 80"


def test_a_rule_of_comments_alone_is_none(read: Read) -> None:
    rules = read_rules(read("filter:\n- '# a'\n- |\n  # b\n\n  # c\n- log any"))

    assert [rule.text for rule in rules] == ["log any"]


# ---- the name of this host --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"gw-1.example", "gw-1.example"),
        ("gw-büro".encode(), "gw-büro"),
        (b"gw-\xfc", "gw-?"),
        (b"gw\x1b[31m\n", "gw?[31m?"),
        ("gw\u202e".encode(), "gw?"),
    ],
)
def test_any_bytes_of_the_hosts_name_are_text_in_the_records(
    name: bytes, shown: str, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: os.fsdecode(name))

    assert get_host(read()) == shown
    assert get_host(read("host: edge1")) == "edge1"


@pytest.mark.parametrize(
    "text",
    [
        "sink.syslog: {format: cee, fields: '-type,-time'}",
        "sink.syslog: {format: rfc3164, fields: -type}",
        "sink.syslog: {address: 'unix:///dev/log', fields: -type}",
        "sink.loki.fields: [-level, -flow]",
        "sink.journal.fields: off",
    ],
)
def test_fields_that_the_form_in_use_can_be_without_may_be_left_out(text: str, read: Read) -> None:
    assert read(text).warnings
