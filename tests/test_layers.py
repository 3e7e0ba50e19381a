"""A module imports from its own layer or from below, never upward."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "conntrackd"

# Lowest first; a folder stands for all modules in it that are not named themselves.
LAYERS = (
    # words that everything uses, and the event path in C, which knows none of them
    ("", "apart", "errors", "files", "flow", "bpf", "stats", "lean", "text", "units", "core"),
    # parts, each alone
    (
        "config.values",
        "config.field_list",
        "config.flow_metrics",
        "config.labels",
        "config.listen",
        "config.option",
        "config.options",
        "config.document",
        "config.yaml_tree",
        "geoip",
        "notify",
        "logs",
        "resources",
        "netlink",
        "filter",
        "render.fields",
    ),
    # text and its delivery
    ("config", "render", "delivery"),
    # what happens to events, and who gets their text
    ("engine", "sinks", "tails"),
    # moving parts
    (
        *(
            "pipeline",
            "reader",
            "relay",
            "records",
            "source",
            "active_filter",
            "checks",
            "verify",
            "suppressed",
            "unwritten",
        ),
        *("bus", "advice", "progress", "metrics", "history"),
    ),
    # the one that knows all
    ("control", "daemon", "live_sets", "sink_changes", "sink_filters"),
    # people
    ("cli", "__main__"),
)
# What does the work in C, and what binds it to Python.
PLAIN_C = (
    *(
        "anonymize",
        "community",
        "decide",
        "event",
        "fields",
        "flows",
        "ids",
        "locate",
        "prefixes",
        "receive",
        "render",
        "send",
        "series",
        "sha1",
        "slots",
    ),
    *("table", "template", "text", "writer"),
)


def get_layer(module: str) -> int:
    """Of a dotted name below conntrackd."""
    for name in (module, module.partition(".")[0]):
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    raise LookupError(module)


def list_imports(path: Path, *, at_load: bool = False) -> Iterator[str]:
    """Names below conntrackd that the file imports at run time: what is only for the type checker is none.

    `at_load`: no more than what is imported when the module itself is.
    """
    tree = ast.parse(path.read_text())
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "conntrackd":
            module = (node.module or "").partition(".")[2]
            for alias in node.names:
                below = f"{module}.{alias.name}".lstrip(".")
                is_module = (ROOT / below.replace(".", "/")).with_suffix(".py").exists()
                yield below if is_module or (ROOT / below.replace(".", "/")).is_dir() else module


def list_modules() -> Iterator[tuple[str, Path]]:
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix("__init__").rstrip("."), path


def test_every_module_has_a_layer_and_imports_nothing_from_above() -> None:
    upward = [
        f"{name} imports {imported}"
        for name, path in list_modules()
        for imported in list_imports(path)
        if get_layer(imported) > get_layer(name)
    ]

    assert upward == []


def test_the_paper_for_developers_shows_these_layers() -> None:
    text = (ROOT.parent / "CONTRIBUTING.md").read_text()
    block = text.partition("## Layers")[2].split("```")[1].strip("\n")
    rows: list[set[str]] = []
    for line in block.splitlines():
        if line[0] != " ":
            rows.append(set())
        names = line[len("the ones that know all   ") :].partition(", and core/")
        rows[-1] |= {name.rstrip("/").replace("/", ".") for name in names[0].split()}
        rows[-1] |= {"core"} if names[1] else set()

    assert rows == [set(layer) - {""} for layer in reversed(LAYERS)]


def test_no_module_is_imported_by_what_it_imports() -> None:
    imports = {name: set(list_imports(path, at_load=True)) - {name} for name, path in list_modules()}
    while free := {name for name, imported in imports.items() if not imported & imports.keys()}:
        for name in free:
            del imports[name]

    assert imports == {}


def test_what_works_in_c_knows_no_python_and_each_file_is_read_at_once() -> None:
    texts = {path.stem: path.read_text() for path in (ROOT / "core").glob("*.c")}

    assert set(PLAIN_C) < texts.keys()
    assert [name for name in PLAIN_C if re.search(r"\bPy|binding\.h|batch\.h", texts[name])] == []
    assert {name: lines for name, text in texts.items() if (lines := text.count("\n")) > 400} == {}


def test_only_one_file_knows_ply_and_only_one_ends_the_process() -> None:
    texts = {name: path.read_text() for name, path in list_modules()}

    assert [name for name, text in texts.items() if "from ply" in text or "import ply" in text] == [
        "filter.grammar"
    ]
    assert [name for name, text in texts.items() if "sys.exit(" in text] == ["cli.report"]


def test_no_module_is_longer_than_a_person_reads_at_once() -> None:
    long = {
        name: count for name, path in list_modules() if (count := len(path.read_text().splitlines())) > 500
    }

    assert long == {}


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))

    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_what_is_called_find_may_find_nothing() -> None:
    """The rest is called by what it does: compute_, list_, choose_, get_, read_, make_."""
    found = [
        f"{path.relative_to(ROOT.parent)}:{node.lineno}: {node.name}"
        for folder in ("conntrackd", "tests", "bench", "fuzz")
        for path in (ROOT.parent / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match("_?find(_|$)", node.name)
        and not (node.returns and ast.unparse(node.returns).rstrip("'").endswith("| None"))
    ]

    assert found == []
