"""The core under libFuzzer and sanitizers: each target for FUZZ_SECONDS (60).

    python -m fuzz.native [TARGET]...
    python -m fuzz.native --merge [TARGET]...     add to the corpus what reached new code
    python -m fuzz.native --seeds                 add to the corpus what the project holds now

A finding is written to fuzz/build/TARGET-crash-*; its input belongs into fuzz/corpus/TARGET, with a name that
says what it is. Inputs that reach new code are kept in fuzz/build/TARGET between runs.
Needs clang and libclang-rt-dev.
"""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rules
from conntrackd.filter.table import assemble, compile_table
from conntrackd.netlink.constants import NLMSG_NOOP
from conntrackd.netlink.message import HEADER
from conntrackd.render import journal, loki, syslog
from conntrackd.render import json as json_lines
from conntrackd.render.steps import write_steps
from fuzz.seeds import CORPUS, write_seeds

FUZZ: Final = Path(__file__).parent
BUILD: Final = FUZZ / "build"
CORE: Final = FUZZ.parent / "conntrackd" / "core"
RECORDINGS: Final = FUZZ.parent / "tests" / "netlink" / "corpus"
# And the most bytes of an input: what a slot of the ring holds, and more than any template of ours.
TARGETS: Final = {"messages": 2048, "programs": 8192}
SECONDS: Final = "60"
# An input that takes 5 s or 1 GiB is a finding.
LIMITS: Final = ("-timeout=5", "-rss_limit_mb=1024", "-print_final_stats=1")
STRICT: Final = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
SANITIZED: Final = ("-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
LIBFUZZER: Final = "-fsanitize=fuzzer,address,undefined"

RULES: Final = (
    "log type NEW and not country DE,FR",
    "drop mark 0x10/0xf0,3 or zone 3 or not state ESTABLISHED",
    'drop not address 10.0.0.0/8,2001:db8::/64 and (bytes > 10M or not source city "Ulm")',
    "log nat ANY and duration < 1m and status UNREPLIED",
    "drop network LOCAL,PUBLIC and not port 22,80-90",
    *(f"drop source address 10.{number}.0.0/24,2001:db8:{number}::/48 on port 80" for number in range(20)),
)
TEMPLATES: Final = (
    json_lines.TEMPLATE,
    journal.TEMPLATE,
    loki.TEMPLATE,
    *(syslog.make_template(form, "daemon", "gw1", 42) for form in ("rfc5424", "rfc3164", "cee")),
)
SEED: Final = 7  # of the Community ID
LABELS: Final = {0: "a", 7: "label", 127: "the last"}


def main(words: Sequence[str]) -> int:
    """Exit status 1 with a finding."""
    names = [word for word in words if word != "--merge"] or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"fuzz: no target {unknown[0]}: there are {', '.join(TARGETS)}", file=sys.stderr)
        return 64
    return max(run(name, merge="--merge" in words) for name in names)


def run(name: str, *, merge: bool) -> int:
    """One target in a process of its own, which libFuzzer ends."""
    found = BUILD / name
    found.mkdir(parents=True, exist_ok=True)
    (BUILD / "kit").write_bytes(make_kit())
    seconds = os.environ.get("FUZZ_SECONDS", SECONDS)
    mode = ["-merge=1"] if merge else [f"-max_total_time={seconds}"]
    folders = [CORPUS / name, found] if merge else [found, CORPUS / name]
    limits = [*LIMITS, f"-max_len={TARGETS[name]}", f"-artifact_prefix={BUILD}/{name}-"]
    print(f"fuzz: {name}", file=sys.stderr)
    environment = {**os.environ, "CONNTRACKD_KIT": str(BUILD / "kit")}
    done = subprocess.run([build(name, BUILD), *limits, *mode, *folders], check=False, env=environment)
    return 1 if done.returncode else 0


def build(name: str, folder: Path) -> Path:
    """The target as a program of clang's."""
    program = folder / f"fuzz-{name}"
    sources = [FUZZ / f"{name}.c", FUZZ / "kit.c", *list_sources()]
    flags = [*STRICT, *SANITIZED, LIBFUZZER, f"-I{CORE}"]
    subprocess.run(["clang", *flags, *sources, "-o", program], check=True)
    return program


def list_sources() -> list[Path]:
    """The part of the core that knows nothing of Python: without binding.h, and without what includes it."""
    binding = {"binding.h", *(path.name for path in CORE.glob("*.h") if '"binding.h"' in path.read_text())}
    includes = {path: {line.split('"')[1] for line in _list_includes(path)} for path in CORE.glob("*.c")}
    return sorted(path for path, names in includes.items() if not names & binding)


def _list_includes(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith('#include "')]


def make_kit() -> bytes:
    """What fuzz/kit.c opens: rules, templates, and the events of the tests' recordings."""
    program = assemble(compile_table(parse_rules([RuleText(text) for text in RULES])))
    messages = b"".join(_choose_messages())
    parts = [struct.pack("=3I", len(program), len(TEMPLATES), len(messages)), program, messages]
    for template in TEMPLATES:
        written = write_steps(template, LABELS, SEED)
        parts += [struct.pack("=4I", *map(len, written), template.by_stream), *written]
    return b"".join(parts)


def read_messages() -> Iterator[bytes]:
    """The events of the tests' recordings."""
    for path in sorted(RECORDINGS.glob("*.nl")):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            length, kind, *_ = HEADER.unpack_from(content, offset)
            if kind != NLMSG_NOOP:  # the time
                yield content[offset : offset + length].ljust(length + 3 & ~3, b"\0")
            offset += length + 3 & ~3


def _choose_messages() -> list[bytes]:
    """Those that differ in length, type or flags."""
    return list({message[:8]: message for message in read_messages()}.values())[:60]


def list_seeds() -> Iterator[tuple[str, bytes]]:
    """Target and input: what the project holds now."""
    messages = _choose_messages()
    yield from (("messages", message) for message in messages)
    yield "messages", b"".join(messages[:4])
    for count in (0, 1, 3, len(RULES)):
        rules = parse_rules([RuleText(text) for text in RULES[:count]])
        yield "programs", b"P" + assemble(compile_table(rules, frozenset({6, 17})))
    for template in TEMPLATES:
        steps, names, pool = write_steps(template, LABELS)
        numbers = struct.pack("=3H", template.by_stream, len(steps) // 32, len(names) // 8)
        yield "programs", b"T" + numbers + steps + names + pool


if __name__ == "__main__":
    if sys.argv[1:] == ["--seeds"]:
        write_seeds(list_seeds())
    else:
        sys.exit(main(sys.argv[1:]))
