"""The dearest file or option of each kind: `python -m tests.faults.dearest_files KIND FOLDER` reads it.

It prints the CPU time in milliseconds and the memory in KiB that it took, in a process of its own.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from conntrackd.config import document, rules
from conntrackd.config import read as config
from conntrackd.config.options import OPTIONS
from conntrackd.errors import ConntrackdError
from conntrackd.filter.sets import MAX_ENTRIES

ROOM: Final = document.MAX_FILE - 256
TOML_ROOM: Final = document.MAX_TOML - 256
DEPTH: Final = document.MAX_DEPTH
RULES: Final = "rules"


def repeat(text: str, room: int = ROOM) -> str:
    return text * (room // len(text))


FILES: Final[dict[str, Callable[[], tuple[str, str]]]] = {
    "YAML keys": lambda: ("c.yaml", "".join(f"k{n}: 1\n" for n in range(ROOM // 10))),
    "YAML items": lambda: ("c.yaml", "filter:\n" + repeat("- a\n")),
    "YAML comments": lambda: ("c.yaml", repeat("# x\n")),
    "YAML depth": lambda: ("c.yaml", "a: " + "[" * (DEPTH + 9) + repeat("1,") + "]" * (DEPTH + 9)),
    "YAML one text": lambda: ("c.yaml", f"filter: ['log any # {'x' * ROOM}']"),
    "YAML aliases": lambda: ("c.yaml", "a: &a [1,2,3,4,5,6,7,8]\n" + repeat("b: [*a,*a,*a,*a]\n")),
    "YAML counts": lambda: ("c.yaml", "metrics.flows:\n" + ("- {name: a, by: [" + "a," * 400 + "]}\n") * 8),
    "YAML long lines": lambda: ("c.yaml", "filter: [" + repeat("'log any', ") + "]"),
    "JSON keys": lambda: ("c.json", json.dumps({f"k{n}": 1 for n in range(ROOM // 14)})),
    "JSON items": lambda: ("c.json", '{"filter": [' + repeat('"a", ') + '"a"]}'),
    "JSON depth": lambda: ("c.json", '{"filter": ' + "[" * (ROOM // 2) + "]" * (ROOM // 2) + "}"),
    "TOML keys": lambda: ("c.toml", "".join(f"k{n} = 1\n" for n in range(TOML_ROOM // 12))),
    "TOML items": lambda: ("c.toml", "filter = [" + repeat('"a", ', TOML_ROOM) + "]"),
    "TOML tables": lambda: ("c.toml", "".join(f"[t{n}]\n" for n in range(TOML_ROOM // 10))),
    "TOML dotted keys": lambda: ("c.toml", ".".join("a" * (TOML_ROOM // 2)) + " = 1"),
    "TOML inline tables": lambda: ("c.toml", "filter = [" + repeat("{},", TOML_ROOM) + "]"),
    "TOML small keys": lambda: ("c.toml", "filter = [" + repeat("{a=1},", TOML_ROOM) + "]"),
    "JSON objects": lambda: ("c.json", '{"filter": [' + repeat("{},") + "{}]}"),
    "JSON small keys": lambda: ("c.json", '{"filter": [' + repeat('{"a":1},') + "{}]}"),
    "JSON numbers": lambda: ("c.json", '{"filter": [' + repeat("1,") + "1]}"),
    "TOML numbers": lambda: ("c.toml", "filter = [" + repeat("1,", TOML_ROOM) + "]"),
    "rules in comments": lambda: (RULES, repeat("# x\n", rules.MAX_RULE_FILE - 256) + "log any\n"),
    "rules in empty lines": lambda: (RULES, repeat("\n", rules.MAX_RULE_FILE - 256) + "log any\n"),
    "one long rule": lambda: (RULES, "log any " * ((rules.MAX_RULE_FILE - 256) // 8)),
}
# Of sets: as many entries as there may be, in no order.
SETS: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "networks of IPv6 with comments": lambda: (f"2001:{n:x}:{n & 0xFFF:x}::/48 # {n}\n" for n in scatter(16)),
    "addresses of IPv4": lambda: (
        f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}\n" for n in scatter(32)
    ),
    "nothing that is right": lambda: (f"{n}\n" for n in scatter(32)),
}
LISTS: Final = tuple(option.key for option in OPTIONS if option.kind.separator)


ODD: Final = 0x9E3779B1


def scatter(bits: int) -> Iterable[int]:
    """MAX_ENTRIES numbers of so many bits."""
    return (n * ODD % (1 << bits) for n in range(MAX_ENTRIES))


def measure(work: Callable[[], object]) -> tuple[int, int]:
    """CPU time in ms, and KiB. A mistake is an answer too."""
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with suppress(ConntrackdError):
        work()
    took = time.process_time() - began
    return round(took * 1000), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory


def read_file(kind: str, folder: Path) -> tuple[int, int]:
    """What the daemon does with such a file."""
    name, text = FILES[kind]()
    path = folder / name
    path.write_text(text)
    path.chmod(0o644)
    del text
    main = path
    if name == RULES:
        main = folder / "main.yaml"
        main.write_text(f"filter_file: {path}\n")
        main.chmod(0o644)
    return measure(lambda: rules.read_rules(config.read_config({}, {}, main)))


def read_set(kind: str, folder: Path) -> tuple[int, int]:
    """A set of the configuration."""
    with (folder / "set").open("w") as file:
        file.writelines(SETS[kind]())
    given = config.read_config({"sets": [f"bad={folder}/set"]}, {})
    return measure(lambda: rules.read_sets(given))


def read_list(key: str) -> tuple[int, int]:
    """An option with as many items, as long as they may be."""
    items = [f"{n:04}={'x' * 4000}" for n in range(1000)]
    return measure(lambda: config.read_config({key: items}, {}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.dearest_files")
    kinds = [*FILES, *SETS, *LISTS]
    parser.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the file is written")
    arguments = parser.parse_args()
    wanted, directory = arguments.kind, arguments.folder
    config.read_config({}, {})
    if wanted in SETS:
        print(*read_set(wanted, directory))
    else:
        print(*(read_file(wanted, directory) if wanted in FILES else read_list(wanted)))
