"""Runs the targets one after the other under atheris, each for FUZZ_SECONDS (60).

    python -m fuzz [TARGET]...
    python -m fuzz --merge [TARGET]...     add to the corpus what reached new code, the smallest of each

A finding is written to fuzz/build/TARGET-crash-*, and its input belongs into tests/fuzz/test_targets.py.
Inputs that reach new code are kept in fuzz/build/TARGET between runs.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fuzz.seeds import CORPUS, list_words
from fuzz.targets import TARGETS

BUILD: Final = Path(__file__).parent / "build"
SECONDS: Final = "60"
# An input that takes 5 s or 1 GiB is a finding: each is a fraction of a millisecond, and of a few megabytes.
LIMITS: Final = ("-timeout=5", "-rss_limit_mb=1024", "-max_len=4096")
# What is kept in the repository is small: the long inputs of a run reach little more.
MERGED: Final = 200
MERGED_CONFIG: Final = 24  # three parsers of libraries, with branches for nearly every byte


def main(words: Sequence[str]) -> int:
    """Exit status 1 with a finding."""
    merge = "--merge" in words
    names = [word for word in words if word != "--merge"] or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"fuzz: no target {unknown[0]}: there are {', '.join(TARGETS)}", file=sys.stderr)
        return 64
    return max(run(name, merge) for name in names)


def run(name: str, merge: bool) -> int:
    """One target in a process of its own, which libFuzzer ends."""
    found = BUILD / name
    found.mkdir(parents=True, exist_ok=True)
    options = [*LIMITS, f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1"]
    if words := list_words(name):
        dictionary = BUILD / f"{name}.dict"
        dictionary.write_text("".join(f"{quote(word)}\n" for word in words))
        options.append(f"-dict={dictionary}")
    if merge:
        options += [
            "-merge=1",
            f"-max_len={MERGED_CONFIG if name == 'config' else MERGED}",
            str(CORPUS / name),
            str(found),
        ]
    else:
        seconds = os.environ.get("FUZZ_SECONDS", SECONDS)
        options += [f"-max_total_time={seconds}", str(found), str(CORPUS / name)]
    print(f"fuzz: {name}", file=sys.stderr)
    done = subprocess.run([sys.executable, "-m", "fuzz.engine", name, *options], check=False)
    return 1 if done.returncode else 0


def quote(word: str) -> str:
    """As libFuzzer's dictionaries have it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
