"""Protections taken out, one at a time, in a copy of the tree: the test that is about each has to fail.

python -m tests.faults.mutations [TEXT ...]     those whose description has one of the texts, or all

Exit status 1 when one survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.faults.protections import MUTATIONS, Mutation

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("conntrackd", "dbus", "tests", "bench", "fuzz", "pyproject.toml", "setup.py", "README.md")
SECONDS: Final = 180  # for one test
ALL_SECONDS: Final = 1800


def copy_tree(target: Path) -> None:
    """What the tests need, without what they leave behind."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "corpus-*"))
        else:
            shutil.copy(source, target / name)


def build_core(tree: Path) -> None:
    """The core of the copy."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=tree, capture_output=True, check=True)


def run_tests(tree: Path, *tests: str, seconds: float = SECONDS) -> "subprocess.CompletedProcess[str]":
    """What pytest says, and its exit status: 0 if all pass, 1 if one fails, others if it could not run."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": os.fspath(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=tree, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )


def survives(tree: Path, mutation: Mutation) -> bool:
    """Whether the test of a protection passes without it. The tree is as before afterwards."""
    path = tree / mutation.file
    before = path.read_text()
    assert before.count(mutation.old) == 1, f"{mutation.file}: {mutation.old}"
    is_core = mutation.file.endswith((".c", ".h"))
    path.write_text(before.replace(mutation.old, mutation.new))
    try:
        if is_core:
            build_core(tree)
        status = run_tests(tree, mutation.test).returncode
        return status != 1 and status >= 0  # a signal: what was protected is broken, and has ended the tests
    except subprocess.TimeoutExpired:  # a test that waits for what does not come any more has noticed
        return False
    finally:
        path.write_text(before)
        if is_core:
            build_core(tree)


def choose(argv: Sequence[str]) -> list[Mutation]:
    """Those that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.mutations",
        description="Take protections out, one at a time, in a copy of the tree: a test must notice each.",
    )
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="those with this in their description (default: all)"
    )
    texts = parser.parse_args(argv).texts
    for text in texts:
        if not any(text in one.what for one in MUTATIONS):
            parser.error(f"no protection has {text!r} in its description, see tests/faults/protections.py")
    return [one for one in MUTATIONS if not texts or any(text in one.what for text in texts)]


def main(argv: Sequence[str]) -> int:
    survivors, chosen = [], choose(argv)
    with tempfile.TemporaryDirectory(prefix="conntrackd-mutations-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        copy_tree(tree)
        build_core(tree)
        unchanged = run_tests(tree, *{mutation.test for mutation in chosen}, seconds=ALL_SECONDS)
        if unchanged.returncode != 0:
            print(f"{unchanged.stdout[-4000:]}\nthe tests fail in the copy of the tree as it is")
            return 1
        for mutation in chosen:
            alive = survives(tree, mutation)
            print(f"{'SURVIVES' if alive else 'caught  '}  {mutation.what} ({mutation.file})", flush=True)
            survivors += [mutation.what] if alive else []
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
