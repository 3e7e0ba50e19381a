"""The protections that mutations.py takes out, and the test that is about each."""

from typing import Final, NamedTuple


class Mutation(NamedTuple):
    """`old` stands once in the file."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS: Final = (
    Mutation(
        "losses are counted",
        "conntrackd/pipeline.py",
        "stats.events_lost_total += lost\n",
        "lost = 1\n",
        "tests/live/test_daemon.py::test_an_overrun_is_counted_exactly_and_told",
    ),
    Mutation(
        "an overrun does not stop the queue",
        "conntrackd/netlink/socket.py",
        "netlink.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)",
        "netlink.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 0)",
        "tests/faults/test_kernel.py::test_row_03_a_queue_that_was_full_and_is_half_drained_takes_500_more",
    ),
    Mutation(
        "a stored descriptor is checked",
        "conntrackd/netlink/socket.py",
        "fault = _find_fault(netlink)",
        'fault = ""',
        "tests/live/test_restart.py::test_another_descriptor_is_refused_and_a_new_socket_opened",
    ),
    Mutation(
        "a state directory belongs to one process",
        "conntrackd/handover.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/live/test_restart.py::test_a_state_directory_belongs_to_one_daemon_until_it_ends",
    ),
    Mutation(
        "a guard gives a full table back",
        "conntrackd/guard.py",
        "if share > LIMIT:",
        "if share > 2:",
        "tests/faults/test_kernel.py::test_row_05_the_guard_gives_the_table_back_before_a_connection_is_refused",
    ),
    Mutation(
        "a retry is no loss",
        "conntrackd/pipeline.py",
        "if fill.drops != self.drops and self.guard is not None:",
        "if fill.drops != self.drops and False:",
        "tests/faults/test_kernel.py::"
        "test_row_05_in_reliable_mode_every_flow_ends_with_an_event_and_a_retry_is_no_loss",
    ),
    Mutation(
        "a table is judged when its events have come",
        "conntrackd/resync.py",
        "if now < self._settled_at:",
        "if False:",
        "tests/test_resync.py::test_an_event_that_comes_while_the_table_is_read_goes_before_it",
    ),
    Mutation(
        "the watchdog follows the reader",
        "conntrackd/daemon.py",
        "if self.pipeline.turns != turns:",
        "if True:",
        "tests/faults/test_process.py::"
        "test_row_08_a_reader_that_stands_still_gives_no_sign_of_life_and_the_next_process_has_all",
    ),
    Mutation(
        "what an outbox drops is counted",
        "conntrackd/sinks/outbox.py",
        "self._stats.count_dropped(reason, events)",
        "pass",
        "tests/sinks/test_outbox.py::test_a_full_outbox_drops_the_newest_and_says_so_at_the_place_of_the_gap",
    ),
    Mutation(
        "an outbox is bounded",
        "conntrackd/sinks/outbox.py",
        "room = max(0, self.queue - stats.sink_events_queued)",
        "room = events",
        "tests/sinks/test_outbox.py::test_a_full_outbox_drops_the_newest_and_says_so_at_the_place_of_the_gap",
    ),
    Mutation(
        "a spooled row goes after its delivery only",
        "conntrackd/sinks/spool.py",
        "WHERE number <= ?",
        "WHERE number <= ? + 1",
        "tests/sinks/test_spool_kill.py::"
        "test_whatever_the_spool_took_is_delivered_though_the_process_is_killed",
    ),
    Mutation(
        "a spooled row is checked",
        "conntrackd/sinks/spool.py",
        "return Row(number, parcel, checksum == _sum(number, parcel))",
        "return Row(number, parcel)",
        "tests/sinks/test_spool.py::test_a_flipped_bit_in_a_payload_is_noticed",
    ),
    Mutation(
        "no redirect is followed",
        "conntrackd/sinks/http.py",
        "retries=False,\n                    redirect=False,",
        "retries=3,\n                    redirect=True,",
        "tests/sinks/test_loki.py::test_no_redirect_is_followed_and_no_token_leaves",
    ),
    Mutation(
        "a certificate is checked",
        "conntrackd/sinks/tls.py",
        "if not tls.verify:",
        "if True:",
        "tests/sinks/test_loki_tls.py::test_a_wrong_certificate_gets_nothing_and_is_named",
    ),
    Mutation(
        "old versions of TLS are refused",
        "conntrackd/sinks/tls.py",
        "context.minimum_version = ssl.TLSVersion.TLSv1_2",
        "context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED",
        "tests/sinks/test_loki_tls.py::test_a_version_of_tls_that_is_too_old_gets_nothing_and_is_named",
    ),
    Mutation(
        "the sums hold whenever somebody asks",
        "conntrackd/control.py",
        "with daemon.pipeline.lock:",
        "if True:",
        "tests/test_control.py::test_counters_are_read_between_two_batches_and_never_in_one",
    ),
    Mutation(
        "of a reply only so much is read",
        "conntrackd/sinks/http.py",
        "response.read(MAX_REPLY + 1)",
        "response.read()",
        "tests/sinks/test_loki.py::test_no_reply_can_hold_or_fill_us",
    ),
    Mutation(
        "what Loki blocks is not delivered",
        "conntrackd/sinks/judge_loki.py",
        "200 <= status < 300 and status != BLOCKED",
        "200 <= status < 300",
        "tests/sinks/test_loki_delivery.py::test_what_loki_blocks_is_not_said_to_be_delivered",
    ),
    Mutation(
        "of a push with bad entries the good ones are delivered",
        "conntrackd/sinks/judge_loki.py",
        "None if refused is None else refused.old_events + refused.other_events",
        "None",
        "tests/sinks/test_loki_delivery.py::"
        "test_of_a_batch_with_bad_entries_the_good_ones_are_delivered_and_no_other_is_said_to_be",
    ),
    Mutation(
        "late events are noticed",
        "conntrackd/sinks/encode_loki.py",
        "sorted(streams, key=counts.__getitem__)",
        "streams",
        "tests/sinks/test_loki_delivery.py::"
        "test_late_events_are_noticed_though_another_stream_of_their_push_is_taken",
    ),
    Mutation(
        "a push that is too large for the burst is halved",
        "conntrackd/sinks/loki.py",
        "self._throttled >= MAX_THROTTLED",
        "False",
        "tests/sinks/test_loki_delivery.py::test_a_push_that_is_larger_than_the_burst_arrives_in_parts",
    ),
    Mutation(
        "a server that asks for patience gets it",
        "conntrackd/sinks/backoff.py",
        "if retry_after is None:",
        "if True:",
        "tests/sinks/test_outbox.py::test_delays_grow_and_retry_after_is_honoured",
    ),
    Mutation(
        "a datagram to nobody is not delivered",
        "conntrackd/sinks/syslog.py",
        "vain = 0 if self._target.path else 2",
        "vain = 0",
        "tests/sinks/test_syslog.py::test_no_datagram_to_nobody_is_said_to_be_delivered",
    ),
    Mutation(
        "a connection that the server has closed is noticed",
        "conntrackd/sinks/syslog.py",
        "            _check_peer(sock)\n",
        "",
        "tests/sinks/test_syslog.py::"
        "test_a_connection_that_the_server_has_closed_is_noticed_before_anything_is_sent",
    ),
    Mutation(
        "over a stream only what was acknowledged is delivered",
        "conntrackd/sinks/syslog.py",
        "sent - _count_unacknowledged(sock)",
        "sent",
        "tests/sinks/test_syslog.py::test_a_reset_after_a_stall_leaves_what_was_not_acknowledged",
    ),
    Mutation(
        "a spool is bounded",
        "conntrackd/sinks/spool.py",
        "while _measure(database) > self._limit:",
        "while False:",
        "tests/sinks/test_spool.py::test_over_its_bound_the_oldest_go_and_are_named",
    ),
    Mutation(
        "a spool belongs to one process",
        "conntrackd/sinks/spool.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/sinks/test_spool.py::test_a_second_process_is_refused_with_a_reason",
    ),
    Mutation(
        "a batch is spooled whole or not at all",
        "conntrackd/sinks/spool.py",
        'database.execute("BEGIN IMMEDIATE")',
        "pass",
        "tests/sinks/test_spool_kill.py::"
        "test_whatever_the_spool_took_is_delivered_though_the_process_is_killed",
    ),
    Mutation(
        "no value begins a field of the journal",
        "conntrackd/sinks/encode.py",
        "    if value.isprintable():",
        "    if True:",
        "tests/sinks/test_journal.py::test_no_value_can_begin_a_field_of_its_own",
    ),
    Mutation(
        "no value ends an element of syslog's structured data",
        "conntrackd/sinks/encode_syslog.py",
        """.replace("]", "\\\\]")""",
        "",
        "tests/sinks/test_encode_syslog.py::test_no_value_can_end_its_element_its_line_or_the_record",
    ),
    Mutation(
        "a mistake in a form ends no reader",
        "conntrackd/pipeline.py",
        "            return []\n",
        "            raise\n",
        "tests/test_pipeline.py::"
        "test_sinks_get_an_event_in_their_forms_and_a_mistake_in_those_ends_no_reader",
    ),
    Mutation(
        "events that were read together are no duplicates to Loki",
        "conntrackd/sinks/formcode.py",
        "            moment += 1\n",
        "            pass\n",
        "tests/sinks/test_encode_loki.py::"
        "test_updates_of_one_flow_that_were_read_together_are_no_duplicates_to_loki",
    ),
    Mutation(
        "messages that wait have their numbers whatever the format is now",
        "conntrackd/sinks/encode_syslog.py",
        "self._number(text).encode()",
        "text.encode()",
        "tests/sinks/test_compose.py::test_messages_that_wait_while_the_format_changes_have_their_numbers",
    ),
    Mutation(
        "the name of a host is no code",
        "conntrackd/sinks/formcode.py",
        """return text.replace("{", "{{").replace("}", "}}")""",
        "return text",
        "tests/sinks/test_compose.py::test_a_name_of_the_host_is_nothing_but_text",
    ),
    Mutation(
        "what goes into a pipe at once is whole lines",
        "conntrackd/sinks/stream.py",
        'end = payload.rfind(b"\\n", done, done + PIECE) + 1',
        "end = 0",
        "tests/sinks/test_stream.py::test_what_is_written_to_a_pipe_at_once_is_whole_lines",
    ),
    Mutation(
        "no label opens a stream for each connection",
        "conntrackd/values.py",
        "if name in UNBOUNDED_LABELS:",
        "if False:",
        "tests/test_values.py::test_what_does_not_fit_is_told",
    ),
    Mutation(
        "a database that is being written is left alone",
        "conntrackd/geoip.py",
        "if self._seen != seen or self._seen == self._identities:",
        "if self._seen == self._identities:",
        "tests/test_geoip.py::test_a_replaced_file_is_taken_over",
    ),
    Mutation(
        "no number in a database's tree leads out of its data",
        "conntrackd/geofile.py",
        "if value < nodes + SEPARATOR:",
        "if False:",
        "tests/test_geoip.py::test_a_number_that_leads_nowhere_is_refused",
    ),
    Mutation(
        "strangers do not reach the daemon",
        "dbus/org.conntrackd1.conf",
        '<deny send_destination="org.conntrackd1"/>',
        '<allow send_destination="org.conntrackd1"/>',
        "tests/bus/test_polkit.py::test_a_flood_from_a_stranger_never_arrives",
    ),
    Mutation(
        "a terminal obeys nothing in an error",
        "conntrackd/errors.py",
        'char if char.isprintable() or char == "\\n" else char.encode("unicode_escape").decode()',
        "char",
        "tests/cli/test_views.py::test_nothing_from_a_network_or_a_database_is_obeyed_by_a_terminal",
    ),
    Mutation(
        "a JSON line holds no control character of a database",
        "conntrackd/sinks/encode.py",
        "ensure_ascii=not value.isprintable()",
        "ensure_ascii=False",
        "tests/sinks/test_encode.py::test_text_of_a_database_cannot_leave_its_value",
    ),
    Mutation(
        "what Loki gives back holds no control character of a database",
        "conntrackd/sinks/encode_loki.py",
        "return escape_json(make_visible(value))",
        "return escape_json(value)",
        "tests/sinks/test_controls.py::test_no_sink_holds_what_a_terminal_would_obey",
    ),
    Mutation(
        "a server that repeats a secret is not quoted with it",
        "conntrackd/sinks/http.py",
        "body = body.replace(each.encode(), HIDDEN)",
        "pass",
        "tests/live/test_secrets.py::test_a_secret_is_in_no_log_answer_process_or_file",
    ),
    Mutation(
        "no event is read into the next one's slot",
        "conntrackd/netlink/socket.py",
        "if max(lengths) <= SLOT_BYTES:",
        "if True:",
        "tests/netlink/test_socket.py::"
        "test_a_message_longer_than_its_slot_is_counted_and_is_not_read_into_the_next",
    ),
    Mutation(
        "what a process sends is no event",
        "conntrackd/netlink/socket.py",
        "genuine = [slot for slot, port in enumerate(senders) if port == 0]",
        "genuine = [*range(len(senders))]",
        "tests/live/test_socket.py::test_what_a_process_sends_is_left_out_and_counted",
    ),
    Mutation(
        "a limit that is too small is told by its name",
        "conntrackd/daemon.py",
        "raise resources.explain_threads(len(self.outboxes)) from error",
        "raise",
        "tests/faults/test_limits.py::test_row_13_too_few_threads_are_told_and_nothing_starts",
    ),
    Mutation(
        "a sink forgets the addresses of a million flows",
        "conntrackd/cache.py",
        "if len(self) >= self._limit:",
        "if False:",
        "tests/faults/test_state.py::test_row_15_nothing_is_kept_of_a_million_flows",
    ),
    Mutation(
        "a file that everybody may change is refused",
        "conntrackd/document.py",
        "if stat.S_ISREG(mode) and mode & stat.S_IWOTH:",
        "if False:",
        "tests/test_document.py::test_a_file_that_every_user_may_change_is_refused",
    ),
    Mutation(
        "a method that names no action does not load",
        "conntrackd/bus/interface.py",
        "if len(found) != 1 or found[0] not in ACTIONS:",
        "if False:",
        "tests/bus/test_interface.py::"
        "test_what_has_no_action_or_could_be_written_or_is_there_twice_does_not_load",
    ),
    Mutation(
        "polkit is asked before a method is answered",
        "conntrackd/bus/session.py",
        "        await self._authorize(call, method.action)\n        _check_signature",
        "        _check_signature",
        "tests/bus/test_polkit.py::test_every_method_is_for_those_it_is_for",
    ),
    Mutation(
        "without polkit nobody but root may do more than look",
        "conntrackd/bus/polkit.py",
        "if action == INFO:",
        "if True:",
        "tests/bus/test_polkit.py::test_every_method_is_for_those_it_is_for",
    ),
    Mutation(
        "a member at a terminal is asked for a password",
        "conntrackd/bus/client.py",
        "if not self._agent.start():",
        "if True:",
        "tests/bus/test_polkit.py::test_a_member_at_a_terminal_is_asked_for_a_password_once",
    ),
    Mutation(
        "calls of one user are limited",
        "conntrackd/bus/session.py",
        "if not self._limiter.admit(self.callers.key(header.sender)):",
        "if False:",
        "tests/bus/test_refusals.py::"
        "test_more_calls_than_a_person_makes_are_refused_and_cost_nobody_else_the_service",
    ),
    Mutation(
        "a call that is too long is refused by its header",
        "conntrackd/bus/session.py",
        "if body > longest:",
        "if False:",
        "tests/bus/test_refusals.py::test_what_is_refused_is_neither_parsed_nor_held",
    ),
    Mutation(
        "the descriptor of a tail is closed here",
        "conntrackd/bus/session.py",
        "            self._descriptors.remove(descriptor)\n            os.close(descriptor)",
        "            self._descriptors.remove(descriptor)",
        "tests/bus/test_service.py::test_a_tail_is_a_pipe_with_lines",
    ),
    Mutation(
        "a tail that nobody reads is dropped",
        "conntrackd/sinks/tail.py",
        "if len(tail.unread) > MAX_UNREAD:",
        "if False:",
        "tests/sinks/test_tail.py::"
        "test_a_tail_that_is_never_read_is_dropped_and_counted_and_the_other_gets_all",
    ),
    Mutation(
        "a reload prepares all before it changes anything",
        "conntrackd/control.py",
        "rules = await self._compile(*read_texts(new), new)",
        "logs.set_level(new[options.LOG_LEVEL])\n        rules = await self._compile(*read_texts(new), new)",
        "tests/live/test_control.py::test_a_reload_with_one_mistake_changes_nothing_and_names_it",
    ),
    Mutation(
        "what a change leaves behind is collected",
        "conntrackd/control.py",
        "        gc.collect()",
        "        pass",
        "tests/test_control.py::test_what_a_change_leaves_behind_is_collected_soon",
    ),
    Mutation(
        "a reload that fails leaves nothing open",
        "conntrackd/control.py",
        "made.stop(0.0)",
        "pass",
        "tests/live/test_control.py::test_a_reload_that_fails_half_way_leaves_no_spool_open",
    ),
    Mutation(
        "signals that come during a reload are one more",
        "conntrackd/control.py",
        "            self._again = True\n            return",
        "            pass",
        "tests/test_control.py::test_any_number_of_signals_during_a_reload_are_one_more",
    ),
    Mutation(
        "a sink that is enabled while it is switched off goes on",
        "conntrackd/sinks/outbox.py",
        "if not reason and not self.is_out():",
        "if False:",
        "tests/sinks/test_outbox.py::test_a_sink_that_is_enabled_while_it_is_being_switched_off_goes_on",
    ),
    Mutation(
        "a program that the kernel has no room for is done without",
        "conntrackd/netlink/socket.py",
        "if error.errno != errno.ENOMEM:",
        "if True:",
        "tests/live/test_control.py::"
        "test_a_program_that_the_kernel_has_no_room_for_is_named_and_its_rules_are_kept",
    ),
    Mutation(
        "the table that tracks belongs to a socket",
        "conntrackd/netlink/activation.py",
        "_number(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER)",
        "_number(NFTA_TABLE_FLAGS, 0)",
        "tests/live/test_hearing.py::test_the_table_of_activate_stays_when_the_ruleset_is_flushed",
    ),
    Mutation(
        "the table that tracks lasts through a restart",
        "conntrackd/intake.py",
        "        self._table = TrackingTable.open()\n        self._notifier.store(",
        "        self._table = TrackingTable.open()\n        ''.format(",
        "tests/live/test_restart.py::"
        "test_row_37_a_restart_has_the_events_of_its_gap_whatever_is_switched_on[activate-15]",
    ),
    Mutation(
        "tracking that ends is noticed",
        "conntrackd/hearing.py",
        "tracking.NOT_TRACKED if self.is_tracking is False else",
        "tracking.NOT_TRACKED if False else",
        "tests/live/test_hearing.py::"
        "test_tracking_that_ends_is_a_problem_until_it_begins_again_and_the_gap_is_told",
    ),
    Mutation(
        "a sink that refuses everything is not well",
        "conntrackd/sinks/outbox.py",
        "SinkState.REFUSED if refused == events else SinkState.OK",
        "SinkState.OK",
        "tests/sinks/test_outbox.py::test_a_sink_is_well_while_its_last_write_was_not_refused_as_a_whole",
    ),
    Mutation(
        "a manager that does not read is not waited for",
        "conntrackd/notify.py",
        "flags = 0 if waits else socket.MSG_DONTWAIT",
        "flags = 0",
        "tests/test_notify.py::test_a_manager_that_does_not_read_costs_neither_time_nor_cpu",
    ),
    Mutation(
        "a socket whose filter is locked is not taken over",
        "conntrackd/netlink/socket.py",
        "if netlink.getsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER):",
        "if False:",
        "tests/live/test_restart.py::test_another_descriptor_is_refused_and_a_new_socket_opened[locked]",
    ),
)
