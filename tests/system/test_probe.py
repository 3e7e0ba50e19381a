"""The probe of the sandbox tells the truth where there is none."""

import os
import socket
import subprocess
import sys
from pathlib import Path

PROBE = Path(__file__).parent / "probe.py"
# What root would really do, outside any sandbox.
LEFT_OUT = ("clock", "hostname", "write-etc", "write-usr", "write-configuration")


def name_directories(folder: Path) -> dict[str, str]:
    return {"STATE_DIRECTORY": str(folder), "RUNTIME_DIRECTORY": str(folder)}


def run_probe(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = name_directories(folder)
    return subprocess.run(
        [sys.executable, "-I", str(PROBE), *words], env=environ, text=True, capture_output=True, check=False
    )


def test_what_a_sandbox_would_refuse_is_reported_as_let_through(tmp_path: Path) -> None:
    words = [word for name in LEFT_OUT for word in ("--without", name)]
    done = run_probe(tmp_path, *words)

    reported = [line.removeprefix("probe: ").split(": ") for line in done.stdout.splitlines()[:-1]]
    verdicts = {name: verdict for verdict, name, *_ in reported}
    assert done.returncode == 1
    assert verdicts.keys().isdisjoint(LEFT_OUT)
    let_through = ("bind-tcp", "bind-udp", "listen", "exec-shell", "exec-state", "write-execute")
    assert {verdicts[name] for name in let_through} == {"MUST FAIL"}
    assert {verdicts[name] for name in ("no-new-privileges", "read-only")} == {"MUST WORK"}
    assert {verdicts[name] for name in ("state", "runtime", "tcp", "thread")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_is_not_there_cannot_be_left_out(tmp_path: Path) -> None:
    assert run_probe(tmp_path, "--without", "nothing").returncode == 64


def test_a_socket_that_systemd_passes_is_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = f"exec 3<&{listener.fileno()}; LISTEN_PID=$$ exec {sys.executable} -I {PROBE}"
        done = subprocess.run(
            ["bash", "-c", " ".join([start, *(f"--without {name}" for name in LEFT_OUT)])],
            env={**os.environ, **name_directories(tmp_path)},
            pass_fds=[listener.fileno()],
            text=True,
            capture_output=True,
            check=False,
        )

    assert "probe: ok: passed-socket: works\n" in done.stdout
