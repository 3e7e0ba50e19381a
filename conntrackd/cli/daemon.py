"""conntrackd: run, check, record, version."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from conntrackd import VERSION
from conntrackd.cli import report
from conntrackd.cli.common import parse_count
from conntrackd.cli.flags import NAMED_FLAG, add_flags, add_named_flags, collect_flags, explain_unknown
from conntrackd.cli.verb import Parser, add_command
from conntrackd.config.options import LOG_LEVEL, OPTIONS
from conntrackd.errors import OutputError, UsageError
from conntrackd.lean import without

if TYPE_CHECKING:
    from conntrackd.daemon import Sources

PROGRAM: Final = "conntrackd"
FLAGS: Final = frozenset(option.flag for option in OPTIONS)
RUN_USAGE: Final = "conntrackd run [--config PATH] [--OPTION VALUE]..."
CHECK_USAGE: Final = "conntrackd check [--config PATH | --fragment PATH] [--OPTION VALUE]..."
FRAGMENT: Final = "check one file of conntrackd.d on its own"


def build_parser(words: Sequence[str] = ()) -> Parser:
    """All commands; the chosen one's function is `run` of what is parsed, from these words."""
    parser = Parser(
        prog=PROGRAM,
        description="Log the kernel's connection tracking events as structured records.",
    )
    version = f"{PROGRAM} {VERSION}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    commands = parser.add_commands()
    for name, usage, text, function in (
        ("run", RUN_USAGE, "log the events that the filter keeps", run),
        ("check", CHECK_USAGE, "check the configuration and exit", check),
    ):
        command = add_command(commands, name, text, usage=usage)
        command.add_argument("--config", metavar="PATH", help="read only this file")
        add_flags(command)
        known = ["--config", *(option.flag for option in OPTIONS), *add_named_flags(command, words)]
        if function is check:
            command.add_argument("--fragment", metavar="PATH", type=Path, help=FRAGMENT)
            known.append("--fragment")
        command.set_defaults(run=function, known=known)
    command = commands.add_parser(
        "record",
        help="record raw netlink messages to a file",
        description="Record raw netlink messages to a file, for 'conntrackd run --conntrack.replay FILE'.",
    )
    command.add_argument(
        "file", metavar="FILE", type=Path, help="output file, replaced if it exists, or - for standard output"
    )
    command.add_argument("--count", metavar="N", type=parse_count, help="stop after N messages")
    command.add_argument("--netns", metavar="NAME", help="network namespace to listen in, by name or path")
    command.set_defaults(run=record, known=["--count", "--netns"])
    command = commands.add_parser("version", help="print the version")
    command.set_defaults(run=show_version, known=[])
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon in the foreground until SIGTERM, SIGINT, or the end of a replay."""
    with without("ssl"):  # 3 MiB; of TLS asyncio knows nothing here
        import asyncio  # noqa: F401, PLC0415
    from conntrackd import daemon, logs  # noqa: PLC0415  # `version` and `--help` need none of it

    sources = _read_sources(arguments)
    logs.set_up(sources.read()[LOG_LEVEL], sources.environ)
    daemon.run(sources)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Say what `run` would refuse."""
    from conntrackd.config.read import raise_mistakes, read_fragment  # noqa: PLC0415
    from conntrackd.verify import verify  # noqa: PLC0415

    if arguments.fragment is None:
        result = verify(_read_sources(arguments).examine())
    elif arguments.config is not None or collect_flags(arguments):
        raise UsageError("--fragment checks a single file and takes no other settings")
    else:
        result = verify(read_fragment(arguments.fragment), alone=True)
    for warning in result.warnings:
        report.warn(PROGRAM, warning)
    for text in result.untried:
        report.print_error(PROGRAM, f"not tried: {text}")
    raise_mistakes(result.mistakes)
    paths = result.config.paths
    print("\n".join(f"{path}: good" for path in paths) or "no configuration file; the settings are valid")
    return 0


def record(arguments: argparse.Namespace) -> int:
    """Write what the kernel sends to a file, whatever the configuration says."""
    from conntrackd.source import record as recorder  # noqa: PLC0415

    if arguments.file == recorder.STANDARD and sys.stdout.isatty():
        hint = "name a file, or lead it into a pipe"
        raise UsageError("a recording is not for a terminal to show", hint=hint)
    name = recorder.name_output(arguments.file)
    try:
        log = partial(report.print_error, PROGRAM)
        count = recorder.record(arguments.file, arguments.count, arguments.netns, log)
    except BrokenPipeError:
        raise  # who reads standard output has had enough
    except OSError as error:
        raise OutputError(f"{error.strerror}", origin=name) from error
    report.print_error(PROGRAM, f"{name}: {count} message{'' if count == 1 else 's'} written")
    return 0


def show_version(_: argparse.Namespace) -> int:
    """Name and version, and nothing else."""
    print(f"{PROGRAM} {VERSION}")
    return 0


def _read_sources(arguments: argparse.Namespace) -> "Sources":
    from conntrackd.daemon import Sources  # noqa: PLC0415

    path = Path(arguments.config) if arguments.config is not None else None
    return Sources(collect_flags(arguments), dict(os.environ), path)


def _spell(text: str) -> str:
    """`--filter-file` is `--filter_file`: other programs write their options so."""
    name, equals, value = text.partition("=")
    if not name.startswith("--"):
        return text
    head, dot, end = name.rpartition(".") if NAMED_FLAG.fullmatch(name) else ("--", "", name[2:])
    flag = head + dot + end.replace("-", "_")  # the name of a sink has its hyphens
    return flag + equals + value if flag in FLAGS or dot else text


def parse_and_run(texts: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    words = [_spell(text) for text in texts]
    parser = build_parser(words)
    parser.refuse_early(words)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        raise explain_unknown(unknown, arguments.known)
    status: int = arguments.run(arguments)
    return status


def main() -> NoReturn:
    """The command itself."""
    report.run(PROGRAM, lambda: parse_and_run(sys.argv[1:]))
