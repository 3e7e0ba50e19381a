"""conntrackd: the kernel's connection events as structured records. Start reading at daemon.py."""

from typing import Final

VERSION: Final = "2.0.0"
