"""Settings of addresses -> what is written, and what is wrong with a key."""

import builtins
import os
from pathlib import Path
from typing import Any

import pytest

from conntrackd.config.read import Config, read_all, read_config
from conntrackd.errors import ConfigError
from conntrackd.render.anonymize import SOURCE, Anonymizer
from conntrackd.sinks import list_sinks
from conntrackd.sinks.anonymizer import read_anonymizer
from tests.render.test_cryptopan import KEY

MODE = {"sink.stream.enable": ["true"], "sink.stream.anonymize": ["pseudonym"]}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY)
    path.chmod(0o640)
    return path


def read(**settings: str) -> Config:
    own = {f"sink.stream.{key}": [value] for key, value in settings.items()}
    return read_config({"sink.stream.enable": ["true"], **own}, {})


def explain(**settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_anonymizer(read(**settings), "stream")
    return str(caught.value)


def test_addresses_are_written_as_they_are_unless_something_else_is_asked_for() -> None:
    assert read_anonymizer(read(), "stream") is None


def test_each_setting_says_what_it_says(key: Path) -> None:
    short = read(anonymize="truncate", anonymize_ipv4_bits="16", anonymize_ipv6_bits="64")
    named = read(
        anonymize="pseudonym", anonymize_key_file=str(key), anonymize_which="source", anonymize_only="PRIVATE"
    )

    assert read_anonymizer(short, "stream") == Anonymizer(ipv4_bits=16, ipv6_bits=64)
    assert read_anonymizer(named, "stream") == Anonymizer(KEY, sides=SOURCE, only="private")


def test_each_kind_of_sink_has_it_in_its_template(key: Path) -> None:
    kinds = ("stream", "journal", "syslog", "loki")
    settings = {
        f"sink.{kind}.{end}": [value]
        for kind in kinds
        for end, value in {"enable": "true", "anonymize": "pseudonym", "anonymize_key_file": str(key)}.items()
    }
    sinks = list_sinks(read_config(settings, {}))

    made = {sink.name: sink.kind.create(sink.config).template.anonymizer for sink in sinks}

    assert made == dict.fromkeys(kinds, Anonymizer(KEY))


def test_a_credential_is_for_the_sink_whose_name_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("stream", KEY), ("audit", KEY[::-1])):
        (tmp_path / f"{name}.anonymize_key").write_bytes(content)
        (tmp_path / f"{name}.anonymize_key").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    named = {"sinks.audit.kind": ["stream"], "sinks.audit.anonymize": ["pseudonym"]}
    config = read_config({**MODE, **named, "sinks.audit.writer": ["discard"]}, {})

    found = {name: read_anonymizer(config.view(name), "stream") for name in ("stream", "audit")}

    assert found == {"stream": Anonymizer(KEY), "audit": Anonymizer(KEY[::-1])}


def test_a_key_that_is_missing_is_asked_for() -> None:
    assert explain(anonymize="pseudonym") == (
        "--sink.stream.anonymize: is pseudonym, and there is no key\n"
        "hint: openssl rand -out FILE 32, then sink.stream.anonymize_key_file: FILE, "
        "or a credential stream.anonymize_key"
    )


@pytest.mark.parametrize("size", [0, 16, 31, 33, 65])
def test_a_key_of_another_size_is_refused(key: Path, size: int) -> None:
    key.write_bytes(bytes(size))

    assert explain(anonymize="pseudonym", anonymize_key_file=str(key)) == (
        f"--sink.stream.anonymize_key_file: {key} has {size} bytes, and a key has 32\n"
        "hint: openssl rand -out FILE 32 makes one"
    )


def test_a_key_that_every_user_may_read_is_refused(key: Path) -> None:
    key.chmod(0o644)

    assert explain(anonymize="pseudonym", anonymize_key_file=str(key)) == (
        f"--sink.stream.anonymize_key_file: {key} is open to every user\nhint: chmod o= '{key}'"
    )


def test_what_is_no_file_is_named(key: Path) -> None:
    settings = {"anonymize": "pseudonym"}
    key.unlink()
    assert "cannot read" in explain(**settings, anonymize_key_file=str(key))
    os.mkfifo(key)
    assert "is a named pipe, not a file" in explain(**settings, anonymize_key_file=str(key))


def test_a_library_that_is_missing_is_asked_for(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)

    assert explain(anonymize="pseudonym", anonymize_key_file=str(key)) == (
        "--sink.stream.anonymize: is pseudonym, and the Python package cryptography is missing\n"
        "hint: apt install python3-cryptography (dnf on Fedora and RHEL)"
    )


def test_a_key_without_pseudonyms_is_refused(key: Path) -> None:
    own = {"sink.stream.enable": ["true"], "sink.stream.anonymize_key_file": [str(key)]}

    mistakes = read_all(own, {}).mistakes

    assert [str(mistake) for mistake in mistakes] == [
        "--sink.stream.anonymize_key_file: has no effect without sink.stream.anonymize: pseudonym"
    ]


@pytest.mark.parametrize(
    ("mode", "end", "value", "needed"),
    [
        ("none", "which", "source", ""),
        ("none", "only", "private", ""),
        ("none", "ipv4_bits", "16", ": truncate"),
        ("pseudonym", "ipv6_bits", "64", ": truncate"),
    ],
)
def test_what_has_no_effect_is_said(mode: str, end: str, value: str, needed: str) -> None:
    config = read(**{"anonymize": mode, f"anonymize_{end}": value})

    assert [str(warning) for warning in config.warnings] == [
        f"--sink.stream.anonymize_{end}: has no effect without sink.stream.anonymize{needed}"
    ]
