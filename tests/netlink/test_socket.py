"""The programs that cut the events into shares, tried in the kernel itself."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd import bpf
from conntrackd.filter.ast import Rule
from conntrackd.filter.kernel import KernelFilter, compile_kernel
from conntrackd.flow import ALL_EVENTS, Flow
from conntrackd.netlink.socket import (
    SocketShare,
    attach_program,
    compile_share,
    is_name,
    is_whole,
    list_shares,
)
from tests.engine.feed import MESSAGES, pair
from tests.filter.strategies import flows, kernel_rules
from tests.filter.test_kernel import EXAMPLE, TCP_UDP
from tests.messages import build_message

TOTALS = range(1, 17)


def list_receivers(total: int, message: bytes, program: bytes | None = None) -> list[int]:
    """Numbers of the shares to whose sockets the kernel lets the message through."""
    found = []
    with pair() as (receiver, sender):
        receiver.setblocking(False)
        for share in list_shares(total):
            whole = compile_share(share, program)
            if whole is not None:
                attach_program(receiver, whole)
            sender.send(message)
            try:
                found += [share.number] if receiver.recv(65536) == message else []
            except BlockingIOError:
                continue
    return found


def passes(compiled: KernelFilter, message: bytes) -> bool:
    program = None if compiled.program is None else bpf.assemble(compiled.program)
    return list_receivers(1, message, program) == [0]


@given(st.sampled_from(TOTALS), flows())
@settings(max_examples=300)
def test_each_event_is_in_one_share_which_its_flow_alone_decides(total: int, flow: Flow) -> None:
    ended = replace(flow, type=4, time=flow.time + 1)

    assert list_receivers(total, build_message(flow)) == [flow.id % total]
    assert list_receivers(total, build_message(ended)) == [flow.id % total]


@given(st.sampled_from(TOTALS), kernel_rules, flows(located=False))
@settings(max_examples=300)
def test_a_share_has_of_its_events_exactly_what_the_filter_passes(
    total: int, some: list[Rule], flow: Flow
) -> None:
    rules, message = compile_kernel(some, protocols=TCP_UDP, events=ALL_EVENTS), build_message(flow)
    program = None if rules.program is None else bpf.assemble(rules.program)

    assert list_receivers(total, message, program) == ([flow.id % total] if passes(rules, message) else [])


@pytest.mark.parametrize("total", TOTALS)
def test_each_recorded_event_is_in_one_share(total: int) -> None:
    assert all(len(list_receivers(total, message)) == 1 for message in MESSAGES)


@pytest.mark.parametrize("total", [2, 16])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(build_message(EXAMPLE)[:20], id="no attribute"),
        pytest.param(build_message(EXAMPLE)[:10], id="half a header"),
        pytest.param(build_message(EXAMPLE)[:20] + b"\x08\x00\x01\x00abcd", id="no id"),
    ],
)
def test_what_has_no_id_is_in_the_first_share(total: int, message: bytes) -> None:
    assert list_receivers(total, message) == [0]


def test_the_longest_filter_still_fits_behind_a_share() -> None:
    longest = bpf.assemble([bpf.Instruction(bpf.LD_IMM, 0, 0, 0)] * (bpf.ROOM - 1)) + bpf.assemble(
        [bpf.Instruction(bpf.RET, 0, 0, bpf.ALL_BYTES)]
    )

    assert len(longest) // 8 == bpf.ROOM
    assert list_receivers(16, build_message(EXAMPLE), longest) == [EXAMPLE.id % 16]
    with pytest.raises(OSError, match="Invalid argument"):
        list_receivers(
            16, build_message(EXAMPLE), bpf.assemble([bpf.Instruction(bpf.LD_IMM, 0, 0, 0)]) + longest
        )


def test_one_share_is_the_filter_as_it_is() -> None:
    assert compile_share(SocketShare(0, 1), None) is None
    assert compile_share(SocketShare(0, 1), b"12345678") == b"12345678"


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        ([], False),
        (["events"], True),
        (["events-0-of-2", "events-1-of-2"], True),
        (["events-1-of-2"], False),
        (["events-0-of-2", "events-1-of-3", "events-2-of-3"], False),
        (["events-0-of-2", "events"], True),
        (["table"], False),
    ],
)
def test_a_set_of_sockets_is_whole_when_no_share_is_missing(names: list[str], whole: bool) -> None:
    assert is_whole(names) is whole


def test_names_of_shares_are_reported_from_others() -> None:
    assert all(is_name(share.name) for total in TOTALS for share in list_shares(total))
    assert not any(map(is_name, ("table", "events-", "events-1", "events-x-of-2", "eventss", "unknown")))


def test_a_share_takes_the_instructions_that_are_left_for_it() -> None:
    end = bpf.assemble([bpf.Instruction(bpf.RET, 0, 0, bpf.ALL_BYTES)])
    lengths = {len(compile_share(share, end) or b"") for share in list_shares(3)}

    assert lengths == {(bpf.SHARE_INSTRUCTIONS + 1) * bpf.INSTRUCTION.size}
