"""The core's C, compiled for tests: a module for Python, and a driver under sanitizers."""

import atexit
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CORE: Final = ROOT / "conntrackd" / "core"
HERE: Final = Path(__file__).parent
STRICT: Final = ("-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", "-g")
SANITIZED: Final = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLAIN: Final = (CORE / "event.c", CORE / "decide.c", CORE / "table.c")


@cache
def build_extension() -> ModuleType:
    """tests/core/table_extension.c, imported."""
    target = _make_folder() / "table_extension.so"
    include = f"-I{sysconfig.get_paths()['include']}"
    sources = (HERE / "table_extension.c", *PLAIN, CORE / "table_type.c")
    compile_c(sources, target, "-O2", "-fPIC", "-shared", include)
    spec = importlib.util.spec_from_file_location("table_extension", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
