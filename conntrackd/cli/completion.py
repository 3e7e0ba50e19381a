"""Parsers -> completion for bash, zsh and fish, in the files that `conntrackd.cli.render` keeps up to date.

Not `shtab`: it cannot know which flags take paths, choices or nothing, and is another dependency.
"""

import argparse
from pathlib import Path
from typing import Final

from conntrackd.cli import ctl, daemon
from conntrackd.cli.talkers import BY
from conntrackd.config.options import OPTIONS
from conntrackd.errors import UsageError
from conntrackd.render.parse import NAMES
from conntrackd.sinks import SINKS
from conntrackd.text import quote

# In the place of the sinks and sets that the running daemon has: only the shell can ask for them.
NAMED: Final = {"NAME": "\0sink\0", "SET": "\0set\0"}
ASK: Final = (
    "type conntrackctl >/dev/null 2>&1 && conntrackctl {} list 2>/dev/null | tail -n +2 | cut -d ' ' -f 1"
)
# What an option takes whose parser has no choices: it has them in a list, or with more behind them.
OWN_VALUES: Final = {"--by": BY, "--fields": tuple(NAMES), "--from": ("journal", "file:", "loki")}
LISTS: Final = ("--by", "--fields")
FILES: Final = {"bash": "{}", "fish": "{}.fish", "zsh": "_{}"}


class Context:
    """What may follow a chain of commands: words, paths, and the values of flags (None for a path)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.commands: dict[str, str] = {}
        self.choices: tuple[str, ...] = ()
        self.takes_paths = False
        self.flags: dict[str, str] = {}
        self.values: dict[str, tuple[str, ...] | None] = {}
        self.lists: set[str] = set()  # flags of which the value is several of these, with commas


def list_contexts(parser: argparse.ArgumentParser, path: str = "") -> list[Context]:
    """A parser and its sub-commands, outermost first, as completion sees them."""
    context = Context(path or parser.prog)
    contexts = [context]
    of_lists = {option.flag for option in OPTIONS if option.kind.separator == ","}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                context.commands[name] = texts.get(name, "")
                contexts += list_contexts(inner, f"{context.path} {name}")
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            values = _list_values(action)
            context.choices, context.takes_paths = (*context.choices, *(values or ())), values is None
        for flag in action.option_strings:
            context.flags[flag] = "" if action.help in {None, argparse.SUPPRESS} else str(action.help)
            if action.nargs not in {0, "?"}:
                context.values[flag] = _list_values(action)
                if context.values[flag] and (flag in LISTS or flag in of_lists):
                    context.lists.add(flag)
    return contexts


def _list_values(action: argparse.Action) -> tuple[str, ...] | None:
    if action.choices is not None:
        return tuple(map(str, action.choices))
    if action.metavar == "NAME" and (not action.option_strings or "--sink" in action.option_strings):
        return (*(kind.name for kind in SINKS), NAMED["NAME"])
    if action.metavar == "SET":
        return (NAMED["SET"],)
    for flag in action.option_strings:
        if flag in OWN_VALUES:
            return OWN_VALUES[flag]
    kinds = [option.kind for option in OPTIONS if option.flag in action.option_strings]
    is_path = kinds[0].is_path if kinds else action.type is Path or str(action.metavar) in {"FILE", "PATH"}
    return None if is_path else (kinds[0].words if kinds else ())


def _ask_by_shell(text: str, start: str = "$", quotation: str = "'") -> str:
    """With the command that asks, in the shell's own words for the output of one."""
    for mark in NAMED.values():
        question = ASK.format(mark.strip("\0")).replace("'", quotation)
        text = text.replace(mark, f"{start}({question})")
    return text


def render_completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of a program for bash, zsh or fish."""
    contexts = list_contexts(parser)
    match shell:
        case "bash":
            return _render_bash(parser.prog, contexts)
        case "zsh":
            return _render_zsh(parser.prog, contexts)
        case "fish":
            return _render_fish(parser.prog, contexts)
    raise UsageError(f"no completion for {quote(shell)}", hint="one of: bash, zsh, fish")


def _render_bash(program: str, contexts: list[Context]) -> str:
    cases = _render_cases(
        contexts,
        paths='mapfile -t COMPREPLY < <(compgen -f -- "$current")',
        words='mapfile -t COMPREPLY < <(compgen -W "{}" -- "$current")',
        begun='mapfile -t COMPREPLY < <(compgen -W "{}" -- "$current"); '
        "[[ ${{COMPREPLY-}} != *: ]] || compopt +o filenames -o nospace 2>/dev/null",
        several="compopt -o nospace 2>/dev/null; mapfile -t COMPREPLY < "
        '<(compgen -P "${{current%"${{current##*,}}"}}" -W "{}" -- "${{current##*,}}")',
        both='mapfile -t COMPREPLY < <(compgen -W "{}" -- "$current"; compgen -f -- "$current")',
    )
    body = _ask_by_shell(cases)
    name = f"_{program}"
    return f"""\
# bash completion for {program}; generated from its parser
{name}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} context={program} word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
{_render_walk(contexts)}
    done
{body}
}}
complete -o filenames -F {name} {program}
"""


def _render_zsh(program: str, contexts: list[Context]) -> str:
    cases = _render_cases(
        contexts,
        paths="_files",
        words="compadd -- {}",
        begun="compadd -S '' -- {}",
        several="compset -P '*,'; compadd -qS , -- {}",
        both="compadd -- {}; _files",
    )
    text = f"""\
#compdef {program}
# generated from the parser of {program}
local previous=${{words[CURRENT-1]}} context={program} word
for word in "${{(@)words[2,CURRENT-1]}}"; do
{_render_walk(contexts)}
done
{cases}
"""
    return _ask_by_shell(text)


def _render_walk(contexts: list[Context]) -> str:
    inner = "|".join(f'"{context.path}"' for context in contexts[1:]) or '""'
    return f'        case "$context $word" in\n            {inner}) context="$context $word";;\n        esac'


def _render_cases(
    contexts: list[Context], *, paths: str, words: str, begun: str, several: str, both: str
) -> str:
    """`begun`: words of which one has more behind its colon. A space there would have to be removed."""
    lines = ['    case "$context $previous" in']
    for context in contexts:
        for flag, values in context.values.items():
            has_more = any(value.endswith(":") for value in values or ())
            form = several if flag in context.lists else begun if has_more else words
            command = paths if values is None else form.format(" ".join(values)) if values else ":"
            lines.append(f'        "{context.path} {flag}") {command}; return;;')
    lines += ["    esac", '    case "$context" in']
    for context in contexts:
        offered = " ".join([*context.commands, *context.choices, *context.flags])
        command = (both if context.takes_paths else words).format(offered)
        lines.append(f'        "{context.path}") {command};;')
    return "\n".join([*lines, "    esac"])


def _render_fish(program: str, contexts: list[Context]) -> str:
    lines = [f"# fish completion for {program}; generated from its parser", f"complete -c {program} -f"]
    paths = [context.path for context in contexts if context.path.count(" ") == 2]
    for context in contexts:
        path = context.path.split()[1:]
        here = [f"__fish_seen_subcommand_from {word}" for word in path]
        if others := [words[1] for words in map(str.split, paths) if words[2:] == path[:1]]:
            here.append(f"not __fish_seen_subcommand_from {' '.join(others)}")  # `filter set` is not `set`
        if context.commands:
            here.append(f"not __fish_seen_subcommand_from {' '.join(context.commands)}")
        start = f"complete -c {program} -n '{'; and '.join(here) or 'true'}'"
        lines += [f"{start} -f -a {name} -d {_quote_fish(text)}" for name, text in context.commands.items()]
        if context.choices:
            lines.append(f"{start} -a '{' '.join(context.choices)}'")
        if context.takes_paths:
            lines.append(f"{start} -F")
        for flag, text in context.flags.items():
            name = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            lines.append(f"{start} {name}{_render_fish_values(context, flag)} -d {_quote_fish(text)}")
    return _ask_by_shell("\n".join(lines), "", "\\'") + "\n"


def _render_fish_values(context: Context, flag: str) -> str:
    if flag not in context.values:
        return ""
    values = context.values[flag]
    if values and flag in context.lists:
        return f""" -x -a '(__fish_complete_list , "string split , {",".join(values)}")'"""
    return " -r -F" if values is None else f" -x -a '{' '.join(values)}'" if values else " -x"


def _quote_fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'".replace("%%", "%")


def render_completions() -> dict[str, str]:
    """Paths below a folder -> what both programs are completed by, named as the shells look for them."""
    return {
        f"{shell}/{file.format(parser.prog)}": render_completion(parser, shell)
        for parser in (ctl.build_parser(), daemon.build_parser())
        for shell, file in FILES.items()
    }
