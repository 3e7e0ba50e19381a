"""metrics/service.py: what asks for metrics, and what stands in the way."""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from conntrackd.config.read import Config, read_config
from conntrackd.errors import ConfigError
from conntrackd.metrics.listener import open_listener, show_address
from conntrackd.metrics.service import Metrics
from conntrackd.metrics.textfile import TextFile
from tests.metrics.states import make_control
from tests.sinks.syslog_servers import wait_until


def configure(**settings: str) -> Config:
    overrides = {f"metrics.{key}": [value] for key, value in settings.items()}
    return read_config(overrides, {}, etc=Path("/nowhere"))


def run(work: Callable[[Metrics], None]) -> int:
    """In a loop; the number of its tasks afterwards."""

    async def inside() -> int:
        metrics = Metrics(make_control())
        work(metrics)
        tasks = len(asyncio.all_tasks()) - 1
        metrics.close()
        return tasks

    return asyncio.run(inside())


def hide_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "conntrackd.metrics.exposition", raising=False)
    for name in ("prometheus_client", "prometheus_client.core"):
        monkeypatch.setitem(sys.modules, name, None)


def test_nothing_runs_where_nobody_asks() -> None:
    assert run(lambda metrics: metrics.open(configure(), [])) == 0


def test_a_replay_which_opens_nothing_is_reloaded_without_metrics(tmp_path: Path) -> None:
    config = configure(listen=f"unix://{tmp_path}/sock", textfile=f"{tmp_path}/x.prom")

    assert run(lambda metrics: metrics.apply(metrics.prepare(config))) == 0
    assert list(tmp_path.iterdir()) == []


def test_each_socket_of_systemds_is_listened_at_and_the_setting_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passed = [open_listener("127.0.0.1:0").detach() for _ in range(2)]

    assert run(lambda metrics: metrics.open(configure(listen=f"unix://{tmp_path}/sock"), passed)) == 2
    assert "metrics.listen has no effect: conntrackd-metrics.socket passes a socket" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_socket_of_systemds_without_the_library_is_reported_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide_library(monkeypatch)
    listener = open_listener("127.0.0.1:0")
    address = show_address(listener)

    with pytest.raises(ConfigError) as caught:
        run(lambda metrics: metrics.open(configure(), [listener.detach()]))

    assert caught.value.origin == "conntrackd-metrics.socket"
    assert caught.value.message.startswith("metrics need the Python library prometheus_client")
    open_listener(address).close()


def test_a_change_that_is_not_made_gives_its_address_back(tmp_path: Path) -> None:
    path = tmp_path / "sock"

    def prepare(metrics: Metrics) -> None:
        metrics.open(configure(), [])
        change = metrics.prepare(configure(listen=f"unix://{path}"))
        assert path.is_socket()
        change.close()

    assert run(prepare) == 0
    assert not path.exists()


def test_an_address_that_may_not_be_bound_is_reported_with_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the unit's filter of system calls does it."""

    def refuse(address: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("conntrackd.metrics.service.open_listener", refuse)
    with pytest.raises(ConfigError) as caught:
        run(lambda metrics: metrics.open(configure(listen="127.0.0.1:9477"), []))

    assert caught.value.message.endswith("127.0.0.1:9477 cannot be bound: Operation not permitted")
    assert caught.value.hint.startswith("leave it out, and: systemctl enable conntrackd-metrics.socket")


def test_a_port_that_a_reload_would_take_from_itself_is_reported_and_stays_open() -> None:
    with closing(open_listener("127.0.0.1:0")) as free:
        port = show_address(free).rpartition(":")[2]

    def reload(metrics: Metrics) -> None:
        metrics.open(configure(listen=f"127.0.0.1:{port}"), [])
        with pytest.raises(ConfigError) as caught:
            metrics.prepare(configure(listen=f"0.0.0.0:{port}"))
        assert caught.value.hint.startswith(f"metrics are still at 127.0.0.1:{port}: take another port, or")
        socket.create_connection(("127.0.0.1", int(port))).close()

    run(reload)


def test_the_page_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "x.prom"

    async def inside() -> None:
        metrics = Metrics(make_control())
        metrics.open(configure(textfile=str(path)), [])
        with closing(metrics):
            await asyncio.to_thread(wait_until, path.exists, "the file")
            assert "conntrackd_events_received_total 1000.0\n" in path.read_text()

    asyncio.run(asyncio.wait_for(inside(), 10))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_a_fault_until_it_is_or_is_not_wanted(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch("conntrackd.metrics.service.WRITE_SECONDS", 0.01)
    path = tmp_path / "node" / "x.prom"

    async def inside() -> None:
        metrics = Metrics(make_control())

        async def wait(*, is_fault: bool) -> None:
            await asyncio.to_thread(
                wait_until, lambda: (metrics.unwritten.fault is not None) == is_fault, f"a fault: {is_fault}"
            )

        metrics.open(configure(textfile=str(path)), [])
        with closing(metrics):
            await wait(is_fault=True)
            assert str(metrics.unwritten.fault).startswith(
                f"metrics.textfile: {path} cannot be written (No such file or directory): its numbers are old"
            )
            assert f"\nhint: mkdir {path.parent}, and let conntrackd write" in str(metrics.unwritten.fault)
            path.parent.mkdir()
            await wait(is_fault=False)
            path.parent.rename(tmp_path / "away")  # in one step: a write may be under way in it
            await wait(is_fault=True)
            metrics.apply(metrics.prepare(configure()))
            assert metrics.unwritten.fault is None

    asyncio.run(asyncio.wait_for(inside(), 10))


def test_the_end_does_not_wait_for_a_file_system_that_hangs(tmp_path: Path, mocker: MockerFixture) -> None:
    inside, go_on, waited = threading.Event(), threading.Event(), []

    def hang(*_: object) -> None:
        inside.set()
        waited.append(go_on.wait(10))

    async def run() -> None:
        metrics = Metrics(make_control())
        metrics.open(configure(textfile=f"{tmp_path}/x.prom"), [])
        await asyncio.to_thread(inside.wait, 10)
        metrics.close()

    mocker.patch.object(TextFile, "write", hang)
    asyncio.run(run())
    is_over = list(waited)
    go_on.set()

    assert is_over == []
