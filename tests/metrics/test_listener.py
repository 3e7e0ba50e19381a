"""metrics/listener.py: sockets of our own and of systemd's."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from conntrackd.metrics.listener import adopt_listeners, close_listener, open_listener, show_address


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_it_listens_at_an_address_and_again_at_once(address: str) -> None:
    with closing(open_listener(address)) as listener:
        shown = show_address(listener)
        with closing(socket.create_connection(listener.getsockname()[:2], 5)):
            peer, _ = listener.accept()
            peer.close()  # the first to close: the port waits

    assert shown.rpartition(":")[0] == address.rpartition(":")[0]
    with closing(open_listener(shown)) as listener:
        assert show_address(listener) == shown


def test_an_address_in_use_is_an_error() -> None:
    with closing(open_listener("127.0.0.1:0")) as listener, pytest.raises(OSError, match="in use"):
        open_listener(show_address(listener))


def test_a_unix_socket_is_for_the_group_and_goes_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    listener = open_listener(f"unix://{path}")
    with closing(listener):
        assert path.stat().st_mode & 0o777 == 0o660
        assert show_address(listener) == f"unix://{path}"
        connect(path)
        close_listener(listener, is_ours=True)

    assert not path.exists()


def test_a_unix_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    open_listener(f"unix://{path}").close()
    assert path.is_socket()

    with closing(open_listener(f"unix://{path}")):
        connect(path)


def test_neither_one_that_is_in_use_nor_a_file_is_replaced(tmp_path: Path) -> None:
    path, file = tmp_path / "metrics.sock", tmp_path / "file"
    file.write_text("precious")

    with closing(open_listener(f"unix://{path}")):
        with pytest.raises(OSError, match="in use"):
            open_listener(f"unix://{path}")
        connect(path)
    with pytest.raises(OSError, match="not a socket"):
        open_listener(f"unix://{file}")
    assert file.read_text() == "precious"


def test_what_systemd_passes_and_does_not_listen_is_closed_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = open_listener("127.0.0.1:0")
    idle = socket.socket()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file = os.open(os.devnull, os.O_RDONLY)

    listeners = adopt_listeners([given.detach(), idle.detach(), datagrams.detach(), file])
    with closing(listeners[0]):
        assert [listener.getblocking() for listener in listeners] == [False]
        with closing(socket.create_connection(listeners[0].getsockname(), 5)):
            pass

    assert caplog.text.count("does not listen") == 2
    assert caplog.text.count("is not a socket") == 1


def test_a_socket_of_systemds_keeps_its_path(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    close_listener(open_listener(f"unix://{path}"), is_ours=False)

    assert path.is_socket()
