"""Loki over TLS: who is believed, and what is said of one who is not."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks.loki import Loki, Settings
from conntrackd.sinks.secrets import read_secret
from conntrackd.sinks.tls import Tls, make_context
from tests.odd_files import make_odd_file
from tests.sinks.authority import Authority
from tests.sinks.flows import make_flow
from tests.sinks.loki_client import push
from tests.sinks.loki_server import Server, Store, run_server


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

    assert "certificate not accepted: " in caught.value.reason
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


def test_a_handshake_that_comes_a_byte_at_a_time_has_a_deadline() -> None:
    """A record of 16 KiB, for which the timeout of a socket would begin anew with each byte."""
    pause, hung_up = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"\x16\x03\x03\x40\x00")
                for _ in range(500):
                    pause.wait(0.02)
                    try:
                        connection.sendall(b"\x02")
                    except OSError:
                        hung_up.set()
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        loki = Loki(Settings(address=f"https://127.0.0.1:{server.getsockname()[1]}", timeout=0.5))
        loki.open()  # asks /ready, whose trouble is no reason to stop
        loki.close()
        thread.join()

    assert hung_up.is_set()


@pytest.mark.parametrize("broken", ["ca", "cert"])
def test_a_certificate_that_cannot_be_read_is_an_outage(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "broken.pem"
    path.write_text("no certificate")
    tls = Tls(ca=path) if broken == "ca" else Tls(cert=path)
    settings = make_tls_settings(1, tls)

    with pytest.raises(SinkUnavailable, match=f"cannot use {path}"):
        Loki(settings).open()


def test_a_plain_private_authority_is_believed_by_every_python(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `openssl req -x509` makes one: no key usage, which Python 3.13 asks for by default."""
    authority = Authority(tmp_path)
    both = authority.issue("server", "IP:127.0.0.1")
    create = ssl.create_default_context

    def create_as_3_13(**arguments: Any) -> ssl.SSLContext:
        context = create(**arguments)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    monkeypatch.setattr("ssl.create_default_context", create_as_3_13)
    with run_server(store, wrap=make_wrapper((both, both))) as server:
        push(make_tls_settings(server.port, Tls(authority.ca)), [make_flow(1)])

    assert len(store.query()) == 1


def test_what_is_verified_is_the_same_with_every_python(tmp_path: Path) -> None:
    flags = make_context(Tls()).verify_flags

    assert not flags & ssl.VERIFY_X509_STRICT
    assert flags & ssl.VERIFY_X509_PARTIAL_CHAIN


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "large"])
@pytest.mark.parametrize("name", ["ca", "cert", "token"])
def test_a_file_is_refused_by_its_kind_and_nothing_waits(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    make_odd_file(path, kind)

    with pytest.raises(SinkUnavailable, match="odd"):
        read_secret(path, {}) if name == "token" else make_context(
            Tls(path) if name == "ca" else Tls(cert=path)
        )
