"""The Containerfile's steps, done in folders: to know what an image holds takes no engine for containers."""

import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.system.debian import copy, run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """A root folder, and what starts in it."""

    root: Path
    command: list[str]


def build(base: Path, folder: Path, call: Callable[[Path, str], str]) -> Stage:
    """The last stage; every FROM is the base, and `call` runs a script in a root."""
    stages: dict[str, Path] = {}
    root, command = base, list[str]()
    for word, rest in _read_steps((ROOT / "Containerfile").read_text()):
        match word:
            case "FROM":
                root, command = folder / f"stage-{len(stages)}", []
                stages[rest.partition(" AS ")[2] or str(len(stages))] = root
                copy(base, root)
            case "RUN":
                call(root, rest)
            case "COPY":
                *options, source, target = rest.split()
                _copy(
                    stages[options[0].removeprefix("--from=")] if options else None, source, root / target[1:]
                )
            case "ENTRYPOINT" | "CMD":
                command += re.findall(r'"([^"]*)"', rest)
            case _:
                raise AssertionError(f"Containerfile: {word} is not known here")
    return Stage(root, command)


def _read_steps(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def _copy(stage: Path | None, source: str, target: Path) -> None:
    if stage is not None:
        run("sh", "-c", f"cp -a {shlex.quote(str(stage / source[1:]))}/. {shlex.quote(str(target))}")
        return
    target.mkdir()
    for name in list_context():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def list_context() -> list[str]:
    """What .containerignore leaves of the tree: the last pattern that matches decides."""
    patterns = [
        line
        for line in (ROOT / ".containerignore").read_text().split("\n")
        if line and not line.startswith("#")
    ]
    # Not even looked into: a virtual environment has thousands of files.
    kept = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    files = [
        path.relative_to(ROOT)
        for name in kept
        for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
        if path.is_file()
    ]
    return sorted(str(path) for path in files if not _is_ignored(path, patterns))


def _is_ignored(path: Path, patterns: list[str]) -> bool:
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        names = [str(path), *map(str, path.parents[:-1])]
        if plain.startswith("**/"):
            names, plain = [name.rsplit("/")[-1] for name in names], plain[3:]
        if any(fnmatch(name, plain) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def measure(root: Path) -> int:
    """Bytes of all files, as they would be unpacked."""
    return int(run("du", "-sb", root).split()[0])
