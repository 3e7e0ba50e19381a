"""Commands that fix problems, in the namespace that is watched, so that they last over a reboot.

Each is what root can paste; conntrackctl puts sudo before it for others.
"""

import shlex
from typing import Final

from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.netlink import tracking
from conntrackd.resources import is_kernel
from conntrackd.source import hearing

ROOM: Final = 131_072
OWN_RULE: Final = "a firewall rule with 'ct state'"
# The kernel has this one for the whole machine, and shows it in the other namespaces.
MACHINE_WIDE: Final = frozenset({"nf_conntrack_max"})
# Settings of a module that is not loaded yet cannot be set at boot (systemd-sysctl.service(8)).
LOAD: Final = "echo nf_conntrack > /etc/modules-load.d/conntrackd.conf"


def advise_conntrack(name: str, value: int, config: Config) -> str:
    """A sysctl of net.netfilter, where it counts."""
    namespace, setting = config[options.CONNTRACK_NETNS], f"net.netfilter.{name}={value}"
    if namespace is None or name in MACHINE_WIDE:
        return f"{LOAD}; {_keep(name.removeprefix('nf_conntrack_'), setting)}"
    # A namespace is made anew after each boot, and so are its settings, by whatever makes it.
    return f"{_enter(namespace)} sysctl -w {setting}  # and where the namespace is made"


def advise_core(name: str, value: int) -> str:
    """A sysctl of net.core that the machine has once."""
    return _keep(name, f"net.core.{name}={value}")


def advise_room(config: Config) -> str:
    """Room for the filter's program: what newer kernels have. That of Linux 6.1 is for 2,000 instructions."""
    namespace = config[options.CONNTRACK_NETNS]
    if namespace is None or not is_kernel(6, 7):
        return advise_core("optmem_max", ROOM)
    return f"{_enter(namespace)} sysctl -w net.core.optmem_max={ROOM}  # and where the namespace is made"


def _keep(short: str, setting: str) -> str:
    path = f"/etc/sysctl.d/60-conntrackd-{short}.conf"
    return f"echo {setting} > {path}; sysctl -p {path}"


def _enter(namespace: str) -> str:
    if "/" in namespace:
        return f"nsenter --net={shlex.quote(namespace)}"
    return f"ip netns exec {shlex.quote(namespace)}"


def advise_tracking(config: Config, *, is_active: bool = False) -> str:
    """What has connections tracked. `is_active`: conntrack.activate is in force."""
    if is_active:
        return "conntrackctl reload"
    if not config.paths:
        return f"'conntrackd run --conntrack.activate', or {OWN_RULE}"
    setting = "conntrack: {activate: true}"
    return f"{setting} in {config.paths[-1]}, then conntrackctl reload; or {OWN_RULE}"


def advise_fault(fault: str, config: Config, *, is_active: bool = False) -> str:
    """The fix for a fault of hearing.py."""
    match fault:
        case tracking.NOT_TRACKED:
            return advise_tracking(config, is_active=is_active)
        case hearing.EVENTS_OFF:
            return advise_conntrack("nf_conntrack_events", 1, config)
        case hearing.OTHER_NAMESPACE:
            return "systemctl restart conntrackd" if config.paths else "restart it"
    return "sysctl net.netfilter.nf_conntrack_max is the limit: raise it, for example to twice its value"
