"""Loki: what a reply means, and what a real server on loopback gets and does to us."""

import base64
import email.utils
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conntrackd import VERSION
from conntrackd.config import read_config
from conntrackd.flow import Batch
from conntrackd.sinks.backoff import Backoff
from conntrackd.sinks.encode_loki import LokiEncoder
from conntrackd.sinks.http import Reply
from conntrackd.sinks.loki import Loki, Settings, create, judge, parse_retry_after
from conntrackd.sinks.outbox import Outbox
from conntrackd.sinks.sink import SinkRefused, SinkRevised, SinkUnavailable
from conntrackd.sinks.spool import Spool
from conntrackd.sinks.tls import Tls
from conntrackd.stats import SinkStats
from tests.sinks import loki_server
from tests.sinks.fakes import Clock, find_imbalance, run_until_idle
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_server import Fault, Limits, Server, Store, run_server, say

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


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with run_server(store) as server:
        yield server


def make_settings(port: int = 0, **changes: Any) -> Settings:
    return Settings(**{"address": f"http://127.0.0.1:{port}", "timeout": 5.0, **changes})


def push(settings: Settings, flows: Batch) -> int:
    """One batch through a sink of its own."""
    loki = Loki(settings)
    try:
        loki.open()
        return loki.write(loki.encode(flows))
    finally:
        loki.close()


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


# ---- TLS


def make_certificate(directory: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *(options or ("-days", "2"))], check=True, capture_output=True)
    return certificate, key


def make_expired(directory: Path, certificate: Path, key: Path) -> tuple[Path, Path]:
    """The same certificate, signed again with times in the past: only `openssl ca` can write such ones."""
    (directory / "index.txt").write_text("")
    (directory / "ca.cnf").write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {directory}/index.txt\nnew_certs_dir = {directory}\n"
        "default_md = sha256\npolicy = any\nrand_serial = yes\nx509_extensions = names\n"
        "[any]\ncommonName = supplied\n[names]\nsubjectAltName = IP:127.0.0.1\n"
    )
    command = [
        "openssl",
        "ca",
        "-batch",
        "-notext",
        "-config",
        str(directory / "ca.cnf"),
        "-keyfile",
        str(key),
    ]
    command += ["-cert", str(certificate), "-ss_cert", str(certificate), "-out", str(certificate)]
    command += ["-startdate", "20200101000000Z", "-enddate", "20210101000000Z"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("tls")
    local = ("-addext", "subjectAltName=IP:127.0.0.1")
    return {
        "good": make_certificate(directory, "good", *local),
        "other": make_certificate(directory, "other", "-addext", "subjectAltName=DNS:other.example"),
        "expired": make_expired(directory, *make_certificate(directory, "expired", *local)),
        "client": make_certificate(directory, "client"),
    }


def make_wrapper(pair: tuple[Path, Path], client_ca: Path | None = None) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return lambda plain: context.wrap_socket(plain, server_side=True)


def make_tls_settings(port: int, tls: Tls) -> Settings:
    return Settings(address=f"https://127.0.0.1:{port}", timeout=5.0, tls=tls)


def test_a_trusted_server_with_the_right_name_is_accepted(
    store: Store, certificates: dict[str, tuple[Path, Path]]
) -> None:
    good, client = certificates["good"], certificates["client"]
    with run_server(store, wrap=make_wrapper(good, client[0])) as server:
        push(make_tls_settings(server.port, Tls(good[0], *client)), [make_flow(1)])

    assert len(store.query()) == 1


@pytest.mark.parametrize(
    ("server_has", "we_trust", "cause"),
    [
        ("expired", "expired", "certificate has expired"),
        ("other", "other", "127.0.0.1"),
        ("good", None, "self-signed certificate"),
    ],
)
def test_a_wrong_certificate_gets_nothing_and_is_named(
    store: Store,
    certificates: dict[str, tuple[Path, Path]],
    server_has: str,
    we_trust: str | None,
    cause: str,
) -> None:
    ca = certificates[we_trust][0] if we_trust else None
    with (
        run_server(store, wrap=make_wrapper(certificates[server_has])) as server,
        pytest.raises(SinkUnavailable) as caught,
    ):
        push(make_tls_settings(server.port, Tls(ca)), [make_flow(1)])

    assert caught.value.reason.startswith("certificate not accepted: ")
    assert cause in caught.value.reason
    assert store.requests == []


def test_an_unverified_server_is_accepted_when_that_was_asked_for(
    store: Store, certificates: dict[str, tuple[Path, Path]]
) -> None:
    with run_server(store, wrap=make_wrapper(certificates["other"])) as server:
        push(make_tls_settings(server.port, Tls(verify=False)), [make_flow(1)])

    assert len(store.query()) == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_a_version_of_tls_that_is_too_old_gets_nothing_and_is_named(
    store: Store, certificates: dict[str, tuple[Path, Path]]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates["good"])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    def wrap(plain: socket.socket) -> socket.socket:
        return context.wrap_socket(plain, server_side=True)

    with run_server(store, wrap=wrap) as server, pytest.raises(SinkUnavailable, match="protocol version"):
        push(make_tls_settings(server.port, Tls(certificates["good"][0])), [make_flow(1)])

    assert store.requests == []


def test_plain_text_on_the_tls_port_is_named(server: Server, store: Store) -> None:
    with pytest.raises(SinkUnavailable, match=r"^TLS: "):
        push(make_tls_settings(server.port, Tls()), [make_flow(1)])

    assert store.requests == []


@pytest.mark.parametrize("broken", ["ca", "cert"])
def test_a_certificate_that_cannot_be_read_is_an_outage(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "broken.pem"
    path.write_text("no certificate")
    tls = Tls(ca=path) if broken == "ca" else Tls(cert=path)
    settings = make_tls_settings(1, tls)

    with pytest.raises(SinkUnavailable, match=f"cannot use {path}"):
        Loki(settings).open()


# ---- the whole of it: outbox, spool, sink, server


def make_outbox(loki: Loki, clock: Clock, spool: Spool | None, queue: int = 5000) -> Outbox[bytes]:
    backoff = Backoff(0.5, 30.0)
    return Outbox(loki, queue=queue, stats=SinkStats(), spool=spool, backoff=backoff, clock=clock)


def list_stored(store: Store) -> list[int]:
    """Numbers of the events that are stored, in the order of their time."""
    return [
        int(dict(entry.metadata)["flow"]) for entry in store.query() if "lost" not in dict(entry.metadata)
    ]


def test_ten_minutes_of_events_while_loki_is_away_are_all_there_exactly_once(tmp_path: Path) -> None:
    """50 events a second; refused for five minutes, 503 for five more; the clock is the test's."""
    store, clock = Store(), Clock()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loki = Loki(make_settings(port, batch_wait=1.0))
    outbox = make_outbox(loki, clock, Spool(tmp_path, "loki", 64 << 20))
    events = 0
    for _ in range(300):
        outbox.put(make_flows(50, events))
        events += 50
        run_until_idle(outbox, clock, seconds=1.0)
    with run_server(store, port=port):
        store.faults.extend(say(503, "empty ring") for _ in range(1000))
        for _ in range(300):
            outbox.put(make_flows(50, events))
            events += 50
            run_until_idle(outbox, clock, seconds=1.0)
        away = outbox.snapshot()
        store.faults.clear()
        store.faults.append(loki_server.store_and_reset)  # stored, and the acknowledgement lost
        store.faults.append(loki_server.store_and_say(502))
        run_until_idle(outbox, clock, seconds=120.0)
        outbox.put(make_flows(1, events))
        run_until_idle(outbox, clock, seconds=5.0)
        outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert away.sink_events_spooled + away.sink_events_queued == 30_000
    assert list_stored(store) == list(range(30_001))
    assert store.duplicates > 0
    assert (stats.sink_events_delivered_total, find_imbalance(stats)) == (30_001, 0)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_is_refused_is_counted_and_the_next_batch_goes(
    server: Server, store: Store, status: int
) -> None:
    clock = Clock()
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    store.faults.append(say(status))
    outbox.put(make_flows(10))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.put(make_flows(10, 10))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == list(range(10, 20))
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (10, 10)


def test_a_body_that_is_too_large_arrives_in_parts(server: Server, store: Store) -> None:
    clock = Clock()
    store.limits = Limits(max_body=1000)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    outbox.put(make_flows(300))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)

    assert list_stored(store) == list(range(300))
    assert store.duplicates == 0
    assert outbox.snapshot().sink_events_delivered_total == 300


def test_an_event_that_is_too_large_alone_is_dropped_and_the_others_arrive(
    server: Server, store: Store
) -> None:
    clock = Clock()
    store.faults.extend([say(413), say(413), say(413)])  # 4 events, 2, and then the first alone
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    outbox.put(make_flows(4))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert list_stored(store) == [1, 2, 3]
    assert (stats.sink_events_dropped_refused_total, stats.sink_events_delivered_total) == (1, 3)


def test_late_events_arrive_in_streams_of_their_own(server: Server, store: Store) -> None:
    clock = Clock()
    store.limits = Limits(max_behind=0)
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    outbox.put(make_flows(5, 100))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.put(make_flows(5))
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)

    assert [dict(entry.metadata)["flow"] for entry in store.query(replay="1")] == ["0", "1", "2", "3", "4"]
    assert outbox.snapshot().sink_events_delivered_total == 10


def test_what_is_too_old_even_for_a_replay_is_dropped_and_the_rest_is_there_once(
    server: Server, store: Store
) -> None:
    clock = Clock()
    store.limits = Limits(reject_before=BASE + 5_000_000_000)
    flows = [make_flow(number, time=BASE + number * 1_000_000_000) for number in range(10)]
    outbox = make_outbox(Loki(make_settings(server.port)), clock, None)
    outbox.put(flows)
    run_until_idle(outbox, clock, seconds=5.0)
    outbox.stop(clock.now)
    stats = outbox.snapshot()

    assert sorted(set(list_stored(store))) == [5, 6, 7, 8, 9]
    assert stats.sink_events_delivered_total + stats.sink_events_dropped_refused_total == 10
    assert find_imbalance(stats) == 0


def test_a_server_that_is_killed_and_comes_back_has_everything_once(tmp_path: Path) -> None:
    """With the outbox's own thread, on a real clock."""
    store = Store()
    with run_server(store) as server:
        port = server.port
        loki = Loki(make_settings(port, batch_wait=0.01, timeout=2.0))
        outbox = Outbox(
            loki,
            queue=10_000,
            stats=SinkStats(),
            spool=Spool(tmp_path, "loki", 64 << 20),
            backoff=Backoff(0.01, 0.05),
        )
        outbox.start()
        for first in range(0, 1000, 10):
            outbox.put(make_flows(10, first))
        assert outbox.flush(30.0)
    for first in range(1000, 3000, 10):
        outbox.put(make_flows(10, first))
    with run_server(store, port=port):
        flushed = outbox.flush(30.0)
        outbox.put(make_flows(1, 3000))
        outbox.stop(time.monotonic() + 30.0)

    assert flushed
    assert list_stored(store) == list(range(3001))
    assert find_imbalance(outbox.snapshot()) == 0


def test_the_process_does_not_inherit_a_proxy_from_its_environment(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "http_proxy", "http://127.0.0.1:1")
    push(make_settings(server.port), [make_flow(1)])

    assert len(store.query()) == 1
