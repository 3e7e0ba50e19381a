"""core/text.c: addresses as inet_ntop(3) writes them, and numbers of every length."""

import itertools
import struct
from array import array
from dataclasses import replace
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

import pytest

from conntrackd.core import _core as core
from conntrackd.flow import Flow
from conntrackd.render.steps import STEP, StepKind
from tests.filter.rows import FLOW, IPV6
from tests.messages import build_message


def write(kind: StepKind, name: str, flows: list[Flow], *, times: int = 1) -> list[str]:
    """One field of these, by the core; several times side by side."""
    step = STEP.pack(0, kind, core.FIELDS.index(name), 0, 0, 0, 0, 0, 0)
    template = core.Template(step * times, b"", b"", False)
    batch = core.Batch(4096, 2048, True)
    messages = b"".join(map(build_message, flows))
    assert batch.load(messages, 0, 1) == (len(messages), len(flows), 0)
    text, ends, *_ = batch.render(template, None)
    return [text[begin:end].decode() for begin, end in itertools.pairwise((0, *array("I", ends)))]


@pytest.mark.parametrize("words", [(0, 1), (0, 0xFFFF), (0, 0xABC), (0, 0x10), (0xF00D, 0)])
def test_every_run_of_zeros_is_written_as_inet_ntop_does(words: tuple[int, int]) -> None:
    addresses = [struct.pack("!8H", *chosen) for chosen in itertools.product(words, repeat=8)]
    addresses += [bytes(10) + b"\xff\xff" + bytes([192, 0, 2, last]) for last in (0, 9, 10, 99, 100, 255)]
    addresses += [bytes(12) + bytes([10, 0, first, last]) for first in (0, 255) for last in (0, 1, 255)]
    flows = [replace(IPV6, src=address) for address in addresses]

    assert write(StepKind.ADDRESS, "src", flows) == [inet_ntop(AF_INET6, address) for address in addresses]


def test_every_octet_is_written_as_inet_ntop_does() -> None:
    addresses = [bytes([octet, 255 - octet, octet, 255 - octet]) for octet in range(256)]
    flows = [replace(FLOW, src=address) for address in addresses]

    assert write(StepKind.ADDRESS, "src", flows) == [inet_ntop(AF_INET, address) for address in addresses]


@pytest.mark.parametrize("name", ["src", "dst", "reply_src"])
def test_an_address_is_the_same_where_it_is_written_again(name: str) -> None:
    addresses = [bytes(16), bytes(15) + b"\1", b"\x20\1" * 8, bytes([32, 1]) + bytes(12) + b"\xab\xcd"]
    changes: list[dict[str, Any]] = [{name: address} for address in addresses]
    flows = [replace(IPV6, **change) for change in changes]

    assert write(StepKind.ADDRESS, name, flows, times=3) == [
        3 * inet_ntop(AF_INET6, address) for address in addresses
    ]


def test_numbers_are_written_with_all_their_digits() -> None:
    numbers = [10**power + near for power in range(20) for near in (-1, 0, 1)] + [2**64 - 1]
    flows = [replace(FLOW, orig_bytes=number, orig_packets=1) for number in numbers]

    assert write(StepKind.NUMBER, "orig_bytes", flows) == [str(number) for number in numbers]


def test_fractions_are_written_with_all_their_zeros() -> None:
    fractions = [10**power + near for power in range(9) for near in (-1, 0, 1)] + [999_999_999]
    flows = [replace(FLOW, start=10**18, stop=10**18 + fraction) for fraction in fractions]

    assert write(StepKind.DURATION, "duration", flows) == [f"0.{fraction:09}" for fraction in fractions]
