"""The unit's sandbox, seen from inside: what must be refused is refused, what the daemon needs works.

Runs with the settings of conntrackd.service and the standard library alone:

    sed -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 -I /PATH/probe.py|' -e 's/^Type=notify/Type=oneshot/' \
        -e '/^Restart/d; /^WatchdogSec/d; /^ExecReload/d; /^Alias/d; /^FileDescriptorStore/d' \
        /lib/systemd/system/conntrackd.service >/run/systemd/system/conntrackd-probe.service
    systemctl daemon-reload && systemctl start conntrackd-probe     fails where a row does not hold
    journalctl -u conntrackd-probe -o cat                           one line for each row

`--without NAME` leaves out a row. Where systemd passes a socket, there is one row more: somebody is served by
it. Each attempt is harmless where it succeeds: a call that the sandbox lets through fails on its arguments,
with another error than a refusal.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

# What is hidden is refused too.
REFUSALS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EAFNOSUPPORT, errno.ENOSYS, errno.ENOENT}
CAP_NET_ADMIN = 1 << 12
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
SO_RCVBUFFORCE = 33
CLONE_NEWUSER = 0x10000000
LISTEN_FDS_START = 3
# asm/unistd_64.h; asm-generic/unistd.h
NUMBERS = {
    "x86_64": {"init_module": 175, "bpf": 321, "io_uring_setup": 425, "add_key": 248, "kexec_load": 246},
    "aarch64": {"init_module": 105, "bpf": 280, "io_uring_setup": 425, "add_key": 217, "kexec_load": 104},
}

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A function of libc, or a system call by its number. Raises OSError."""
    number = NUMBERS.get(os.uname().machine, {}).get(name)
    result = libc.syscall(number, *arguments) if number else getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def in_child(attempt: Callable[[], object]) -> None:
    """The attempt in a process of its own, whose error is raised here."""
    child = os.fork()
    if not child:
        code = 0
        try:
            attempt()
        except OSError as error:
            code = error.errno or 255
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def make_file(path: Path) -> None:
    path.write_bytes(b"")
    path.unlink()


def open_socket(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def bind_port(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))


def listen_unbound() -> None:
    """The kernel would choose a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.listen()


def map_code() -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mmap.mmap(-1, 4096, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def run_own_file(folder: Path) -> None:
    """A program that was written where something can be written."""
    path = folder / "probe"
    path.write_bytes(Path("/usr/bin/true").read_bytes())
    path.chmod(0o700)
    try:
        in_child(lambda: os.execv(path, ["probe"]))
    finally:
        path.unlink()


def change_file(change: Callable[[Path], object]) -> None:
    """Of a file of its own in the state directory."""
    path = state_directory() / "probe"
    path.write_bytes(b"")
    try:
        change(path)
    finally:
        path.unlink()


def set_clock() -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


def set_scheduler() -> None:
    in_child(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))


def state_directory() -> Path:
    return Path(os.environ.get("STATE_DIRECTORY", "/var/lib/conntrackd"))


def runtime_directory() -> Path:
    return Path(os.environ.get("RUNTIME_DIRECTORY", "/run/conntrackd"))


MUST_FAIL: dict[str, Callable[[], object]] = {
    "packet": lambda: open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "raw": lambda: open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "vsock": lambda: open_socket(socket.AF_VSOCK, socket.SOCK_STREAM),
    "bind-tcp": lambda: bind_port(socket.SOCK_STREAM),
    "bind-udp": lambda: bind_port(socket.SOCK_DGRAM),
    "listen": listen_unbound,
    "write-etc": lambda: make_file(Path("/etc/probe")),
    "write-usr": lambda: make_file(Path("/usr/probe")),
    "write-configuration": lambda: make_file(Path("/etc/conntrackd/probe")),
    "write-sysctl": lambda: os.open("/proc/sys/kernel/hostname", os.O_WRONLY),
    "write-cgroup": lambda: os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY),
    "mount": lambda: call("mount", b"none", b"/tmp", b"nothing", 0, None),
    "ptrace": lambda: in_child(lambda: call("ptrace", 0, 0, None, None)),
    "module": lambda: call("init_module", None, 0, None),
    "kexec": lambda: call("kexec_load", 0, 0, None, 1 << 30),
    "bpf": lambda: call("bpf", 9999, None, 0),
    "io_uring": lambda: call("io_uring_setup", 0, None),
    "keyring": lambda: call("add_key", None, None, None, 0, 0),
    "namespace": lambda: in_child(lambda: call("unshare", CLONE_NEWUSER)),
    "chroot": lambda: in_child(lambda: os.chroot("/")),
    "setuid": lambda: in_child(lambda: call("setuid", 0)),
    "chown": lambda: change_file(lambda path: os.chown(path, os.getuid(), os.getgid())),
    "setuid-bit": lambda: change_file(lambda path: path.chmod(0o4755)),
    "clock": set_clock,
    "hostname": lambda: call("sethostname", socket.gethostname().encode(), len(socket.gethostname())),
    "realtime": set_scheduler,
    "personality": lambda: in_child(lambda: call("personality", 0x0400000)),
    "write-execute": map_code,
    "exec-shell": lambda: in_child(lambda: os.execv("/bin/sh", ["sh", "-c", ":"])),
    "exec-state": lambda: run_own_file(state_directory()),
    "exec-runtime": lambda: run_own_file(runtime_directory()),
    "exec-tmp": lambda: run_own_file(Path("/tmp")),
    "exec-var-tmp": lambda: run_own_file(Path("/var/tmp")),
    "exec-shm": lambda: run_own_file(Path("/dev/shm")),
    "read-home": lambda: os.listdir("/home"),
    "read-root": lambda: os.listdir("/root"),
    "signal": lambda: os.kill(1, 0),
    "kernel-log": lambda: os.open("/dev/kmsg", os.O_RDONLY),
}


def join_groups() -> None:
    """The daemon's work: conntrack's three groups, and a buffer above the machine's limit."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.connect((0, 0))
        for group in (1, 2, 3):
            netlink.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        netlink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        size = netlink.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    if size < 128 << 20:
        raise OSError(errno.ENOBUFS, f"a buffer of {size} bytes")


def connect() -> None:
    """A refusal by nobody's port is an answer: the connection was tried."""
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 1), 5).close()


def look_up() -> None:
    """glibc asks over netlink which families there are, and would bind that socket."""
    socket.getaddrinfo("127.0.0.1", 80, flags=socket.AI_ADDRCONFIG)


def connect_unix(path: str, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(path)


def keep_state() -> None:
    """A spool: a file that is written through, cut, and kept under another name."""
    path = state_directory() / "probe.spool"
    other = path.with_suffix(".damaged-1")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(file, b"row", 0)
    os.fdatasync(file)
    os.ftruncate(file, 0)
    os.close(file)
    os.link(path, other)
    path.unlink()
    other.unlink()


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def read_status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def have_one_capability() -> None:
    status = read_status()
    for name in ("CapPrm", "CapEff", "CapBnd"):
        if int(status[name], 16) != CAP_NET_ADMIN:
            raise OSError(errno.EPERM, f"{name} is {status[name]}")


def gain_nothing() -> None:
    status = read_status()
    if (status["NoNewPrivs"], status["Seccomp"]) != ("1", "2"):
        raise OSError(errno.EPERM, f"NoNewPrivs {status['NoNewPrivs']}, Seccomp {status['Seccomp']}")


def expect_read_only() -> None:
    for path in ("/", "/etc", "/usr", "/var", "/etc/conntrackd"):
        if not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EPERM, f"{path} is not read-only")


def see_only_own_processes() -> None:
    others = [
        name
        for name in os.listdir("/proc")
        if name.isdecimal() and os.stat(f"/proc/{name}").st_uid != os.getuid()
    ]
    if others:
        raise OSError(errno.EPERM, f"process {others[0]} of another user is seen")


MUST_WORK: dict[str, Callable[[], object]] = {
    "netlink": join_groups,
    "tcp": connect,
    "resolver": look_up,
    "udp": lambda: open_socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "bus": lambda: connect_unix("/run/dbus/system_bus_socket", socket.SOCK_STREAM),
    "journal": lambda: connect_unix("/run/systemd/journal/socket", socket.SOCK_DGRAM),
    "state": keep_state,
    "runtime": lambda: make_file(runtime_directory() / "probe"),
    "configuration": lambda: os.listdir("/etc/conntrackd"),
    "names": lambda: Path("/etc/passwd").read_text(),
    "thread": start_thread,
    "one-capability": have_one_capability,
    "no-new-privileges": gain_nothing,
    "read-only": expect_read_only,
    "own-processes": see_only_own_processes,
}


def serve_passed() -> None:
    """Metrics, by the socket that systemd has bound."""
    with (
        socket.socket(fileno=LISTEN_FDS_START) as listener,
        socket.create_connection(listener.getsockname(), 5),
    ):
        listener.accept()[0].close()


if os.environ.get("LISTEN_PID") == str(os.getpid()):
    MUST_WORK["passed-socket"] = serve_passed


def try_row(attempt: Callable[[], object], wanted: bool) -> tuple[bool, str]:
    """Whether it went as it must, and how it went."""
    try:
        attempt()
    except OSError as error:
        reported = f"{errno.errorcode.get(error.errno or 0, '?')}: {error.strerror}"
        return not wanted and error.errno in REFUSALS, reported
    return wanted, "works"


def main(words: list[str]) -> int:
    """Exit status 1 when a row does not hold."""
    left_out = {after for word, after in pairwise(words) if word == "--without"}
    unknown = left_out - MUST_FAIL.keys() - MUST_WORK.keys()
    if unknown:
        print(f"probe: no row {min(unknown)}", file=sys.stderr)
        return 64
    failed = 0
    for rows, wanted in ((MUST_FAIL, False), (MUST_WORK, True)):
        for name, attempt in rows.items():
            if name in left_out:
                continue
            good, reported = try_row(attempt, wanted)
            failed += not good
            verdict = "ok" if good else "MUST WORK" if wanted else "MUST FAIL"
            print(f"probe: {verdict}: {name}: {reported}", flush=True)
    print(f"probe: {failed} rows do not hold" if failed else "probe: everything holds", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
