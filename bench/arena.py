"""Where it happens: compiled C programs, a network namespace of our own, two tun devices and forwarding."""

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
BUILD: Final = HERE / "build"
CORE: Final = HERE.parent / "conntrackd" / "core"
# include/uapi/linux/sched.h; os.unshare comes with Python 3.12
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000
FROM_TUN: Final = "bench0"
TO_TUN: Final = "bench1"
EVENTS_A_FLOW: Final = 5.5  # the generator's TCP has eight, its UDP three

SYSCTLS: Final = {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    f"net/ipv4/conf/{FROM_TUN}/rp_filter": 0,
    # The generator uses its tuples again after so many seconds.
    "net/netfilter/nf_conntrack_udp_timeout": 1,
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": 1,
    # As systemd sets it at boot (src/core/main.c). With the kernel's own 10 whoever writes to journald's
    # socket waits after some ten datagrams.
    "net/unix/max_dgram_qlen": 512,
}

# Nothing is tracked in a namespace until a rule asks for the state.
RULES: Final = """
table inet bench {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state new accept
    }
    chain own {
        type filter hook output priority raw; policy accept;
        oifname "lo" notrack comment "what the sinks send to their receivers is not part of the load"
    }
    chain own_in {
        type filter hook prerouting priority raw; policy accept;
        iifname "lo" notrack
    }
}
"""

# As a gateway translates, but each client to an address of its own, which the generator can know.
NAT: Final = f"""
table ip bench_nat {{
    chain leave {{
        type nat hook postrouting priority srcnat;
        oifname "{TO_TUN}" snat ip prefix to ip saddr map {{ 10.1.0.0/16 : 198.18.0.0/16 }}
    }}
}}
table ip6 bench_nat {{
    chain leave {{
        type nat hook postrouting priority srcnat;
        oifname "{TO_TUN}" snat ip6 prefix to ip6 saddr map {{ fd00:1::/64 : 2001:db8:ffff::/64 }}
    }}
}}
"""
NO_NAT: Final = "delete table ip bench_nat\ndelete table ip6 bench_nat"
COUNTERS: Final = "nf_conntrack_acct"
TIMES: Final = "nf_conntrack_timestamp"


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


def compile_program(name: str, *more: Path) -> Path:
    """Compile bench/NAME.c and more sources unless build/NAME is newer than they and the headers."""
    source, program = HERE / f"{name}.c", BUILD / name
    newest = max(path.stat().st_mtime for path in (source, *more, *HERE.glob("*.h"), *CORE.glob("*.h")))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    BUILD.mkdir(exist_ok=True)
    flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE=", f"-I{CORE}")
    run_tool("gcc", *flags, "-o", str(program), str(source), *map(str, more))
    return program


def run_tool(*argv: str, text: str | None = None) -> str:
    """Run a program of the system, give its output; BenchError with what it said when it fails."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is missing; install it (make system)") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(argv)}: {error.stderr.strip()}") from None
    return done.stdout


def enter_namespaces() -> None:
    """Move this process into a network of its own, that forwards packets, and give it a /run of its own.

    Both go with the last process in them, however it ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise BenchError(f"no namespace: {os.strerror(ctypes.get_errno())}")
    run_tool("mount", "--make-rprivate", "/")
    run_tool("mount", "-t", "tmpfs", "tmpfs", "/run")
    run_tool("ip", "link", "set", "lo", "up")
    for name in (FROM_TUN, TO_TUN):
        run_tool("ip", "tuntap", "add", name, "mode", "tun")
        run_tool("ip", "link", "set", name, "up", "txqueuelen", "2")
    run_tool("ip", "addr", "add", "10.255.0.1/30", "dev", FROM_TUN)
    run_tool("ip", "route", "add", "default", "dev", TO_TUN)
    run_tool("ip", "-6", "route", "add", "default", "dev", TO_TUN)
    run_tool("nft", "-f", "-", text=RULES)
    for key, value in SYSCTLS.items():
        Path("/proc/sys", key).write_text(str(value))


@contextmanager
def turn_on(*sysctls: str) -> Iterator[None]:
    """What conntrack can do and does not do by default, for a while."""
    paths = [Path("/proc/sys/net/netfilter", name) for name in sysctls]
    try:
        for path in paths:
            path.write_text("1")
        yield
    finally:
        for path in paths:
            path.write_text("0")


@contextmanager
def be_gateway(wanted: bool) -> Iterator[None]:
    """Where it is wanted, flows are translated, counted and timed."""
    if not wanted:
        yield
        return
    run_tool("nft", "-f", "-", text=NAT)
    try:
        with turn_on(COUNTERS, TIMES):
            yield
    finally:
        run_tool("nft", "-f", "-", text=NO_NAT)


def count_flows() -> int:
    """The entries of this namespace's conntrack table."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator shall send; rate is in events a second, 0 for full speed.

    `is_translated`: in be_gateway(), whose events they are.
    """

    flows: int = 200_000
    rate: int = 0
    is_translated: bool = False

    def at(self, rate: int, seconds: float) -> "Load":
        """The same at another rate, for not much longer than so many seconds."""
        if not rate:
            return self
        return replace(self, rate=rate, flows=min(self.flows, int(rate * seconds / EVENTS_A_FLOW)))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the kernel must have emitted for it, counted by the generator."""

    flows: int
    packets: int
    events: int
    new: int
    update: int
    destroy: int
    rate: float

    def count(self, groups: int) -> int:
        """The events of a set of groups: a sum of 1 NEW, 2 UPDATE, 4 DESTROY."""
        return sum(
            number for bit, number in ((1, self.new), (2, self.update), (4, self.destroy)) if groups & bit
        )


def start_generator(load: Load, core: int) -> subprocess.Popen[str]:
    """Begin to send on one core."""
    argv = [str(BUILD / "generator"), "-f", str(load.flows), "-r", str(load.rate), FROM_TUN, TO_TUN]
    if load.is_translated:
        argv.insert(1, "-n")
    return subprocess.Popen(["taskset", "-c", str(core), *argv], stdout=subprocess.PIPE, text=True)


def finish_generator(process: subprocess.Popen[str]) -> Traffic:
    """Wait until all is sent and every flow is destroyed."""
    try:
        output, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        raise BenchError("the generator failed")
    if left := count_flows():
        raise BenchError(f"{left} flows are left in the table: the number of events is not known")
    return Traffic(**json.loads(output))
