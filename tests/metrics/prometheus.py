"""A real Prometheus of Debian's package, run by hand: on loopback, with a folder of the test's own."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.sinks.syslog_servers import get_free_port, wait_until

# Debian would start it: `make` unpacks it where nothing does.
PROMETHEUS: Final = Path(__file__).parents[2] / ".venv" / "prometheus"
CONFIGURATION: Final = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
  - job_name: conntrackd
    static_configs: [{{targets: [{targets}]}}]
"""
Labels = tuple[tuple[str, str], ...]


class Server:
    """What it knows of conntrackd."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._process, self._port, self._log = process, port, log

    def query(self, expression: str) -> dict[Labels, float]:
        """Now: labels without those that Prometheus adds -> number."""
        found = self._get("/api/v1/query", query=expression)
        assert found["status"] == "success", found
        return {
            tuple(
                sorted(
                    (name, value)
                    for name, value in each["metric"].items()
                    if name not in {"__name__", "instance", "job"}
                )
            ): float(each["value"][1])
            for each in found["data"]["result"]
        }

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(work: Path, targets: Sequence[str]) -> Iterator[Server]:
    """Scrapes these addresses five times a second."""
    port = get_free_port()
    configuration, log = work / "prometheus.yml", work / "log.txt"
    configuration.write_text(CONFIGURATION.format(targets=", ".join(map(json.dumps, targets))))
    command = [f"{PROMETHEUS}/usr/bin/prometheus", f"--config.file={configuration}"]
    command += [f"--storage.tsdb.path={work}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=work) as process,
    ):
        try:
            server = Server(process, port, log)
            wait_until(server.is_ready, "Prometheus", 30)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
