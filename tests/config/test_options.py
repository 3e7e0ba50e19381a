"""The table of settings is complete and agrees with itself."""

import re
from typing import Any

import pytest

from conntrackd.config import options
from conntrackd.config.option import Option
from conntrackd.config.options import OPTIONS

ANONYMIZE = "anonymize " + " ".join(
    f"anonymize_{name}" for name in ("which", "only", "ipv4_bits", "ipv6_bits", "key_file")
)
KEYS = [
    f"{section}{name}"
    for section, names in (
        ("log.", "level"),
        (
            "conntrack.",
            "events records flows_max heartbeat protocols buffer activate netns replay snapshot readers"
            " resync reliable kernel_filter",
        ),
        ("", "filter filter_file sets"),
        ("geoip.", "database locale cache"),
        ("community_id.", "enable seed"),
        ("sink.stream.", f"enable writer queue filter fields schema {ANONYMIZE}"),
        ("sink.journal.", f"enable queue filter fields {ANONYMIZE}"),
        ("sink.syslog.", "enable address format framing segments facility queue filter fields"),
        ("sink.syslog.", ANONYMIZE),
        ("sink.syslog.", "tls.ca tls.cert tls.key tls.verify spool spool_max"),
        ("sink.loki.", f"enable address labels queue filter fields schema {ANONYMIZE}"),
        ("sink.loki.", "batch_size batch_wait timeout"),
        ("sink.loki.", "tenant username password_file token_file"),
        ("sink.loki.", "tls.ca tls.cert tls.key tls.verify spool spool_max"),
        ("bus.", "enable address"),
        ("metrics.", "listen textfile flows"),
        ("", "shutdown_timeout state_directory host"),
    )
    for name in names.split()
]


def test_the_settings_are_those_that_users_were_promised() -> None:
    assert [option.key for option in OPTIONS] == KEYS


def test_names_derive_from_the_key() -> None:
    assert options.SINK_STREAM_WRITER.flag == "--sink.stream.writer"
    assert options.SINK_STREAM_WRITER.variable == "CONNTRACKD_SINK_STREAM_WRITER"


def test_no_two_settings_share_a_variable() -> None:
    assert len({option.variable for option in OPTIONS}) == len(OPTIONS)


def test_no_key_is_also_a_section() -> None:
    assert not [key for key in KEYS for other in KEYS if other.startswith(f"{key}.")]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_a_setting_is_called_like_its_key(option: Option[Any]) -> None:
    group = re.match(r"sink\.\w+\.(anonymize|spool|tls)", option.key)  # each sink's have one name together
    found = getattr(options, re.sub(r"\W", "_", group[0] if group else option.key).upper())

    assert option in found if group else found is option


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_a_default_reads_back_as_itself(option: Option[Any]) -> None:
    if option.default is not None:
        assert option.kind.parse(option.kind.split(option.default_text)) == option.default


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_a_setting_has_something_to_show_in_the_sample(option: Option[Any]) -> None:
    text = option.default_text or option.example

    assert option.kind.parse(option.kind.split(text)) == (option.default if option.default_text else ANYTHING)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_help_is_one_line_without_a_full_stop(option: Option[Any]) -> None:
    assert re.fullmatch(r"[A-Z][ -~]{4,74}[^.]", option.help)


def test_secrets_are_given_as_files_only() -> None:
    secrets = [option.key for option in OPTIONS if re.search("password|token|secret|key", option.key)]

    assert secrets == [option.key for option in OPTIONS if option.secret]
    assert not [option for option in OPTIONS if option.secret and not option.kind.is_path]


def test_defaults_are_those_of_the_documentation() -> None:
    assert {option.key: option.default_text for option in OPTIONS if option.default_text} == {
        "log.level": "info",
        "conntrack.events": "new, update, destroy",
        "conntrack.records": "events",
        "conntrack.flows_max": "262144",
        "conntrack.protocols": "tcp, udp",
        "conntrack.buffer": "64M",
        "conntrack.activate": "false",
        "conntrack.snapshot": "false",
        "conntrack.readers": "1",
        "conntrack.resync": "off",
        "conntrack.reliable": "false",
        "conntrack.kernel_filter": "true",
        "geoip.locale": "en",
        "geoip.cache": "65536",
        "community_id.enable": "false",
        "community_id.seed": "0",
        "sink.stream.enable": "false",
        "sink.stream.writer": "stdout",
        "sink.stream.queue": "32768",
        "sink.stream.schema": "native",
        "sink.stream.anonymize": "none",
        "sink.stream.anonymize_which": "both",
        "sink.stream.anonymize_only": "all",
        "sink.stream.anonymize_ipv4_bits": "8",
        "sink.stream.anonymize_ipv6_bits": "80",
        "sink.journal.enable": "false",
        "sink.journal.queue": "65536",
        "sink.journal.anonymize": "none",
        "sink.journal.anonymize_which": "both",
        "sink.journal.anonymize_only": "all",
        "sink.journal.anonymize_ipv4_bits": "8",
        "sink.journal.anonymize_ipv6_bits": "80",
        "sink.syslog.enable": "false",
        "sink.syslog.address": "udp://localhost:514",
        "sink.syslog.format": "rfc5424",
        "sink.syslog.framing": "octet-counting",
        "sink.syslog.segments": "false",
        "sink.syslog.facility": "daemon",
        "sink.syslog.queue": "32768",
        "sink.syslog.anonymize": "none",
        "sink.syslog.anonymize_which": "both",
        "sink.syslog.anonymize_only": "all",
        "sink.syslog.anonymize_ipv4_bits": "8",
        "sink.syslog.anonymize_ipv6_bits": "80",
        "sink.syslog.tls.verify": "true",
        "sink.syslog.spool_max": "256M",
        "sink.loki.enable": "false",
        "sink.loki.address": "http://localhost:3100",
        "sink.loki.queue": "32768",
        "sink.loki.schema": "native",
        "sink.loki.anonymize": "none",
        "sink.loki.anonymize_which": "both",
        "sink.loki.anonymize_only": "all",
        "sink.loki.anonymize_ipv4_bits": "8",
        "sink.loki.anonymize_ipv6_bits": "80",
        "sink.loki.batch_size": "1M",
        "sink.loki.batch_wait": "1s",
        "sink.loki.timeout": "10s",
        "sink.loki.tls.verify": "true",
        "sink.loki.spool_max": "256M",
        "bus.enable": "true",
        "shutdown_timeout": "10s",
    }


class _Anything:
    """Equal to every value that could be parsed."""

    def __eq__(self, other: object) -> bool:
        return other is not None

    __hash__ = None  # type: ignore[assignment]


ANYTHING = _Anything()


def test_what_is_opened_once_waits_for_a_restart_and_says_so() -> None:
    waiting = {option.key for option in OPTIONS if not option.reload}

    assert waiting == {
        *("conntrack.buffer", "conntrack.netns", "conntrack.replay"),
        *("conntrack.snapshot", "conntrack.readers", "conntrack.resync", "conntrack.reliable"),
        "conntrack.heartbeat",
        *("sink.syslog.spool", "sink.syslog.spool_max", "sink.loki.spool", "sink.loki.spool_max"),
        *("bus.enable", "bus.address", "state_directory"),
    }
