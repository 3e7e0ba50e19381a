"""Files that the daemon cannot write or read anew while it runs: status says so until it can."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conntrackd.cli import ctl
from tests.bus.private import PrivateBus
from tests.disk import mount_disk
from tests.geoip.test_databases import BERLIN, write_database
from tests.live.control import ask, run_on_bus
from tests.live.network import Network
from tests.metrics.client import get
from tests.sinks.syslog_servers import get_free_port, wait_until

pytestmark = pytest.mark.privileged


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mount_disk(tmp_path / "disk", "1m") as path:
        yield path


def fill(disk: Path) -> None:
    """To the last page: what stands there can be read, and not be replaced."""
    with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def test_files_that_cannot_be_written_are_problems_until_they_can(
    net: Network, bus: PrivateBus, configuration: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, state, page = get_free_port(), disk / "state", disk / "conntrackd.prom"
    settings = {
        "metrics.listen": f"127.0.0.1:{port}",
        "metrics.textfile": page,
        "state_directory": state,
    }
    lines = [f"{key}: {value}\n" for key, value in settings.items()]
    configuration.write_text(configuration.read_text() + "".join(lines))

    def list_failing() -> list[str]:
        return [problem.partition(": ")[0] for problem in ask(capsys, "status")["Problems"]]

    def read_exit() -> int:
        status = ctl.run(["status"])
        capsys.readouterr()
        return status

    def is_shown() -> bool:
        fill(disk)  # also what a write that failed has given back
        return list_failing() == ["state_directory", "metrics.textfile"]

    with run_on_bus(net, bus, configuration) as running:
        wait_until(page.exists, "the page")
        assert (list_failing(), read_exit()) == ([], 0)

        wait_until(is_shown, "both problems", 30)
        told = ask(capsys, "status")
        assert (told["healthy"], read_exit()) == (False, 4)
        assert (
            f"metrics.textfile: {page} cannot be written (No space left on device): " in told["Problems"][1]
        )
        assert told["Problems"][0].endswith(f"; make room: df -h {state}; df -i {state}")
        findings = [row["severity"] for row in ask(capsys, "doctor") if row["check"] == "files"]
        assert findings == ["warning"] * 2
        assert get(("127.0.0.1", port), "/healthz").status == 503
        assert any("No space left on device" in line for line in running.said)

        (disk / "ballast").unlink()
        wait_until(lambda: list_failing() == [], "health", 30)
        assert read_exit() == 0
        assert running.stop() == 0
    assert not any("Traceback" in line for line in running.said)


def test_a_database_that_cannot_be_read_anew_is_a_problem_until_it_can(
    net: Network, bus: PrivateBus, configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_database(tmp_path / "a.mmdb", BERLIN)
    configuration.write_text(f"{configuration.read_text()}geoip.database: {path}\n")

    def list_problems() -> list[str]:
        problems: list[str] = ask(capsys, "status")["Problems"]
        return problems

    with run_on_bus(net, bus, configuration) as running:
        assert list_problems() == []
        path.write_bytes(b"")
        wait_until(list_problems, "a problem", 30)

        (problem,) = list_problems()
        assert f"geoip.database: {path} is not a usable database: its metadata is missing; " in problem
        (finding,) = [row for row in ask(capsys, "doctor") if row["check"] == "geoip"]
        assert (finding["severity"], str(path) in finding["message"]) == ("warning", True)
        write_database(path, BERLIN)
        wait_until(lambda: list_problems() == [], "health", 30)
        assert running.stop() == 0
