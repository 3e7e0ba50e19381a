"""Classic BPF: instructions, labels, assembler, listing. Knows no netlink and no filters.

A program is written as Steps that jump to labels by name. Jumps only go forward, as the kernel wants them;
one that is too far for its eight bits goes by way of an unconditional one.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# include/uapi/linux/bpf_common.h and filter.h: classes, sizes, modes, operations
BPF_LD: Final = 0x00
BPF_LDX: Final = 0x01
BPF_ST: Final = 0x02
BPF_ALU: Final = 0x04
BPF_JMP: Final = 0x05
BPF_RET: Final = 0x06
BPF_MISC: Final = 0x07
BPF_W: Final = 0x00
BPF_H: Final = 0x08
BPF_B: Final = 0x10
BPF_IMM: Final = 0x00
BPF_ABS: Final = 0x20
BPF_IND: Final = 0x40
BPF_MEM: Final = 0x60
BPF_MUL: Final = 0x20
BPF_AND: Final = 0x50
BPF_RSH: Final = 0x70
BPF_MOD: Final = 0x90
BPF_XOR: Final = 0xA0
BPF_JA: Final = 0x00
BPF_JEQ: Final = 0x10
BPF_JGT: Final = 0x20
BPF_JGE: Final = 0x30
BPF_JSET: Final = 0x40
BPF_K: Final = 0x00
BPF_X: Final = 0x08
BPF_TAX: Final = 0x00
BPF_MAXINSNS: Final = 4096
# What stands before a filter where there are several readers: netlink/socket.py.
SHARE_INSTRUCTIONS: Final = 9
ROOM: Final = BPF_MAXINSNS - SHARE_INSTRUCTIONS
BPF_MEMWORDS: Final = 16
# Ancillary loads: A = offset to begin at, X = type of the attribute -> A = its offset, 0 where there is none
SKF_AD_OFF: Final = -0x1000
SKF_AD_NLATTR: Final = 12
SKF_AD_NLATTR_NEST: Final = 16  # A = offset of the attribute to look into

MAX_SHORT_JUMP: Final = 255
ALL_BYTES: Final = 0xFFFFFFFF
INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter

LD_IMM: Final = BPF_LD | BPF_IMM
LD_WORD: Final = BPF_LD | BPF_W | BPF_ABS
LD_HALF: Final = BPF_LD | BPF_H | BPF_ABS
LD_BYTE: Final = BPF_LD | BPF_B | BPF_ABS
LD_MEM: Final = BPF_LD | BPF_MEM
LDX_IMM: Final = BPF_LDX | BPF_IMM
LDX_MEM: Final = BPF_LDX | BPF_MEM
ST: Final = BPF_ST
MUL: Final = BPF_ALU | BPF_MUL | BPF_K
AND: Final = BPF_ALU | BPF_AND | BPF_K
RSH: Final = BPF_ALU | BPF_RSH | BPF_K
XOR_X: Final = BPF_ALU | BPF_XOR | BPF_X
MOD: Final = BPF_ALU | BPF_MOD | BPF_K
JA: Final = BPF_JMP | BPF_JA
JEQ: Final = BPF_JMP | BPF_JEQ | BPF_K
JEQ_X: Final = BPF_JMP | BPF_JEQ | BPF_X
JGT: Final = BPF_JMP | BPF_JGT | BPF_K
JGE: Final = BPF_JMP | BPF_JGE | BPF_K
JSET: Final = BPF_JMP | BPF_JSET | BPF_K
RET: Final = BPF_RET | BPF_K
TAX: Final = BPF_MISC | BPF_TAX
LD_INDIRECT: Final = {1: BPF_LD | BPF_B | BPF_IND, 2: BPF_LD | BPF_H | BPF_IND, 4: BPF_LD | BPF_W | BPF_IND}

TEXTS: Final = {
    LD_IMM: "ld #{k}",
    LD_WORD: "ld [{k}]",
    LD_BYTE: "ldb [{k}]",
    LD_MEM: "ld M[{k}]",
    LDX_IMM: "ldx #{k}",
    LDX_MEM: "ldx M[{k}]",
    ST: "st M[{k}]",
    MUL: "mul #{k:#x}",
    AND: "and #{k:#x}",
    RSH: "rsh #{k}",
    XOR_X: "xor x",
    MOD: "mod #{k}",
    JA: "ja {target}",
    JEQ: "jeq #{k:#x}, {yes}, {no}",
    JEQ_X: "jeq x, {yes}, {no}",
    JGT: "jgt #{k:#x}, {yes}, {no}",
    JGE: "jge #{k:#x}, {yes}, {no}",
    JSET: "jset #{k:#x}, {yes}, {no}",
    RET: "ret #{k}",
    TAX: "tax",
    LD_INDIRECT[1]: "ldb [x + {k}]",
    LD_INDIRECT[2]: "ldh [x + {k}]",
    LD_INDIRECT[4]: "ld [x + {k}]",
}
ANCILLARY: Final = {SKF_AD_NLATTR: "ld nlattr", SKF_AD_NLATTR_NEST: "ld nlattr_nest"}


class Instruction(NamedTuple):
    """struct sock_filter: jt and jf count the instructions to be skipped."""

    code: int
    jt: int
    jf: int
    k: int


@dataclass(frozen=True, slots=True)
class Step:
    """An operation with its operand; a conditional jump names its two labels, JA only `yes`."""

    code: int
    k: int = 0
    yes: str = ""
    no: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A target of jumps."""

    name: str


def load_attribute(nested: bool) -> Step:
    """A = the offset of attribute X: from offset A on, or inside the attribute at offset A; else 0."""
    return Step(LD_WORD, SKF_AD_OFF + (SKF_AD_NLATTR_NEST if nested else SKF_AD_NLATTR))


def link(steps: Sequence[Step | Label]) -> list[Instruction]:
    """The program, with labels turned into distances."""
    sizes = [0 if isinstance(step, Label) else 1 for step in steps]
    while True:
        targets = _compute_targets(steps, sizes)
        grown = [
            max(size, _count_instructions(step, start, targets))
            for step, size, start in zip(steps, sizes, _list_starts(sizes), strict=True)
        ]
        if grown == sizes:
            break
        sizes = grown
    program: list[Instruction] = []
    for step, start in zip(steps, _list_starts(sizes), strict=True):
        if isinstance(step, Step):
            program += _emit(step, start, targets)
    return program


def _list_starts(sizes: Iterable[int]) -> list[int]:
    starts, start = [], 0
    for size in sizes:
        starts.append(start)
        start += size
    return starts


def _compute_targets(steps: Sequence[Step | Label], sizes: Sequence[int]) -> dict[str, int]:
    starts = _list_starts(sizes)
    return {step.name: start for step, start in zip(steps, starts, strict=True) if isinstance(step, Label)}


def _count_instructions(step: Step | Label, start: int, targets: dict[str, int]) -> int:
    """Instructions that the step takes: a jump one more for each of its ways that is too long."""
    if isinstance(step, Label):
        return 0
    if not step.no:
        return 1
    # The distances as they are with the detours that may lie between: never too small.
    far = sum(targets[name] - start - 1 > MAX_SHORT_JUMP for name in (step.yes, step.no))
    return 1 + far


def _emit(step: Step, start: int, targets: dict[str, int]) -> list[Instruction]:
    if step.code == JA:
        return [Instruction(JA, 0, 0, targets[step.yes] - start - 1)]
    if not step.no:
        return [Instruction(step.code, 0, 0, step.k & 0xFFFFFFFF)]
    detours: list[Instruction] = []
    ways = []
    for name in (step.yes, step.no):
        distance = targets[name] - start - 1
        if distance > MAX_SHORT_JUMP:
            ways.append(len(detours))
            detours.append(Instruction(JA, 0, 0, distance - len(detours) - 1))
        else:
            ways.append(distance)
    return [Instruction(step.code, ways[0], ways[1], step.k & 0xFFFFFFFF), *detours]


def assemble(program: Iterable[Instruction]) -> bytes:
    """As the kernel takes it: an array of struct sock_filter."""
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in program)


def render(program: Sequence[Instruction]) -> str:
    """A listing, one instruction a line, jumps with the number of the instruction they go to."""
    width = len(str(len(program)))
    return "\n".join(
        f"{number:{width}}: {_render(instruction, number)}" for number, instruction in enumerate(program)
    )


def _render(instruction: Instruction, number: int) -> str:
    ancillary = (
        ANCILLARY.get((instruction.k - SKF_AD_OFF) & 0xFFFFFFFF) if instruction.code == LD_WORD else None
    )
    if ancillary is not None:
        return ancillary
    return TEXTS[instruction.code].format(
        k=instruction.k,
        target=number + 1 + instruction.k,
        yes=number + 1 + instruction.jt,
        no=number + 1 + instruction.jf,
    )
