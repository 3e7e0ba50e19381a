"""Real syslog servers from Debian's packages, on loopback and in folders of the tests' own."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RSYSLOGD = Path("/usr/sbin/rsyslogd")
RSYSLOG_CONFIG = """
global(workDirectory="{work}" maxMessageSize="64k")
module(load="imudp") module(load="imptcp") module(load="imuxsock" SysSock.Use="off")
template(name="all" type="list" option.jsonf="on") {{
    property(outname="severity" name="syslogseverity" format="jsonf")
    property(outname="facility" name="syslogfacility-text" format="jsonf")
    property(outname="time" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="app" name="app-name" format="jsonf")
    property(outname="msgid" name="msgid" format="jsonf")
    property(outname="data" name="structured-data" format="jsonf")
    property(outname="msg" name="msg" format="jsonf")
}}
{input}
action(type="omfile" file="{work}/out.json" template="all" asyncWriting="off" flushOnTXEnd="on")
"""
RSYSLOG_INPUTS = {
    "udp": 'input(type="imudp" address="127.0.0.1" port="{port}")',
    "tcp": 'input(type="imptcp" address="127.0.0.1" port="{port}")',
    "unix": 'input(type="imuxsock" socket="{work}/log" useSpecialParser="off" ParseHostname="on" '
    'useSysTimeStamp="off" ignoreTimestamp="off")',
    "unix-3164": 'input(type="imuxsock" socket="{work}/log")',  # as for /dev/log
}

# Debian lets one syslog server be installed: `make` unpacks this one beside the other.
SYSLOG_NG = Path(__file__).parents[2] / ".venv" / "syslog-ng"
SYSLOG_NG_CONFIG = """@version: 3.38
options {{ keep-hostname(yes); use-dns(no); dns-cache(no); stats-freq(0); log-msg-size(65536); }};
source s {{ {input}; }};
destination d {{ file("{work}/out.json" template("$(format-json severity=$LEVEL_NUM facility=$FACILITY
    time=$S_ISODATE host=$HOST app=$PROGRAM msgid=$MSGID data=$SDATA msg=$MESSAGE)\\n")); }};
log {{ source(s); destination(d); }};
"""
# By transport: what follows the framing (`octet` counting, one `line` each, or the datagram).
SYSLOG_NG_INPUTS = {
    "udp": 'network(ip("127.0.0.1") port({port}) transport("udp") {flags})',
    "tcp-octet": 'syslog(ip("127.0.0.1") port({port}) transport("tcp"))',
    "tcp-line": 'network(ip("127.0.0.1") port({port}) transport("tcp") {flags})',
    "tls-octet": 'syslog(ip("127.0.0.1") port({port}) transport("tls") {tls})',
    "tls-line": 'network(ip("127.0.0.1") port({port}) transport("tls") {tls} {flags})',
    "unix": 'unix-stream("{work}/log" {flags})',
    "unixgram": 'unix-dgram("{work}/log" {flags})',
}
# Type and flags of a socket in /proc/net/unix
DATAGRAMS = "0002"
LISTENS = "00010000"


class Server:
    """One server, which can be stopped and started again at the same address."""

    def __init__(self, work: Path, scheme: str, command: list[str], environ: dict[str, str]) -> None:
        self.work, self.scheme = work, scheme
        self.port = get_free_port()
        self._command, self._environ = command, environ
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.work / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environ or None)
        wait_until(self._is_there, "the server")

    def _is_there(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.work / "log.txt").read_text()
        if self.scheme.startswith("unix"):
            return self._is_open_here()
        kind = "udp" if self.scheme == "udp" else "tcp"
        # With no remote address: a connection that ended may have had this port at either end.
        return f" 0100007F:{self.port:04X} 00000000:0000 " in Path(f"/proc/net/{kind}").read_text()

    def _is_open_here(self) -> bool:
        """Whether its socket takes messages: a stream is there before it listens, and refuses until then."""
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        mine = [(row[3], row[4]) for row in rows if row[-1] == f"{self.work}/log"]
        return any(kind == DATAGRAMS or flags == LISTENS for flags, kind in mine)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
        (self.work / "log").unlink(missing_ok=True)

    def read(self) -> list[dict[str, Any]]:
        path = self.work / "out.json"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def wait_for(self, count: int, seconds: float = 15) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.read()) >= count, f"{count} messages, fewer are there", seconds)
        return self.read()

    @property
    def address(self) -> str:
        if self.scheme.startswith("unix"):
            return f"{self.scheme}://{self.work}/log"
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def rsyslog(work: Path, scheme: str) -> Iterator[Server]:
    """rsyslogd, as Debian installs it."""
    server = Server(
        work, scheme, [str(RSYSLOGD), "-n", "-f", f"{work}/rsyslog.conf", "-i", f"{work}/pid"], {}
    )
    text = RSYSLOG_CONFIG.format(work=work, input=RSYSLOG_INPUTS[scheme].format(port=server.port, work=work))
    (work / "rsyslog.conf").write_text(text)
    yield from _run(server)


@contextmanager
def syslog_ng(work: Path, transport: str, form: str, certificate: Path | None = None) -> Iterator[Server]:
    """syslog-ng, as Debian builds it. `transport` is a key of SYSLOG_NG_INPUTS."""
    libraries = SYSLOG_NG / "usr/lib/syslog-ng"
    modules = next(libraries.glob("[0-9]*"))
    # Those that Debian has in no usual place, and those that the system does not have.
    paths = [libraries, *SYSLOG_NG.glob("usr/lib/*-linux-gnu"), *SYSLOG_NG.glob("lib/*-linux-gnu")]
    command = [f"{SYSLOG_NG}/usr/sbin/syslog-ng", "-F", "-e", "--no-caps", "-f", f"{work}/syslog-ng.conf"]
    command += [f"--module-path={modules}", "-R", f"{work}/persist", "-c", f"{work}/control"]
    command += ["-p", f"{work}/pid"]
    server = Server(
        work, transport.partition("-")[0], command, {"LD_LIBRARY_PATH": ":".join(map(str, paths))}
    )
    source = SYSLOG_NG_INPUTS[transport].format(
        port=server.port,
        work=work,
        flags="flags(syslog-protocol)" if form == "rfc5424" else "",
        tls=f'tls(key-file("{certificate}") cert-file("{certificate}") peer-verify(optional-untrusted))',
    )
    (work / "syslog-ng.conf").write_text(SYSLOG_NG_CONFIG.format(work=work, input=source))
    yield from _run(server)


def _run(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.kill()


def get_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(0.02)
