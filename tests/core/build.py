"""The core's C, compiled for tests: a driver under sanitizers."""

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CORE: Final = ROOT / "conntrackd" / "core"
HERE: Final = Path(__file__).parent
STRICT: Final = ("-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-g")
SANITIZED: Final = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLAIN: Final = (CORE / "event.c", CORE / "decide.c", CORE / "table.c")


@cache
def build_driver() -> Path:
    """tests/core/table_driver.c with AddressSanitizer and UndefinedBehaviorSanitizer."""
    target = _make_folder() / "table_driver"
    compile_c((HERE / "table_driver.c", *PLAIN), target, *SANITIZED)
    return target


def compile_c(sources: Sequence[Path], target: Path, *flags: str) -> None:
    """With all warnings as errors."""
    subprocess.run(["gcc", *STRICT, f"-I{CORE}", *flags, *sources, "-o", target], check=True)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="conntrackd-core-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
