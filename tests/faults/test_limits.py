"""Row 13: what the system does not give. Real limits: each is survived, or told in a sentence with a hint."""

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.bus.private import PrivateBus
from tests.faults.rig import Rig
from tests.live.daemon import Running, command, daemon, environment
from tests.sinks.loki_server import say

pytestmark = pytest.mark.privileged

SINKS = [f"--sink.{name}.enable" for name in ("stream", "syslog", "loki", "journal")]
# A user to whom no other process belongs, because threads are counted by user, and root's are not counted:
# an id that systemd calls unused, another for each run of the tests. It may read where the interpreter is,
# be that the home of root.
USER = 60_578 + os.getpid() % 606
RIGHTS = "+net_admin,+dac_read_search"
STRANGER = ["unshare", "-n", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
STRANGER += [f"--bounding-set=-all,{RIGHTS}", f"--inh-caps={RIGHTS}", f"--ambient-caps={RIGHTS}"]
ROOM = 80 << 20


def start(*prefix: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A daemon that does not come to start, to its end."""
    line, env = [*prefix, *command("run", *SINKS, *arguments)], environment()
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, cwd="/", env=env)


def find_line(running: Running, text: str) -> str | None:
    return next((line for line in running.said if text in line), None)


def test_row_13_twenty_descriptors_are_enough_for_everything_at_once(rig: Rig, bus: PrivateBus) -> None:
    settings = ["--bus.address", bus.address, "--state_directory", os.fspath(rig.directory / "state")]
    settings += [f"--sink.{name}.spool={rig.directory / name}" for name in ("loki", "syslog")]
    limit = ["prlimit", "--nofile=20"]
    with rig.daemon(*settings, prefix=limit, extra={"CONNTRACKD_BUS_ENABLE": "true"}) as running:
        running.wait_for_words("org.conntrackd1 is on")
        for _ in range(2):
            rig.producer.send(2000, 4000)
            rig.wait_for_law()
            running.process.send_signal(signal.SIGHUP)  # everything is closed and opened
        running.wait_for_words("nothing has changed")
        rig.send_fresh()
        rig.measure(running)
        assert running.stop() == 0

    verdict = rig.evaluate(13, "20 open files for four sinks, two spools and the bus")
    assert verdict.delivered == verdict.sent
    assert not running.has_said("too many files")


def test_row_13_too_few_descriptors_are_reported_and_tried_again(rig: Rig) -> None:
    """What opens last waits until it may."""
    with rig.daemon(prefix=["prlimit", "--nofile=10:64"]) as running:
        running.wait_for_words("too many files are open")
        rig.producer.send(1000)
        resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        rig.finish(running, fresh=10)

    verdict = rig.evaluate(13, "10 open files for four sinks, then more")
    assert verdict.delivered == verdict.sent
    assert running.has_said("LimitNOFILE=")


@pytest.mark.parametrize("descriptors", range(6, 10))
def test_row_13_fewer_than_the_daemon_itself_needs_are_reported_and_nothing_starts(descriptors: int) -> None:
    done = start("prlimit", f"--nofile={descriptors}")

    assert done.returncode == 71
    assert "Too many open files\nhint: LimitNOFILE= in the unit" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("descriptors", range(10, 18))
def test_row_13_a_limit_that_is_too_small_for_what_is_switched_on_is_reported_by_its_name_or_enough(
    descriptors: int, rig: Rig
) -> None:
    """Whatever it is that cannot be opened: no other file, directory or kernel is to blame."""
    more = ["--conntrack.activate", "--conntrack.reliable", "--conntrack.resync=snapshot"]
    more += ["--conntrack.events=new,destroy", f"--state_directory={rig.directory / 'state'}"]
    with rig.daemon(*more, prefix=["prlimit", f"--nofile={descriptors}"]) as running:
        running.wait(lambda: running.said, "a word")
        if "listening" not in running.said[0]:
            assert running.process.wait(20) == 71
            assert "cannot open enough files" in running.said[0]
            assert "LimitNOFILE= in the unit" in running.said[1]


@pytest.mark.parametrize("spare", range(8))
def test_row_13_a_reload_with_too_few_descriptors_is_done_whole_or_not_at_all(
    spare: int, tmp_path: Path
) -> None:
    path, spools = tmp_path / "conntrackd.yaml", [tmp_path / name for name in ("loki", "syslog")]
    settings: dict[str, Any] = {"sink": {"stream": {"enable": True, "writer": "discard"}}}
    path.write_text(json.dumps(settings))
    with daemon("--config", str(path), prefix=["unshare", "-n"]) as running:
        running.wait_for_start()
        pid = running.process.pid
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + spare, limit[1]))
        settings["metrics"] = {"listen": f"unix://{tmp_path}/metrics"}
        for spool, address in zip(spools, ("http://127.0.0.1:9", "tcp://127.0.0.1:9"), strict=True):
            settings["sink"][spool.name] = {"enable": True, "address": address, "spool": str(spool)}
        path.write_text(json.dumps(settings))
        running.process.send_signal(signal.SIGHUP)
        running.wait(partial(find_line, running, "reload: "), "what became of it")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        running.process.send_signal(signal.SIGHUP)
        running.wait(lambda: find_line(running, "sink.syslog.enable is true"), "the sinks")
        assert running.stop() == 0

    assert not find_line(running, "is in use")
    assert not find_line(running, "never retrieved")


@pytest.mark.parametrize("threads", range(1, 7))
def test_row_13_too_few_threads_are_reported_and_nothing_starts(threads: int) -> None:
    done = start(*STRANGER, "prlimit", f"--nproc={threads}")

    assert done.returncode == 71
    assert "conntrackd: this process cannot start more threads\nhint: it needs 8, " in done.stderr
    assert "Traceback" not in done.stderr


def test_row_13_a_guard_that_cannot_be_started_is_reported() -> None:
    done = start(*STRANGER, "prlimit", "--nproc=1", arguments=["--conntrack.reliable"])

    assert done.returncode == 71
    assert "which conntrack.reliable needs: Resource temporarily unavailable\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_row_13_as_many_threads_as_it_says_are_enough_to_start_and_to_stop() -> None:
    with daemon(*SINKS, prefix=[*STRANGER, "prlimit", "--nproc=8"]) as running:
        running.wait_for_start()
        assert running.stop() == 0


def test_row_13_a_reload_that_gets_too_few_threads_changes_nothing(tmp_path: Path) -> None:
    """Four run, and seven may: two that prepare, of which one may be about to end, and one of a sink."""
    path = tmp_path / "conntrackd.yaml"
    settings: dict[str, Any] = {"sink": {"stream": {"enable": True}}}
    path.write_text(json.dumps(settings))
    with daemon("--config", str(path), prefix=[*STRANGER, "prlimit", "--nproc=7"]) as running:
        running.wait_for_start()
        for names, said in ("abcd", "cannot start more threads"), ("a", "sink a (stream) is new"):
            settings["sinks"] = {name: {"kind": "stream", "writer": "discard"} for name in names}
            path.write_text(json.dumps(settings))
            while not find_line(running, said):  # of those that prepare, more may be about to end
                refused = count_refusals(running)
                running.process.send_signal(signal.SIGHUP)
                running.wait(lambda: find_line(running, said) or count_refusals(running) > refused, said)  # noqa: B023
        assert running.stop() == 0

    assert sum("is new" in line for line in running.said) == 1
    assert not any("Traceback" in line for line in running.said)


def count_refusals(running: Running) -> int:
    return sum("nothing has changed" in line for line in running.said)


@pytest.mark.parametrize("mebibytes", [32, 40, 48, 64])
def test_row_13_too_little_memory_to_start_is_reported(mebibytes: int) -> None:
    done = start("prlimit", f"--as={mebibytes << 20}")

    assert done.returncode in {69, 71, 75}
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.slow
def test_row_13_a_limit_above_what_full_queues_take_is_never_felt(rig: Rig) -> None:
    """Two sinks are away, and their queues of the default size are full."""
    rig.choose("journal", "loki")
    rig.receivers.loki.faults.extend([say(503)] * 1000)
    with rig.daemon() as running:
        running.wait_for_start()
        process = running.process.pid
        resource.prlimit(process, resource.RLIMIT_DATA, (read_data(process) + ROOM, resource.RLIM_INFINITY))
        rig.receivers.journal.pause()
        rig.producer.send(200_000, 20_000)
        rig.receivers.journal.go_on()
        rig.receivers.loki.faults.clear()
        rig.finish(running, law=60, fresh=10)

    verdict = rig.evaluate(13, "two sinks away, 200,000 flows, 80 MiB for them")
    assert verdict.lost == 0
    assert all(set(tally.dropped) == {"queue"} for tally in rig.tallies.values())


def read_data(process: int) -> int:
    """Bytes that count for RLIMIT_DATA."""
    (line,) = re.findall(r"VmData:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(line) << 10
