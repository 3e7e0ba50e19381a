"""A replay has nothing to do with the service of the machine it runs on."""

import json
import logging
from pathlib import Path

import pytest

from conntrackd import daemon
from conntrackd.daemon import Sources
from tests.live.daemon import run

RECORDING = Path(__file__).parent.parent / "netlink/corpus/tcp.nl"


@pytest.mark.parametrize("names_a_file", [False, True])
def test_old_events_go_into_the_sinks_of_the_service_only_where_it_is_asked_for(
    names_a_file: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service, ours = tmp_path / "service.json", tmp_path / "ours.json"
    path = tmp_path / "conntrackd.yaml"
    path.write_text(f"sink.stream: {{enable: true, writer: 'file://{service}'}}\n")
    overrides = {"conntrack.replay": [str(RECORDING)], "sink.stream.enable": ["true"]}
    if not names_a_file:
        overrides["sink.stream.writer"] = [f"file://{ours}"]

    daemon.run(Sources(overrides, {}, path if names_a_file else None, etc=tmp_path))

    assert (service.exists(), ours.exists()) == (names_a_file, not names_a_file)
    assert json.loads((service if names_a_file else ours).read_text().splitlines()[0])["prot"] == "TCP"
    assert any("is not read" in line for line in caplog.messages) is not names_a_file


def test_a_replay_leaves_the_notes_of_a_killed_process_as_they_are(tmp_path: Path) -> None:
    notes = {"running": "1763807683181432081", "listened": "1763807683181432082", "held": '{"loki": 1}'}
    for name, text in notes.items():
        (tmp_path / name).write_text(text)
    words = ("--conntrack.replay", str(RECORDING), "--sink.stream.enable", "--state_directory", str(tmp_path))
    done = run("run", *words)

    assert done.returncode == 0
    assert {name: (tmp_path / name).read_text() for name in notes} == notes


def test_a_stream_has_the_fields_that_were_asked_for(tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    overrides = {
        "conntrack.replay": [str(RECORDING)],
        "sink.stream.enable": ["true"],
        "sink.stream.writer": [f"file://{ours}"],
        "sink.stream.fields": ["src,dst,sport", "dport,msg"],
        "sink.stream.filter": ["log type NEW", "drop any"],
    }

    daemon.run(Sources(overrides, {}, None, etc=tmp_path))

    records = [json.loads(line) for line in ours.read_text().splitlines()]
    assert records
    assert {tuple(record) for record in records} == {("msg", "src", "dst", "sport", "dport")}
    assert {record["msg"][:8] for record in records} == {"NEW TCP "}


@pytest.mark.parametrize(("schema", "source"), [("ecs", "source.ip"), ("otel", "source.address")])
def test_a_stream_has_the_names_that_were_asked_for(schema: str, source: str, tmp_path: Path) -> None:
    found = {}
    for name in ("native", schema):
        overrides = {
            "conntrack.replay": [str(RECORDING)],
            "sink.stream.enable": ["true"],
            "sink.stream.writer": [f"file://{tmp_path / name}"],
            "sink.stream.schema": [name],
            "host": ["gw1"],
        }
        daemon.run(Sources(overrides, {}, None, etc=tmp_path))
        found[name] = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    assert len(found["native"]) > 1
    assert [record[source] for record in found[schema]] == [record["src"] for record in found["native"]]
    assert {record["host.name"] for record in found[schema]} == {"gw1"}
