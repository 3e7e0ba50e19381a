"""What the daemon depends on and may change while it runs: the manual's list of it, a test for each."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.faults.mutations import ROOT
from tests.faults.test_rows import list_tests

PAGE = (ROOT / "man" / "conntrackd.8").read_text()

TESTS: Final[dict[str, list[tuple[str, str]]]] = {
    "Secrets": [
        ("tests/sinks/test_loki.py", "test_a_secret_that_is_renewed_is_used_from_the_next_push_on"),
        ("tests/sinks/test_loki_delivery.py", "test_a_token_that_is_renewed_in_an_hour_costs_no_event"),
    ],
    "Credentials of systemd": [
        ("tests/sinks/test_loki.py", "test_a_credential_of_systemd_stands_in_for_the_file"),
    ],
    "Certificates": [
        ("tests/sinks/test_tls.py", "test_a_certificate_that_is_renewed_in_place"),
        ("tests/sinks/test_tls.py", "test_an_authority_that_is_replaced"),
        ("tests/sinks/test_syslog.py", "test_a_certificate_that_is_renewed"),
    ],
    "Host names": [
        ("tests/sinks/test_addresses.py", "test_a_syslog_server_that_moves"),
        ("tests/sinks/test_addresses.py", "test_a_connection_to_an_address_that_is_no_more_the_servers"),
        ("tests/sinks/test_addresses.py", "test_a_resolver_that_is_away_stops_nothing"),
    ],
    "Files of sinks": [
        ("tests/live/test_daemon.py", "test_hangup_makes_the_file_anew_that_logrotate_has_moved_away"),
        ("tests/live/test_daemon.py", "test_hangup_makes_the_file_anew_whatever_is_wrong"),
    ],
    "Local sockets": [
        ("tests/sinks/test_syslog.py", "test_a_socket_that_is_removed_and_made_again"),
        ("tests/sinks/test_journal.py", "test_a_journald_that_is_"),
    ],
    "Spools": [("tests/delivery/test_spool_damage.py", "test_damage_under_a_running_process")],
    "Databases": [
        ("tests/geoip/test_databases.py", "test_a_replaced_file_is_taken_over"),
        (
            "tests/geoip/test_databases.py",
            "test_a_damaged_replacement_is_reported_once_and_the_old_one_stays",
        ),
    ],
    "Configuration and rule files": [
        ("tests/live/test_daemon.py", "test_hangup_reloads_the_filter_and_refuses_a_bad_one"),
    ],
    "Sysctls": [("tests/test_checks.py", "test_a_setting_of_the_kernel_is_reported_with_its_sysctl")],
    "The bus": [("tests/bus/test_lifetime.py", "test_the_service_comes_back_when_the_bus_does")],
    "The clock": [("tests/faults/test_process.py", "test_row_12_")],
    "The host's name": [("tests/sinks/test_loki.py", "test_the_name_of_the_host_is_the_one_of_the_start")],
}


def test_the_manual_lists_what_has_a_test() -> None:
    section = PAGE.split(".Sh WHAT MAY CHANGE WHILE IT RUNS")[1].split("\n.Sh ")[0]

    assert re.findall(r"^\.It (.+)$", section, re.MULTILINE) == list(TESTS)


@pytest.mark.parametrize("what", TESTS)
def test_each_of_it_has_a_test(what: str) -> None:
    for file, name in TESTS[what]:
        assert Path(ROOT, file).exists()
        assert any(test.startswith(name) for test in list_tests(file)), f"{file}: {name}"
