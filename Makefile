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
# What a minimal Debian lacks to build the core and to run it, and nothing else: this is a new user's machine.
RUN_PACKAGES := gcc libc6-dev libpython3-dev python3-venv
# And what the tests, the linters and the benchmark need.
TEST_PACKAGES := $(RUN_PACKAGES) clang conntrack cpio cppcheck dbus debugedit dpkg-dev elfutils file fish \
	iproute2 libclang-rt-dev mandoc nftables openssl polkitd procps python3-dbusmock rpm rsyslog systemd util-linux zsh
# What boots a Debian, and looks at a page.
SYSTEM_PACKAGES := chromium chromium-driver debootstrap systemd-container
# Builds the core, in the virtual environment too: pip would fetch another one for each build.
SETUPTOOLS := setuptools==80.9.0
CORE_SOURCES := setup.py $(wildcard conntrackd/core/*.[ch])
CORE := conntrackd/core/_core.abi3.so
C_FILES = $(wildcard conntrackd/core/*.[ch] bench/*.c fuzz/*.[ch] tests/core/*.c tests/faults/*.c)

# Those of Debian 12 and 13; the virtual environment has the newest.
DBUS_FAST := 1.84.0 2.44.0
PROMETHEUS_CLIENT := 0.16.0 0.21.1

SYSTEMS := test-bookworm test-trixie

.PHONY: run test test-dbus-fast test-prometheus-client test-faults report mutations test-system $(SYSTEMS) lint dist bench fuzz audit clean \
	run-packages test-packages system-packages

# What needs no privileges keeps a processor busy. A file stays in one process: its fixtures are made once. One of them
# builds a package, which takes minutes where others work beside it.
PARALLEL := --numprocesses auto --dist loadfile -o faulthandler_timeout=900

run: $(VENV)/run $(CORE)
	@echo 'conntrackd: for something to look at, in another terminal:  bash -c "echo hello > /dev/udp/127.0.0.1/9"' >&2
	@exec $(SUDO) $(PYTHON) -m conntrackd run --conntrack.activate --sink.stream.enable

test: $(VENV)/ready $(CORE) $(VENV)/syslog-ng $(VENV)/prometheus $(VENV)/logql lint
	$(PYTHON) -m pytest $(PARALLEL) -m 'not slow and not privileged'
	$(PYTHON) -m pytest -m 'not slow and privileged'
	$(PYTHON) -m pytest --engine plain tests/live/test_daemon.py tests/live/test_resync.py

# The D-Bus interface with the versions of dbus-fast that Debian has.
test-dbus-fast: $(VENV)/ready $(CORE)
	@for version in $(DBUS_FAST); do \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target build/dbus-fast-$$version dbus-fast==$$version && echo "dbus-fast $$version" && \
		PYTHONPATH=$(CURDIR)/build/dbus-fast-$$version $(PYTHON) -m pytest \
			tests/bus tests/cli/test_ctl.py tests/live/test_bus.py tests/live/test_control.py || exit 1; \
	done

# The metrics with the versions of prometheus_client that Debian has.
test-prometheus-client: $(VENV)/ready $(CORE)
	@for version in $(PROMETHEUS_CLIENT); do \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target build/prometheus-client-$$version prometheus-client==$$version && echo "prometheus_client $$version" && \
		PYTHONPATH=$(CURDIR)/build/prometheus-client-$$version $(PYTHON) -m pytest tests/metrics || exit 1; \
	done

# The faults that take minutes, which `make test` leaves out; both write their figures into build/faults.json.
# SOAK_SECONDS=600 for a longer soak, SOAK_SEED=N for the faults of an earlier one.
test-faults: $(VENV)/ready $(CORE)
	$(PYTHON) -m pytest -m slow -o faulthandler_timeout=1200 tests/faults

# The figures of the last `make test` and `make test-faults` as the table of docs/FAULTS.md.
report: $(VENV)/ready
	$(PYTHON) -m tests.faults.figures

# Takes protections out, one at a time, in a copy of the tree: the test that is about each must fail.
mutations: $(VENV)/ready $(CORE)
	$(PYTHON) -m tests.faults.mutations

# Servers that the tests run and nobody wants installed, unpacked with the libraries that the system does not have:
# Debian lets one syslog server be installed, and would start Prometheus.
$(VENV)/syslog-ng: | $(VENV)/ready
	$(call unpack,syslog-ng-core)

$(VENV)/prometheus: | $(VENV)/ready
	$(call unpack,prometheus)

# The parser that Grafana has for LogQL, at the versions of package-lock.json; a second. npm is there or is not:
# Debian's own brings hundreds of packages.
$(VENV)/logql: $(wildcard tests/metrics/logql/*) | $(VENV)/ready
	@command -v npm >/dev/null || { echo "make: no npm: nobody parses the LogQL of the dashboards" >&2; exit 0; }; \
	rm -rf $@ $@.new && cp -r tests/metrics/logql $@.new && \
	(cd $@.new && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) && mv $@.new $@ || \
	{ echo "make: $(@F) cannot be fetched: its test is left out" >&2 && test -z "$(CI)"; }

define unpack
@rm -rf $@.new && mkdir -p $@.new/partial && apt-get install -qq -y --no-install-recommends --download-only \
	-o Debug::NoLocking=1 -o Dir::Cache::archives=$(CURDIR)/$@.new $(1) >&2 && cd $@.new && \
	for each in *.deb; do dpkg -x $$each . || exit; rm $$each; done && mv ../$(@F).new ../$(@F) || \
	{ echo "make: $(@F) cannot be fetched: its tests are left out" >&2 && test -z "$(CI)"; }
endef

# Debian 12 and 13: builds the package, installs, uses, upgrades and purges it on booted ones, builds the image of 13,
# and runs `make run` and the quick part of `make test` on ones that have nothing; both at once. Needs root, and the
# network, most of it the first time only; keeps what it fetched in /var/cache/conntrackd-test. `make test-bookworm`
# for one.
test-system: $(VENV)/ready $(CORE) system-packages
	@$(MAKE) --no-print-directory --jobs $(SYSTEMS)

$(SYSTEMS): test-%: $(VENV)/ready $(CORE) system-packages
	$(SUDO) env CI=true SUITES=$* $(PYTHON) -m pytest -m "" -o faulthandler_timeout=1800 tests/system

lint: $(VENV)/ready $(CORE)
	$(PYTHON) -m ruff check conntrackd contrib cockpit tests bench fuzz setup.py
	$(PYTHON) -m ruff format --check conntrackd contrib cockpit tests bench fuzz setup.py
	$(PYTHON) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	gcc -std=c11 -Wall -Wextra -Werror -fsyntax-only -D_GNU_SOURCE= -Iconntrackd/core -Ifuzz -I$$($(PYTHON) -c "import sysconfig; print(sysconfig.get_path('include'))") $(filter %.c,$(C_FILES))
	cppcheck --quiet --error-exitcode=1 --std=c11 --library=python --inline-suppr --enable=warning,performance,portability --suppress=normalCheckLevelMaxBranches $(filter-out fuzz/% tests/%,$(filter %.c,$(C_FILES)))

# The source distribution, of which both packages can be built, and the wheel.
dist: $(VENV)/ready
	$(PYTHON) -m build

bench: $(VENV)/ready $(CORE)
	$(PYTHON) -m bench

# Each target for FUZZ_SECONDS (60): FUZZ_SECONDS=600 make fuzz TARGETS=decoder. Without TARGETS the core too.
fuzz: $(FUZZ)/ready
	$(FUZZ)/bin/python -m fuzz $(TARGETS)
	$(if $(TARGETS),,$(FUZZ)/bin/python -m fuzz.native)

# Asks the network for known weaknesses of what the tests ran with; fails where it cannot ask about all of it.
audit: $(VENV)/ready $(FUZZ)/ready
	$(PYTHON) -m pip freeze --exclude-editable >$(FUZZ)/audited
	$(FUZZ)/bin/python -m pip_audit --strict --no-deps --disable-pip --requirement $(FUZZ)/audited

# Installs what is missing of a list. What is there is not upgraded: that is its owner's business.
define install
@missing=$$(for package in $(1); do [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] \
	|| echo $$package; done); \
if [ -z "$$missing" ]; then exit 0; fi; \
if [ -z "$(ROOT)$(SUDO)" ]; then echo "make: as an ordinary user without sudo: using what is installed" >&2; exit 0; fi; \
echo "make: installing:" $$missing >&2; \
$(SUDO) apt-get update -qq && \
$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >&2
endef

run-packages:
	$(call install,$(RUN_PACKAGES))

test-packages:
	$(call install,$(TEST_PACKAGES))

system-packages:
	$(call install,$(SYSTEM_PACKAGES))

$(FUZZ)/ready: pyproject.toml | test-packages
	python3 -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	touch $@

PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check
$(VENV)/run: pyproject.toml | run-packages
	$(BASE_PYTHON) -m venv --clear $(VENV)
	$(PIP) '$(SETUPTOOLS)'
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/ready: $(VENV)/run | test-packages
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# What an editable installation runs with: built anew when a file of it has changed.
$(CORE): $(CORE_SOURCES) | $(VENV)/run
	$(PYTHON) setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) $(FUZZ) $(CORE) build dist bench/build fuzz/build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
