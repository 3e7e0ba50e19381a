"""Which flows are in a sample: decided by the id, which each event of a flow has: all of them are, or none.

The same function stands in core/decide.h, and in the kernel's program (bpfcode.py). Samples are nested: a
flow that is in 1/100 is in 1/10 too.
"""

from typing import Final

# Of fewer flows sums say nothing; up to here the sample has what was asked for within 0.03 %.
MAX_RATE: Final = 1_000_000
WORD: Final = (1 << 32) - 1
# Each bit of the id changes half of the bits of the hash. Shares of readers are cut by the id itself
# (netlink/socket.py): with the id for a hash, one of two readers would have all of 1/2.
SHIFTS: Final = (16, 15, 16)
FACTORS: Final = (0x7FEB352D, 0x846CA68B)


def mix(number: int) -> int:
    """The hash of 32 bits; no two numbers have the same."""
    number ^= number >> SHIFTS[0]
    number = number * FACTORS[0] & WORD
    number ^= number >> SHIFTS[1]
    number = number * FACTORS[1] & WORD
    return number ^ number >> SHIFTS[2]


def compute_limit(rate: int) -> int:
    """The highest hash of a flow that is in the sample 1/rate."""
    return WORD // rate


def is_sampled(flow_id: int, rate: int) -> bool:
    """Whether the flow is in the sample. With a rate of 0 nothing is sampled: every flow is."""
    return not rate or mix(flow_id) <= compute_limit(rate)
