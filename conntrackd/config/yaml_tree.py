"""YAML -> tree: see document.py, which loads this, and PyYAML with it, for who has a file of it."""

from typing import Final, NoReturn

import yaml

from conntrackd.config.document import (
    MAX_DEPTH,
    MAX_NODES,
    Entry,
    Items,
    Node,
    Scalar,
    ScalarType,
    Section,
    fail,
    is_null,
)

# The types that YAML's safe schema gives to scalars. A date without quotes is text to us.
YAML_TYPES: Final[dict[str, ScalarType]] = {
    "tag:yaml.org,2002:str": "text",
    "tag:yaml.org,2002:timestamp": "text",
    "tag:yaml.org,2002:value": "text",
    "tag:yaml.org,2002:int": "number",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:bool": "flag",
    "tag:yaml.org,2002:null": "null",
}
YAML_CONTAINERS: Final = frozenset({None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
# Where a quote is not closed: PyYAML says so of the end of the file.
UNFINISHED: Final = "found unexpected end of stream"


def parse(text: str) -> Node:
    """One YAML document -> tree.

    Built from the parser's events and not with PyYAML's composer, which calls itself once a level, and
    drops repeated keys.
    """
    try:
        return _TreeBuilder(yaml.SafeLoader(text)).build()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fail(line, f"has a character that YAML does not allow: {chr(error.character)!a}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or ""
        if problem == UNFINISHED and error.context_mark is not None:
            fail(error.context_mark.line + 1, "has a quoted text that does not end")
        fail(mark.line + 1 if mark else 0, f"is not valid YAML: {problem}", _explain_problem(problem))


def _explain_problem(problem: str) -> str:
    """What to do, where the words of the YAML library do not say it."""
    if "'\\t'" in problem:
        return "indent with spaces, not with tabs"
    if problem.startswith(
        ("expected <block end>", "mapping values are not allowed", "could not find expected ':'")
    ):
        return "a key ends in ': ', and keys of one level begin in one column"
    return ""


class _TreeBuilder:
    """Nodes from events, with a stack of its own instead of recursion."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._open: list[tuple[Items | Section, list[Scalar]]] = []
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None
        self._nodes = 0

    def build(self) -> Node:
        while True:
            event = self._loader.get_event()  # type: ignore[no-untyped-call]
            match event:
                case yaml.StreamEndEvent():
                    return Section() if self._root is None or is_null(self._root) else self._root
                case yaml.DocumentStartEvent() if self._root is not None:
                    fail(_get_line(event), "holds more than one document")
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._open.pop()
                case yaml.NodeEvent():
                    self._add(event)

    def _add(self, event: yaml.NodeEvent) -> None:
        line = _get_line(event)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            fail(line, f"holds more than {MAX_NODES:,} keys and values")
        node = self._make(event, line)
        self._attach(node, line)
        if event.anchor and not isinstance(event, yaml.AliasEvent):
            self._anchors[event.anchor] = node
        if isinstance(event, yaml.CollectionStartEvent):
            assert not isinstance(node, Scalar)
            self._open.append((node, []))
            if len(self._open) > MAX_DEPTH:
                fail(line, f"is nested more than {MAX_DEPTH} deep")

    def _make(self, event: yaml.NodeEvent, line: int) -> Node:
        match event:
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    fail(line, f"there is no anchor &{event.anchor} above")
                return self._anchors[event.anchor]
            case yaml.ScalarEvent():
                return self._make_scalar(event, line)
        assert isinstance(event, yaml.CollectionStartEvent)
        if event.tag not in YAML_CONTAINERS:
            _refuse_tag(event.tag, line)
        return Section(line=line) if isinstance(event, yaml.MappingStartEvent) else Items(line=line)

    def _make_scalar(self, event: yaml.ScalarEvent, line: int) -> Scalar:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        if tag == "tag:yaml.org,2002:merge":
            fail(line, "'<<' is not supported", "write the keys out")
        if tag not in YAML_TYPES:
            _refuse_tag(tag, line)
        # The text of a block begins below its sign.
        return Scalar(event.value, YAML_TYPES[tag], line + 1 if event.style in {"|", ">"} else line)

    def _attach(self, node: Node, line: int) -> None:
        if not self._open:
            self._root = node
            return
        container, pending = self._open[-1]
        if isinstance(container, Items):
            container.items.append(node)
        elif pending:
            key = pending.pop()
            container.entries.append(Entry(key.text, node, key.line))
        elif isinstance(node, Scalar):
            pending.append(Scalar(node.text, node.type, line))
        else:
            fail(line, "a key must be a word")


def _get_line(event: yaml.Event) -> int:
    assert event.start_mark is not None  # it is for events made by hand only
    return event.start_mark.line + 1


def _refuse_tag(tag: str | None, line: int) -> NoReturn:
    fail(line, f"tag {tag!a} is not allowed", "settings are plain text, numbers, true and false, and lists")
