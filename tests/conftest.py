"""What holds for every test: who may run the privileged ones, and that none leaves anything behind."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# No test has a timer: where two packages are built at once an example takes a second that takes 2 ms alone.
settings.register_profile("conntrackd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("conntrackd")

# include/uapi/linux/capability.h; a container's root has its uid without these
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_SYS_ADMIN: Final = 21
NEEDED: Final = 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW | 1 << CAP_SYS_ADMIN

REASON: Final = "needs root (CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN)"
SETTLE_SECONDS: Final = 5.0  # how long a thread may take to come to its end after the test's


def may_run_privileged() -> bool:
    """Whether this process holds what namespaces and netlink groups need."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & NEEDED == NEEDED
    return False


class Privileged:
    """Leaves privileged tests out where they cannot run, says so, and in CI fails the run for it."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if may_run_privileged():
            return
        for item in items:
            if item.get_closest_marker("privileged"):
                item.add_marker(pytest.mark.skip(reason=REASON))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and "privileged" in report.keywords and not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append(text.removeprefix("Skipped: "))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and os.environ.get("CI") and session.exitstatus in {0, 5}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        if not self.skipped:
            return
        reasons = ", ".join(sorted(set(self.skipped)))
        text = f"{len(self.skipped)} privileged tests left out ({reasons}); to run them: sudo make test"
        if os.environ.get("CI"):
            text = f"FAILED, because CI leaves nothing out: {text}"
        terminalreporter.write_line(text, red=True, bold=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=["core", "plain"],
        help="what daemons of the tests run on: the core in C, or the reference in plain Python",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The background of a script (nohup) ignores these, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    engine = config.getoption("--engine")
    if engine is not None:  # see load_engine(); children have it from here
        os.environ["CONNTRACKD_ENGINE"] = engine
    config.pluginmanager.register(Privileged(), "conntrackd-privileged")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of an `engine` is one of each: of the core in C, and of the reference in plain Python."""
    if "engine" in metafunc.fixturenames:
        from tests.engine.feed import ENGINES  # noqa: PLC0415  # not for who tests something else

        metafunc.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


def list_descriptors() -> set[tuple[int, str]]:
    """Open file descriptors with what they lead to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the one that listdir itself had open
            continue
    return found


def list_children() -> set[int]:
    """Process ids of this process's children, zombies included."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found.update(int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text().split())
        except FileNotFoundError:  # a thread that has just ended, or a kernel without CONFIG_PROC_CHILDREN
            continue
    return found


def list_namespaces() -> set[str]:
    """Named network namespaces that this process made: their names carry its id."""
    try:
        return {name for name in os.listdir("/run/netns") if f"-{os.getpid()}-" in name}
    except FileNotFoundError:
        return set()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a thread, a child process, a descriptor or a named namespace behind.

    What wider fixtures own was there before the test and is not its fault.
    """
    threads = set(threading.enumerate())
    descriptors, children, namespaces = list_descriptors(), list_children(), list_namespaces()
    yield
    left: list[str] = []
    for thread in set(threading.enumerate()) - threads:
        thread.join(SETTLE_SECONDS)
        if thread.is_alive():
            left.append(f"thread {thread.name}")
    if list_descriptors() - descriptors:
        gc.collect()  # what only a reference cycle holds is garbage, not a leak
    left += [
        f"descriptor {number} -> {target}" for number, target in sorted(list_descriptors() - descriptors)
    ]
    left += [f"child process {pid}" for pid in sorted(list_children() - children)]
    left += [f"namespace {name}" for name in sorted(list_namespaces() - namespaces)]
    if left:
        pytest.fail("left behind: " + ", ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def local_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """That of the module, where it has a ZONE."""
    zone: str | None = getattr(request.module, "ZONE", None)
    if zone is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield
    time.tzset()
