"""The list of kinds: each is an option away, and has a spool where that makes sense."""

from pathlib import Path

import pytest

from conntrackd.config.options import OPTIONS
from conntrackd.config.read import Config, read_config
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.store import Store
from conntrackd.sinks import SINKS


def configure(etc: Path, **settings: str) -> Config:
    given = {name.replace("__", "."): [value] for name, value in settings.items()}
    return read_config({"sink.loki.enable": ["true"], **given}, {}, None, etc)


def test_each_kind_of_sink_in_the_options_is_in_the_list() -> None:
    named = [
        option.key.split(".")[1]
        for option in OPTIONS
        if option.key.endswith(".enable") and "sink." in option.key
    ]

    assert [kind.name for kind in SINKS] == named


def test_only_what_is_asked_for_is_enabled(tmp_path: Path) -> None:
    config = configure(tmp_path)

    assert [kind.name for kind in SINKS if kind.enabled(config)] == ["loki"]


def get_spool(store: Store) -> Spool:
    assert isinstance(store, Spool)
    return store


@pytest.mark.parametrize(
    ("settings", "with_spool"),
    [
        ({}, {}),
        ({"sink__loki__spool": "/tmp/here"}, {"loki": "/tmp/here/loki"}),
        ({"state_directory": "/var"}, {"loki": "/var/loki/loki"}),
        (
            {"state_directory": "/var", "sink__syslog__address": "tcp://localhost"},
            {"syslog": "/var/syslog/syslog", "loki": "/var/loki/loki"},
        ),
    ],
)
def test_a_sink_that_acknowledges_has_a_spool_where_there_is_a_place_for_it(
    tmp_path: Path, settings: dict[str, str], with_spool: dict[str, str]
) -> None:
    """Directories are below the test's own."""
    for name in ("tmp", "var"):
        (tmp_path / name).mkdir()
    config = configure(
        tmp_path,
        **{
            name: f"{tmp_path}{value}" if value.startswith("/") else value for name, value in settings.items()
        },
    )
    spools = {kind.name: kind.open_spool(config) for kind in SINKS}

    found = {name: str(get_spool(spool)._path) for name, spool in spools.items() if spool is not None}
    for spool in spools.values():
        if spool is not None:
            spool.close()

    assert found == {name: f"{tmp_path}{path}" for name, path in with_spool.items()}
