"""Completion offers what the parser takes, in the shell itself."""

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conntrackd.cli import ctl, daemon
from conntrackd.cli.completion import list_contexts, render_completion
from conntrackd.cli.flags import add_flags
from conntrackd.config.options import OPTIONS
from conntrackd.errors import UsageError
from conntrackd.history.source import FORMS
from tests.cli.terminal import Terminal


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("conntrackd")
    commands = made.add_subparsers()
    add_flags(commands.add_parser("run", help="log events, don't stop"))
    record = commands.add_parser("record", help="write a recording")
    record.add_argument("--count", metavar="N")
    record.add_argument("--color", choices=["always", "never"], help="100%% colour")
    past = commands.add_parser("events", help="what was logged")
    past.add_argument("--from", metavar="SOURCE")
    past.add_argument("--fields", metavar="NAMES")
    deep = commands.add_parser("filter", help="rules").add_subparsers()
    deep.add_parser("show", help="show rules").add_argument("--json", action="store_true")
    deep.add_parser("test", help="try rules").add_argument("file", metavar="FILE")
    commands.add_parser("enable", help="a sink").add_argument("name", metavar="NAME")
    return made


def complete_in_fish(script: Path, words: list[str], folder: Path) -> list[str]:
    """As complete_in_bash()."""
    program = f"source '{script}'; complete -C '{' '.join(words)}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
    )
    assert done.stderr == ""
    return sorted(line.partition("\t")[0] for line in done.stdout.splitlines())


def complete_in_zsh(script: Path, words: list[str], folder: Path) -> list[str]:
    """As complete_in_bash(), with what zsh's own completion would be given."""
    program = f"""
    offer() {{
        typeset -a words=("$@"); typeset -i CURRENT=$#
        local before=
        compset() {{ before=${{words[-1]%"${{words[-1]##*,}}"}} }}
        compadd() {{ shift ${{@[(i)--]}}; print -l -- ${{(M)${{@/#/$before}}:#${{words[-1]}}*}} }}
        _files() {{ print -l -- ${{words[-1]}}*(N) }}
        source '{script}'
    }}
    offer "$@"
    """
    done = subprocess.run(
        ["zsh", "-f", "-c", program, "zsh", *words], capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


def complete_in_bash(script: Path, words: list[str], folder: Path) -> list[str]:
    """What bash offers after these words; the last one is still being typed."""
    program = f"""
    source '{script}'
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _conntrackd
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program, "bash", *words], capture_output=True, text=True, check=True, cwd=folder
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


SHELLS = {"bash": complete_in_bash, "zsh": complete_in_zsh, "fish": complete_in_fish}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], ["--help", "-h", "enable", "events", "filter", "record", "run"]),
        (["r"], ["record", "run"]),
        (["filter", ""], ["--help", "-h", "show", "test"]),
        (["filter", "test", ""], ["--help", "-h", "rules.txt"]),
        (["filter", "test", "ru"], ["rules.txt"]),
        (["enable", "lo"], ["loki"]),
        (["enable", ""], ["--help", "-h", "journal", "loki", "stream", "syslog"]),
        (["filter", "show", "--"], ["--help", "--json"]),
        (["run", "--log.level", ""], ["debug", "error", "info", "warn"]),
        (["run", "--log.level", "w"], ["warn"]),
        (["run", "--sink.stream.enable", "--bus"], ["--bus.address", "--bus.enable"]),
        (["run", "--filter_file", "ru"], ["rules.txt"]),
        (["run", "--filter", ""], []),
        (["record", "--color", ""], ["always", "never"]),
        (["record", "--count", ""], []),
        (["events", "--from", ""], ["file:", "journal", "loki"]),
        (["events", "--fields", "dp"], ["dport"]),
        (["events", "--fields", "time,src,dp"], ["time,src,dport"]),
        (["run", "--sink.stream.fields", "dp"], ["dport"]),
        (["run", "--sink.stream.fields", "time,dp"], ["time,dport"]),
    ],
)
def test_a_shell_offers_what_fits(
    shell: str, words: list[str], offered: list[str], parser: argparse.ArgumentParser, tmp_path: Path
) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "rules.txt").touch()
    script = tmp_path / "completion"
    script.write_text(render_completion(parser, shell))
    if shell == "fish" and not words[-1].startswith("-"):  # which offers flags only to who has typed a dash
        offered = [word for word in offered if not word.startswith("-")]

    assert SHELLS[shell](script, ["conntrackd", *words], folder) == offered


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("words", [["enable", "a"], ["show", "--sink", "a"]])
def test_a_shell_offers_the_sinks_that_the_daemon_has(
    shell: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    made = argparse.ArgumentParser("conntrackd")
    commands = made.add_subparsers()
    commands.add_parser("enable", help="a sink").add_argument("name", metavar="NAME")
    commands.add_parser("show", help="rules").add_argument("--sink", metavar="NAME", help="of this sink")
    script, asked = tmp_path / "completion", tmp_path / "conntrackctl"
    script.write_text(render_completion(made, shell))
    asked.write_text(
        "#!/bin/sh\nprintf 'SINK    STATE\naudit   ok\na-1     ok  axe\nstream  ok\n'; echo no >&2\n"
    )
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert SHELLS[shell](script, ["conntrackd", *words], tmp_path) == ["a-1", "audit"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_completed_in_every_shell(shell: str, parser: argparse.ArgumentParser) -> None:
    words = set(re.findall(r"[\w.]+", render_completion(parser, shell)))

    assert [option.key for option in OPTIONS if option.key not in words] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_read_its_completion(shell: str, parser: argparse.ArgumentParser) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")

    done = subprocess.run(
        [program, "-n"], input=render_completion(parser, shell), capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_commands_and_flags_keep_their_help(parser: argparse.ArgumentParser) -> None:
    contexts = {context.path: context for context in list_contexts(parser)}

    assert contexts["conntrackd"].commands == {
        "run": "log events, don't stop",
        "record": "write a recording",
        "events": "what was logged",
        "filter": "rules",
        "enable": "a sink",
    }
    assert list(contexts["conntrackd filter show"].flags) == ["-h", "--help", "--json"]
    fish = render_completion(parser, "fish")
    assert r"-a run -d 'log events, don\'t stop'" in fish
    assert "-l color -x -a 'always never' -d '100% colour'" in fish


def test_another_shell_is_reported(parser: argparse.ArgumentParser) -> None:
    with pytest.raises(UsageError, match="no completion for 'csh'"):
        render_completion(parser, "csh")


@pytest.mark.parametrize(("command", "flag"), [("run", "--conntrack.netns"), ("record", "--netns")])
def test_a_namespace_is_no_sink(command: str, flag: str) -> None:
    contexts = {context.path: context for context in list_contexts(daemon.build_parser())}

    assert contexts[f"conntrackd {command}"].values[flag] == ()


def test_the_verbs_that_look_back_offer_sources_and_names_of_fields() -> None:
    contexts = {context.path: context for context in list_contexts(ctl.build_parser())}
    events = contexts["conntrackctl events"]

    assert {"time", "src", "dport"} <= set(events.values["--fields"] or ())
    assert [word for word in events.values["--from"] or () if word not in FORMS] == []
    assert contexts["conntrackctl summary"].values["--from"] == events.values["--from"] != ()
    assert contexts["conntrackctl top"].lists == contexts["conntrackctl summary"].lists == {"--by"}


def test_bash_lets_a_path_be_typed_behind_a_colon(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(f"PS1='$ '\n{render_completion(parser, 'bash')}")

    with Terminal(["bash", "--noprofile", "--rcfile", str(script), "-i"], (80, 5)) as terminal:
        terminal.wait(lambda lines: lines[0] == "$")
        terminal.press("conntrackd events --from f\t/x")
        terminal.wait(lambda lines: lines[0].endswith("/x"))
        assert terminal.list_lines()[0] == "$ conntrackd events --from file:/x"
