"""Rows 38, 40, 41, 42 and 45: what is remote changes, answers oddly, refuses; and what was kept for it."""

import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.producer import FIRST_TARGET
from tests.faults.rig import Rig, wait_until
from tests.live.daemon import Running
from tests.sinks.loki_server import Fault, Handler, hang, say

pytestmark = pytest.mark.privileged


def keep(rig: Rig, check: Callable[[Handler], bool]) -> None:
    """The same for every push from now on, until `stop`."""

    def fault(handler: Handler) -> bool:
        rig.receivers.loki.faults.append(fault)
        return check(handler)

    rig.receivers.loki.faults.append(fault)


def answer_raw(data: bytes, *, stores: bool = False) -> Fault:
    """These bytes in place of a reply."""

    def fault(handler: Handler) -> bool:
        store = handler.server.store
        if stores:
            with store.lock:
                store.push(gzip.decompress(store.requests[-1].body))
        handler.wfile.write(data)
        return True

    return fault


# ---- row 38: what it depends on changes -------------------------------------------------------------------


def test_row_38_a_token_is_renewed_in_place_after_it_was_refused(rig: Rig) -> None:
    rig.choose("loki", "stream")
    secret, good = rig.directory / "token", ["first"]
    secret.write_text("first")

    def check(handler: Handler) -> bool:
        is_good = handler.headers["Authorization"] == f"Bearer {good[0]}"
        return False if is_good else handler.reply(401, "token is expired")

    keep(rig, check)
    settings = ["--sink.loki.token_file", os.fspath(secret), "--sink.loki.queue", "2000"]
    with rig.daemon(*settings, "--sink.loki.spool", os.fspath(rig.directory / "spool")) as running:
        running.wait_for_start()
        rig.producer.send(1000, 4000)
        rig.wait_for_law()
        good[0] = "second"
        rig.producer.send(20_000, 8000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        secret.write_text("second")
        rig.finish(running, law=60)

    verdict = rig.evaluate(38, "a token expires, and is renewed in place later")
    assert (verdict.dropped, verdict.lost) == (0, 0)
    assert running.has_said("token is expired")
    assert not any("second" in line or "first" in line for line in running.said if "sink loki" in line)


def test_row_38_a_file_is_rotated_while_the_configuration_is_broken(rig: Rig) -> None:
    rig.choose("stream")
    configuration = rig.directory / "conntrackd.yaml"
    configuration.write_text("log: {level: info}\n")
    with rig.daemon("--config", os.fspath(configuration)) as running:
        running.wait_for_start()
        rig.producer.send(1000, 4000)
        rig.wait_for_law()
        configuration.write_text("log: {levle: info}\n")
        rig.receivers.stream.rotate()
        os.kill(running.process.pid, signal.SIGHUP)
        running.wait_for_words("levle")
        rig.producer.send(1000, 4000)
        rig.wait_for_law()
        wait_until(rig.receivers.stream.path.exists, 5, rig.describe)
        rig.send_fresh()
        assert running.stop() == 0

    rig.evaluate(38, "logrotate while the configuration is broken")


# ---- row 40: the spool's law ------------------------------------------------------------------------------


def list_numbers(rig: Rig) -> tuple[int, int]:
    """Events that arrived in Loki, and those that it was told of as gone."""
    rig.read()
    tally = rig.tallies["loki"]
    return tally.delivered, tally.dropped.total()


def test_row_40_over_its_bound_and_then_killed_every_event_is_delivered_or_reported(rig: Rig) -> None:
    """180,001 events into a spool of 1 MiB."""
    rig.choose("loki", "stream")
    spool = rig.directory / "spool"
    settings = ["--sink.loki.spool", os.fspath(spool), "--sink.loki.spool_max", "1MiB"]
    settings += ["--sink.loki.queue", "200000", "--bus.enable", "false"]
    keep(rig, say(503))
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.producer.send(180_000, 20_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=20)
        before = rig.tallies["stream"].delivered
        rig.producer.send(1)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        wait_until(lambda: count_known(spool) == rig.producer.sent, 30, lambda: f"{count_known(spool)}")
        running.process.kill()
        running.stop(signal.SIGKILL)
    rig.receivers.loki.faults.clear()
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.wait_for_law(60)
        rig.send_fresh(10)
        assert running.stop() == 0

    assert before == 180_000
    delivered, reported = list_numbers(rig)
    assert delivered + reported == 180_002
    assert reported > 50_000
    assert set(rig.tallies["loki"].dropped) == {"spool"}
    rig.evaluate(40, "180,001 events into a spool of 1 MiB, then SIGKILL", duplicates=2000)


def count_known(spool: Path) -> int:
    """Events that the files know of now: what a process that is killed leaves."""
    from conntrackd.delivery.spool_state import read_state  # noqa: PLC0415

    try:
        state = read_state(spool / "loki.state")
    except OSError:
        return -1
    return -1 if state is None else state.events + sum(lost.count for lost in state.losses)


@pytest.mark.parametrize("what", ["flipped", "truncated", "state", "all of it"])
def test_row_40_whatever_is_damaged_it_starts_and_reports_what_it_cannot_read(rig: Rig, what: str) -> None:
    rig.choose("loki", "stream")
    spool = rig.directory / "spool"
    settings = ["--sink.loki.spool", os.fspath(spool), "--sink.loki.batch_size", "20000"]
    keep(rig, say(503))
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        for _ in range(5):
            rig.producer.send(1000, 10_000)
            rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
            wait_until(lambda: count_known(spool) == rig.producer.sent, 30, lambda: f"{count_known(spool)}")
        assert running.stop() == 0
    (rows,) = spool.glob("loki-*.spool")
    content = bytearray(rows.read_bytes())
    match what:
        case "flipped":
            for at in range(len(content) // 4, len(content), len(content) // 4):
                content[at] ^= 0x10
            rows.write_bytes(content)
        case "truncated":
            rows.write_bytes(content[: len(content) * 2 // 3])
        case "state":
            (spool / "loki.state").write_bytes(b"rotten")
        case _:
            for path in (rows, spool / "loki.state", spool / "loki.lock"):
                path.unlink()
                path.mkdir()
    rig.receivers.loki.faults.clear()
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.send_fresh(10)
        if what != "all of it":
            rig.wait_for_law()
        assert running.stop() == 0

    delivered, reported = list_numbers(rig)
    if what == "all of it":
        assert delivered == 1
    else:
        assert delivered + reported == 5001
        assert (reported > 0) == (what != "state")
    if reported:
        assert list(spool.glob("loki.damaged-*"))
        assert set(rig.tallies["loki"].dropped) == {"damaged"}


def test_row_40_a_second_sigterm_during_the_flush_keeps_what_is_in_memory(rig: Rig) -> None:
    rig.choose("loki", "stream")
    spool = rig.directory / "spool"
    settings = ["--sink.loki.spool", os.fspath(spool), "--shutdown_timeout", "10m"]
    settings += ["--sink.loki.timeout", "10m"]
    keep(rig, hang)
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.producer.send(5000, 10_000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        wait_until(lambda: bool(rig.receivers.loki.pushes), 10, rig.describe)
        os.kill(running.process.pid, signal.SIGTERM)
        running.wait_for_words("stopping")
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.process.wait(15) == 0
    rig.receivers.loki.faults.clear()
    rig.receivers.loki.let_go.set()
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.wait_for_law()
        rig.send_fresh()
        assert running.stop() == 0

    verdict = rig.evaluate(40, "a second SIGTERM while Loki hangs")
    assert verdict.dropped == 0


# ---- row 41: replies --------------------------------------------------------------------------------------

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
DONE = b"HTTP/1.1 204 No Content\r\n\r\n"
PAGE = b"<html>Please log in</html>"
REPLIES: dict[str, list[Fault]] = {
    "103 and 503": [answer_raw(EARLY + b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")] * 3,
    "200 with a page": [answer_raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PAGE) + PAGE)] * 3,
    "202": [say(202)] * 3,
    "302": [say(302, "", {"Location": "http://192.0.2.1/login"})] * 3,
    "404": [say(404)] * 3,
    "408": [say(408)] * 3,
    "421": [say(421)] * 3,
    "425": [say(425)] * 3,
    "two replies in one": [answer_raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" + DONE)] * 3,
    "two successes in one": [answer_raw(DONE + DONE, stores=True)] * 2,
    "no HTTP": [answer_raw(b"220 mail.example ESMTP\r\n")] * 3,
    "another protocol": [answer_raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")] * 3,
}


@pytest.mark.parametrize("what", REPLIES)
def test_row_41_nothing_counts_as_delivered_that_was_not(rig: Rig, what: str) -> None:
    rig.choose("loki", "stream")
    rig.receivers.loki.faults.extend(REPLIES[what])
    with rig.daemon() as running:
        running.wait_for_start()
        for _ in range(4):
            rig.producer.send(500, 4000)
            rig.wait_for_numbers({rig.producer.sent - 1}, "stream", seconds=5)
        wait_until(lambda: not rig.receivers.loki.faults, 30, rig.describe)
        rig.finish(running, law=30, fresh=10)

    verdict = rig.evaluate(41, f"Loki: {what}", duplicates=4000 if "successes" in what else 0)
    assert (verdict.dropped, verdict.lost) == (0, 0)
    assert len(rig.receivers.loki.query(type="NEW")) == 2001


def test_row_41_a_success_that_comes_too_late_is_not_that_of_the_next_push(rig: Rig) -> None:
    rig.choose("loki", "stream")

    def late(handler: Handler) -> bool:
        """Two seconds are the limit here; the reply comes with the next push under way."""
        wait_until(lambda: len(rig.receivers.loki.pushes) > count, 20, rig.describe)
        handler.wfile.write(DONE)
        handler.close_connection = True
        return True

    count = 1
    rig.receivers.loki.faults.extend([late, say(503), say(503)])
    with rig.daemon() as running:
        running.wait_for_start()
        rig.producer.send(500, 4000)
        wait_until(lambda: not rig.receivers.loki.faults, 30, rig.describe)
        rig.wait_for_law(30)
        rig.send_fresh(10)
        assert running.stop() == 0

    verdict = rig.evaluate(41, "Loki: 204 after the time was over")
    assert verdict.dropped == 0


# ---- row 42: refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404])
def test_row_42_a_sink_that_refuses_everything_says_so_and_the_others_go_on(rig: Rig, status: int) -> None:
    keep(rig, say(status, "no"))
    with rig.daemon("--sink.loki.queue", "2000") as running:
        running.wait_for_start()
        rig.producer.send(10_000, 5000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", "syslog", "journal", seconds=5)
        running.wait(lambda: says(running, f"the server replied {status}: no"), "the trouble")
        rig.receivers.loki.faults.clear()
        rig.wait_for_law(60)
        rig.send_fresh(10)
        assert running.stop() == 0

    rig.evaluate(42, f"Loki says {status} to everything for a while, a queue of 2,000")
    assert set(rig.tallies["loki"].dropped) == {"queue"}  # what there was no room for, and nothing else


def test_row_42_what_a_sinks_own_filter_drops_is_no_loss_of_a_sink_that_refuses(rig: Rig) -> None:
    keep(rig, say(503, "no"))
    rig.tallies["loki"].filtered = frozenset(range(1000, 4000))
    rig.tallies["syslog"].filtered = frozenset(range(2000, 3000))
    own = [
        *("--sink.loki.filter", f"drop destination port {FIRST_TARGET + 1000}-{FIRST_TARGET + 3999}"),
        *("--sink.syslog.filter", f"drop destination port {FIRST_TARGET + 2000}-{FIRST_TARGET + 2999}"),
    ]
    with rig.daemon("--sink.loki.queue", "2000", *own) as running:
        running.wait_for_start()
        rig.producer.send(6000, 5000)
        rig.wait_for_numbers({rig.producer.sent - 1}, "stream", "syslog", "journal", seconds=5)
        running.wait(lambda: says(running, "the server replied 503: no"), "the trouble")
        rig.receivers.loki.faults.clear()
        rig.wait_for_law(60)
        rig.send_fresh(10)
        assert running.stop() == 0

    rig.evaluate(42, "Loki says 503 for a while, a filter of its own, a queue of 2,000")
    assert set(rig.tallies["loki"].dropped) == {"queue"}


def says(running: Running, text: str) -> bool:
    return any(text in line and "retrying" in line for line in running.said)


def test_row_42_a_stream_that_loki_does_not_open_does_not_hold_up_the_others(rig: Rig) -> None:
    """Both kinds of events; the stream of the one is over Loki's limit of streams."""
    rig.choose("loki", kind="NEW")
    said = "maximum active stream limit exceeded when trying to create stream {}, reduce the number"

    def check(handler: Handler) -> bool:
        store = handler.server.store
        streams = json.loads(gzip.decompress(store.requests[-1].body))["streams"]
        refused = [stream["stream"] for stream in streams if stream["stream"].get("type") == "UPDATE"]
        if not refused:
            return False
        rest = [stream for stream in streams if stream["stream"] not in refused]
        if rest:
            with store.lock:
                store.push(json.dumps({"streams": rest}).encode())
        labels = ", ".join(f'{name}="{value}"' for name, value in sorted(refused[0].items()))
        return handler.reply(429, said.format("{" + labels + "}"))

    keep(rig, check)
    with rig.daemon("--conntrack.events", "new,update") as running:
        running.wait_for_start()
        rig.producer.send(1000, 1000)
        rig.wait_for_numbers(set(range(1000)), seconds=120)
        rig.producer.send(1000, 1000)
        rig.wait_for_numbers(set(range(2000)), seconds=60)
        assert running.stop() == 0

    assert rig.tallies["loki"].delivered == 2000


# ---- row 45: bytes that others choose ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "is_sent"),
    [
        (b"plain", True),
        ("g\u00e9heim \u6771\u4eac \U0001f511".encode(), True),
        ("a\u0308".encode(), True),
        (b"with:colon \"quote\" 'and' \\ {} %s", True),
        (b"b\xfcro", False),
        (b"\xff\xfe\x00", False),
        (b"two\nlines", False),
        (b"esc\x1b]0;x\x07", False),
        ("\u202eevil".encode(), False),
        ("\ufeffbom".encode(), False),
        (b"", False),
    ],
)
def test_row_45_a_password_of_any_bytes_is_sent_as_it_is_or_refused_by_name(
    rig: Rig, content: bytes, is_sent: bool
) -> None:
    rig.choose("loki", "stream")
    secret = rig.directory / "password"
    secret.write_bytes(content + b"\n")
    settings = ["--sink.loki.username", "gw-b\u00fcro", "--sink.loki.password_file", os.fspath(secret)]
    with rig.daemon(*settings) as running:
        running.wait_for_start()
        rig.producer.send(10)
        if not is_sent:
            running.wait(lambda: says(running, f"{secret} does not hold one line of text"), "the refusal")
            secret.write_bytes(b"plain\n")
        rig.wait_for_law()
        assert running.stop() == 0

    assert not any(len(content) > 4 and content.decode(errors="replace") in line for line in running.said)
    assert all(line.strip().isprintable() for line in running.said)
    rig.evaluate(45, f"a password of {len(content)} bytes")
