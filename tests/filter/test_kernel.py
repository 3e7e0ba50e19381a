"""filter/kernel.py and bpfcode.py, tried in the kernel itself: a program on one end of a socket pair."""

import socket
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from pytest_mock import MockerFixture

from conntrackd import bpf
from conntrackd.filter import bpfcode, fields
from conntrackd.filter.ast import Rule, list_fields, push_not_inward
from conntrackd.filter.evaluate import evaluate
from conntrackd.filter.kernel import KernelFilter, compile_kernel, may_keep
from conntrackd.flow import ALL_EVENTS, EventType, Flow, Protocol
from conntrackd.netlink.message import walk
from conntrackd.netlink.socket import attach_program
from tests.filter.rows import MASKED, parse
from tests.filter.strategies import flows, kernel_rules, rules
from tests.messages import build_message

TCP_UDP = frozenset({int(Protocol.TCP), int(Protocol.UDP)})
EXAMPLE = walk(
    build_message(
        Flow(
            *(1, 1_700_000_000_000_000_000, socket.AF_INET, 6, 7),
            *(bytes([10, 0, 0, 1]), bytes([192, 0, 2, 7]), 40000, 443),
            *(bytes([192, 0, 2, 7]), bytes([198, 51, 100, 1]), 443, 40000),
            state=1,
        )
    ),
    0,
)


def passes(program: list[bpf.Instruction] | None, messages: Sequence[bytes]) -> list[bool]:
    """Which of the messages the kernel lets through to a socket with this program."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.setblocking(False)
        if program is not None:
            attach_program(receiver, bpf.assemble(program))
        found = []
        for message in messages:
            sender.send(message)
            try:
                found.append(receiver.recv(65536) == message)
            except BlockingIOError:
                found.append(False)
        return found


def keeps(compiled: KernelFilter, flow: Flow) -> bool:
    """Whether the kernel sends the event: its group is joined, and the program lets it through."""
    return bool(compiled.groups & flow.type) and passes(compiled.program, [build_message(flow)]) == [True]


@given(rules, flows())
@settings(max_examples=400)
def test_the_kernel_never_drops_what_the_rules_keep(some: list[Rule], flow: Flow) -> None:
    kept = evaluate(some, flow).keep

    assert keeps(compile_kernel(some, protocols=None, events=ALL_EVENTS), flow) or not kept


@given(rules, flows())
@settings(max_examples=100)
def test_what_a_flows_beginning_is_remembered_from_is_passed_up_whatever_the_rules_say(
    some: list[Rule], flow: Flow
) -> None:
    kernel = compile_kernel(some, protocols=TCP_UDP, events=EventType.DESTROY, remembers=True)
    is_remembered = flow.type != EventType.UPDATE and flow.protocol in TCP_UDP

    assert kernel.groups == EventType.NEW | EventType.DESTROY
    assert keeps(kernel, flow) is is_remembered


def count_fields(some: Sequence[Rule]) -> int:
    """How many attributes the program has to remember the places of."""
    plain = [push_not_inward(rule.expression) for rule in some]
    return len({fields.PROTOCOL, *(field for leaf in plain for field in list_fields(leaf))})


@given(kernel_rules, flows(located=False))
@settings(max_examples=400)
def test_of_what_the_kernel_can_decide_it_drops_exactly_the_rest(some: list[Rule], flow: Flow) -> None:
    assume(count_fields(some) <= bpfcode.SPARE_SLOT)
    kept = evaluate(some, flow, TCP_UDP).keep

    assert keeps(compile_kernel(some, protocols=TCP_UDP, events=ALL_EVENTS), flow) is kept


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (["drop any"], False),
        (["log type NEW", "drop any"], True),
        (["drop type NEW"], False),
        (["drop not type NEW"], True),
        (["drop destination port 443"], False),
        (["drop destination port 1-442,444-65535"], True),
        (["drop source address 10.0.0.0/31"], False),
        (["drop source address 10.0.0.2/31"], True),
        (["drop nat SNAT"], False),
        (["drop nat DNAT"], True),
        (["drop state SYN_SENT"], False),
        (["drop bytes >= 0"], True),  # it carries no counter, so the rule does not match
        (["drop not bytes >= 0"], True),
        (["drop duration > 1s"], True),
        (["log destination country DE", "drop any"], True),  # cannot be decided there: passed up
        (["drop destination country DE"], True),
        (["drop mark 0"], False),
        (["drop family IPV6", "drop zone 0"], False),
        (["drop icmp id 0-65535", "drop not icmp id 1"], True),  # it has none
    ],
)
def test_one_event_under_rules_that_people_write(texts: list[str], kept: bool) -> None:
    assert keeps(compile_kernel(parse(*texts), protocols=TCP_UDP, events=ALL_EVENTS), EXAMPLE) is kept


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        ([], ALL_EVENTS),
        (["drop any"], 0),
        (["log type NEW", "drop any"], EventType.NEW),
        (["drop type UPDATE"], EventType.NEW | EventType.DESTROY),
        (["drop not type DESTROY"], EventType.DESTROY),
        (["log type NEW and port 80", "drop type NEW,UPDATE"], EventType.NEW | EventType.DESTROY),
        (["drop type NEW and port 80"], ALL_EVENTS),
    ],
)
def test_only_groups_are_joined_of_which_an_event_can_be_kept(texts: list[str], groups: int) -> None:
    assert compile_kernel(parse(*texts), protocols=None, events=ALL_EVENTS).groups == groups


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("drop icmp id 17", True),
        ("drop icmp id 18-65535", False),
        ("drop not icmp id 18", True),
        ("drop reply icmp id 4711", True),
        ("drop reply icmp id 17", False),
        ("drop port 0-65535", False),
        ("drop nat SNAT", True),
        ("drop nat DNAT", False),
    ],
)
def test_the_kernel_decides_about_identifiers_of_both_protocols(text: str, dropped: bool) -> None:
    program = compile_kernel(parse(text), protocols=None, events=ALL_EVENTS).program
    pings = [replace(MASKED, protocol=number) for number in (Protocol.ICMP, Protocol.ICMPV6)]

    assert passes(program, [build_message(ping) for ping in pings]) == [not dropped] * 2


def test_an_identifier_that_alone_is_translated_is_seen_by_the_kernel_too() -> None:
    program = compile_kernel(parse("drop nat SNAT"), protocols=None, events=ALL_EVENTS).program
    alone = replace(MASKED, reply_dst=MASKED.src)

    plain = replace(alone, reply_icmp_id=alone.icmp_id)
    assert passes(program, [build_message(alone), build_message(plain)]) == [False, True]


def test_a_type_that_is_not_wanted_is_neither_joined_nor_passed_up() -> None:
    new_only = compile_kernel([], protocols=None, events=EventType.NEW)

    messages = [build_message(replace(EXAMPLE, type=int(event_type))) for event_type in (1, 2, 4)]
    assert (new_only.groups, passes(new_only.program, messages)) == (EventType.NEW, [True, False, False])


def test_without_rules_and_limits_there_is_no_program() -> None:
    assert compile_kernel([], protocols=None, events=ALL_EVENTS) == KernelFilter(ALL_EVENTS, None, [])


def test_what_is_no_event_is_passed_up_to_be_counted() -> None:
    program = compile_kernel(parse("drop any"), protocols=TCP_UDP, events=ALL_EVENTS).program
    event = build_message(EXAMPLE)

    others = [event[:4] + bytes([number]) + event[5:] for number in (1, 3, 255)]  # the type's lower byte
    others += [event[:5] + b"\x02" + event[6:], event[:16] + bytes([2, 0, 0, 0])]
    assert passes(program, [event, *others]) == [False, True, True, True, True, True]


def test_a_program_that_is_too_long_lets_later_rules_pass() -> None:
    texts = [f"drop destination address 2001:db8:{number:x}::/64" for number in range(1000)]
    big = compile_kernel(parse(*texts), protocols=TCP_UDP, events=ALL_EVENTS)

    v6 = replace(EXAMPLE, family=socket.AF_INET6, src=bytes(16), reply_dst=bytes(16))
    ends = [bytes.fromhex(f"20010db8{number:04x}") + bytes(10) for number in (0, 999)]
    messages = [build_message(replace(v6, dst=end, reply_src=end)) for end in ends]
    assert big.program is not None
    assert len(big.program) <= bpf.BPF_MAXINSNS
    assert passes(big.program, messages) == [False, True]
    assert len(big.notes) == 1


def test_a_kernel_filter_says_what_is_left_to_the_core() -> None:
    some = compile_kernel(
        parse("log country DE and port 80", "drop duration > 1s"), protocols=None, events=ALL_EVENTS
    )

    assert some.notes == ["rule 1: locations are looked up there", "rule 2: the duration is computed there"]


def has_disagreement() -> bool:
    """Whether the promise is broken for any of a few rules that exercise every part of the compiler."""
    lists = [
        ["drop not source address 10.0.0.1", "drop port 443"],
        ["drop not destination port 443"],
        ["drop not mark 0x10"],
        ["log state ESTABLISHED,SYN_SENT", "drop any"],
        ["log bytes < 100 or port 443", "drop any"],
        ["log source address 2001:db8::/63", "log destination port 442-444", "drop any"],
    ]
    v6 = bytes.fromhex("20010db8000000010000000000000001")
    events = [
        EXAMPLE,
        replace(EXAMPLE, sport=-1, dport=-1, reply_sport=-1, reply_dport=-1, protocol=1, state=-1),
        replace(EXAMPLE, mark=0x10, orig_bytes=99, orig_packets=1),
        replace(EXAMPLE, family=socket.AF_INET6, src=v6, dst=v6, reply_src=v6, reply_dst=v6),
    ]
    return any(
        keeps(compile_kernel(parse(*texts), protocols=None, events=ALL_EVENTS), event)
        is not evaluate(parse(*texts), event).keep
        for texts in lists
        for event in events
    )


def test_the_compiler_as_it_is_agrees_with_the_reference() -> None:
    assert not has_disagreement()


def swap_bytes(instruction: bpf.Instruction) -> bpf.Instruction:
    """The operand of a comparison in the other byte order."""
    if instruction.code not in (bpf.JEQ, bpf.JGE, bpf.JGT):
        return instruction
    return instruction._replace(k=int.from_bytes(instruction.k.to_bytes(4, "little"), "big"))


@pytest.mark.parametrize("mutation", ["a removed not", "swapped bytes", "taken for present", "one too far"])
def test_a_broken_compiler_is_noticed(mutation: str, mocker: MockerFixture) -> None:
    match mutation:
        case "a removed not":
            mocker.patch("conntrackd.filter.kernel.push_not_inward", lambda node: getattr(node, "item", node))
        case "swapped bytes":
            link = bpf.link
            mocker.patch(
                "conntrackd.bpf.link", lambda steps: [swap_bytes(instruction) for instruction in link(steps)]
            )
        case "taken for present":
            mocker.patch.object(
                bpfcode.Program, "_load_or_go", lambda self, field, missing: self._load_value(field)
            )
        case "one too far":
            emit = bpf._emit
            mocker.patch(
                "conntrackd.bpf._emit",
                lambda instruction, start, targets: [
                    step._replace(jt=step.jt + 1) if step.code == bpf.JEQ and step.jt < 255 else step
                    for step in emit(instruction, start, targets)
                ],
            )
    try:
        noticed = has_disagreement()
    except OSError:  # the kernel refuses the program
        noticed = True

    assert noticed


def test_every_type_has_its_own_answer() -> None:
    some = parse("log type NEW and port 1", "drop type NEW,UPDATE")

    assert [may_keep(some, event_type) for event_type in (1, 2, 4)] == [True, False, True]
