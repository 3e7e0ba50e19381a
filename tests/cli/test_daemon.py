"""conntrackd's own commands: what they print, and how they end."""

from argparse import Namespace
from pathlib import Path

import pytest

from conntrackd import VERSION
from conntrackd.cli.daemon import build_parser, parse_and_run
from conntrackd.cli.flags import collect_flags
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors, UsageError

STREAM = "sink.stream: {enable: true, writer: discard}\n"


def write(folder: Path, text: str, name: str = "conntrackd.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_check_says_what_is_good_what_is_doubtful_and_what_it_did_not_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "sink.loki.enable: true\nfilter: [drop country UK]\ngeoip.cache: 5")

    assert parse_and_run(["check", "--config", path]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{path}: good\n"
    assert printed.err.splitlines() == [
        f"conntrackd: warning: {path}:3: geoip.cache has no effect without geoip.database",
        f"conntrackd: warning: {path}:2: UK is not a country code and never matches",
        "  drop country UK",
        "       ^^^^^^^^^^",
        "hint: did you mean GB?",
        "conntrackd: not tried: sink.loki: whether http://localhost:3100 can be reached; conntrackctl doctor",
    ]


def test_check_raises_all_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, f"{STREAM}log.level: loud\nfilter: [log prot, 'log port 80 and port 80-x']")

    with pytest.raises(ManyErrors) as caught:
        parse_and_run(["check", "--config", path])

    assert (len(caught.value.errors), caught.value.exit_status) == (3, 78)
    assert capsys.readouterr().out == ""


def test_a_fragment_is_checked_without_a_sink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "filter: [drop any]", "tmp1234")

    assert parse_and_run(["check", "--fragment", path]) == 0
    assert capsys.readouterr().out == f"{path}: good\n"
    with pytest.raises(UsageError):
        parse_and_run(["check", "--fragment", path, "--log.level", "info"])
    with pytest.raises(ConfigError):
        parse_and_run(["check", "--fragment", write(tmp_path, "filtre: [drop any]")])


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--filter-file", "filter_file"),
        ("--state-directory", "state_directory"),
        ("--sink.loki.batch-size", "sink.loki.batch_size"),
        ("--conntrack.kernel-filter", "conntrack.kernel_filter"),
        ("--sinks.a-b.batch-size", "sinks.a-b.batch_size"),
    ],
)
def test_a_flag_may_have_a_dash_where_its_key_has_another(
    flag: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, list[str]]] = []

    def note(arguments: Namespace) -> int:
        found.append(collect_flags(arguments))
        return 0

    monkeypatch.setattr("conntrackd.cli.daemon.run", note)

    assert parse_and_run(["run", flag, "x-y"]) == parse_and_run(["run", f"{flag}=x-y"]) == 0
    assert found == [{key: ["x-y"]}] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "unknown command 'rum'\nhint: did you mean run?"),
        (["chekc", "--config", "x"], "unknown command 'chekc'\nhint: did you mean check?"),
        (["recrod", "x"], "unknown command 'recrod'\nhint: did you mean record?"),
        (["stop"], "unknown command 'stop'\nhint: systemctl stop conntrackd"),
        (["help"], "unknown command 'help'\nhint: conntrackd --help"),
        (["x"], "unknown command 'x'\nhint: one of: run, check, record, version"),
        (
            ["--sink.stream.enable"],
            "unknown option '--sink.stream.enable' before the command\n"
            "hint: options of a command stand behind it; 'conntrackd --help' lists what is available",
        ),
        (["run", "--sink.loki"], "unknown option '--sink.loki'\nhint: did you mean --sink.loki.enable?"),
        (["run", "log any"], "unknown argument 'log any'\nhint: a rule stands behind --filter, in quotes"),
        (
            ["check", "/etc/conntrackd/conntrackd.yaml"],
            "unknown argument '/etc/conntrackd/conntrackd.yaml'\n"
            "hint: a configuration file stands behind --config",
        ),
        (["run", "-c", "x"], "unknown option '-c'\nhint: a configuration file stands behind --config"),
        (["record", "x", "--cuont", "5"], "unknown option '--cuont'\nhint: did you mean --count?"),
        (
            ["record", "x", "--count", "many"],
            "argument --count: 'many' is not a whole number from 1 to 999999999\n"
            "hint: 'conntrackd record --help' lists what is available",
        ),
        (["check", "--fragmnet", "x"], "unknown option '--fragmnet'\nhint: did you mean --fragment?"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_with_what_was_meant(words: list[str], said: str) -> None:
    with pytest.raises(ConntrackdError) as caught:
        parse_and_run(words)

    assert str(caught.value) == said


def test_the_version_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["--version"])

    assert (caught.value.code, capsys.readouterr().out) == (0, f"conntrackd {VERSION}\n")
