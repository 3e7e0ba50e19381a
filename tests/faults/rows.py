"""Which tests prove which fault: the one index of all rows; test_rows.py checks that they exist."""

from typing import Final

KERNEL, PROCESS, SINKS, CONTROL = "test_kernel.py", "test_process.py", "test_sinks.py", "test_control.py"
REMOTE = "test_remote.py"

# Row -> (file, beginning of the names of its tests). Files of this directory stand without it.
ROWS: Final[dict[int, list[tuple[str, str]]]] = {
    1: [(KERNEL, "test_row_01_"), ("tests/live/test_daemon.py", "test_an_overrun_is_counted_exactly")],
    2: [(KERNEL, "test_row_02_")],
    3: [(KERNEL, "test_row_03_")],
    4: [(KERNEL, "test_row_04_")],
    5: [(KERNEL, "test_row_05_"), ("tests/test_guard.py", "test_")],
    6: [(KERNEL, "test_row_06_")],
    7: [(PROCESS, "test_row_07_"), ("tests/sinks/test_spool_kill.py", "test_whatever_the_spool_took")],
    8: [
        (PROCESS, "test_row_08_"),
        ("tests/live/test_restart.py", "test_a_restart_keeps_every_event"),
        ("tests/system/test_apt.py", "test_an_upgrade_keeps_the_configuration_and_loses_no_event"),
        ("tests/system/test_service.py", "test_the_watchdog_restarts_what_hangs"),
        ("tests/system/test_service.py", "test_systemctl_restart_has_the_events"),
        ("tests/system/test_service.py", "test_a_kill_is_followed_by_a_restart"),
    ],
    9: [("tests/live/test_restart.py", "test_another_descriptor_is_refused")],
    10: [
        ("tests/live/test_restart.py", "test_the_time_in_which_nobody_listened_is_told"),
        ("tests/system/test_service.py", "test_the_time_between_stop_and_start"),
    ],
    11: [(PROCESS, "test_row_11_")],
    12: [(PROCESS, "test_row_12_")],
    13: [
        ("test_limits.py", "test_row_13_"),
        ("tests/system/test_service.py", "test_twenty_descriptors_are_enough"),
        ("tests/system/test_service.py", "test_a_limit_too_small_to_start"),
    ],
    14: [
        ("tests/netlink/test_decode.py", "test_every_truncation_is_counted"),
        ("tests/netlink/test_decode.py", "test_mutated_messages_give"),
        ("tests/netlink/test_decode.py", "test_random_bytes_give"),
        ("tests/netlink/test_decode.py", "test_messages_that_are_no_events"),
        ("tests/netlink/test_decode.py", "test_a_multipart_answer"),
        ("tests/netlink/test_decode.py", "test_each_damage_has_its_reason"),
        ("tests/netlink/test_socket.py", "test_a_message_longer_than_its_slot"),
        ("tests/live/test_socket.py", "test_what_a_process_sends"),
    ],
    15: [("test_state.py", "test_row_15_")],
    16: [
        (SINKS, "test_row_16_"),
        ("tests/sinks/test_judge_loki.py", "test_"),
        ("tests/sinks/test_loki.py", "test_no_re"),
        ("tests/sinks/test_loki_delivery.py", "test_"),
    ],
    17: [
        ("tests/sinks/test_loki_tls.py", "test_a_wrong_certificate_gets_nothing"),
        ("tests/sinks/test_loki_tls.py", "test_a_version_of_tls_that_is_too_old"),
        ("tests/sinks/test_loki_tls.py", "test_plain_text_on_the_tls_port"),
        ("tests/sinks/test_syslog.py", "test_a_certificate_"),
        ("tests/sinks/test_syslog.py", "test_an_old_version_is_refused"),
        ("tests/sinks/test_syslog.py", "test_no_tls_at_all"),
    ],
    18: [
        (SINKS, "test_row_18_"),
        ("tests/sinks/test_syslog.py", "test_a_reset_after_a_stall"),
        ("tests/sinks/test_syslog.py", "test_a_server_that_is_killed_and_comes_back"),
        ("tests/sinks/test_syslog.py", "test_no_datagram_to_nobody"),
        ("tests/sinks/test_syslog.py", "test_a_socket_that_is_removed_and_made_again"),
    ],
    19: [
        (SINKS, "test_row_19_"),
        ("tests/sinks/test_journal.py", "test_a_journald_that_is_"),
        ("tests/system/test_service.py", "test_journald_keeps_120_000_records"),
    ],
    20: [
        (SINKS, "test_row_20_"),
        ("tests/live/test_daemon.py", "test_a_closed_pipe_ends_it"),
        ("tests/sinks/test_stream.py", "test_an_outbox_before_a_closed_stdout"),
    ],
    21: [
        (SINKS, "test_row_21_"),
        ("tests/sinks/test_spool.py", "test_"),
        ("tests/live/test_restart.py", "test_a_state_directory_belongs_to_one_daemon"),
    ],
    22: [(SINKS, "test_row_19_and_22_")],
    23: [
        (SINKS, "test_row_23_"),
        ("tests/test_geoip.py", "test_any_flipped_bit_is_refused"),
        ("tests/test_geoip.py", "test_a_replaced_file_is_taken_over"),
        ("tests/test_geoip.py", "test_a_damaged_replacement_is_told_once"),
    ],
    24: [
        ("tests/bus/test_interface.py", "test_every_method_has_the_action"),
        ("tests/bus/test_polkit.py", "test_every_method_is_for_those_it_is_for"),
    ],
    25: [
        ("tests/bus/test_polkit.py", "test_a_flood_from_a_stranger"),
        ("tests/live/test_bus.py", "test_a_flood_from_root"),
    ],
    26: [
        ("tests/bus/test_refusals.py", "test_more_than_anyone_may_ask"),
        ("tests/bus/test_refusals.py", "test_what_is_refused_is_neither_parsed_nor_held"),
        ("tests/bus/test_refusals.py", "test_descriptors_are_refused"),
        ("tests/bus/test_refusals.py", "test_text_that_is_no_utf8"),
        ("tests/bus/test_refusals.py", "test_a_variant_that_is_too_deep"),
        ("tests/bus/test_wire.py", "test_depth_is_bounded"),
    ],
    27: [
        ("tests/bus/test_lifetime.py", "test_the_service_comes_back_when_the_bus_does"),
        ("tests/bus/test_lifetime.py", "test_a_bus_that_comes_after_the_service"),
        ("tests/bus/test_lifetime.py", "test_a_name_that_another_has"),
        ("tests/bus/test_lifetime.py", "test_nobody_takes_the_name_away"),
        ("tests/bus/test_lifetime.py", "test_a_caller_who_goes_away"),
        ("tests/live/test_bus.py", "test_events_go_on_without_a_bus"),
    ],
    28: [
        ("tests/sinks/test_tail.py", "test_a_tail_that_is_never_read"),
        (CONTROL, "test_row_28_"),
        ("tests/sinks/test_tail.py", "test_thirty_two_tails"),
        ("tests/live/test_bus.py", "test_of_thirty_two_tails"),
        ("tests/bus/test_interface.py", "test_signals_carry_numbers"),
        ("tests/live/test_bus.py", "test_an_eavesdropper_hears"),
    ],
    29: [
        (CONTROL, "test_row_29_"),
        ("tests/test_control.py", "test_any_number_of_signals"),
        ("tests/live/test_control.py", "test_a_reload_with_one_mistake"),
        ("tests/live/test_control.py", "test_a_configuration_that_cannot_be_used"),
    ],
    30: [
        ("tests/filter/test_grammar.py", "test_limits_are_named"),
        ("tests/cli/test_filter.py", "test_more_than_a_filter_may_have"),
    ],
    31: [
        ("tests/test_config.py", "test_any_value_of_any_key"),
        ("tests/test_document.py", "test_an_exploding_yaml_file"),
        ("tests/test_document.py", "test_a_bad_file_is_told"),
        ("tests/test_document.py", "test_a_file_that_every_user_may_change"),
        ("tests/test_document.py", "test_a_link_is_judged_by_its_target"),
    ],
    32: [
        ("tests/cli/test_views.py", "test_nothing_from_a_network_or_a_database"),
        ("tests/sinks/test_judge_loki.py", "test_no_control_character_of_a_reply"),
        ("tests/sinks/test_journal.py", "test_no_value_can_begin_a_field"),
        ("tests/sinks/test_encode.py", "test_text_of_a_database_cannot_leave"),
        ("tests/sinks/test_controls.py", "test_no_sink_holds"),
        ("tests/test_geoip.py", "test_any_flipped_bit_is_refused"),
    ],
    33: [
        ("tests/live/test_secrets.py", "test_"),
        ("tests/sinks/test_loki.py", "test_a_secret_that_cannot_be_used"),
        ("tests/test_config.py", "test_a_secret_is_not_repeated"),
        ("tests/test_options.py", "test_secrets_are_given_as_files_only"),
    ],
    34: [("tests/system/test_service.py", "test_")],
    35: [("test_soak.py", "test_row_35_")],
    38: [
        (REMOTE, "test_row_38_"),
        ("tests/live/test_daemon.py", "test_hangup_makes_the_file_anew_whatever_is_wrong"),
        ("tests/sinks/test_addresses.py", "test_"),
        ("tests/sinks/test_loki.py", "test_a_secret_that_is_renewed"),
        ("tests/sinks/test_loki.py", "test_a_secret_that_is_no_plain_file"),
        ("tests/sinks/test_loki_delivery.py", "test_a_token_that_is_renewed"),
        ("tests/sinks/test_tls.py", "test_"),
        ("tests/test_geoip.py", "test_a_replaced_file_is_taken_over"),
    ],
    40: [
        (REMOTE, "test_row_40_"),
        ("tests/sinks/test_spool_damage.py", "test_"),
        ("tests/sinks/test_outbox_spool.py", "test_what_the_disk_does_not_take_at_the_end"),
        ("tests/sinks/test_outbox_spool.py", "test_whoever_stops_twice"),
    ],
    41: [
        (REMOTE, "test_row_41_"),
        ("tests/sinks/test_http.py", "test_"),
        ("tests/sinks/test_http_reply.py", "test_"),
        ("tests/sinks/test_judge_loki.py", "test_no_other_success"),
        ("tests/sinks/test_loki_delivery.py", "test_what_was_not_stored"),
    ],
    42: [
        (REMOTE, "test_row_42_"),
        ("tests/sinks/test_loki_delivery.py", "test_a_stream_that_loki_does_not_open"),
        ("tests/sinks/test_loki_delivery.py", "test_of_a_push_with_a_stream_that_is_wrong"),
        ("tests/sinks/test_loki_delivery.py", "test_an_event_that_is_denied_for_what_is_in_it"),
    ],
    45: [
        (REMOTE, "test_row_45_"),
        ("tests/sinks/test_loki.py", "test_a_password_is_sent_in_utf_8"),
        ("tests/sinks/test_loki.py", "test_a_token_that_no_header_can_hold"),
        ("tests/sinks/test_http.py", "test_the_head_names_the_server"),
    ],
}

NOT_COVERED: Final[dict[int, str]] = {}
