"""Loki: what a reply means, and what a real server on loopback gets and does to us."""

import base64
import email.utils
import os
import socket
import threading
from pathlib import Path

import pytest

from conntrackd import VERSION
from conntrackd.config import read_config
from conntrackd.flow import Batch
from conntrackd.sinks.encode_loki import LokiEncoder
from conntrackd.sinks.http import Reply
from conntrackd.sinks.loki import Loki, create, judge, parse_retry_after
from conntrackd.sinks.sink import SinkRefused, SinkRevised, SinkUnavailable
from tests.sinks import loki_server
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_client import make_settings, push
from tests.sinks.loki_server import Fault, Server, Store, run_server, say

NOW = 1_763_807_700.0


def encode(count: int = 3) -> bytes:
    return LokiEncoder({"host": "gw1"}).encode(list(make_flows(count)))


def find_verdict(reply: Reply, payload: bytes) -> SinkRefused | SinkRevised | SinkUnavailable | None:
    try:
        judge(reply, payload, NOW)
    except (SinkRefused, SinkRevised, SinkUnavailable) as verdict:
        return verdict
    return None


# ---- what a reply means


@pytest.mark.parametrize("status", [200, 204, 260])
def test_these_replies_mean_that_it_is_stored(status: int) -> None:
    assert find_verdict(Reply(status, {}), encode()) is None


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_these_replies_are_tried_again_when_the_server_says(status: int) -> None:
    verdict = find_verdict(Reply(status, {"Retry-After": "7"}, b"busy"), encode())

    assert isinstance(verdict, SinkUnavailable)
    assert (verdict.reason, verdict.retry_after) == (f"the server replied {status}: busy", 7.0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
def test_these_replies_cost_the_batch(status: int) -> None:
    verdict = find_verdict(Reply(status, {}, b"no org id\n"), encode())

    assert isinstance(verdict, SinkRefused)
    assert (verdict.reason, verdict.events) == (f"the server replied {status}: no org id", None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_an_outage_that_names_its_cause(status: int) -> None:
    verdict = find_verdict(Reply(status, {"Location": "http://evil.example/"}), encode())

    assert isinstance(verdict, SinkUnavailable)
    assert verdict.reason == f"Loki redirects ({status}), which is not followed: check the address"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(413, {}),
        Reply(
            500, {}, b"rpc error: code = ResourceExhausted desc = grpc: received message larger than max (5)"
        ),
    ],
)
def test_what_is_too_large_is_halved_and_a_single_event_is_dropped(reply: Reply) -> None:
    halved, single = find_verdict(reply, encode(4)), find_verdict(reply, encode(1))

    assert isinstance(halved, SinkRevised)
    assert [parcel.events for parcel in halved.parcels] == [2, 2]
    assert isinstance(single, SinkRefused)


@pytest.mark.parametrize(
    "text",
    [
        b"entry with timestamp 2025-11-22 10:34:43 ignored, reason: 'entry too far behind'",
        b"entry out of order",
        b"entry for stream '{}' has timestamp too old: x, oldest acceptable timestamp is: nonsense",
    ],
)
def test_what_is_too_old_is_replayed_once_and_then_dropped(text: bytes) -> None:
    first = find_verdict(Reply(400, {}, text), encode())
    assert isinstance(first, SinkRevised)
    (parcel,) = first.parcels
    second = find_verdict(Reply(400, {}, text), parcel.payload)

    assert (parcel.events, first.delivered) == (3, 0)
    assert isinstance(second, SinkRefused)


def test_of_a_batch_that_is_partly_too_old_only_that_part_is_replayed() -> None:
    text = (
        "entry for stream '{}' has timestamp too old: x, oldest acceptable timestamp is: 2025-11-22T10:34:42Z"
    )
    flows: Batch = [make_flow(number, time=BASE + (number - 3) * 1_000_000_000) for number in range(6)]
    verdict = find_verdict(Reply(400, {}, text.encode()), LokiEncoder({}).encode(flows))

    assert isinstance(verdict, SinkRevised)
    # Loki tells its limit in whole seconds, and what lies within that second may have been refused.
    assert ([parcel.events for parcel in verdict.parcels], verdict.delivered) == ([3], 3)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        ("0", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("-5", None),
        ("soon", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_no_control_character_of_a_reply_reaches_people() -> None:
    reply = Reply(400, {}, "a\x1b]0;owned\x07\r\nb\u202ec\xff".encode() + b"\xff" + b"x" * 1000)

    assert reply.text.isprintable()
    assert reply.text.startswith("a ]0;owned b c\xff\ufffdxx")
    assert len(reply.text) <= 300


# ---- a real server


def test_what_is_pushed_can_be_queried(server: Server, store: Store) -> None:
    push(make_settings(server.port, labels=(("env", "prod"),)), list(make_flows(3)))

    found = store.query(
        env="prod", service_name="conntrackd", host=socket.gethostname(), type="NEW", prot="TCP"
    )

    assert [dict(entry.metadata)["flow"] for entry in found] == ["0", "1", "2"]
    assert found[1].time == BASE + 1_000_000


def test_requests_name_themselves_and_ask_for_nothing_compressed(server: Server, store: Store) -> None:
    push(make_settings(tenant="net", address=f"http://127.0.0.1:{server.port}/proxied/"), [make_flow(1)])

    ready, pushed = store.requests

    assert (ready.method, ready.path) == ("GET", "/proxied/ready")
    assert (pushed.method, pushed.path) == ("POST", "/proxied/loki/api/v1/push")
    assert pushed.headers["User-Agent"] == f"conntrackd/{VERSION}"
    assert pushed.headers["X-Scope-OrgID"] == "net"
    assert pushed.headers["Content-Encoding"] == "gzip"
    assert pushed.headers["Content-Type"] == "application/json"
    assert pushed.headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in pushed.headers


def test_a_connection_is_used_for_many_pushes(server: Server, store: Store) -> None:
    loki = Loki(make_settings(server.port))
    loki.open()
    for number in range(5):
        loki.write(loki.encode([make_flow(number)]))
    loki.close()

    assert len(store.pushes) == 5
    assert len(server.connections) == 1


def test_secrets_come_from_files_and_are_read_again_at_each_opening(
    server: Server, store: Store, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    loki = Loki(make_settings(server.port, token_file=secret))
    secret.write_text("first\n")
    loki.open()
    loki.write(loki.encode([make_flow(1)]))
    loki.close()
    secret.write_text("second")
    loki.open()
    loki.write(loki.encode([make_flow(2)]))
    loki.close()

    assert [request.headers["Authorization"] for request in store.pushes] == ["Bearer first", "Bearer second"]


def test_basic_authentication_takes_name_and_password(server: Server, store: Store, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("gehe\u0069m:\n")
    push(make_settings(server.port, username="gw1", password_file=tmp_path / "password"), [make_flow(1)])

    (request,) = store.pushes

    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) == b"gw1:geheim:"


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff\xfe", b"x" * 70_000])
def test_a_secret_that_cannot_be_used_is_an_outage_that_does_not_tell_it(
    server: Server, store: Store, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SinkUnavailable) as caught:
        push(make_settings(server.port, token_file=path), [make_flow(1)])

    assert str(path) in caught.value.reason
    assert "lines" not in caught.value.reason
    assert store.requests == []


def test_a_credential_of_systemd_stands_in_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loki.token").write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    config = read_config({"sink.loki.enable": ["true"], "sink.loki.tenant": ["net"]}, {}, None, tmp_path)

    settings = create(config)._settings

    assert (settings.token_file, settings.password_file) == (tmp_path / "loki.token", None)
    assert (settings.address, settings.tenant) == ("http://localhost:3100", "net")


def test_readiness_is_a_hint_and_never_a_gate(server: Server, store: Store) -> None:
    store.ready = 503
    push(make_settings(server.port), [make_flow(1)])
    store.faults.append(say(500, "empty ring"))

    with pytest.raises(SinkUnavailable) as caught:
        push(make_settings(server.port), [make_flow(2)])

    assert len(store.query()) == 1
    assert caught.value.reason == (
        "the server replied 500: empty ring"
        " (/ready: the server replied 503: Ingester not ready: waiting for 15s)"
    )


def test_no_redirect_is_followed_and_no_token_leaves(server: Server, store: Store, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    other = Store()
    with run_server(other) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/loki/api/v1/push"
        for status in (301, 302, 303, 307, 308):
            store.faults.append(say(status, "", {"Location": location}))
            with pytest.raises(SinkUnavailable, match="not followed"):
                push(make_settings(server.port, token_file=tmp_path / "token"), [make_flow(1)])

    assert other.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        loki_server.drip,
        loki_server.hang,
        loki_server.send_garbage,
        loki_server.reset,
        loki_server.send_endless(500),
        loki_server.send_endless(429),
    ],
)
def test_no_reply_can_hold_or_fill_us(server: Server, store: Store, fault: Fault) -> None:
    store.faults.append(fault)
    loki = Loki(make_settings(server.port, timeout=0.3))
    loki.open()

    with pytest.raises(SinkUnavailable):
        loki.write(loki.encode([make_flow(1)]))

    loki.close()
    loki.open()
    loki.write(loki.encode([make_flow(2)]))
    loki.close()
    assert len(store.query()) == 1


def test_a_deadline_holds_for_a_reply_that_comes_a_byte_at_a_time(server: Server, store: Store) -> None:
    store.faults.append(loki_server.drip)

    with pytest.raises(SinkUnavailable) as caught:
        push(make_settings(server.port, timeout=0.3), [make_flow(1)])

    assert caught.value.reason == "no reply within 0.3 s"


def test_an_endless_reply_to_an_accepted_push_changes_nothing_about_it(server: Server, store: Store) -> None:
    store.faults.append(loki_server.send_endless(200))

    assert push(make_settings(server.port, timeout=5.0), [make_flow(1)]) > 0


def test_closing_from_another_thread_ends_a_write_that_hangs(server: Server, store: Store) -> None:
    reached = threading.Event()

    def fault(handler: loki_server.Handler) -> bool:
        reached.set()
        return loki_server.hang(handler)

    store.faults.append(fault)
    loki = Loki(make_settings(server.port, timeout=3600.0))
    loki.open()
    outcome: list[Exception] = []

    def write() -> None:
        try:
            loki.write(loki.encode([make_flow(1)]))
        except SinkUnavailable as error:
            outcome.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert reached.wait(30.0)
    loki.close()
    writer.join(30.0)

    assert len(outcome) == 1


def test_nobody_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with pytest.raises(SinkUnavailable, match="Connection refused"):
        push(make_settings(port), [make_flow(1)])


def test_the_process_does_not_inherit_a_proxy_from_its_environment(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "http_proxy", "http://127.0.0.1:1")
    push(make_settings(server.port), [make_flow(1)])

    assert len(store.query()) == 1
