"""Flags derive from OPTIONS, and come back as they were given."""

import argparse
import re
from pathlib import Path

import pytest

from conntrackd.cli.flags import add_flags, collect_flags, explain_unknown
from conntrackd.cli.verb import HelpFormatter
from conntrackd.config.options import OPTIONS
from conntrackd.config.read import read_config


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "conntrackd run",
        usage="conntrackd run [OPTION]...",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_flags(made)
    return made


def test_help_names_every_option_and_its_default(parser: argparse.ArgumentParser) -> None:
    text = " ".join(parser.format_help().split())

    for option in OPTIONS:
        default = f" (default: {option.default_text})" if option.default_text else ""
        assert re.search(
            rf"{re.escape(option.flag)} \S+ {re.escape(option.help + default)}(?! \(default)", text
        )


def test_help_fits_80_columns(parser: argparse.ArgumentParser) -> None:
    assert max(map(len, parser.format_help().splitlines())) <= 80


def test_flags_are_collected_as_they_were_given(parser: argparse.ArgumentParser) -> None:
    words = ["--filter", "log any", "--filter=drop any", "--log.level", "debug", "--sink.stream.enable"]

    assert collect_flags(parser.parse_args([])) == {}
    assert collect_flags(parser.parse_args(words)) == {
        "log.level": ["debug"],
        "filter": ["log any", "drop any"],
        "sink.stream.enable": ["true"],
    }


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--sink.stream.enable"], ["true"]),
        (["--sink.stream.enable=false"], ["false"]),
        (["--sink.stream.enable", "--log.level", "info"], ["true"]),
        (["--sink.stream.enable", "--sink.stream.enable=no"], ["true", "no"]),
    ],
)
def test_a_boolean_may_stand_alone(
    words: list[str], value: list[str], parser: argparse.ArgumentParser
) -> None:
    assert collect_flags(parser.parse_args(words))["sink.stream.enable"] == value


def test_flags_that_were_collected_become_settings(parser: argparse.ArgumentParser) -> None:
    words = [f"{option.flag}={option.default_text}" for option in OPTIONS if option.default_text]

    config = read_config(collect_flags(parser.parse_args(words)), {}, etc=Path("/nonexistent"))

    assert [config[option] for option in OPTIONS] == [option.default for option in OPTIONS]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--sink.strem.enable=secret"],
            "unknown option '--sink.strem.enable'\nhint: did you mean --sink.stream.enable?",
        ),
        (
            ["--sink.journal.schema=ecs"],
            "--sink.journal.schema: a sink of kind journal has no setting schema\n"
            "hint: there are sink.stream.schema and sink.loki.schema",
        ),
        (["extra", "--zzzzzz"], "unknown option '--zzzzzz'\nhint: --help lists what is available"),
        (
            ["extra"],
            "unknown argument 'extra'\n"
            "hint: --help lists what is available; a value with spaces needs quotes",
        ),
    ],
)
def test_an_unknown_argument_is_reported_with_a_near_miss(arguments: list[str], text: str) -> None:
    assert str(explain_unknown(arguments, [option.flag for option in OPTIONS])) == text
