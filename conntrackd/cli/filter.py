"""conntrackctl filter check, explain, test: rules without a daemon."""

import json
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from conntrackd.cli import report
from conntrackd.cli.common import add_bus, add_rule, add_sink, connect, explain_rule, print_json, print_lines
from conntrackd.cli.verb import Verb
from conntrackd.errors import ConfigError, ConntrackdError, DataError, ManyErrors, RuleError, UsageError

if TYPE_CHECKING:  # what runs imports it late: --help and completion need none of it
    from conntrackd.config.option import Option
    from conntrackd.config.read import Config
    from conntrackd.filter.ast import Rule
    from conntrackd.filter.evaluate import Decision

PROGRAM: Final = "conntrackctl"
FILTER_FILE: Final = "--filter-file"  # spelled otherwise than conntrackd's
# Where there is no configuration: rules of the command line stand alone, whatever this machine's daemon has.
NOWHERE: Final = Path("/nonexistent")
# Mistakes of lines that are reported one by one.
MAX_REPORTED: Final = 100


def add_rule_arguments(parser: ArgumentParser) -> None:
    """Where the rules come from; without any of these it is what the daemon on this machine would read."""
    add_rule(parser, "--filter", action="append", default=[], help="filter rule; can be repeated")
    parser.add_argument(FILTER_FILE, metavar="FILE", help="file with one rule per line")
    parser.add_argument("--config", metavar="FILE", help="configuration file of conntrackd")


def add_check_arguments(parser: ArgumentParser) -> None:
    add_rule_arguments(parser)
    add_sink(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_rule(parser, "rules", nargs="*", help="rules, as for --filter")


def add_explain_arguments(parser: ArgumentParser) -> None:
    add_check_arguments(parser)
    add_bus(parser)
    parser.add_argument("--running", action="store_true", help="explain the rules of the running daemon")
    parser.add_argument("--core", action="store_true", help="show the compiled table of tests")
    parser.add_argument("--bpf", action="store_true", help="show the BPF program that runs in the kernel")


def add_test_arguments(parser: ArgumentParser) -> None:
    add_rule_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object for each event")
    parser.add_argument(
        "file",
        nargs="?",
        default="-",
        type=parse_file,
        metavar="FILE",
        help="file of events (default: standard input)",
    )


def parse_file(text: str) -> str:
    """As it is, for argparse; but the other commands take rules there."""
    if hint := explain_rule(text):
        raise ArgumentTypeError(f"{text!r} is a rule, and not a file: {hint}")
    return text


def check(arguments: Namespace) -> int:
    """Report every mistake in the rules, and what of them is in vain or maybe not meant."""
    if arguments.json:
        return check_as_json(arguments)
    from conntrackd.filter.never import list_notes  # noqa: PLC0415

    rules = read_rules(read_settings(arguments), arguments.sink, arguments.rules)
    for warning in list_unreachable(rules):
        report.warn(PROGRAM, warning)
    for note in list_notes(rules):
        report.print_error(PROGRAM, f"note: {note}")
    print(f"{len(rules)} rule{'' if len(rules) == 1 else 's'}, no mistakes")
    return 0


def check_as_json(arguments: Namespace) -> int:
    """The same as one object on stdout; the exit status is that of the mistakes."""
    from conntrackd.filter.never import list_notes  # noqa: PLC0415
    from conntrackd.filter.render import render  # noqa: PLC0415

    found: dict[str, list[Any]] = {"rules": [], "mistakes": [], "warnings": [], "notes": []}
    try:
        rules = read_rules(read_settings(arguments), arguments.sink, arguments.rules)
    except ConntrackdError as error:
        mistakes = error.errors if isinstance(error, ManyErrors) else (error,)
        found["mistakes"] = [to_json(mistake) for mistake in mistakes]
        print_json(found)
        return error.exit_status
    found["rules"] = [render(rule) for rule in rules]
    found["warnings"] = [to_json(warning) for warning in list_unreachable(rules)]
    found["notes"] = [to_json(note) for note in list_notes(rules)]
    print_json(found)
    return 0


def to_json(error: ConntrackdError) -> dict[str, str]:
    """What is wrong, where, and what to do."""
    return {"message": error.message, "place": error.origin, "excerpt": error.excerpt, "hint": error.hint}


def explain(arguments: Namespace) -> int:
    """Show what becomes of the rules: canonical text, groups, kernel program, what is left to the core."""
    if arguments.running:
        return explain_running(arguments)
    from conntrackd.config.options import CONNTRACK_PROTOCOLS  # noqa: PLC0415
    from conntrackd.filter.explain import list_sections, list_sink_sections, render_sections  # noqa: PLC0415
    from conntrackd.records import choose_records, list_types  # noqa: PLC0415

    if arguments.sink is not None and arguments.bpf:
        hint = "conntrackctl filter explain --bpf shows it"
        raise UsageError("the program in the kernel is of the global filter, and of no sink's", hint=hint)
    config = read_settings(arguments)
    rules = read_rules(config, arguments.sink, arguments.rules)
    for warning in list_unreachable(rules):
        report.warn(PROGRAM, warning)
    if arguments.sink is not None:
        sections = list_sink_sections(arguments.sink, rules, core=arguments.core)
    else:
        protocols, events = config[CONNTRACK_PROTOCOLS], list_types(config)
        remembers = choose_records(config).remembered > 0
        wanted = {"core": arguments.core, "listing": arguments.bpf, "remembers": remembers}
        sections = list_sections(rules, protocols, events, **wanted)
    if arguments.json:
        print_json(to_object(sections))
    else:
        print(render_sections(sections))
    return 0


def explain_running(arguments: Namespace) -> int:
    """The daemon's own explanation, of the rules that it has in force."""
    if arguments.rules or arguments.filter or arguments.filter_file or arguments.config:
        raise UsageError("--running explains the daemon's rules and takes no others")
    if arguments.core or arguments.bpf:
        raise UsageError(
            "--core and --bpf do not go with --running", hint="conntrackctl filter show prints the rules"
        )
    with connect(arguments) as client:
        lines = client.call("ExplainFilter", "as", [], sink=arguments.sink)[0].splitlines()
    if arguments.json:
        print_json(to_object(parse_sections(lines)))
    else:
        print_lines(lines)
    return 0


def parse_sections(lines: Sequence[str]) -> dict[str, list[str]]:
    """The daemon's explanation by its headings, as list_sections() of filter/explain.py has it."""
    found: dict[str, list[str]] = {}
    here: list[str] = []
    for line in lines:
        if line and not line.startswith(" "):
            here = found[line] = []
        elif line:
            here.append(line.removeprefix("  "))
    return found


def to_object(sections: dict[str, list[str]]) -> dict[str, Any]:
    """The stable form: the rules alone, and what else there is by a name of its own."""
    words = {title.lower().replace(" ", "_"): lines for title, lines in sections.items()}
    rules = [match[1] for line in words.pop("rules", []) if (match := re.fullmatch(r" *\d+  (.*)", line))]
    if "settings" not in words:  # of a sink
        return {"rules": rules, **words}
    settings = dict(line.split(": ", 1) for line in words.pop("settings", []))
    groups = [line for line in words.pop("groups_joined", []) if not line.startswith("none")]
    return {"rules": rules, "settings": settings, "groups": ", ".join(groups).lower().split(", "), **words}


def try_out(arguments: Namespace) -> int:
    """Evaluate the rules alone against recorded events; what `conntrack.*` excludes is not in a recording."""
    from conntrackd.history.lines import is_compressed, number_lines, read_lines  # noqa: PLC0415

    rules = read_rules(read_settings(arguments))
    warn_of_status(rules)
    name = "standard input" if arguments.file == "-" else arguments.file
    mistakes = LineMistakes()
    with ExitStack() as stack:
        file = _open_input() if arguments.file == "-" else stack.enter_context(Path(name).open("rb"))
        path = Path(arguments.file)
        for number, line in read_lines(path, file) if is_compressed(path) else number_lines(file):
            try:
                decision = evaluate_line(rules, line)
            except DataError as error:
                mistakes.add(error, f"{name}:{number}")
                continue
            print(_render_decision(number, decision, rules, as_json=arguments.json))
    mistakes.refuse_any()
    return 0


class LineMistakes:
    """What is wrong with lines of a file: each mistake once, with the first line that has it."""

    def __init__(self) -> None:
        self._errors: dict[str, DataError] = {}
        self._more = Counter[str]()
        """Other lines with the same mistake; by "" those with others than are reported."""

    def add(self, error: DataError, origin: str) -> None:
        """One more line."""
        text = str(error)
        if text in self._errors:
            self._more[text] += 1
        elif len(self._errors) < MAX_REPORTED:
            error.origin = origin
            self._errors[text] = error
        else:
            self._more[""] += 1

    def refuse_any(self) -> None:
        """Raise all of them, if there are any."""
        for text, error in self._errors.items():
            if more := self._more[text]:
                error.message += f"; the same in {more} more line{'' if more == 1 else 's'}"
        others = [DataError(f"{self._more['']} more lines are not events")] if self._more[""] else []
        if self._errors:
            raise ManyErrors([*self._errors.values(), *others])


def read_settings(arguments: Namespace) -> "Config":
    """The settings that the arguments name; of this machine's daemon only where they name no rules."""
    from conntrackd.config.read import ETC, read_config  # noqa: PLC0415

    rules, sink = [*arguments.filter, *getattr(arguments, "rules", [])], getattr(arguments, "sink", None)
    key, nowhere = "filter", arguments.config is None
    if sink is not None:
        if arguments.filter_file is not None:
            raise UsageError("the rules of a sink stand in no file of rules", hint="without --filter-file")
        known = read_config({}, os.environ, arguments.config, ETC) if is_own_name(sink) else None
        # A sink that a configuration names is nothing without it.
        key, nowhere = get_sink_filter(known, sink).key, nowhere and known is None
    overrides = {key: rules} if rules else {}
    if arguments.filter_file is not None:
        overrides["filter_file"] = [arguments.filter_file]
    if overrides and nowhere:
        return read_config(overrides, {}, None, NOWHERE)
    return read_config(overrides, os.environ, arguments.config, ETC)


def is_own_name(sink: str) -> bool:
    """Whether it is a name that only a configuration can give."""
    from conntrackd.config.named import KINDS, explain_name  # noqa: PLC0415

    return sink not in KINDS and explain_name(sink) is None


def get_sink_filter(config: "Config | None", name: str) -> "Option[tuple[str, ...]]":
    """The setting that has the rules of the sink of this name, which may be a kind, or named by `config`.

    Raises UsageError.
    """
    from conntrackd.sinks import SINKS, find_sink  # noqa: PLC0415
    from conntrackd.text import quote, suggest  # noqa: PLC0415

    sink = None if config is None else find_sink(config, name)
    if sink is not None:
        return sink.config.resolve(sink.kind.filter)
    found = {kind.name: kind.filter for kind in SINKS}
    if name not in found:
        known = [*found, *(config.named if config is not None else ())]
        raise UsageError(
            f"unknown sink {quote(name)}", hint=suggest(name, known) or f"one of: {', '.join(known)}"
        )
    return found[name]


def read_rules(config: "Config", sink: str | None = None, typed: Sequence[str] = ()) -> "list[Rule]":
    """The rules of the settings, or of a sink in them. Raises what is wrong with them, all of it.

    Those that were `typed` as arguments are called by their numbers.
    """
    from conntrackd.config import options, rules  # noqa: PLC0415
    from conntrackd.config.rules import read_sets  # noqa: PLC0415
    from conntrackd.filter.diagnostics import RuleText  # noqa: PLC0415
    from conntrackd.filter.grammar import parse_rules  # noqa: PLC0415

    option = options.FILTER if sink is None else get_sink_filter(config, sink)
    try:
        texts = rules.read_rules(config) if sink is None else rules.list_rules(config, option=option)
    except ConfigError as error:
        error.origin = error.origin.replace(options.FILTER_FILE.flag, FILTER_FILE)
        raise
    arguments = {text.strip() for text in typed}
    texts = [
        RuleText(rule.text) if rule.origin == option.flag and rule.text in arguments else rule
        for rule in texts
    ]
    return parse_rules(texts, read_sets(config))


def list_unreachable(rules: "Sequence[Rule]") -> list[RuleError]:
    """A warning for each rule that can never match, and where all of them together log nothing."""
    from conntrackd.filter.never import list_silence, list_warnings  # noqa: PLC0415

    return [*list_warnings(rules), *list_silence(rules)]


def warn_of_status(rules: "Sequence[Rule]") -> None:
    """To stderr: the stream does not carry an event's status, so such a rule is evaluated without it."""
    from conntrackd.filter.ast import StatusHas, list_leaves  # noqa: PLC0415

    for number, rule in enumerate(rules, 1):
        if any(isinstance(leaf, StatusHas) for leaf in list_leaves(rule.expression)):
            text = "this rule tests the status, which the stream does not report: 0 is assumed"
            hint = 'a field "status" with the kernel\'s bits as a number is read where a line has it'
            report.warn(PROGRAM, DataError(text, origin=rule.origin or f"rule {number}", hint=hint))


def evaluate_line(rules: "Sequence[Rule]", line: bytes) -> "Decision":
    """What the rules do with the event of a line. No filter reaches a report."""
    from conntrackd.filter.evaluate import Decision  # noqa: PLC0415
    from conntrackd.history.lines import MAX_LINE_BYTES  # noqa: PLC0415
    from conntrackd.history.selection import evaluate_record  # noqa: PLC0415
    from conntrackd.render.parse import parse_line, parse_record  # noqa: PLC0415

    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"longer than {MAX_LINE_BYTES >> 10} KiB: not an event")
    record = parse_line(line)
    flow = parse_record(record)
    return Decision(True, 0) if flow is None else evaluate_record(rules, record, flow)


def _open_input() -> BinaryIO:
    if sys.__stdin__ is None:  # it was closed before we were started
        raise UsageError("standard input is closed", hint="name a file, or pipe events to it")
    if sys.stdin.isatty():
        report.print_error(PROGRAM, "reading events from this terminal, one JSON object a line; ^D ends them")
    return sys.stdin.buffer


def _render_decision(number: int, decision: "Decision", rules: "Sequence[Rule]", *, as_json: bool) -> str:
    """With the rule's limit, within which alone the event is logged: there is none in a file's time."""
    from conntrackd.filter.limit import render_limit  # noqa: PLC0415

    action, rule = "log" if decision.keep else "drop", decision.rule_number
    limit = rules[rule - 1].limit if rule else None
    text = "" if limit is None else render_limit(limit)
    if as_json:
        own = {"limit": text} if text else {}
        return json.dumps({"line": number, "decision": action, "rule": rule or None, **own})
    return "\t".join([action, str(rule or "-"), *([f"limit {text}"] if text else [])])


VERBS: Final = (
    Verb(("filter", "check"), "check rules and report every mistake", add_check_arguments, check),
    Verb(("filter", "explain"), "show how rules are compiled", add_explain_arguments, explain),
    Verb(("filter", "test"), "evaluate rules against recorded events", add_test_arguments, try_out),
)
