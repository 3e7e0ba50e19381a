"""conntrackctl status, reload, reload-filter, log-level, filter show/set/reset, sink."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, Final

from conntrackd.cli.common import (
    LEVELS,
    add_expiry,
    add_json,
    add_rule,
    add_sink,
    connect,
    make_change,
    print_json,
    print_lines,
    print_table,
)
from conntrackd.cli.verb import Verb
from conntrackd.errors import UnavailableError

DEGRADED: Final = 4
"""The daemon runs, and something is wrong (systemctl's and LSB's 3 is: it does not run)."""
GOOD_STATES: Final = ("ok", "starting", "disabled")
DROPPED: Final = "sink_events_dropped_"
LABEL: Final = 11  # columns before the text of a line of `status`


def add_sink_arguments(parser: ArgumentParser) -> None:
    add_json(parser)
    add_sink(parser)


def add_set_arguments(parser: ArgumentParser) -> None:
    add_sink_arguments(parser)
    add_rule(parser, "rules", nargs="+", help="rules, in order")
    add_expiry(parser, "10m")


def add_level_argument(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("level", choices=LEVELS, metavar="LEVEL", help=f"one of: {', '.join(LEVELS)}")


def add_name_argument(parser: ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("sink", metavar="NAME", help="name of a sink")


def show_status(arguments: Namespace) -> int:
    """Whether it is healthy: 0, or 4. Where it does not run, the error's status is 3."""
    with connect(arguments) as client:
        properties, sinks = client.read_properties(), client.read_sinks()
    problems = list_problems(properties, sinks)
    if arguments.json:
        print_json(
            {"healthy": not problems, "running": True, **properties, "Problems": problems, "Sinks": sinks}
        )
    else:
        print_lines(render_status(properties, sinks, problems), indent=LABEL)
    return DEGRADED if problems else 0


def render_silence(error: UnavailableError) -> dict[str, Any]:
    """What `status --json` has where no daemon answers; `running` as far as that is known."""
    from conntrackd.bus.client import NotRunningError  # noqa: PLC0415  # for a mistake alone

    is_running = None if not isinstance(error, NotRunningError) else False
    return {"healthy": False, "running": is_running, "Problems": [str(error)], "Sinks": {}}


def list_problems(properties: Mapping[str, Any], sinks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the daemon says, and sinks in a bad state of which it does not."""
    problems = [str(problem) for problem in properties["Problems"]]
    for name, sink in sinks.items():
        if sink["State"] not in GOOD_STATES and not any(
            problem.startswith(f"sink {name} ") for problem in problems
        ):
            problems.append(f"sink {name} is {sink['State']}: {sink['LastError']}")
    return problems


def render_status(
    properties: Mapping[str, Any], sinks: Mapping[str, Mapping[str, Any]], problems: list[str]
) -> list[str]:
    """The lines that `status` prints."""
    counters = properties["Counters"]
    started = properties["StartTime"] / 1e6
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
    rules = properties["RuleCount"]
    ends = properties["FilterExpires"]
    groups = ", ".join(properties["KernelGroups"]) or "none"
    received, lost = counters.get("events_received_total", 0), counters.get("events_lost_total", 0)
    found, flows = counters.get("events_snapshot_total", 0), counters.get("flows_total", 0)
    alive = counters.get("heartbeats_total", 0)
    lines = [
        f"conntrackd {properties['Version']}: {'degraded' if problems else 'healthy'}",
        f"since:     {since} ({render_age(time.time() - started)} ago)",
        f"files:     {', '.join(properties['ConfigurationPaths']) or 'none'}",
        f"filter:    {rules} rule{'' if rules == 1 else 's'}, from {properties['FilterOrigin']}"
        + (f", reverts in {render_age(ends)}" if ends else ""),
        f"kernel:    events {groups}; filter of {properties['KernelInstructions']} instructions",
        f"events:    {received} received, {counters.get('events_accepted_total', 0)} logged, {lost} lost"
        + (f"; {flows} FLOW records" if flows else "")
        + (f"; {alive} ALIVE records" if alive else "")
        + (f"; {found} flows from the table" if found else ""),
        f"log level: {properties['LogLevel']}",
    ]
    lines += [f"sink:      {name} {render_sink(sink)}" for name, sink in sinks.items()]
    timed = {"filter": ends} | {
        f"filter of sink {name}": sink.get("FilterExpires", 0) for name, sink in sinks.items()
    }
    lines += [f"run time:  {what}: for {render_age(left)} more" for what, left in timed.items() if left]
    changed = properties["RunTimeChanges"]
    lines += [f"run time:  {what}: see conntrackctl set list" for what in changed if what.startswith("set ")]
    changes = [what for what in changed if not timed.get(what) and not what.startswith("set ")]
    if changes:
        lines.append(f"run time:  {', '.join(changes)}: until a reload or restart")
    return lines + [f"problem:   {problem}" for problem in problems]


def render_sink(sink: Mapping[str, Any]) -> str:
    """State and figures in one line."""
    counters = sink["Counters"]
    text = f"{sink['State']}, {counters.get('sink_events_delivered_total', 0)} delivered"
    waiting, dropped = count_waiting(counters), count_dropped(counters)
    filtered = counters.get("sink_events_filtered_total", 0)
    text += f", {waiting} waiting" if waiting else ""
    text += f", {filtered} filtered" if filtered else ""
    text += f", {dropped} dropped" if dropped else ""
    return text + (f" ({sink['LastError']})" if sink["LastError"] else "")


def count_waiting(counters: Mapping[str, int]) -> int:
    return counters.get("sink_events_queued", 0) + counters.get("sink_events_spooled", 0)


def count_dropped(counters: Mapping[str, int]) -> int:
    return sum(value for name, value in counters.items() if name.startswith(DROPPED))


def render_age(seconds: float) -> str:
    """`3 d 4 h`: the two largest units."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def show_filter(arguments: Namespace) -> int:
    """The rules in force, one a line, as a file of rules would have them."""
    with connect(arguments) as client:
        if arguments.sink is None:
            properties, matches = client.read_properties(), client.call("GetStatistics")[2]
        else:
            properties = client.read_sink(arguments.sink)
            matches = properties["RuleMatches"]
        suppressed = properties.get("RuleSuppressed", [])
    if "Rules" not in properties:
        from conntrackd.errors import NotPermittedError  # noqa: PLC0415

        raise NotPermittedError(
            "not permitted to see the rules", hint="run it as root, for example with sudo"
        )
    rules = properties["Rules"]
    if arguments.json:
        expires = properties["FilterExpires"]
        origin = {"rules": rules, "origin": properties["FilterOrigin"], "expires_s": expires}
        print_json({**origin, "matches": matches, "suppressed": suppressed})
        return 0
    origin, ends = properties["FilterOrigin"], properties["FilterExpires"]
    print_lines([f"# from {origin}{f', reverts in {render_age(ends)}' if ends else ''}"])
    print_lines(rules or ["# none: every event is logged"])
    for number, (decided, held) in enumerate(zip(matches, suppressed, strict=False)):
        if held:
            print_lines([f"# rule {number}: {held} of {decided} events were beyond its limit"])
    return 0


def list_sinks(arguments: Namespace) -> int:
    with connect(arguments) as client:
        sinks = client.read_sinks()
    if arguments.json:
        print_json(sinks)
        return 0
    rows = [["SINK", "STATE", "DELIVERED", "WAITING", "DROPPED", "LAST ERROR"]]
    for name, sink in sinks.items():
        counters = sink["Counters"]
        delivered = counters.get("sink_events_delivered_total", 0)
        numbers = map(str, (delivered, count_waiting(counters), count_dropped(counters)))
        rows.append([name, sink["State"], *numbers, sink["LastError"]])
    print_table(rows)
    return 0


def flush_sink(arguments: Namespace) -> int:
    """1 when not all that waited has left in the daemon's time for it."""
    with connect(arguments) as client:
        emptied = client.call("Flush", sink=arguments.sink)[0]
    if arguments.json:
        print_json({"emptied": emptied})
    else:
        waits = "not all has left in time; conntrackctl sink list shows what waits, and why"
        print_lines([f"sink {arguments.sink}: {'nothing waits' if emptied else waits}"], indent=2)
    return 0 if emptied else 1


SET_FILTER: Final = make_change("SetFilter", "asu", "rules", "seconds")
SET_LOG_LEVEL: Final = make_change("SetLogLevel", "s", "level")
VERBS: Final = (
    Verb(("status",), "show health, sinks and losses", add_json, show_status),
    Verb(("reload",), "reload the configuration, all or nothing", add_json, make_change("Reload")),
    Verb(("reload-filter",), "reload the filter rules only", add_json, make_change("ReloadFilter")),
    Verb(("filter", "show"), "show the rules in force", add_sink_arguments, show_filter),
    Verb(("filter", "set"), "replace the rules until a reload or restart", add_set_arguments, SET_FILTER),
    Verb(("filter", "reset"), "restore the configured rules", add_sink_arguments, make_change("ResetFilter")),
    Verb(("sink", "list"), "list sinks and their states", add_json, list_sinks),
    Verb(("sink", "enable"), "resume a sink", add_name_argument, make_change("Enable")),
    Verb(("sink", "disable"), "disable a sink", add_name_argument, make_change("Disable")),
    Verb(("sink", "flush"), "wait until a sink is empty", add_name_argument, flush_sink),
    Verb(("log-level",), "set the level of the daemon's own log", add_level_argument, SET_LOG_LEVEL),
)
