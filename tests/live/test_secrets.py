"""Row 33: what stands in a file of secrets is nowhere else, whatever happens and whoever asks."""

import base64
import signal
import socket
from pathlib import Path

import pytest

from tests.bus.private import PrivateBus
from tests.live import traffic
from tests.live.daemon import daemon, run
from tests.live.network import Network, call_inside
from tests.sinks.loki_server import Handler, Store, run_server

pytestmark = pytest.mark.privileged

SECRET = "correct-horse-battery-staple"
ENCODED = base64.b64encode(f"gw1:{SECRET}".encode()).decode()


def repeat(handler: Handler) -> bool:
    """A server that tells what it was sent."""
    return handler.reply(401, f"no entry with {handler.headers['Authorization']}")


def repeat_later(handler: Handler) -> bool:
    return handler.reply(503, f"busy, {handler.headers['Authorization']}")


@pytest.mark.parametrize("kind", ["token", "password"])
def test_a_secret_is_in_no_log_answer_process_or_file(
    net: Network, bus: PrivateBus, tmp_path: Path, kind: str
) -> None:
    secret, state = tmp_path / "secret", tmp_path / "state"
    secret.write_text(f"{SECRET}\n")
    store = Store()
    store.faults.extend([repeat, repeat_later, repeat])
    with run_server(store) as server:
        settings = {
            "bus.address": bus.address,
            "conntrack.netns": net.router,
            "log.level": "debug",
            "sink.loki.address": f"http://127.0.0.1:{server.port}",
            "sink.loki.batch_wait": "10ms",
            "sink.loki.enable": "true",
            "sink.loki.spool": f"{state}/loki",
            "sink.loki.username": "gw1",
            "sink.stream.enable": "true",
            "state_directory": str(state),
            f"sink.loki.{kind}_file": str(secret),
        }
        if kind == "token":
            del settings["sink.loki.username"]
        arguments = [f"--{key}={value}" for key, value in settings.items()]
        with daemon(*arguments, CONNTRACKD_BUS_ENABLE="true") as running, bus.connect() as client:
            running.wait_for_words("org.conntrackd1 is on")
            answers = []
            while store.faults:
                call_inside(net.client, traffic.talk_udp, socket.AF_INET, "10.2.0.2", 1)
                client.call("Flush", sink="loki")
                answers += [client.read_properties(), client.read_sinks(), client.call("Doctor")]
            running.process.send_signal(signal.SIGHUP)
            running.wait_for_words("reload:")
            answers += [client.call("ExplainFilter", "as", []), client.call("GetStatistics")]
            process = Path(f"/proc/{running.process.pid}")
            shown = [(process / name).read_text() for name in ("cmdline", "environ", "comm", "status")]
            kept = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
            assert running.stop() == 0

    sent = [request.headers["Authorization"] for request in store.pushes]
    assert {message.partition(" ")[2] for message in sent} == {SECRET if kind == "token" else ENCODED}
    assert running.has_said("(hidden)")
    assert "(hidden)" in repr(answers)
    for word in (SECRET, ENCODED):
        assert word not in "".join([*running.said, *shown, repr(answers)])
        assert word.encode() not in b"".join([*running.lines, *kept])


@pytest.mark.parametrize("kind", ["token", "password"])
def test_there_is_no_option_for_a_secret_itself_and_what_was_given_to_it_is_not_repeated(kind: str) -> None:
    for verb in ("check", "run"):
        done = run(verb, "--sink.loki.enable", f"--sink.loki.{kind}={SECRET}")

        assert done.returncode == 78
        assert SECRET not in done.stdout + done.stderr
