"""What is not used is not loaded: memory on each gateway."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from conntrackd.config.read import read_config
from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks import SINKS

directory, addresses = Path(sys.argv[1]), sys.argv[2:]
given = {f"sink.{kind.name}.enable": ["true"] for kind in SINKS} | {"state_directory": [str(directory)]}
given |= {f"sink.{name}.address": [url] for name, url in zip(("syslog", "loki"), addresses)}
config = read_config(given, {}, etc=directory)
for kind in SINKS:
    sink, spool = kind.create(config), kind.open_spool(config)
    try:
        sink.open()
    except SinkUnavailable:
        pass
    sink.close()
    if spool is not None:
        spool.close()
print(*sys.modules)
"""


def test_the_daemon_does_without_openssl(tmp_path: Path) -> None:
    (tmp_path / "events.nl").write_bytes(b"")
    command = [sys.executable, "-X", "importtime", "-m", "conntrackd", "run", "--sink.stream.enable"]
    command += ["--conntrack.replay", str(tmp_path / "events.nl")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "conntrackd.engine.native" in loaded
    assert loaded.isdisjoint({"_hashlib", "_ssl"})


@pytest.mark.parametrize(
    ("addresses", "wanted"),
    [
        (("tcp://127.0.0.1:1", "http://127.0.0.1:1"), False),
        (("tls://127.0.0.1:1", "http://127.0.0.1:1"), True),
        (("tcp://127.0.0.1:1", "https://127.0.0.1:1"), True),
    ],
)
def test_only_who_uses_tls_pays_for_it_and_nobody_for_a_database(
    tmp_path: Path, addresses: tuple[str, str], wanted: bool
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *addresses]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()

    assert ("ssl" in loaded) is wanted
    assert "sqlite3" not in loaded
    assert {"conntrackd.sinks.loki", "conntrackd.delivery.spool"} <= set(loaded)
