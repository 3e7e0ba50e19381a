"""What SECURITY.md promises about the code: nothing others wrote is ever run, no check can be left out."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntrackd.bus import limits
from conntrackd.bus.control import FLUSH_SECONDS
from conntrackd.bus.interface import load
from conntrackd.checks import CONNECT_SECONDS
from conntrackd.config import document, flow_metrics, values
from conntrackd.config.rules import MAX_RULE_FILE
from conntrackd.control import TAILS_OF_ROOT
from conntrackd.filter import cost, grammar
from conntrackd.metrics import request, server
from conntrackd.sinks.http_reply import MAX_REPLY
from conntrackd.sinks.secrets import MAX_SECRET
from conntrackd.sinks.stream import FILE_MODE
from conntrackd.tails import MAX_TAILS, MAX_UNREAD

ROOT = Path(__file__).parent.parent
# Where another process is started: Python on geofile.py, a fork that watches the table; by `conntrackd check`
# test(1), as the service's user; by conntrackctl polkit's agent, and systemctl and journalctl, which tell why
# there is no daemon.
STARTERS = {"geoip/databases.py", "source/table_guard.py", "verify.py", "bus/agent.py", "cli/unit.py"}
STARTERS |= {"cli/pager.py", "history/journal.py"}
FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "code", "codeop", "pty"}
STARTING = re.compile(
    r"subprocess\..*|Popen|os\.(exec|spawn|posix_spawn|fork)\w*|asyncio\.create_subprocess_\w+"
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN_CALLS |= {"builtins.eval", "builtins.exec", "builtins.compile"}
UNSAFE_YAML = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader"}
# An assert may tell the type checker what is known already (python -O would leave it out), and nothing else.
NARROWING = re.compile(r"\S+ is not None|(not )?isinstance\(.*\)")


def list_all_faults(source: str, name: str) -> Iterator[str]:
    """What may not stand in a module, with its line."""
    for node in ast.walk(ast.parse(source)):
        for fault in list_faults(node, name):
            yield f"{name}:{getattr(node, 'lineno', 0)}: {fault}"


def list_faults(node: ast.AST, name: str) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (entry.name for entry in names if entry.name in FORBIDDEN_MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            if module in FORBIDDEN_MODULES:
                yield module
            yield from judge_import(module, [entry.name for entry in names])
        case ast.Call():
            yield from judge_call(node, name)
        case ast.Assert(test=test) if not NARROWING.fullmatch(ast.unparse(test)):
            yield f"assert {ast.unparse(test)}"


def judge_import(module: str, names: list[str]) -> Iterator[str]:
    """Names that would hide a call from judge_call."""
    for name in names:
        whole = f"{module}.{name}"
        if (
            whole in FORBIDDEN_CALLS
            or STARTING.fullmatch(whole)
            or (module == "yaml" and name in UNSAFE_YAML)
        ):
            yield f"from {module} import {name}"


def judge_call(call: ast.Call, name: str) -> Iterator[str]:
    function = ast.unparse(call.func)
    if function in FORBIDDEN_CALLS:
        yield f"{function}()"
    if STARTING.fullmatch(function) and name not in STARTERS:
        yield f"{function}()"
    for keyword in call.keywords:
        if keyword.arg == "shell" and not (
            isinstance(keyword.value, ast.Constant) and not keyword.value.value
        ):
            yield "shell="
    if function.startswith("yaml.") and function.removeprefix("yaml.") in UNSAFE_YAML:
        loaders = [ast.unparse(entry.value) for entry in call.keywords if entry.arg == "Loader"]
        loaders += [ast.unparse(argument) for argument in call.args[1:2]]
        if not SAFE_LOADERS & set(loaders):
            yield f"{function}() without a safe loader"


def test_the_package_runs_nothing_that_others_wrote_and_asserts_no_check() -> None:
    paths = sorted((ROOT / "conntrackd").rglob("*.py"))

    faults = [
        fault
        for path in paths
        for fault in list_all_faults(path.read_text(), str(path.relative_to(ROOT / "conntrackd")))
    ]
    assert len(paths) > 50
    assert faults == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "exec('x = 1')",
        "exec(compiled)",
        "compile(text, '', 'exec')",
        "builtins.compile(text, '', 'exec')",
        "os.system('ls')",
        "from os import system",
        "from subprocess import run",
        "subprocess.run(['ls'])",
        "os.execvp('ls', [])",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "from yaml import full_load",
        "assert len(text) < 10",
        "assert value",
    ],
)
def test_each_of_these_is_found(source: str) -> None:
    assert len(list(list_all_faults(source, "daemon.py"))) == 1


@pytest.mark.parametrize("source", ["subprocess.run('ls', shell=True)", "subprocess.run('ls', shell=wanted)"])
def test_no_shell_is_started_where_programs_are(source: str) -> None:
    assert [fault.partition(": ")[2] for fault in list_all_faults(source, "geoip/databases.py")] == ["shell="]
    assert list(list_all_faults("subprocess.run(['ls'], shell=False)", "geoip/databases.py")) == []


@pytest.mark.parametrize(
    "source",
    [
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "re.compile('a')",
        "assert node is not None",
        "assert not isinstance(node, A | B)",
    ],
)
def test_none_of_these_is(source: str) -> None:
    assert list(list_all_faults(source, "daemon.py")) == []


def test_the_table_of_costs_has_the_bounds_of_the_code() -> None:
    table = (
        (ROOT / "SECURITY.md").read_text().partition("**What a caller may cost.**")[2].partition("\n\n**")[0]
    )
    bounds = {
        f"{grammar.MAX_RULES:,} rules of {grammar.MAX_LENGTH:,} characters",
        f"{cost.MAX_CHARACTERS:,} characters, {cost.MAX_WORDS:,} words",
        f"{cost.MAX_COMPARISONS:,} comparisons together",
        f"{cost.MAX_TAIL_COMPARISONS:,} comparisons; {MAX_TAILS} tails, {MAX_UNREAD >> 20} MiB unread each",
        f"{CONNECT_SECONDS:g} s for each receiver",
        f"{limits.RATE:g} calls a second of a user, {limits.MAX_RUNNING} at a time",
        f"{limits.MAX_BODY:,} bytes",
        f"{FLUSH_SECONDS:g} s, in a thread of its own",
        f"{document.MAX_FILE >> 20} MiB, {document.MAX_NODES:,} keys and values, {document.MAX_DEPTH} levels",
        f"as TOML {document.MAX_TOML >> 10} KiB",
        f"{MAX_RULE_FILE >> 20} MiB, of which the rules",
        f"{MAX_SECRET >> 10} KiB",
        f"{values.MAX_ITEMS:,} items of {values.MAX_TEXT:,} characters",
        f"a pause of {['', '', '', 'three'][int(limits.REST)]} times its duration",
        f"{server.RATE:g} connections a second, {server.MAX_CONNECTIONS} at a time",
        f"{request.MAX_HEAD:,} bytes, {server.DEADLINE_SECONDS:g} s each",
        f"in each of {flow_metrics.MAX_METRICS} items, {flow_metrics.MAX_SERIES:,} in all",
        f"the last {['', '', 'two'][TAILS_OF_ROOT]} tails are reserved for root",
    }

    assert [bound for bound in sorted(bounds) if bound not in table] == []
    assert (limits.MAX_RULES, limits.MAX_TEXT) == (grammar.MAX_RULES, grammar.MAX_LENGTH)
    assert limits.MAX_RULES_TEXT == cost.MAX_CHARACTERS
    assert MAX_SECRET == MAX_REPLY


def test_every_method_of_the_interface_is_in_the_table_of_costs() -> None:
    table = (ROOT / "SECURITY.md").read_text().partition("**What a caller may cost.**")[2]
    methods = {name for interface in load().values() for name in interface.methods}

    assert {name for name in methods if f"`{name}`" not in table} <= {"ReloadFilter", "ResetFilter"}


def test_files_of_events_are_for_the_group_and_spools_for_nobody_else() -> None:
    unit = (ROOT / "systemd/conntrackd.service").read_text()
    (mask,) = re.findall(r"(?m)^UMask=(\d+)$", unit)

    assert FILE_MODE & ~int(mask, 8) == FILE_MODE == 0o640
    assert "(mode 0640, " in (ROOT / "SECURITY.md").read_text()
    assert "with mode 0640 for a log shipper" in (ROOT / "README.md").read_text()


def test_every_tool_of_the_development_environment_has_one_version() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    loose = [
        tool
        for name in ("dev", "fuzz")
        for tool in extras[name]
        if not re.fullmatch(r"[\w.-]+==[\w.]+", tool)
    ]
    assert loose == []
