"""Loki: what a reply means, and what a real server on loopback gets and does to us."""

import base64
import gzip
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from conntrackd import VERSION
from conntrackd.config.read import read_config
from conntrackd.delivery.outbox import Outbox
from conntrackd.delivery.sink import SinkTrouble, SinkUnavailable
from conntrackd.sinks.loki import Loki, create
from conntrackd.stats import SinkStats
from tests.sinks import loki_server
from tests.sinks.flows import BASE, make_flow, make_flows
from tests.sinks.loki_client import hand_on, make_settings, push, render_entries
from tests.sinks.loki_server import Fault, Server, Store, run_server, say


def test_what_is_pushed_can_be_queried(server: Server, store: Store) -> None:
    push(make_settings(server.port, labels=(("env", "prod"),)), make_flows(3))

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
        loki.write([render_entries([make_flow(number)])])
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
    loki.write([render_entries([make_flow(1)])])
    loki.close()
    secret.write_text("second")
    loki.open()
    loki.write([render_entries([make_flow(2)])])
    loki.close()

    assert [request.headers["Authorization"] for request in store.pushes] == ["Bearer first", "Bearer second"]


def test_basic_authentication_takes_name_and_password(server: Server, store: Store, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("gehe\u0069m:\n")
    push(make_settings(server.port, username="gw1", password_file=tmp_path / "password"), [make_flow(1)])

    (request,) = store.pushes

    assert base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) == b"gw1:geheim:"


def test_a_password_is_sent_in_utf_8_with_its_accents_as_one_character(
    server: Server, store: Store, tmp_path: Path
) -> None:
    """RFC 7617; a file from a Mac has two characters for each."""
    wanted = "gw-b\u00fcro:\u20ac sch\u00f6n \u6771\u4eac".encode()
    for text in ("\u20ac sch\u00f6n \u6771\u4eac", "\u20ac scho\u0308n \u6771\u4eac"):
        (tmp_path / "password").write_text(text + "\n", encoding="utf-8")
        settings = make_settings(server.port, username="gw-b\u00fcro", password_file=tmp_path / "password")
        push(settings, [make_flow(1)])

    sent = [
        base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")) for request in store.pushes
    ]
    assert sent == [wanted] * 2


def test_a_token_that_no_header_can_hold_is_an_outage_that_does_not_disclose_it(
    server: Server, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("b\u00fcro", encoding="utf-8")

    with pytest.raises(SinkUnavailable, match="holds a token with characters") as caught:
        push(make_settings(server.port, token_file=tmp_path / "token"), [make_flow(1)])

    assert "b\u00fcro" not in caught.value.reason
    assert store.requests == []


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_a_secret_that_is_no_plain_file_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")

    with pytest.raises(SinkUnavailable, match=f"{path} is a .*, not a file"):
        Loki(make_settings(1, token_file=path)).open()


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff\xfe", b"\x00", b"\xc3", b"x" * 70_000])
def test_a_secret_that_cannot_be_used_is_an_outage_that_does_not_disclose_it(
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


@pytest.mark.parametrize(
    ("credential", "sent"), [("loki.token", "Bearer secret"), ("loki.password", "Basic Z3cxOnNlY3JldA==")]
)
def test_a_credential_of_systemd_stands_in_for_the_file(
    server: Server, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credential: str, sent: str
) -> None:
    (tmp_path / credential).write_text("secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    given = {"address": f"http://127.0.0.1:{server.port}", "tenant": "net"}
    given |= {"username": "gw1"} if credential == "loki.password" else {}
    loki = create(
        read_config({f"sink.loki.{key}": [value] for key, value in given.items()}, {}, None, tmp_path)
    )
    loki.open()
    loki.write([render_entries([make_flow(1)])])
    loki.close()

    (pushed,) = store.pushes
    assert (pushed.headers["Authorization"], pushed.headers["X-Scope-OrgID"]) == (sent, "net")


def test_a_batch_has_about_the_size_that_was_asked_for(server: Server, store: Store) -> None:
    loki = Loki(make_settings(server.port, batch_size=20_000))
    outbox = Outbox(loki, queue=100_000, stats=SinkStats())
    outbox.start()
    for first in range(0, 20_000, 50):
        hand_on(outbox, make_flows(50, first))
    assert outbox.flush(30)
    outbox.stop(time.monotonic() + 5)

    sizes = [len(gzip.decompress(request.body)) for request in store.pushes]
    assert len(store.query()) == 20_000
    assert max(sizes) < 40_000


def test_readiness_is_a_hint_and_never_a_gate(server: Server, store: Store) -> None:
    store.ready = 503
    push(make_settings(server.port), [make_flow(1)])
    store.faults.append(say(500, "empty ring"))

    with pytest.raises(SinkUnavailable) as caught:
        push(make_settings(server.port), [make_flow(2)])

    assert len(store.query()) == 1
    assert caught.value.reason == (
        f"http://127.0.0.1:{server.port}: the server replied 500: empty ring"
        " (/ready: the server replied 503: Ingester not ready: waiting for 15s)"
    )


@pytest.mark.parametrize("status", [302, 400, 401, 404, 413, 429, 500])
def test_whatever_loki_refuses_the_reason_names_its_address_once(
    status: int, server: Server, store: Store
) -> None:
    store.faults.append(say(status, "no"))
    settings = make_settings(server.port)

    with pytest.raises(SinkTrouble) as caught:
        push(settings, [make_flow(1)])

    assert caught.value.reason.startswith(f"{settings.address}: ")
    assert caught.value.reason.count("127.0.0.1") == 1


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
        loki_server.drip_body,
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
        loki.write([render_entries([make_flow(1)])])

    loki.close()
    loki._settings = make_settings(server.port)  # who answers as he should has his time
    loki.open()
    loki.write([render_entries([make_flow(2)])])
    loki.close()
    assert len(store.query()) == 1
    assert store.taken < 32 << 20  # what two kernels had room for, of a gigabyte


@pytest.mark.parametrize("events", [1, 20_000])
def test_a_connection_that_is_reset_in_mid_request_is_an_outage(
    server: Server, store: Store, events: int
) -> None:
    """Before a reply, and before all of the body is sent."""
    store.early.append(loki_server.reset)
    with pytest.raises(SinkUnavailable):
        push(make_settings(server.port), make_flows(events))
    push(make_settings(server.port), make_flows(events))

    assert (len(store.query()), store.duplicates) == (events, 0)


def test_a_deadline_holds_for_a_reply_that_comes_a_byte_at_a_time(server: Server, store: Store) -> None:
    store.faults.append(loki_server.drip)

    with pytest.raises(SinkUnavailable) as caught:
        push(make_settings(server.port, timeout=0.3), [make_flow(1)])

    assert caught.value.reason == f"http://127.0.0.1:{server.port}: no reply within 0.3 s"


@pytest.mark.parametrize("status", [200, 204])
def test_an_endless_reply_is_not_the_one_of_loki(server: Server, store: Store, status: int) -> None:
    store.faults.append(loki_server.send_endless(status))

    with pytest.raises(SinkUnavailable):
        push(make_settings(server.port, timeout=5.0), [make_flow(1)])


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
            loki.write([render_entries([make_flow(1)])])
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


def test_labels_and_the_hosts_name_are_those_that_were_set() -> None:
    def make_labels(**settings: list[str]) -> dict[str, str]:
        overrides = {key.replace("__", "."): value for key, value in settings.items()}
        return create(read_config(overrides, {}, etc=Path("/nowhere")))._labels

    assert make_labels(host=["edge1"]) == {"service_name": "conntrackd", "host": "edge1"}
    assert make_labels(host=["edge1"], sink__loki__labels=["host=a,service_name=b"]) == {
        "service_name": "b",
        "host": "a",
    }


@pytest.mark.parametrize("zone", ["%25d0", "%d0"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_name_of_an_interface_is_no_escape(
    scheme: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts: list[object] = []

    def note(host: object, *_: object, **__: object) -> list[object]:
        hosts.append(host)
        raise OSError("nowhere")

    monkeypatch.setattr("socket.getaddrinfo", note)
    overrides = {"sink.loki.address": [f"{scheme}://[fe80::1{zone}]:3100"]}
    sink = create(read_config(overrides, {}, etc=Path("/nowhere")))
    sink.open()
    sink.close()

    assert hosts == ["fe80::1%d0"]


# ---- what changes while it runs


def test_the_name_of_the_host_is_the_one_of_the_start(
    server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another label would be another stream."""
    monkeypatch.setattr(socket, "gethostname", lambda: "before")
    address = {"sink.loki.address": [f"http://127.0.0.1:{server.port}"]}
    loki = create(read_config(address, {}, etc=Path("/nowhere")))
    loki.open()
    monkeypatch.setattr(socket, "gethostname", lambda: "after")
    loki.write([render_entries([make_flow(1)])])
    loki.close()

    assert (len(store.query(host="before")), len(store.query(host="after"))) == (1, 0)


def test_a_secret_that_is_renewed_is_used_from_the_next_push_on(
    server: Server, store: Store, tmp_path: Path
) -> None:
    """In place, and by a rename; half a file changes nothing."""
    secret = tmp_path / "token"
    secret.write_text("first")
    loki = Loki(make_settings(server.port, token_file=secret))
    loki.open()
    for number, text in enumerate(("first", "second", "", "third")):
        secret.write_text(text)
        loki.write([render_entries([make_flow(number)])])
    (tmp_path / "new").write_text("fourth")
    (tmp_path / "new").replace(secret)
    loki.write([render_entries([make_flow(4)])])
    secret.unlink()
    loki.write([render_entries([make_flow(5)])])
    loki.close()

    sent = [request.headers["Authorization"].removeprefix("Bearer ") for request in store.pushes]
    assert sent == ["first", "second", "second", "third", "fourth", "fourth"]
    assert len(server.connections) == 1
