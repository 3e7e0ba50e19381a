"""The daemon as people use it: started, stopped, misused, overrun."""

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from conntrackd.netlink.constants import NLMSG_NOOP
from conntrackd.netlink.recording import TIME
from tests.cli.terminal import Terminal
from tests.live import traffic
from tests.live.daemon import ROOT, command, daemon, environment, run, settle
from tests.live.network import SNAT, TRACKING, Network, call_inside, inside
from tests.odd_files import make_odd_file
from tests.sinks.syslog_servers import wait_until

RULESET = TRACKING + SNAT
STREAM = "--sink.stream.enable"


def talk(net: Network, times: int) -> None:
    call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", times)


def talk_tcp(net: Network, times: int = 1) -> None:
    call_inside(net.client, traffic.talk_stream, socket.AF_INET, "10.2.0.2", socket.IPPROTO_TCP, times)


# ---- end ---------------------------------------------------------------------------------------------------


@pytest.mark.privileged
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_written(net: Network, number: int) -> None:
    with daemon("--conntrack.netns", net.router, STREAM) as running:
        running.wait_for_start()
        talk(net, 20)
        assert running.stop(number) == 0
    new = [event for event in running.events if event["type"] == "NEW"]

    assert len(new) == 20
    assert f"received {len(running.events)} events, lost 0, logged {len(running.events)}" in running.said[-1]


@pytest.mark.privileged
def test_a_closed_pipe_ends_it_quietly(net: Network) -> None:
    arguments = command("run", "--conntrack.netns", net.router, STREAM)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        talk(net, 1)
        assert json.loads(process.stdout.readline())["type"] == "NEW"
        process.stdout.close()
        talk(net, 1)
        said = process.stderr.read()

    assert (process.returncode, "error" in said, "Traceback" in said) == (0, False, False)


# ---- what is wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 78, ["no sink is enabled", "--sink.stream.enable"]),
        (
            ["--sink.stream.writter", "stdout"],
            78,
            ["did you mean --sink.stream.writer?"],
        ),
        ([STREAM, "--conntrack.buffer", "lots"], 78, ["--conntrack.buffer", "'lots'"]),
        ([STREAM, "--conntrack.replay", "/nowhere"], 78, ["/nowhere", "no such file"]),
        ([STREAM, "--config", "/nowhere.yaml"], 78, ["/nowhere.yaml"]),
        (
            [STREAM, "--filter", "log protocol TPC"],
            78,
            ["unknown protocol 'TPC'", "^^^", "mean TCP?"],
        ),
        ([STREAM, "--sink.stream.writer", "file:///nowhere/x"], 78, ["no directory /nowhere"]),
        ([STREAM, "--conntrack.netns", "nowhere"], 69, ["--conntrack.netns: there is no network namespace"]),
    ],
)
def test_what_is_wrong_is_said_and_nothing_starts(
    arguments: list[str], status: int, words: list[str]
) -> None:
    done = run("run", *arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert all(word in done.stderr for word in words), done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "listening"))


@pytest.mark.privileged
def test_a_namespace_that_is_missing_is_named_alike_with_its_line_by_run_and_check(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("sink.stream.enable: true\nconntrack.netns: nowhere\n")
    done = [run(command, "--config", str(path)) for command in ("run", "check")]

    assert [each.returncode for each in done] == [69, 78]
    place = f"conntrackd: {path}:2: conntrack.netns: there is no network namespace 'nowhere'\n"
    assert [each.stderr.partition("hint:")[0] for each in done] == [place, place]


def test_check_says_the_same_without_running(tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    path.write_text("sink:\n  stream:\n    enable: true\n    writter: stdout\n")
    bad = run("check", "--config", str(path))
    path.write_text("sink:\n  stream:\n    enable: true\n")
    good = run("check", "--config", str(path))

    assert (bad.returncode, bad.stderr) == (
        78,
        f"conntrackd: {path}:4: unknown key 'sink.stream.writter'\nhint: did you mean sink.stream.writer?\n",
    )
    assert (good.returncode, good.stdout) == (0, f"{path}: good\n")


def test_version_is_one_line() -> None:
    assert run("version").stdout == "conntrackd 2.0.0\n"


DROP_PRIVILEGES = """
import ctypes, os, sys
os.setgid(65534); os.setuid(65534)
from conntrackd.cli.daemon import main
sys.argv = ["conntrackd", "run", "--sink.stream.enable"]
main()
"""


@pytest.mark.privileged
def test_without_the_capability_the_remedy_is_named(net: Network) -> None:
    import_all = "import asyncio, conntrackd.cli.daemon, conntrackd.daemon, conntrackd.sinks.stream\n"
    done = subprocess.run(
        [*command()[:1], "-c", import_all + DROP_PRIVILEGES],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
        env=environment(),
    )

    assert done.returncode == 77
    assert "CAP_NET_ADMIN is missing" in done.stderr
    assert "sudo" in done.stderr


@pytest.mark.privileged
def test_a_namespace_where_nothing_is_tracked_is_a_warning(net: Network) -> None:
    with daemon("--conntrack.netns", net.client, STREAM) as running:
        running.wait(lambda: any("not tracked" in line for line in running.said), "the warning")
        assert any("--conntrack.activate" in line for line in running.said) or running.stop() == 0


@pytest.mark.privileged
def test_activate_loads_a_table_of_its_own_and_removes_it(net: Network) -> None:
    with daemon("--conntrack.netns", net.client, "--conntrack.activate", STREAM) as running:
        running.wait_for_start()
        during = inside(net.client, "nft", "list", "tables")
        talk(net, 1)
        running.wait_for_events(1)
        assert not any("not tracked" in line for line in running.said)
        assert running.stop() == 0

    assert (during, inside(net.client, "nft", "list", "tables")) == ("table inet conntrackd\n", "")


# ---- record and replay ------------------------------------------------------------------------------------


@pytest.mark.privileged
def test_a_replay_gives_the_events_of_the_recording(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "events.nl"
    # One flow has 3 events while it lives; the recorder ends by itself.
    arguments = command("record", str(path), "--count", "9", "--netns", net.router)
    with (
        daemon("--conntrack.netns", net.router, STREAM) as running,
        subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, cwd="/", env=environment()
        ) as recorder,
    ):
        running.wait_for_start()
        assert recorder.stderr is not None
        assert "recording" in recorder.stderr.readline()
        talk_tcp(net, 5)
        assert recorder.wait(20) == 0
        settle(running)
        running.stop()
    replayed = run("run", "--conntrack.replay", str(path), STREAM)
    as_nobody = [json.loads(line) for line in replayed.stdout.splitlines()]

    assert replayed.returncode == 0
    assert len(as_nobody) == 9
    fields = ("type", "flow", "src", "dst", "sport", "dport", "state", "nat")
    assert [[line.get(name) for name in fields] for line in as_nobody] == [
        [event.get(name) for name in fields] for event in running.events[:9]
    ]


@pytest.mark.privileged
def test_a_recording_goes_through_a_pipe_and_ends_with_its_reader(net: Network) -> None:
    arguments = command("record", "-", "--netns", net.router)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env=environment()
    ) as recorder:
        assert recorder.stdout is not None
        assert recorder.stderr is not None
        assert recorder.stderr.readline() == b"conntrackd: recording to standard output, until ^C\n"
        talk(net, 1)
        length, kind, *_ = TIME.unpack(recorder.stdout.read(TIME.size))  # at once, not when a buffer is full
        recorder.stdout.close()
        talk(net, 1)
        assert (recorder.wait(20), recorder.stderr.read()) == (0, b"")

    assert (length, kind) == (TIME.size, NLMSG_NOOP)


def test_a_recording_is_not_written_to_a_terminal() -> None:
    with Terminal(command("record", "-"), (80, 8), PYTHONPATH=str(ROOT)) as terminal:
        assert terminal.finish() == 64
        lines = terminal.list_lines()

    assert lines[:2] == [
        "conntrackd: a recording is not for a terminal to show",
        "hint: name a file, or lead it into a pipe",
    ]


def test_a_start_warns_of_rules_that_log_nothing_once() -> None:
    corpus = Path(__file__).parent.parent / "netlink" / "corpus" / "tcp.nl"

    done = run("run", "--conntrack.replay", str(corpus), STREAM, "--filter", "drop any")

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("the filter logs no event") == 1


def test_a_damaged_recording_is_replayed_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "events.nl"
    corpus = Path(__file__).parent.parent / "netlink" / "corpus" / "tcp.nl"
    whole = run("run", "--conntrack.replay", str(corpus), STREAM)
    path.write_bytes(corpus.read_bytes()[:-10])
    cut = run("run", "--conntrack.replay", str(path), STREAM)

    assert whole.returncode == 0
    assert (cut.returncode, cut.stdout.splitlines()) == (65, whole.stdout.splitlines()[:-1])
    assert "is damaged or truncated at byte" in cut.stderr


# ---- losses -----------------------------------------------------------------------------------------------


@pytest.mark.privileged
def test_an_overrun_is_counted_exactly_and_reported(net: Network) -> None:
    arguments = ["--conntrack.netns", net.router, "--conntrack.buffer", "64K", "--conntrack.protocols", "udp"]
    with daemon(*arguments, "--conntrack.events", "new", STREAM) as running:
        running.wait_for_start()
        talk(net, 1)
        running.wait_for_events(1)
        running.process.send_signal(signal.SIGSTOP)
        call_inside(net.client, traffic.flood, 10_000, 3000)
        running.process.send_signal(signal.SIGCONT)
        running.wait(lambda: any(b'"LOST"' in line for line in running.lines), "a LOST record")
        talk(net, 1)
        settle(running)
        assert running.stop() == 0
    records = running.events
    flows = [record for record in records if record["type"] == "NEW"]
    lost = [record for record in records if record["type"] == "LOST"]

    said = re.search(r"received (\d+) events, lost (\d+), logged", running.said[-1])

    assert said is not None
    assert (int(said[1]), int(said[2])) == (len(flows), sum(record["lost"] for record in lost))
    assert int(said[1]) + int(said[2]) == 3002
    assert all(record["where"] == "kernel" and record["since"] < record["until"] for record in lost)
    assert len(flows) == len({(flow["src"], flow["sport"]) for flow in flows})
    assert flows[-1]["dport"] == 8080  # after the fault a fresh flow arrives


@pytest.mark.privileged
def test_no_filter_reaches_the_record_of_a_loss(net: Network, tmp_path: Path) -> None:
    """One that only Python can evaluate: what the kernel's drops needs no room, and is not lost."""
    path = tmp_path / "a.mmdb"
    writer = MMDBWriter(4, "GeoLite2-City")
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"city": {"names": {"en": "Lyon"}}})
    writer.to_db_file(str(path))
    arguments = ["--conntrack.netns", net.router, "--conntrack.buffer", "64K", "--conntrack.events", "new"]
    arguments += ["--geoip.database", os.fspath(path)]
    rules = ["--filter", 'log destination city "Lyon"', "--filter", "drop any"]
    inside(net.router, "conntrack", "-F")  # another test's flows of these ports would not be new
    with daemon(*arguments, *rules, STREAM) as running:
        running.wait_for_start()
        running.process.send_signal(signal.SIGSTOP)
        call_inside(net.client, traffic.flood, 10_000, 3000)
        running.process.send_signal(signal.SIGCONT)
        running.wait_for_events(1)
        assert running.stop() == 0

    received = re.search(r"received (\d+) events, lost (\d+), logged 0", running.said[-1])
    assert received is not None
    assert {event["type"] for event in running.events} == {"LOST"}
    assert sum(event["lost"] for event in running.events) == int(received[2]) == 3000 - int(received[1])


# ---- filter -----------------------------------------------------------------------------------------------


@pytest.mark.privileged
def test_what_no_rule_keeps_never_reaches_the_process(net: Network) -> None:
    rules = ["--filter", "log destination port 8080 and protocol TCP and type NEW", "--filter", "drop any"]
    with daemon("--conntrack.netns", net.router, *rules, STREAM) as running:
        running.wait_for_start()
        assert "listening to NEW events" in running.said[0]
        talk(net, 10)
        talk_tcp(net, 2)
        running.wait_for_events(2)
        settle(running)
        assert running.stop() == 0

    assert [(event["type"], event["prot"], event["dport"]) for event in running.events] == [
        ("NEW", "TCP", 8080)
    ] * 2
    assert "received 2 events" in running.said[-1]


@pytest.mark.privileged
def test_hangup_reloads_the_filter_and_refuses_a_bad_one(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "conntrackd.yaml"
    head = "sink:\n  stream:\n    enable: true\nconntrack:\n  events: [new]\nfilter:\n"
    path.write_text(f"{head}  - drop protocol UDP\n")
    with daemon("--config", str(path), "--conntrack.netns", net.router) as running:
        running.wait_for_start()
        talk(net, 1)
        path.write_text(f"{head}  - drop protocol TPC\n")
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait(lambda: any("TPC" in line for line in running.said), "the refusal")
        talk(net, 1)
        talk_tcp(net)
        running.wait_for_events(1)
        path.write_text(f"{head}  - drop protocol TCP\n")
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait(lambda: any("reload: filter is" in line for line in running.said), "the reload")
        talk_tcp(net)
        talk(net, 1)
        running.wait_for_events(2)
        assert running.stop() == 0

    assert [event["prot"] for event in running.events] == ["TCP", "UDP"]
    assert f"{path}:7" in "".join(running.said)


@pytest.mark.privileged
@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
@pytest.mark.parametrize("name", ["conntrackd.yaml", "rules"])
def test_a_reload_of_what_is_no_file_waits_for_nothing(
    name: str, kind: str, net: Network, tmp_path: Path
) -> None:
    path, odd = tmp_path / "conntrackd.yaml", tmp_path / name
    (tmp_path / "rules").write_text("log any\n")
    path.write_text("sink.stream.enable: true\nfilter_file: rules\nconntrack.events: [new]\n")
    with daemon("--config", str(path), "--conntrack.netns", net.router) as running:
        running.wait_for_start()
        odd.unlink()
        make_odd_file(odd, kind)
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait(lambda: any(f"{odd}: is " in line for line in running.said), "the refusal")
        talk(net, 1)
        running.wait_for_events(1)
        assert running.stop() == 0


@pytest.mark.privileged
def test_hangup_makes_the_file_anew_that_logrotate_has_moved_away(net: Network, tmp_path: Path) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    arguments = ["--conntrack.netns", net.router, "--conntrack.events", "new"]
    with daemon(*arguments, STREAM, "--sink.stream.writer", f"file://{path}") as running:
        running.wait_for_start()
        talk(net, 1)
        wait_until(lambda: count_lines(path) == 1, "the first event")
        path.rename(old)
        talk(net, 1)
        wait_until(lambda: count_lines(old) == 2, "the second event")
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait(lambda: any("nothing has changed" in line for line in running.said), "the reload")
        talk(net, 1)
        wait_until(lambda: count_lines(path) == 1, "the third event")
        assert running.stop() == 0

    assert count_lines(old) == 2


@pytest.mark.privileged
def test_hangup_makes_the_file_anew_whatever_is_wrong_with_the_configuration(
    net: Network, tmp_path: Path
) -> None:
    configuration, path, old = (tmp_path / name for name in ("conntrackd.yaml", "events", "events.1"))
    configuration.write_text(f"sink:\n  stream:\n    enable: true\n    writer: file://{path}\n")
    arguments = ["--conntrack.netns", net.router, "--conntrack.events", "new"]
    with daemon("--config", str(configuration), *arguments) as running:
        running.wait_for_start()
        talk(net, 1)
        wait_until(lambda: count_lines(path) == 1, "the first event")
        path.rename(old)
        configuration.write_text("sink: {stream: {enabel: true}}")
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait(lambda: any("enabel" in line for line in running.said), "the refusal")
        talk(net, 1)
        wait_until(lambda: count_lines(path) == 1, "the second event")
        assert running.stop() == 0

    assert count_lines(old) == 1


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
