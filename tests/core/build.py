"""The core's C, compiled for tests with AddressSanitizer and UndefinedBehaviorSanitizer."""

import atexit
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from fuzz.native import CORE, FUZZ, SANITIZED, STRICT, list_sources

HERE: Final = Path(__file__).parent
SANITIZERS: Final = "-fsanitize=address,undefined"
# Fills what is allocated and what was freed, so that what reads it reads nonsense.
OPTIONS: Final = "max_free_fill_size=4096:max_malloc_fill_size=4096:strict_string_checks=1"


@cache
def build_driver(name: str, *flags: str) -> Path:
    """A driver in this folder, by its name without `.c`."""
    target = _make_folder() / name
    sources = (HERE / f"{name}.c", FUZZ / "kit.c", *list_sources())
    compile_c(sources, target, *SANITIZED, SANITIZERS, f"-I{FUZZ}", *flags)
    return target


def run_driver(driver: Path, *words: str | Path, status: int = 0, leaks: bool = True) -> str:
    """What it prints; a report of a sanitizer, leaks included, fails the test."""
    done = subprocess.run(
        [driver, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=make_environment(leaks=leaks),
    )
    assert (done.returncode, done.stderr) == (status, ""), done.stderr[-8000:]
    return done.stdout


@cache
def build_module() -> Path:
    """A folder with the module `_core` under sanitizers."""
    folder = _make_folder()
    include = f"-I{sysconfig.get_paths()['include']}"
    target = folder / "_core.abi3.so"
    compile_c(sorted(CORE.glob("*.c")), target, *SANITIZED, SANITIZERS, "-fPIC", "-shared", include)
    return folder


def make_environment(*, leaks: bool) -> dict[str, str]:
    """What a sanitized program needs: nothing is inherited but the path."""
    options = f"{OPTIONS}:detect_leaks={leaks:d}"
    return {"ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1", "PATH": os.environ["PATH"]}


def list_runtimes() -> str:
    """The sanitizers' libraries, for a program that was not linked with them."""
    names = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return " ".join(names)


def compile_c(sources: Sequence[Path], target: Path, *flags: str) -> None:
    """With all warnings as errors."""
    subprocess.run(["gcc", *STRICT, f"-I{CORE}", *flags, *sources, "-o", target], check=True)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="conntrackd-core-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
