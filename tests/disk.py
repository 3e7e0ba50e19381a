"""A small disk in memory, that can be filled, or be mounted read-only."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mount_disk(path: Path, size: str) -> Iterator[Path]:
    """Of so many bytes, `8m` say, at a path that does not exist yet. Needs root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
