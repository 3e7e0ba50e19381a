#!/bin/bash
# `make test-system`: build the package, boot a Debian with systemd, install it, use it, purge it. Needs root.
# The base of the container is kept in $CACHE, outside the checkout.
set -euo pipefail

SUITE=${1:-bookworm}
CACHE=${CACHE:-/var/cache/conntrackd-test}
TOP=$(cd "$(dirname "$0")/../.." && pwd)
WORK=$(mktemp -d)
BASE=$CACHE/$SUITE-base
BUILD="build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-hypothesis python3-pytest
	python3-pytest-mock python3-setuptools"
RUN="dbus iproute2 nftables python3-dbus-fast python3-maxminddb python3-ply python3-pyroute2 python3-rich
	python3-urllib3 python3-yaml systemd systemd-sysv"
# The interpreter and tools of the distribution, whatever else is in front of them.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "test-system: $*" >&2; }

fail() {
	say "FAILED: $*"
	exit 1
}

stop() {
	[ -z "${NSPAWN:-}" ] || kill "$NSPAWN" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$WORK"
}
trap stop EXIT

inside() { nsenter -t "$LEADER" -m -u -i -n -p -- "$@"; }

expect() { # what is to be found, command
	local wanted=$1
	shift
	local got
	got=$("$@" 2>&1) || true
	case $got in
	*"$wanted"*) say "ok: $* -> $wanted" ;;
	*) fail "$*: no '$wanted' in: $got" ;;
	esac
}

if [ ! -d "$BASE" ]; then
	say "making the base of $SUITE in $BASE"
	mkdir -p "$CACHE"
	rm -rf "$BASE.new"
	# shellcheck disable=SC2086 # lists of words
	debootstrap --variant=minbase --include="$(echo $BUILD $RUN | tr ' ' ,)" "$SUITE" "$BASE.new" >"$WORK/log" ||
		fail "debootstrap: $(tail -3 "$WORK/log")"
	mv "$BASE.new" "$BASE"
fi

say "building the package in $SUITE"
cp -a --reflink=auto "$BASE" "$WORK/root"
mkdir -p "$WORK/root/build/conntrackd"
git -C "$TOP" ls-files -z | tar -C "$TOP" --null -T - -cf - | tar -C "$WORK/root/build/conntrackd" -xf -
chroot "$WORK/root" sh -c 'mount -t proc proc /proc && cd /build/conntrackd && dpkg-buildpackage -us -uc -b' \
	>"$WORK/log" 2>&1 || fail "dpkg-buildpackage: $(tail -30 "$WORK/log")"
umount "$WORK/root/proc" 2>/dev/null || true

say "booting"
: >"$WORK/root/etc/machine-id"
find "$WORK/root" -xdev -not -path '*/build/*' -printf '%P\n' | sort >"$WORK/before"
systemd-nspawn -q -D "$WORK/root" --private-network --register=no --keep-unit -b >"$WORK/boot" 2>&1 &
NSPAWN=$!
for _ in $(seq 100); do
	LEADER=$(pgrep -P "$NSPAWN" | head -1) || true
	[ -n "${LEADER:-}" ] && [ -S "/proc/$LEADER/root/run/dbus/system_bus_socket" ] && break
	read -rt 0.2 <> <(:) || true
done
[ -S "/proc/$LEADER/root/run/dbus/system_bus_socket" ] || fail "no boot: $(tail -5 "$WORK/boot")"

say "installing"
inside sh -c 'dpkg -i /build/conntrackd_*.deb' >"$WORK/log" 2>&1 || fail "dpkg: $(tail -5 "$WORK/log")"
inside ip link set lo up
inside systemctl enable --now conntrackd 2>/dev/null || fail "start: $(inside journalctl -u conntrackd -o cat)"
expect active inside systemctl is-active conntrackd
expect "not tracked" inside conntrackctl status
inside sh -c 'printf "table inet fw {\n chain c {\n ct state new accept\n }\n}\n" | nft -f -'

say "logging"
inside python3 -c '
import socket
server = socket.create_server(("127.0.0.1", 8080))
client = socket.create_connection(("127.0.0.1", 8080))
server.accept()[0].close()
client.close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))'
for _ in $(seq 50); do
	[ "$(inside journalctl -o cat SYSLOG_IDENTIFIER=conntrackd EVENT_TYPE=NEW | wc -l)" = 2 ] && break
	read -rt 0.2 <> <(:) || true
done
expect '"EVENT_DPORT":"8080"' inside journalctl -o json SYSLOG_IDENTIFIER=conntrackd EVENT_PROT=TCP
expect '"EVENT_PROT":"UDP"' inside journalctl -o json SYSLOG_IDENTIFIER=conntrackd EVENT_DPORT=9
expect healthy inside conntrackctl status
expect "events_lost_total" inside conntrackctl stats

say "controlling"
expect "rules in force" inside conntrackctl reload-filter
inside systemctl reload conntrackd || fail "systemctl reload"
inside sh -c 'mkdir -p /etc/conntrackd/conntrackd.d && echo "filter: [drop protocol TPC]" >/etc/conntrackd/conntrackd.d/x.yaml'
expect "did you mean TCP?" inside conntrackctl reload-filter
inside systemctl reload conntrackd 2>/dev/null && fail "a bad configuration was reloaded"
inside rm -r /etc/conntrackd/conntrackd.d
expect "is disabled" inside conntrackctl sink disable journal
expect "is enabled" inside conntrackctl sink enable journal
inside useradd joe
expect "you may not talk to conntrackd" inside su joe -c 'conntrackctl status'
expect "Overall exposure level for conntrackd.service: 1." inside systemd-analyze security conntrackd --no-pager

say "surviving"
inside systemctl kill -s KILL conntrackd
for _ in $(seq 50); do
	inside systemctl -q is-active conntrackd && break
	read -rt 0.2 <> <(:) || true
done
expect "took over the socket of the last process" inside journalctl -u conntrackd -o cat

say "purging"
inside dpkg --purge conntrackd >/dev/null 2>&1 || fail "purge"
LEFT=$(inside find / -xdev -iname '*conntrackd*' -not -path '/build/*' -not -path '/var/tmp/*' -not -path '/var/log/*')
[ -z "$LEFT" ] || fail "left behind: $LEFT"
say "$SUITE: everything holds"
