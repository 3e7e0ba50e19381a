"""Certificates that are renewed while the daemon runs, and what is no certificate."""

import os
import ssl
from pathlib import Path

import pytest

from conntrackd.delivery.sink import SinkUnavailable
from conntrackd.sinks.loki import Loki, Settings
from conntrackd.sinks.tls import Credentials, Tls, make_context
from tests.sinks.flows import make_flow
from tests.sinks.loki_client import render_entries
from tests.sinks.loki_server import Store, run_server
from tests.sinks.test_loki_tls import make_certificate, make_wrapper


def replace(pair: tuple[Path, Path], other: tuple[Path, Path]) -> None:
    for path, new in zip(pair, other, strict=True):
        path.write_bytes(new.read_bytes())


def test_a_certificate_that_is_renewed_in_place_is_used_without_a_restart(tmp_path: Path) -> None:
    """Half a pair changes nothing: the connection goes on. A whole one gets one of its own."""
    local = ("-addext", "subjectAltName=IP:127.0.0.1")
    server_has = make_certificate(tmp_path, "server", *local)
    mine, other = make_certificate(tmp_path, "mine"), make_certificate(tmp_path, "other")
    accepted = tmp_path / "accepted.pem"
    accepted.write_bytes(mine[0].read_bytes() + other[0].read_bytes())
    seen: list[str] = []
    store = Store()
    wrap = make_wrapper(server_has, accepted)
    with run_server(store, wrap=wrap) as server:
        loki = Loki(Settings(f"https://127.0.0.1:{server.port}", timeout=5.0, tls=Tls(server_has[0], *mine)))
        loki.open()
        for step in range(4):
            if step == 1:
                mine[0].write_bytes(other[0].read_bytes())  # the key is still the old one's
            if step == 2:
                mine[1].write_bytes(other[1].read_bytes())
            loki.write([render_entries([make_flow(step)])])
            last = server.connections[-1]
            assert isinstance(last, ssl.SSLSocket)
            seen.append(str(last.getpeercert()["subject"][0][0][1]))  # type: ignore[index]
        loki.close()
        connections = len(server.connections)

    assert len(store.query()) == 4
    assert (seen, connections) == (["mine", "mine", "other", "other"], 2)


def test_an_authority_that_is_replaced_is_trusted_without_a_restart(tmp_path: Path) -> None:
    local = ("-addext", "subjectAltName=IP:127.0.0.1")
    old, new = make_certificate(tmp_path, "old", *local), make_certificate(tmp_path, "new", *local)
    trusted, store = tmp_path / "ca.pem", Store()
    trusted.write_bytes(old[0].read_bytes())
    with run_server(store, wrap=make_wrapper(new)) as server:
        loki = Loki(Settings(f"https://127.0.0.1:{server.port}", timeout=5.0, tls=Tls(trusted)))
        loki.open()
        with pytest.raises(SinkUnavailable, match="certificate not accepted"):
            loki.write([render_entries([make_flow(1)])])
        trusted.write_bytes(new[0].read_bytes())
        loki.write([render_entries([make_flow(1)])])
        loki.close()

    assert len(store.query()) == 1


def test_files_that_are_touched_and_useless_change_nothing(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, "mine")
    used = Credentials(Tls(None, *pair))
    before = used.have_changed()
    pair[0].write_bytes(b"")
    useless = used.have_changed()
    pair[0].unlink()
    missing = used.have_changed()
    make_certificate(tmp_path, "mine")

    assert (before, useless, missing, used.have_changed(), used.have_changed()) == (
        False,
        False,
        False,
        True,
        False,
    )


@pytest.mark.parametrize("which", ["ca", "cert", "key"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "endless"])
def test_what_is_no_plain_file_is_refused_before_it_is_read(tmp_path: Path, which: str, kind: str) -> None:
    pair = make_certificate(tmp_path, "mine")
    path = tmp_path / "odd"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.touch()
            os.truncate(path, 10 << 30)
    files = {"ca": pair[0], "cert": pair[0], "key": pair[1], which: path}
    tls = Tls(files["ca"], files["cert"], files["key"])

    with pytest.raises(SinkUnavailable, match=f"{path} is (a .*, not a file|larger than)"):
        make_context(tls)
