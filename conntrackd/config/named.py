"""Sinks that a configuration names (`sinks.audit`), beside the one of each kind (`sink.loki`).

Each has all settings of its kind, as options.py declares them, under keys of its own, and nothing here
knows what they are.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, cast

from conntrackd.config.document import Entry, Scalar, Section, is_null
from conntrackd.config.option import Option
from conntrackd.config.options import OPTIONS
from conntrackd.config.values import one_of
from conntrackd.render.template import PLACES
from conntrackd.text import find_near, quote

SECTION: Final = "sinks"
EXAMPLE: Final = f"its keys are names of sinks: {SECTION}.audit.kind: loki"
# With those of the kinds sixteen: each is a thread (the unit allows 64), up to 10 MB of events that wait, a
# text for every event, and a filter that a reload compiles.
MAX_SINKS: Final = 12
MAX_NAME: Final = 32  # it stands in lines for people, labels of metrics and names of directories
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
KINDS: Final = tuple(
    dict.fromkeys(option.key.split(".")[1] for option in OPTIONS if option.key.startswith("sink."))
)
KIND: Final = one_of(*KINDS)
VARIABLE: Final = re.compile(r"CONNTRACKD_SINKS_([A-Z0-9_]+)_KIND")
NAMING: Final = f"use up to {MAX_NAME} lower-case letters, digits and - between them, such as audit"


def _list_own(kind: str) -> Mapping[str, Option[object]]:
    """The settings of a kind, by the end of their keys."""
    prefix = f"sink.{kind}."
    found = {option.key.removeprefix(prefix): option for option in OPTIONS if option.key.startswith(prefix)}
    return MappingProxyType(found)


SETTINGS: Final = {kind: _list_own(kind) for kind in KINDS}
"""Kind -> end of a key -> the setting of the sink that has the name of its kind."""


def find_setting(end: str) -> Option[object] | None:
    """A setting that a named sink may have, whatever its kind; kinds agree on how one is written."""
    if end == "kind":
        return make_kind_option("NAME")
    return next((own[end] for own in SETTINGS.values() if end in own), None)


@dataclass(frozen=True, slots=True)
class NamedSink:
    """A name, a kind, and the settings: by the key of the kind's, each under its own key."""

    name: str
    kind: str
    options: Mapping[str, Option[object]]
    kind_option: Option[str]

    @property
    def enable(self) -> Option[bool]:
        """Whether it is on."""
        return cast(Option[bool], self.options[f"sink.{self.kind}.enable"])

    @property
    def prefix(self) -> str:
        """What the keys of its settings begin with."""
        return f"{SECTION}.{self.name}."


def make_sink(name: str, kind: str) -> NamedSink:
    """It is on unless somebody turns it off: nobody names a sink for nothing."""
    options = {
        option.key: replace(
            option, key=f"{SECTION}.{name}.{end}", default=True if end == "enable" else option.default
        )
        for end, option in SETTINGS[kind].items()
    }
    return NamedSink(name, kind, MappingProxyType(options), make_kind_option(name))


def make_kind_option(name: str) -> Option[str]:
    """The setting that says of which kind it is."""
    return Option(f"{SECTION}.{name}.kind", KIND, KINDS[0], "Kind of the sink", reload=False)


def explain_name(name: str) -> tuple[str, str] | None:
    """What is wrong with a name, and what to do."""
    if name in KINDS:
        return "is the name of a kind", f"did you mean sink.{name}?"
    if name in PLACES:
        return "is what LOST records call another place", NAMING
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        return "is not a valid name of a sink", NAMING
    return None


# ---- which sinks a configuration names ----------------------------------------------------------------


class Deferred(NamedTuple):
    """An entry of a file about named sinks, which waits until their kinds are known."""

    entry: Entry
    prefix: str
    path: Path
    folder: Path
    seen: dict[str, str]


@dataclass(slots=True)
class Mention:
    """Where a sink is named first, and what the last word about its kind is; empty for none."""

    origin: str
    kind: str = ""

    @property
    def known_kind(self) -> str:
        """The kind, if it is one."""
        return self.kind.lower() if self.kind.lower() in KINDS else ""


def read_mentions(
    deferred: Iterable[Deferred], environ: Mapping[str, str], overrides: Mapping[str, Sequence[str]]
) -> dict[str, Mention]:
    """The sinks with a valid name, as many as there may be, in the order in which they are named.

    A variable names a sink where it says the kind: others may be anybody's.
    """
    found: dict[str, Mention] = {}

    def note(name: str, kind: str, origin: str) -> None:
        if name not in found and (len(found) >= MAX_SINKS or explain_name(name)):
            return
        mention = found.setdefault(name, Mention(origin))
        mention.kind = kind or mention.kind

    for item in deferred:
        for name, kind, line in _list_mentioned(item):
            note(name, kind, f"{item.path}:{line}" if line else str(item.path))
    for variable in sorted(environ):
        if environ[variable] and (match := VARIABLE.fullmatch(variable)):
            note(match[1].lower().replace("_", "-"), environ[variable], variable)
    for key, texts in overrides.items():
        section, _, rest = key.partition(".")
        if section == SECTION:
            name, _, end = rest.partition(".")
            note(name, texts[-1] if end == "kind" and texts else "", f"--{key}")
    return found


def _list_mentioned(item: Deferred) -> Iterator[tuple[str, str, int]]:
    """Names, what is said of the kind, and the line: no deeper than that stands in a file.

    A name that occurs again is looked at once, and no more names than there may be: a file of aliases may
    have ten thousand names with the same ten thousand keys.
    """
    todo, seen = deque([(item.prefix + item.entry.key, item.entry)]), set[str]()
    while todo:
        key, entry = todo.popleft()
        _, *rest = key.split(".", 2)
        node = entry.node
        if len(rest) < 2 and isinstance(node, Section) and (node.entries or not rest):
            if rest and (key in seen or len(seen) > MAX_SINKS or explain_name(rest[0])):
                continue
            seen.update([key] if rest else ())
            todo += [(f"{key}.{inner.key}", inner) for inner in node.entries]
        elif len(rest) == 2 or (rest and not is_null(node)):
            kind = node.text if rest[1:] == ["kind"] and isinstance(node, Scalar) else ""
            yield rest[0], kind, entry.line


def explain_setting(key: str) -> tuple[str, str] | None:
    """What is wrong with `sink.journal.schema`, which other kinds have, and what to do; None for others."""
    section, kind, end = [*key.split(".", 2), "", ""][:3]
    others = [
        f"sink.{other}.{end}"
        for other in KINDS
        if any(known == end or known.startswith(f"{end}.") for known in SETTINGS[other])
    ]
    if section != "sink" or kind not in KINDS or not others:
        return None
    hint = f"there {'is' if len(others) == 1 else 'are'} {' and '.join(others)}"
    return f"a sink of kind {kind} has no setting {end}", hint


def explain_variable(name: str) -> tuple[str, str] | None:
    """The same of its variable, whose name says less about where a word ends."""
    ends = {end for own in SETTINGS.values() for end in own}
    keys = (f"sink.{kind}.{end}" for kind in KINDS for end in ends if end not in SETTINGS[kind])
    key = next((key for key in keys if replace(OPTIONS[0], key=key).variable == name), "")
    return explain_setting(key)


def explain_key(
    key: str, mentions: Mapping[str, Mention], sinks: Mapping[str, NamedSink]
) -> tuple[str, str] | None:
    """What is wrong with a key below `sinks` that there is not, and what to do; None for nothing of its own.

    The settings of a sink whose kind is not known are such: that is what is reported.
    """
    name, _, end = key.removeprefix(f"{SECTION}.").partition(".")
    fault = explain_name(name)
    if fault is not None:
        return f"{SECTION}: {quote(name)} {fault[0]}", fault[1]
    if name not in mentions and not end and len(mentions) < MAX_SINKS:
        return None  # nothing stands below it
    if name not in mentions:
        return f"{SECTION}: more than {MAX_SINKS} sinks are named", f"remove {name}, or another one"
    sink = sinks.get(name)
    others = [kind for kind in KINDS if end in SETTINGS[kind]]
    if sink is None and others:
        return None
    if sink is not None and others:
        kinds = " and ".join(others)
        return f"{key} is a setting of {kinds}", f"the kind of sink {name} is {sink.kind}"
    kinds_of_it = KINDS if sink is None else (sink.kind,)
    ends = dict.fromkeys(["kind", *(known for kind in kinds_of_it for known in SETTINGS[kind])])
    near, words = find_near(end, ends), dict.fromkeys(known.split(".")[0] for known in ends)
    hint = f"did you mean {SECTION}.{name}.{near}?" if near else f"valid keys: {', '.join(words)}"
    return f"unknown key {quote(key)}", hint
