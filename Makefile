# Two commands do everything on a fresh Debian machine, as root or with sudo: `make run` and `make test`.

VENV := .venv
PYTHON := $(VENV)/bin/python
# The distribution's own, which the packages run with, also where another one comes first in the PATH.
BASE_PYTHON = $$(/usr/bin/python3 -c 'import ensurepip' 2>/dev/null && echo /usr/bin/python3 || echo python3)
# What only `make fuzz` and `make audit` need.
FUZZ := .venv-fuzz
ROOT := $(shell [ "$$(id -u)" = 0 ] && echo yes)
# Root needs no sudo; an ordinary user has what is installed already, or uses sudo where there is one.
SUDO := $(if $(ROOT),,$(shell command -v sudo))
# What a minimal Debian lacks: to build the benchmark, to run the privileged tests.
PACKAGES := clang conntrack dbus dpkg-dev fish gcc iproute2 libc6-dev libclang-rt-dev mandoc nftables openssl polkitd \
	procps python3-dbusmock python3-dev python3-venv rpm rsyslog systemd util-linux zsh

# Those of Debian 12 and 13; the virtual environment has the newest.
DBUS_FAST := 1.84.0 2.44.0

.PHONY: run test test-dbus-fast test-faults report mutations test-system lint bench fuzz audit system clean

run: $(VENV)/ready
	@echo 'conntrackd: for something to look at, in another terminal:  bash -c "echo hello > /dev/udp/127.0.0.1/9"' >&2
	@exec $(SUDO) $(PYTHON) -m conntrackd run --conntrack.activate --sink.stream.enable

test: $(VENV)/ready $(VENV)/syslog-ng lint
	$(PYTHON) -m pytest

# The D-Bus interface with the versions of dbus-fast that Debian has.
test-dbus-fast: $(VENV)/ready
	@for version in $(DBUS_FAST); do \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target build/dbus-fast-$$version dbus-fast==$$version && echo "dbus-fast $$version" && \
		PYTHONPATH=$(CURDIR)/build/dbus-fast-$$version $(PYTHON) -m pytest \
			tests/bus tests/live/test_bus.py tests/live/test_control.py || exit 1; \
	done

# The faults that take minutes, which `make test` leaves out; both write their figures into build/faults.json.
# SOAK_SECONDS=600 for a longer soak, SOAK_SEED=N for the faults of an earlier one.
test-faults: $(VENV)/ready
	$(PYTHON) -m pytest -m slow -o faulthandler_timeout=1200 tests/faults

# The figures of the last `make test` and `make test-faults` as the README's table.
report: $(VENV)/ready
	$(PYTHON) -m tests.faults.figures

# Takes protections out, one at a time, in a copy of the tree: the test that is about each must fail.
mutations: $(VENV)/ready
	$(PYTHON) -m tests.faults.mutations

# Debian lets one syslog server be installed: the tests' second one is unpacked beside it, with the libraries that
# the system does not have.
$(VENV)/syslog-ng: | $(VENV)/ready
	@rm -rf $@.new && mkdir -p $@.new/partial && apt-get install -qq -y --no-install-recommends --download-only \
		-o Debug::NoLocking=1 -o Dir::Cache::archives=$(CURDIR)/$@.new syslog-ng-core >&2 && cd $@.new && \
		for each in *.deb; do dpkg -x $$each . || exit; rm $$each; done && mv ../$(@F).new ../$(@F) || \
		{ echo "make: syslog-ng cannot be fetched: its tests are left out" >&2 && test -z "$(CI)"; }

# Booted Debians 12 and 13: builds the package, installs, uses, upgrades and purges it. Needs root, and the network
# the first time; keeps what it fetched in /var/cache/conntrackd-test. SUITES=bookworm for one of them.
test-system: $(VENV)/ready
	@dpkg -s debootstrap systemd-container >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		debootstrap systemd-container >&2; }
	$(SUDO) env CI=true $(if $(SUITES),SUITES="$(SUITES)") $(PYTHON) -m pytest -m "" tests/system

lint: $(VENV)/ready
	$(PYTHON) -m ruff check conntrackd tests bench fuzz
	$(PYTHON) -m ruff format --check conntrackd tests bench fuzz
	$(PYTHON) -m mypy

bench: $(VENV)/ready
	$(PYTHON) -m bench

# Each target for FUZZ_SECONDS (60): FUZZ_SECONDS=600 make fuzz TARGETS=decoder. Without TARGETS the core too.
fuzz: $(FUZZ)/ready
	$(FUZZ)/bin/python -m fuzz $(TARGETS)
	$(if $(TARGETS),,$(FUZZ)/bin/python -m fuzz.native)

# Asks the network for known weaknesses of what the tests ran with; fails where it cannot ask about all of it.
audit: $(VENV)/ready $(FUZZ)/ready
	$(PYTHON) -m pip freeze --exclude-editable >$(FUZZ)/audited
	$(FUZZ)/bin/python -m pip_audit --strict --no-deps --disable-pip --requirement $(FUZZ)/audited

system:
	@missing=$$(dpkg-query -W -f '$${db:Status-Abbrev} $${Package}\n' $(PACKAGES) 2>/dev/null | grep -c '^ii'); \
	if [ "$$missing" = "$(words $(PACKAGES))" ]; then exit 0; fi; \
	if [ -z "$(ROOT)$(SUDO)" ]; then echo "make: as an ordinary user without sudo: using what is installed" >&2; exit 0; fi; \
	echo "make: installing: $(PACKAGES)" >&2; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >&2

$(FUZZ)/ready: pyproject.toml | system
	python3 -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	touch $@

$(VENV)/ready: pyproject.toml | system
	$(BASE_PYTHON) -m venv --clear $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(FUZZ) build dist bench/build fuzz/build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
