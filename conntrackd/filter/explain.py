"""What becomes of rules, for people: canonical text, groups, what the kernel decides and what is left."""

from collections.abc import Sequence

from conntrackd import bpf
from conntrackd.config.options import CONNTRACK_EVENTS, CONNTRACK_PROTOCOLS
from conntrackd.filter.ast import Rule, get_sets
from conntrackd.filter.kernel import compile_kernel
from conntrackd.filter.listing import describe_set, render_table
from conntrackd.filter.render import render
from conntrackd.filter.table import compile_table
from conntrackd.flow import EventType


def render_sections(sections: dict[str, list[str]]) -> str:
    """As text with headings."""
    return "\n\n".join(
        "\n".join([title, *(f"  {line}".rstrip() for line in lines)]) for title, lines in sections.items()
    )


def list_sections(
    rules: Sequence[Rule],
    protocols: frozenset[int] | None,
    events: int,
    *,
    core: bool = False,
    listing: bool = False,
    remembers: bool = False,
) -> dict[str, list[str]]:
    """The lines of each section, by its heading."""
    kernel = compile_kernel(rules, protocols=protocols, events=events, remembers=remembers)
    groups = [event_type.name or "" for event_type in EventType if event_type & kernel.groups]
    program = kernel.program
    sections = {
        "Rules": _list_rules(rules),
        "Settings": [
            f"{CONNTRACK_EVENTS.key}: {CONNTRACK_EVENTS.kind.render(EventType(events))}",
            f"{CONNTRACK_PROTOCOLS.key}: {CONNTRACK_PROTOCOLS.kind.render(protocols)}",
        ],
        "Groups joined": [", ".join(groups) or "none: no event is wanted"],
        "Program in the kernel": [
            "none: every event is passed up" if program is None else f"{len(program)} instructions"
        ],
        "Left to the core": kernel.notes or ["nothing"],
    }
    sets = get_sets(rules)
    if sets:
        sections["Sets"] = [f"{describe_set(found)} from {found.path}" for found in sets.values()]
    if core:
        sections["Table in the core"] = render_table(compile_table(rules, protocols, events)).splitlines()
    if listing:
        sections["BPF"] = ["none"] if program is None else bpf.render(program).splitlines()
    return sections


def explain_sink_rules(sink: str, rules: Sequence[Rule], *, core: bool = False) -> str:
    """The same for the rules of one sink."""
    return render_sections(list_sink_sections(sink, rules, core=core))


def list_sink_sections(sink: str, rules: Sequence[Rule], *, core: bool = False) -> dict[str, list[str]]:
    """The lines of each section, by its heading."""
    sections = {
        "Rules": _list_rules(rules),
        "Evaluated": [f"in the core, for sink {sink} alone, on events that the global filter keeps"],
    }
    if core:
        sections["Table in the core"] = render_table(compile_table(rules)).splitlines()
    return sections


def _list_rules(rules: Sequence[Rule]) -> list[str]:
    return [f"{number:4}  {render(rule)}" for number, rule in enumerate(rules, 1)] or [
        "none: every event is logged"
    ]
